//! Notices when somebody else changes our table.
//!
//! Owns: a socket to the group by which the kernel tells of every change of nftables in the namespace. What was changed by
//! our own socket is passed over; anything else in the table `icebox`, or that something was not heard, is a reason to make
//! it good again.

use super::firewall::{FAMILY, SUBSYSTEM, TABLE};
use super::netlink::{FAMILY_HEADER, Heard, Heed, Listener, Socket, attribute};
use crate::error::Error;

/// `NFNLGRP_NFTABLES`, as a bit.
const GROUP: u32 = 1 << (7 - 1);

/// Calls `changed` when somebody other than the socket with the number `own` has changed the table.
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

/// Every message but the number of the generation begins with the name of the table.
fn is_of_the_table(heard: &Heard<'_>) -> bool {
    let name = heard.body.get(FAMILY_HEADER..).and_then(|attributes| attribute(attributes, 1));
    heard.kind >> 8 == SUBSYSTEM
        && heard.body.first() == Some(&FAMILY)
        && name.and_then(|name| name.strip_suffix(&[0])) == Some(TABLE.as_bytes())
}
