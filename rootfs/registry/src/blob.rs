//! Fetching a blob: into a file, with its digest computed on the way, from where it broke off and from another place if one
//! fails.

use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{Method, StatusCode};
use oci_spec::image::Descriptor;
use sha2::{Digest as _, Sha256};

use crate::answer::Answer;
use crate::endpoint::{Access, Endpoint};
use crate::error::{Cause, refuse};
use crate::exchange::Payload;

/// A transfer that moves less than this in the time of a stall counts as broken.
const STALL_BYTES_MIN: u64 = 64 * 1024;
/// After this much the number of attempts is counted anew: a large blob on a bad line needs more of them.
const PROGRESS_BYTES: u64 = 4 << 20;

/// A file that is being filled.
struct Sink {
    file: Option<std::fs::File>,
    hash: Sha256,
    done: u64,
}

/// Fetches a blob into a new file. `tell` hears how many bytes are there.
pub(crate) async fn fetch(
    places: &[Endpoint],
    first: usize,
    blob: &Descriptor,
    path: &Path,
    tell: &(dyn Fn(u64) + Send + Sync),
) -> Result<usize, Cause> {
    let mut sink = Sink::new(path)?;
    let mut last = None;
    let order = (0..places.len()).map(|step| (first + step) % places.len());
    for number in order {
        match from(&places[number], blob, &mut sink, tell).await {
            Ok(()) => return Ok(number),
            // What is wrong with this machine is wrong for all places.
            Err(Cause::Io(cause)) => return Err(Cause::Io(cause)),
            Err(cause) => {
                tracing::info!(place = places[number].name(), %cause, blob = %blob.digest(), "a blob is not got from here");
                // The failure of the place that had the manifest tells more than that of its substitutes.
                last.get_or_insert(cause);
            }
        }
    }
    Err(last.unwrap_or_else(|| Cause::NotFound("there is no place to fetch it from".to_owned())))
}

async fn from(
    place: &Endpoint,
    blob: &Descriptor,
    sink: &mut Sink,
    tell: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), Cause> {
    let what = format!("blobs/{}", blob.digest());
    let mut attempt = 1;
    let mut counted_from = sink.done;
    loop {
        let ranges: Vec<_> = (sink.done > 0 && sink.done < blob.size())
            .then(|| HeaderValue::from_str(&format!("bytes={}-", sink.done)).ok())
            .flatten()
            .map(|value| (header::RANGE, value))
            .into_iter()
            .collect();
        let answer = place.ask(Method::GET, &what, &ranges, Payload::Empty, Access::Pull).await?;
        let expected = [StatusCode::OK, StatusCode::PARTIAL_CONTENT];
        let answer = answer.expect(&expected, place.dialer().timing.answer).await?;
        match receive(place, answer, blob, sink, tell).await {
            Ok(()) => return sink.check(blob),
            Err(Cause::Unavailable(why)) => {
                if sink.done - counted_from.min(sink.done) >= PROGRESS_BYTES {
                    (attempt, counted_from) = (1, sink.done);
                }
                place.pause(&mut attempt, Cause::Unavailable(why), None).await?;
            }
            Err(other) => return Err(other),
        }
    }
}

/// Writes one answer to the file.
async fn receive(
    place: &Endpoint,
    mut answer: Answer,
    blob: &Descriptor,
    sink: &mut Sink,
    tell: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), Cause> {
    let size = blob.size();
    let from = match answer.status {
        StatusCode::PARTIAL_CONTENT => start_of(&answer),
        _ => Some(0),
    };
    // A server that ignores the range sends what is here already once more.
    let Some(mut skip) = from.and_then(|from| sink.done.checked_sub(from)) else {
        refuse!("{} answers with another range than the one that it was asked for", place.name());
    };
    if let Some(length) = answer.length()
        && length != size - (sink.done - skip)
    {
        refuse!("the blob {} should have {size} bytes, and {} announces {length}", blob.digest(), place.name());
    }
    let stall = place.dialer().timing.stall;
    let (mut since, mut moved) = (Instant::now(), 0);
    while let Some(piece) = answer.piece(stall).await? {
        moved += piece.len() as u64;
        if since.elapsed() >= stall {
            if moved < STALL_BYTES_MIN {
                return Err(Cause::Unavailable(format!("{} sends too slowly", place.name())));
            }
            (since, moved) = (Instant::now(), 0);
        }
        let passed = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
        skip -= passed as u64;
        let piece = piece.slice(passed..);
        if piece.len() as u64 > size - sink.done {
            refuse!("{} sends more than the {size} bytes of the blob {}", place.name(), blob.digest());
        }
        sink.write(piece).await?;
        tell(sink.done);
    }
    if sink.done < size {
        return Err(Cause::Unavailable(format!("{} sends {} of {size} bytes", place.name(), sink.done)));
    }
    Ok(())
}

/// Where the range of an answer begins.
fn start_of(answer: &Answer) -> Option<u64> {
    let range = answer.header(header::CONTENT_RANGE)?.strip_prefix("bytes ")?;
    range.split('-').next()?.trim().parse().ok()
}

impl Sink {
    fn new(path: &Path) -> Result<Self, Cause> {
        Ok(Self { file: Some(std::fs::File::create_new(path)?), hash: Sha256::new(), done: 0 })
    }

    async fn write(&mut self, piece: Bytes) -> Result<(), Cause> {
        let lost = || std::io::Error::other("an earlier write was given up");
        let mut file = self.file.take().ok_or_else(lost)?;
        let mut hash = std::mem::take(&mut self.hash);
        let length = piece.len() as u64;
        let written = tokio::task::spawn_blocking(move || {
            hash.update(&piece);
            file.write_all(&piece).map(|()| (file, hash))
        });
        let (file, hash) = written.await.map_err(std::io::Error::other)??;
        (self.file, self.hash) = (Some(file), hash);
        self.done += length;
        Ok(())
    }

    /// Compares what came with what was asked for. What is wrong is thrown away, for the next place.
    fn check(&mut self, blob: &Descriptor) -> Result<(), Cause> {
        let found = format!("{:x}", std::mem::take(&mut self.hash).finalize());
        if found == blob.digest().digest() {
            return Ok(());
        }
        if let Some(file) = &mut self.file {
            file.set_len(0)?;
            std::io::Seek::rewind(file)?;
        }
        self.done = 0;
        refuse!("the blob {} is not what it claims: it is sha256:{found}", blob.digest())
    }
}
