//! From the bytes of a blob to those of its tar archive: decompression, digests of both, and the bounds of a bomb.
//!
//! This runs on a thread of its own, beside the one that writes files.

use std::io::{self, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::FrameDecoder;
use sha2::{Digest as _, Sha256};

use super::fault::{Fault, Reason};
use super::limits::Limits;
use crate::digest::hex;

/// Bytes that pass between the threads at once, and the number of such pieces in flight.
const PIECE_BYTES: usize = 256 * 1024;
const PIECES: usize = 4;
const INPUT_BYTES: usize = 128 * 1024;

/// What went through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Passed {
    /// Hexadecimal SHA-256 of the blob as it came, and its bytes.
    pub(crate) blob: String,
    pub(crate) blob_bytes: u64,
    /// The same of the tar archive in it.
    pub(crate) diff_id: String,
    pub(crate) bytes: u64,
}

/// The reading end, on the thread that unpacks.
pub(crate) struct Pieces {
    from: Receiver<Result<Vec<u8>, Fault>>,
    piece: Vec<u8>,
    at: usize,
    fault: Option<Fault>,
}

/// Reads `blob` to its end on a thread of `scope`. The handle gives the digests.
pub(crate) fn spawn<'scope, R: Read + Send + 'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    blob: R,
    limits: Limits,
) -> (Pieces, std::thread::ScopedJoinHandle<'scope, Option<Passed>>) {
    let (to, from) = sync_channel(PIECES);
    let handle = scope.spawn(move || match pump(blob, limits, &to) {
        Ok(passed) => passed,
        Err(fault) => {
            // The receiver may have given up; then its own fault counts.
            let _ = to.send(Err(fault));
            None
        }
    });
    (Pieces { from, piece: Vec::new(), at: 0, fault: None }, handle)
}

impl Pieces {
    /// The fault of the other thread, if that is why reading failed.
    pub(crate) fn take_fault(&mut self) -> Option<Fault> {
        self.fault.take()
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            match self.from.recv() {
                Ok(Ok(piece)) => (self.piece, self.at) = (piece, 0),
                Ok(Err(fault)) => {
                    self.fault = Some(fault);
                    return Err(io::Error::other("reading the blob failed"));
                }
                Err(_) => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len() - self.at);
        buffer[..length].copy_from_slice(&self.piece[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

/// `None` if the receiver has gone away.
fn pump<R: Read>(blob: R, limits: Limits, to: &SyncSender<Result<Vec<u8>, Fault>>) -> Result<Option<Passed>, Fault> {
    let mut tar = Decoder::new(Hashed { inner: blob, hash: Sha256::new(), bytes: 0 })?;
    let mut hash = Sha256::new();
    let mut bytes = 0_u64;
    loop {
        let mut piece = vec![0; PIECE_BYTES];
        let mut filled = 0;
        while filled < PIECE_BYTES {
            match tar.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(tar.explain(error)),
            }
        }
        if filled == 0 {
            break;
        }
        piece.truncate(filled);
        hash.update(&piece);
        bytes += filled as u64;
        let came = tar.source().bytes;
        if bytes > limits.bytes {
            return Err(Fault::refused(format!("the archive has more than {} bytes", limits.bytes)));
        }
        if bytes > limits.ratio_from && bytes / limits.ratio > came {
            return Err(Fault::refused(format!("the archive expands to more than {} times its size", limits.ratio)));
        }
        if to.send(Ok(piece)).is_err() {
            return Ok(None);
        }
    }
    // What the decoder has not looked at is part of the blob all the same.
    let source = tar.into_source().map_err(Fault::reading)?;
    Ok(Some(Passed {
        blob: hex(&source.hash.finalize()),
        blob_bytes: source.bytes,
        diff_id: hex(&hash.finalize()),
        bytes,
    }))
}

/// Whether a file begins as compressed data does. Its position is moved.
pub(crate) fn is_compressed(file: &mut (impl Read + io::Seek)) -> Result<bool, Fault> {
    file.rewind()?;
    let decoder = Decoder::new(Hashed { inner: &mut *file, hash: Sha256::new(), bytes: 0 })?;
    let compressed = !matches!(decoder, Decoder::Plain(_));
    file.rewind()?;
    Ok(compressed)
}

/// Decompresses a file within the bounds of an archive.
pub(crate) fn inflate(blob: impl Read + Send, output: &mut impl io::Write, limits: Limits) -> Result<(), Fault> {
    std::thread::scope(|scope| {
        let (mut pieces, pump) = spawn(scope, blob, limits);
        let copied = io::copy(&mut pieces, output);
        let fault = pieces.take_fault();
        drop(pieces);
        let ended = pump.join().is_ok_and(|passed| passed.is_some());
        match (fault, copied) {
            (Some(fault), _) => Err(fault),
            (None, Err(error)) => Err(error.into()),
            (None, Ok(_)) if ended => Ok(()),
            (None, Ok(_)) => Err(io::Error::other("the blob was not read to its end").into()),
        }
    })
}

/// Counts and hashes what is read through it.
struct Hashed<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.hash.update(&buffer[..got]);
        self.bytes += got as u64;
        Ok(got)
    }
}

type Source<R> = BufReader<Hashed<R>>;

/// The decoder that the first bytes ask for. Names and media types are not asked: they are wrong too often.
enum Decoder<R: Read> {
    Plain(Source<R>),
    Gzip(Box<MultiGzDecoder<Source<R>>>),
    Zstd(Box<Zstd<R>>),
}

/// All frames of a zstd stream; ruzstd's own reader stops after one.
struct Zstd<R: Read> {
    source: Source<R>,
    frame: FrameDecoder,
    in_frame: bool,
}

/// Largest window that a frame may ask for: what zstd's own tool allows without being told otherwise.
const ZSTD_WINDOW_BYTES_MAX: u64 = 128 << 20;

impl<R: Read> Decoder<R> {
    fn new(blob: Hashed<R>) -> Result<Self, Fault> {
        use io::BufRead as _;
        let mut source = BufReader::with_capacity(INPUT_BYTES, blob);
        let start = source.fill_buf().map_err(Fault::reading)?;
        let name = match start {
            [0x1f, 0x8b, ..] => return Ok(Self::Gzip(Box::new(MultiGzDecoder::new(source)))),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                let mut frame = FrameDecoder::new();
                frame.set_max_window_size(ZSTD_WINDOW_BYTES_MAX);
                return Ok(Self::Zstd(Box::new(Zstd { source, frame, in_frame: false })));
            }
            [b'B', b'Z', b'h', ..] => "bzip2",
            [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
            _ => return Ok(Self::Plain(source)),
        };
        Err(Fault::refused(format!("it is compressed with {name}; compress it with gzip or zstd, or not at all")))
    }

