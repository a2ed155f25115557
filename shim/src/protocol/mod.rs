//! The control protocol between a box's resident init and the host.
//!
//! One connection carries one operation. The client sends one `Request` frame, the init answers with one `Response`
//! frame, and depending on the operation data frames follow in both directions. After the exit of a run the client may
//! answer with `Ack` when it has recorded it; a run without it is kept for a later client. A frame is
//!
//! ```text
//! u32 little endian: length of the payload (at most PAYLOAD_BYTES_MAX)
//! u8: type
//! payload
//! ```
//!
//! Control payloads are JSON; the first frame in each direction carries the protocol's version. Data payloads are raw.
//! Owns: the codec and the messages. Leaves out: sockets, and what the operations do.
//!
//! Both sides treat what they read as hostile: the box may have taken over its init, and the init serves boxes' users
//! on its sudo socket. Nothing here allocates more than the limits below, and nothing panics on any input.

mod frame;
mod message;

pub use frame::{Decoder, Frame, FrameError, FrameType, HEADER_BYTES, header};
pub use message::{
    Answer, Entry, EntryKind, Envelope, ExecRequest, Exit, ExitStatus, FileEntry, FileStat, Hello, Operation, Resize,
    RunStatus, Scope, SignalMessage, Started, Winsize, WireError, decode, encode,
};

/// The version in the first frame of each direction. A peer that speaks another one is refused.
pub const VERSION: u32 = 1;
/// The longest payload of one frame.
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;
/// Output and file data are cut into frames of at most this size.
pub const DATA_BYTES_MAX: usize = 64 * 1024;
/// Most bytes of standard input in flight to a run: a client sends no more than its credit from the init.
pub const STDIN_WINDOW_BYTES: usize = 64 * 1024;
/// Bytes of each output stream kept for a later attach.
pub const TAIL_BYTES: usize = 64 * 1024;
/// The name of the control socket in a box's run directory.
pub const CONTROL_SOCKET: &str = "ctl.sock";
/// The most file descriptors that one request may carry (the leaf, and `tasks` files of v1 hierarchies).
pub const REQUEST_FDS_MAX: usize = 16;
