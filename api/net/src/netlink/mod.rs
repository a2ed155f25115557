//! Netlink, as far as netfilter needs it: encoding, sockets for requests, and sockets that only listen.
//!
//! Leaves out: the content of messages (`firewall`, `nflog`, `conntrack`). Links and addresses are `rtnetlink`'s.

mod listener;
mod socket;
mod wire;

pub(super) use self::listener::{Ears, Heed, Listener};
pub(super) use self::socket::{Heard, Request, Socket};
pub(super) use self::wire::{
    ACK, APPEND, Attrs, CREATE, FAMILY_HEADER, REQUEST, attribute, attributes, be32, be64, push_message,
};
