//! Netlink: encoding, sockets for requests, and sockets that only listen. The sockets are netfilter's, but for the one of
//! links, addresses and routes (`route`).
//!
//! Leaves out: the content of messages (`firewall`, `nflog`, `conntrack`, `link`).

mod listener;
mod open;
mod route;
mod socket;
mod wire;

pub(super) use self::listener::{Ears, Heed, Listener};
pub(super) use self::route::{RouteAnswers, RouteRequest, RouteSocket};
pub(super) use self::socket::{Heard, Request, Socket};
pub(super) use self::wire::{
    ACK, APPEND, Attrs, CREATE, FAMILY_HEADER, REQUEST, attribute, attributes, be32, be64, push_message,
};
