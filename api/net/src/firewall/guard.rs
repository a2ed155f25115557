//! That nobody else changes the table.
//!
//! A table with an owner (Linux 5.12) takes changes from the socket that has made it, and no others: `nft flush ruleset`
//! passes it over, everything else fails. Such a table ends with its socket, though, which would open boxes when this
//! process ends. So it must also persist (Linux 6.9): then it stays without an owner, anybody may change it, and whoever
//! asks for it next owns it. firewalld does the same.
//!
//! Only whoever may administer the namespace could change the table at all. This keeps out accidents, not enemies.

use rustix::io::Errno;

use super::batch::{Batch, Socket, Verb};
use crate::error::{Cause, Error};
use crate::netlink::{Attrs, CREATE};

/// `NFT_TABLE_F_OWNER`
const OWNER: u32 = 0x2;
/// `NFT_TABLE_F_PERSIST`
const PERSIST: u32 = 0x4;
/// A table that nobody ever sees.
const PROBE: &str = "icebox-probe";

/// The flags of a table that only `socket` can change and that outlives it; none if the kernel has none such. The kernel
/// is asked by a transaction that makes a table and removes it again.
pub(super) fn flags(socket: &mut Socket) -> Result<u32, Error> {
    let mut batch = Batch::default();
    batch.push(Verb::NewTable, CREATE, Attrs::new().text(1, PROBE).be32(2, OWNER | PERSIST));
    batch.push(Verb::DeleteTable, 0, Attrs::new().text(1, PROBE));
    match socket.commit("look for tables that have an owner", "", &batch) {
        Ok(()) => Ok(OWNER | PERSIST),
        Err(e) if is_unknown(&e) => Ok(0),
        Err(e) => Err(e),
    }
}

/// How kernels say that they don't know a flag.
fn is_unknown(error: &Error) -> bool {
    let unknown = [Errno::OPNOTSUPP, Errno::INVAL].map(|e| Some(e.raw_os_error()));
    matches!(error.cause(), Cause::Io(e) if unknown.contains(&e.raw_os_error()))
}
