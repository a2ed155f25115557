//! The network of boxes: addresses, links and firewall, on the host's side, and the proxies.
//!
//! [`Network`] is the whole. [`HostSide`] is the part without the proxies: it performs the multi-step operations of a
//! box in order, in the namespace of the host side: the machine's own, or the one that `--netns` names.

pub mod address;
pub mod authority;
mod cidr;
mod clock;
pub mod config;
pub mod conntrack;
pub mod denial;
mod devconf;
pub mod dns;
pub mod egress;
pub mod error;
pub mod fetch;
pub mod firewall;
pub mod forward;
pub mod headers;
pub mod hop_by_hop;
mod host;
mod leaving;
pub mod link;
mod names;
pub mod namespace;
mod netlink;
mod network;
pub mod nflog;
mod own_address;
pub mod policy;
pub mod probe;
pub mod secret;
pub mod sockets;
mod sysctl;
pub mod table;
mod watch;

pub use self::host::{Attachment, HostConfig, HostSide, Swept};
pub use self::network::{Network, NetworkParts, OnRefusal, Report, Rights};
