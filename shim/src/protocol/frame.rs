//! The frame codec: an encoder of headers and an incremental decoder with a size limit.
//!
//! Invariant: the decoder holds at most one incomplete frame plus one read's worth of bytes, and refuses a frame by its
//! header alone, before any of its payload is stored.

use std::fmt;

use super::PAYLOAD_BYTES_MAX;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 5;

/// The type of a frame's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum FrameType {
    /// JSON [`Envelope`](super::Envelope) of an [`Operation`](super::Operation); the client's first frame.
    Request = 1,
    /// JSON [`Envelope`](super::Envelope) of an [`Answer`](super::Answer) or an error.
    Response = 2,
    /// JSON item of a list answer.
    Item = 3,
    /// The end of a list, or of file data. Empty.
    End = 4,
    /// Bytes of standard output (of the terminal, when there is one).
    Stdout = 16,
    /// Bytes of standard error.
    Stderr = 17,
    /// u64 little endian: the number of bytes of earlier output that are not kept.
    Dropped = 18,
    /// JSON [`Exit`](super::Exit); the init's last frame of a run.
    Exit = 19,
    /// u32 little endian: the number of further bytes of standard input that may be sent.
    Credit = 20,
    /// Bytes for standard input.
    Stdin = 32,
    /// The end of standard input. Empty.
    StdinClose = 33,
    /// JSON [`Resize`](super::Resize) of the terminal.
    Resize = 34,
    /// JSON [`SignalMessage`](super::SignalMessage).
    Signal = 35,
    /// The exit is recorded: the init may forget the run. Empty; the client's last frame, after `Exit`.
    Ack = 36,
    /// Bytes of a file.
    Data = 48,
}

impl FrameType {
    fn from_u8(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Item,
            4 => Self::End,
            16 => Self::Stdout,
            17 => Self::Stderr,
            18 => Self::Dropped,
            19 => Self::Exit,
            20 => Self::Credit,
            32 => Self::Stdin,
            33 => Self::StdinClose,
            34 => Self::Resize,
            35 => Self::Signal,
            36 => Self::Ack,
            48 => Self::Data,
            _ => return None,
        })
    }
}

/// The error for bytes that are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// The header announces more than the decoder's limit.
    TooLong {
        /// The announced length.
        bytes: u32,
        /// The limit.
        limit: usize,
    },
    /// The type byte is not known.
    UnknownType(u8),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { bytes, limit } => {
                write!(f, "a frame of {bytes} bytes, the limit is {limit}")
            }
            Self::UnknownType(byte) => write!(f, "unknown frame type {byte}"),
        }
    }
}

impl std::error::Error for FrameError {}

/// One decoded frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The type of its payload.
    pub kind: FrameType,
    /// The payload.
    pub payload: Vec<u8>,
}

/// The header of a frame with a payload of `payload_bytes`.
///
/// A payload beyond the limit cannot be framed; callers cut data and refuse messages before they come here, so the
/// length is clamped and the peer would see a broken stream, never an attacker-chosen length.
#[must_use]
pub fn header(kind: FrameType, payload_bytes: usize) -> [u8; HEADER_BYTES] {
    debug_assert!(payload_bytes <= PAYLOAD_BYTES_MAX);
    let length = u32::try_from(payload_bytes.min(PAYLOAD_BYTES_MAX)).unwrap_or(0);
    let [a, b, c, d] = length.to_le_bytes();
    [a, b, c, d, kind as u8]
}

/// Takes bytes in pieces of any size and gives whole frames.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    limit: usize,
    failed: Option<FrameError>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::with_limit(PAYLOAD_BYTES_MAX)
    }
}

