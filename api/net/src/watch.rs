//! Detects foreign changes of our table.
//!
//! Owns: a socket to the multicast group of nftables changes in the namespace. Changes by our own socket are ignored.
//! Any other change of the table `icebox`, or a lost notification, triggers a repair.

use super::firewall::{FAMILY, SUBSYSTEM, TABLE};
use super::netlink::{FAMILY_HEADER, Heard, Heed, Listener, Socket, attribute};
use crate::error::Error;

/// `NFNLGRP_NFTABLES`, as a bit.
const GROUP: u32 = 1 << (7 - 1);

/// Calls `changed` when a socket other than the one with port id `own` has changed the table.
pub(super) fn listener(own: u32, changed: impl Fn() + Send + 'static) -> Result<Listener, Error> {
    let socket = Socket::open_in_groups("netlink socket for changes of nftables", GROUP)?;
    Listener::new(socket, move |heed| {
        let is_ours = match heed {
            Heed::Message(heard) => heard.port == own || !is_of_the_table(&heard),
            Heed::Lost => false,
        };
        if !is_ours {
            changed();
        }
    })
}

/// Every message except that of the generation number begins with the table's name.
fn is_of_the_table(heard: &Heard<'_>) -> bool {
    let name = heard.body.get(FAMILY_HEADER..).and_then(|attributes| attribute(attributes, 1));
    heard.kind >> 8 == SUBSYSTEM
        && heard.body.first() == Some(&FAMILY)
        && name.and_then(|name| name.strip_suffix(&[0])) == Some(TABLE.as_bytes())
}
