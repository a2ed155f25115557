//! An upgraded connection (a WebSocket): relays bytes both ways, until one side is done.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::watch;

/// Buffer size of one direction.
const BUFFER_BYTES: usize = 16 * 1024;
/// When one side is done, the other may continue, but not if it is silent for this long.
const LINGER: Duration = Duration::from_secs(60);

/// Copies until both sides are done. An error on one side ends the other.
pub(super) async fn copy<A, B>(a: A, b: B)
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (a_out, a_in) = tokio::io::split(a);
    let (b_out, b_in) = tokio::io::split(b);
    let (done, is_done) = watch::channel(false);
    let there = one_way(a_out, b_in, &done, is_done.clone());
    let back = one_way(b_out, a_in, &done, is_done);
    // Errors are common: most connections end by the loss of one side.
    let _ = tokio::try_join!(there, back);
}

async fn one_way<R: AsyncRead, W: AsyncWrite>(
    mut from: ReadHalf<R>,
    mut to: WriteHalf<W>,
    done: &watch::Sender<bool>,
    mut other_is_done: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = tokio::select! {
            count = from.read(&mut buffer) => count?,
            () = lingered(&mut other_is_done) => return Err(io::ErrorKind::TimedOut.into()),
        };
        if count == 0 {
            to.shutdown().await?;
            done.send_replace(true);
            return Ok(());
        }
        to.write_all(&buffer[..count]).await?;
        to.flush().await?;
    }
}

async fn lingered(other_is_done: &mut watch::Receiver<bool>) {
    if other_is_done.wait_for(|done| *done).await.is_ok() {
        tokio::time::sleep(LINGER).await;
    } else {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_direction_ends_by_itself_and_silence_after_that_ends_both() {
        let (mut client, a) = tokio::io::duplex(64);
        let (mut server, b) = tokio::io::duplex(64);
        let copying = tokio::spawn(copy(a, b));
        client.write_all(b"to the server").await.expect("written");
        client.shutdown().await.expect("half closed");
        let mut got = String::new();
        server.read_to_string(&mut got).await.expect("read to the end");
        assert_eq!(got, "to the server");
        server.write_all(b"still here").await.expect("written");
        let mut back = [0; 10];
        client.read_exact(&mut back).await.expect("read");
        assert_eq!(&back, b"still here");
        let begun = tokio::time::Instant::now();
        copying.await.expect("it ends");
        assert_eq!(begun.elapsed(), LINGER);
        assert_eq!(client.read(&mut back).await.expect("the end"), 0);
    }

    #[tokio::test]
    async fn a_lost_side_ends_the_other() {
        let (client, a) = tokio::io::duplex(64);
        let (mut server, b) = tokio::io::duplex(64);
        let copying = tokio::spawn(copy(a, b));
        drop(client);
        server.write_all(b"x").await.expect("written");
        copying.await.expect("it ends");
        let mut rest = [0; 1];
        assert_eq!(server.read(&mut rest).await.expect("the end"), 0);
    }
}