    fn source(&self) -> &Hashed<R> {
        match self {
            Self::Plain(source) => source.get_ref(),
            Self::Gzip(decoder) => decoder.get_ref().get_ref(),
            Self::Zstd(zstd) => zstd.source.get_ref(),
        }
    }

    fn into_source(self) -> io::Result<Hashed<R>> {
        let mut source = match self {
            Self::Plain(source) => source,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(zstd) => zstd.source,
        };
        io::copy(&mut source, &mut io::sink())?;
        Ok(source.into_inner())
    }

    /// What a failed read means: compressed data that is damaged or cut off is the archive's fault.
    fn explain(&self, error: io::Error) -> Fault {
        match (self, error.kind()) {
            (Self::Plain(_), _) => Fault::reading(error),
            (_, io::ErrorKind::UnexpectedEof) => Fault::refused("the compressed data is truncated"),
            (_, io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) => {
                Fault::refused(format!("the compressed data is damaged: {error}"))
            }
            _ => Fault { entry: None, reason: Reason::Io(error) },
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(source) => source.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(zstd) => zstd.read(buffer),
        }
    }
}

impl<R: Read> Zstd<R> {
    /// Begins the next frame; `false` at the end of the stream.
    fn begin(&mut self) -> io::Result<bool> {
        use io::BufRead as _;
        use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.frame.reset(&mut self.source) {
                Ok(()) => break,
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let skipped = io::copy(&mut self.source.by_ref().take(length.into()), &mut io::sink())?;
                    if skipped != u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(damaged(&error)),
            }
        }
        self.in_frame = true;
        Ok(true)
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use ruzstd::decoding::BlockDecodingStrategy::UptoBlocks;
        loop {
            if self.in_frame && self.frame.is_finished() && self.frame.can_collect() == 0 {
                self.in_frame = false;
            }
            if !self.in_frame && !self.begin()? {
                return Ok(0);
            }
            while self.frame.can_collect() == 0 && !self.frame.is_finished() {
                self.frame.decode_blocks(&mut self.source, UptoBlocks(1)).map_err(|error| damaged(&error))?;
            }
            let got = self.frame.read(buffer)?;
            if got > 0 {
                return Ok(got);
            }
        }
    }
}

/// The decoder's own error. Its causes are failures to read, too: those of the source keep their kind.
fn damaged(error: &ruzstd::decoding::errors::FrameDecoderError) -> io::Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(known) = cause {
        if let Some(io) = known.downcast_ref::<io::Error>() {
            return io::Error::new(io.kind(), io.to_string());
        }
        cause = known.source();
    }
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}
