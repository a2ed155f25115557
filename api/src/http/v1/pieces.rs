//! The way from a thread that writes to a body.

use axum::body::Bytes;
use tokio::sync::mpsc;

/// Pieces of an archive on their way between a client and a thread.
pub(super) const PIECES_MAX: usize = 8;

/// Hands what is written to a body. Writing waits for the client, in a thread of its own.
pub(super) struct Pieces(pub(super) mpsc::Sender<std::io::Result<Bytes>>);

impl std::io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let gone = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes))).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