impl Decoder {
    /// A decoder that refuses payloads beyond `limit` bytes.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, limit: limit.min(PAYLOAD_BYTES_MAX), failed: None }
    }

    /// Adds bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.compact();
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next whole frame, `None` when more bytes are needed. After an error the decoder gives that error for ever.
    ///
    /// # Errors
    /// The stream holds a frame that is too long or of an unknown type.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        match self.parse() {
            Ok(frame) => Ok(frame),
            Err(error) => {
                self.failed = Some(error);
                self.buffer = Vec::new();
                self.start = 0;
                Err(error)
            }
        }
    }

    /// Bytes that are held and not yet given out.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.start
    }

    fn parse(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = self.buffer.get(self.start..).unwrap_or_default();
        let Some(([a, b, c, d, kind], body)) = rest.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let bytes = u32::from_le_bytes([*a, *b, *c, *d]);
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        if length > self.limit {
            let limit = self.limit;
            return Err(FrameError::TooLong { bytes, limit });
        }
        let kind = FrameType::from_u8(*kind).ok_or(FrameError::UnknownType(*kind))?;
        let Some(payload) = body.get(..length) else {
            return Ok(None);
        };
        let payload = payload.to_vec();
        self.start += HEADER_BYTES + length;
        if self.start == self.buffer.len() {
            self.release();
        }
        Ok(Some(Frame { kind, payload }))
    }

    /// Called when all frames were given out: keeps a small buffer for the next message, frees a big one. The resident
    /// init has one decoder per connection, so a buffer that once held a large request must not stay.
    fn release(&mut self) {
        self.start = 0;
        if self.buffer.capacity() > super::DATA_BYTES_MAX {
            self.buffer = Vec::new();
        } else {
            self.buffer.clear();
        }
    }

    fn compact(&mut self) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(kind: FrameType, payload: &[u8]) -> Vec<u8> {
        let mut bytes = header(kind, payload.len()).to_vec();
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn a_frame_in_single_bytes_is_whole_at_the_last_one() {
        let bytes = encoded(FrameType::Stdin, b"hello");
        let mut decoder = Decoder::default();
        for (index, byte) in bytes.iter().enumerate() {
            assert_eq!(decoder.next_frame(), Ok(None), "before byte {index}");
            decoder.push(&[*byte]);
        }
        let frame = decoder.next_frame().unwrap().unwrap();
        assert_eq!((frame.kind, frame.payload.as_slice()), (FrameType::Stdin, b"hello".as_slice()));
        assert_eq!(decoder.pending(), 0);
    }

    #[test]
    fn a_frame_beyond_the_limit_is_refused_by_its_header() {
        let mut decoder = Decoder::default();
        let length = u32::try_from(PAYLOAD_BYTES_MAX).unwrap() + 1;
        decoder.push(&length.to_le_bytes());
        decoder.push(&[FrameType::Stdin as u8]);
        let refused = decoder.next_frame();
        assert!(matches!(refused, Err(FrameError::TooLong { bytes, .. }) if bytes == length));
        decoder.push(&vec![0; 4096]);
        assert_eq!(decoder.pending(), 0, "a failed decoder stores nothing");
        assert_eq!(decoder.next_frame(), refused);
    }

    #[test]
    fn a_decoder_with_a_smaller_limit_uses_that() {
        let mut decoder = Decoder::with_limit(8);
        decoder.push(&encoded(FrameType::Stdin, b"12345678"));
        assert!(decoder.next_frame().unwrap().is_some());
        decoder.push(&encoded(FrameType::Stdin, b"123456789"));
        assert!(decoder.next_frame().is_err());
    }

    #[test]
    fn an_unknown_type_is_refused() {
        let mut decoder = Decoder::default();
        decoder.push(&[0, 0, 0, 0, 200]);
        assert_eq!(decoder.next_frame(), Err(FrameError::UnknownType(200)));
    }

    #[test]
    fn a_big_buffer_is_given_back() {
        let mut decoder = Decoder::default();
        decoder.push(&encoded(FrameType::Request, &vec![b'x'; PAYLOAD_BYTES_MAX]));
        assert!(decoder.next_frame().unwrap().is_some());
        assert_eq!(decoder.buffer.capacity(), 0);
    }

    fn any_kind() -> impl Strategy<Value = FrameType> {
        prop::sample::select(vec![
            FrameType::Request,
            FrameType::Response,
            FrameType::Stdout,
            FrameType::Exit,
            FrameType::Stdin,
            FrameType::Data,
        ])
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(
            frames in prop::collection::vec((any_kind(), prop::collection::vec(any::<u8>(), 0..300)), 0..8),
            cuts in prop::collection::vec(1usize..40, 1..60),
        ) {
            let stream: Vec<u8> = frames.iter().flat_map(|(kind, payload)| encoded(*kind, payload)).collect();
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            let mut rest = stream.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (head, tail) = rest.split_at((*cut).min(rest.len()));
                decoder.push(head);
                rest = tail;
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push((frame.kind, frame.payload));
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert_eq!(decoder.pending(), 0);
        }

        #[test]
        fn random_bytes_never_panic_and_never_pile_up(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..64),
            limit in 0usize..128,
        ) {
            let mut decoder = Decoder::with_limit(limit);
            for piece in &pieces {
                decoder.push(piece);
                while let Ok(Some(frame)) = decoder.next_frame() {
                    prop_assert!(frame.payload.len() <= limit);
                }
                prop_assert!(decoder.pending() <= limit + HEADER_BYTES + piece.len());
            }
        }
    }
}
