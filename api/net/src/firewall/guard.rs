//! Table ownership: protects the table from changes by other programs.
//!
//! A table with an owner (Linux 5.12) accepts changes only from the socket that made it: `nft flush ruleset` skips it,
//! all other changes fail. Such a table ends with its socket, though, which would open boxes when this process ends. So
//! it must also persist (Linux 6.9): then it stays without an owner, any program may change it, and the next one to
//! claim it owns it. firewalld does the same.
//!
//! Changing the table needs `CAP_NET_ADMIN` in the namespace anyway. This keeps out accidents, not enemies.

use rustix::io::Errno;

use super::batch::{Batch, Socket, Verb};
use super::nfta::table;
use crate::error::{Cause, Error};
use crate::netlink::{Attrs, CREATE};

/// A table that is removed in the transaction that makes it.
const PROBE: &str = "icebox-probe";

/// The flags of a table that only `socket` can change and that outlives it; none if the kernel lacks them. The kernel
/// is probed by a transaction that makes a table and removes it again.
pub(super) fn flags(socket: &mut Socket) -> Result<u32, Error> {
    let mut batch = Batch::default();
    batch.push(
        Verb::NewTable,
        CREATE,
        Attrs::new().text(table::NAME, PROBE).be32(table::FLAGS, table::F_OWNER | table::F_PERSIST),
    );
    batch.push(Verb::DeleteTable, 0, Attrs::new().text(table::NAME, PROBE));
    match socket.commit("look for tables that have an owner", "", &batch) {
        Ok(()) => Ok(table::F_OWNER | table::F_PERSIST),
        Err(e) if is_unknown(&e) => Ok(0),
        Err(e) => Err(e),
    }
}

/// True for the errors of kernels that do not know a flag.
fn is_unknown(error: &Error) -> bool {
    let unknown = [Errno::OPNOTSUPP, Errno::INVAL].map(|e| Some(e.raw_os_error()));
    matches!(error.cause(), Cause::Io(e) if unknown.contains(&e.raw_os_error()))
}
