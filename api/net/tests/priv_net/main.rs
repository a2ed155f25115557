//! The network of boxes against the kernel, in a world of network namespaces of its own. Needs root, and `nft`,
//! which reports what the kernel has independently of the code under test. Nothing touches the machine's own network or sends a packet out of this world.

mod packet;
mod priv_blocked;
mod priv_dns;
mod priv_egress;
mod priv_golden;
mod priv_guarded;
mod priv_life;
mod priv_policy;
mod priv_rate;
mod priv_redirect;
mod priv_told;
mod priv_track;
mod priv_wake;
mod world;
