//! Parses a box's question, strictly.
//!
//! Owns: parsing untrusted bytes into one question, or into the error they get. Pure.
//!
//! Invariants: only the question itself is taken from a box. The upstream message is written anew, so no option, flag
//! or padding of a box leaves with it.

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder};

use crate::policy::normalized;

/// Longest question: a name of 255 bytes, and EDNS options, which are ignored.
pub(super) const QUESTION_BYTES_MAX: usize = 1024;
const HEADER_BYTES: usize = 12;
/// Longest text of a name that is no host name.
const NAME_TEXT_CHARS_MAX: usize = 255;

#[derive(Debug, Clone)]
pub(super) struct Question {
    /// The identifier, which the answer repeats.
    pub(super) id: u16,
    /// The name as written, with its case, which the answer repeats.
    pub(super) name: Name,
    /// The record type.
    pub(super) kind: RecordType,
    /// Flags that the answer repeats.
    pub(super) recursion_desired: bool,
    /// The longest datagram, in bytes, that the box accepts, if it said so (EDNS).
    pub(super) payload: Option<u16>,
}

/// The result of parsing a message.
#[derive(Debug)]
pub(super) enum Read {
    /// A question.
    Question(Question),
    /// A message that gets an immediate error.
    Wrong(Vec<u8>),
    /// A message without an answer: answering answers could loop for ever.
    Nothing,
}

/// Parses a message of a box.
pub(super) fn read(bytes: &[u8]) -> Read {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Read::Nothing };
    let is_response = header[2] & 0x80 != 0;
    if is_response {
        return Read::Nothing;
    }
    let wrong = |code| Read::Wrong(bare(header, code));
    let op_code = (header[2] >> 3) & 0x0f;
    if op_code != u8::from(OpCode::Query) {
        return wrong(ResponseCode::Refused);
    }
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let counts_are_good = count(4) == 1 && count(6) == 0 && count(8) == 0 && count(10) <= 1;
    if bytes.len() > QUESTION_BYTES_MAX || !counts_are_good || !is_plain(&bytes[HEADER_BYTES..]) {
        return wrong(ResponseCode::FormErr);
    }
    let mut decoder = BinDecoder::new(bytes);
    let Ok(message) = Message::read(&mut decoder) else { return wrong(ResponseCode::FormErr) };
    // The only additional record is OPT; a signature is for a server that has the key.
    let is_whole = decoder.is_empty() && message.additionals.is_empty() && message.signature.is_none();
    let ([query], true) = (message.queries.as_slice(), is_whole) else { return wrong(ResponseCode::FormErr) };
    if query.query_class() != DNSClass::IN {
        return wrong(ResponseCode::Refused);
    }
    if message.version() > 0 {
        // The only defined answer to an unknown EDNS version.
        return wrong(ResponseCode::FormErr);
    }
    Read::Question(Question {
        id: message.id,
        name: query.name().clone(),
        kind: query.query_type(),
        recursion_desired: message.recursion_desired,
        payload: message.edns.as_ref().map(|edns| edns.max_payload()),
    })
}

/// An error for a message whose question could not be parsed: a header only.
fn bare(header: &[u8; HEADER_BYTES], code: ResponseCode) -> Vec<u8> {
    // A response with the same opcode and RD flag.
    let flags = 0x80 | (header[2] & 0x79);
    vec![header[0], header[1], flags, code.low(), 0, 0, 0, 0, 0, 0, 0, 0]
}

/// True if a question begins with a name written out. A compression pointer has no valid target there.
fn is_plain(mut rest: &[u8]) -> bool {
    const LABEL_BYTES_MAX: usize = 63;
    loop {
        match rest.split_first() {
            Some((0, _)) => return true,
            Some((length, tail)) if usize::from(*length) <= LABEL_BYTES_MAX => match tail.get(usize::from(*length)..) {
                Some(tail) => rest = tail,
                None => return false,
            },
            _ => return false,
        }
    }
}

/// The normal form of a host name. A dot inside a label, as in `a\.example.com`, disqualifies a name: its text form
/// would equal another name's.
pub(super) fn host_name(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name {
        if label.contains(&b'.') {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(std::str::from_utf8(label).ok()?);
    }
    normalized(&text)
}

/// A readable form of any name.
pub(super) fn readable(name: &Name) -> String {
    host_name(name).unwrap_or_else(|| {
        let text = name.to_ascii();
        text.chars().filter(|c| c.is_ascii_graphic()).take(NAME_TEXT_CHARS_MAX).collect()
    })
}

/// Types that ask for a zone or for any record, or that belong to the transport (RFC 6895, 3.1).
pub(super) fn is_meta(kind: RecordType) -> bool {
    matches!(u16::from(kind), 0 | 41 | 128..=255)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Edns, MessageType, Query};
    use proptest::prelude::*;

    use super::*;

    fn question(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).expect(name), kind));
        message
    }

    fn bytes(message: &Message) -> Vec<u8> {
        message.to_vec().expect("a message")
    }

    fn code(read: Read) -> u8 {
        let Read::Wrong(reply) = read else { panic!("{read:?} is not an error") };
        assert_eq!(reply.len(), HEADER_BYTES, "no longer than what was asked");
        reply[3] & 0x0f
    }

    #[test]
    fn a_question_is_read() {
        let mut message = question("Www.EXAMPLE.com.", RecordType::A);
        let Read::Question(read) = read(&bytes(&message)) else { panic!("not read") };
        assert_eq!((read.id, read.kind, read.recursion_desired, read.payload), (7, RecordType::A, true, None));
        assert_eq!(read.name.to_ascii(), "Www.EXAMPLE.com.");
        assert_eq!(host_name(&read.name).as_deref(), Some("www.example.com"));
        let mut edns = Edns::new();
        edns.set_max_payload(1400).set_version(0);
        message.set_edns(edns);
        let Read::Question(read) = super::read(&bytes(&message)) else { panic!("not read") };
        assert_eq!(read.payload, Some(1400));
    }

    #[test]
    fn what_is_not_one_question_is_refused_or_ignored() {
        let good = bytes(&question("a.example.", RecordType::A));
        assert!(matches!(read(&good), Read::Question(_)));
        assert!(matches!(read(&good[..11]), Read::Nothing), "no header");
        let mut response = good.clone();
        response[2] |= 0x80;
        assert!(matches!(read(&response), Read::Nothing), "an answer");
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            code(read(&bytes))
        };
        assert_eq!(with(&|b| b[2] |= 5 << 3), 5, "an update");
        assert_eq!(with(&|b| b[5] = 2), 1, "two questions");
        assert_eq!(with(&|b| b[5] = 0), 1, "none");
        assert_eq!(with(&|b| b[7] = 1), 1, "an answer in a question");
        assert_eq!(with(&|b| b[11] = 1), 1, "a record that is not there");
        assert_eq!(with(&|b| b.push(0)), 1, "bytes after the end");
        assert_eq!(with(&|b| b.truncate(20)), 1, "half a name");
        assert_eq!(with(&|b| b.resize(QUESTION_BYTES_MAX + 1, 0)), 1, "too long");
        assert_eq!(with(&|b| *b.last_mut().expect("class") = 3), 5, "another class");
        assert_eq!(with(&|b| b.splice(12..23, [0xc0, 0x0c]).for_each(drop)), 1, "a name that points at itself");
        assert_eq!(with(&|b| b.splice(12..23, [0xc0, 0x00]).for_each(drop)), 1, "a name in the header");
    }

    #[test]
    fn only_host_names_have_a_normal_form() {
        let name = |labels: &[&[u8]]| Name::from_labels(labels.iter().copied()).expect("a name");
        assert_eq!(host_name(&name(&[b"_dmarc", b"Example", b"COM"])).as_deref(), Some("_dmarc.example.com"));
        let strange: [&[&[u8]]; 8] = [
            &[],
            &[b"a.example", b"com"],
            &[b"a\0", b"example", b"com"],
            &[b"a b", b"com"],
            &[b"\xc3\xa4", b"com"],
            &[b"\xff", b"com"],
            &[b"*", b"example", b"com"],
            &[b"192", b"0", b"2", b"1"],
        ];
        for labels in strange {
            assert_eq!(host_name(&name(labels)), None, "{labels:?}");
            assert!(readable(&name(labels)).chars().all(|c| c.is_ascii_graphic()), "{labels:?}");
        }
        let long = name(&[&[b'a'; 63], &[b'b'; 63], &[b'c'; 63], &[b'd'; 61]]);
        assert_eq!(host_name(&long).map(|n| n.len()), Some(253));
    }

    #[test]
    fn types_that_are_no_records_are_known() {
        for kind in [0, 41, 249, 250, 251, 252, 253, 254, 255] {
            assert!(is_meta(RecordType::from(kind)), "{kind}");
        }
        for kind in [1, 2, 5, 6, 12, 15, 16, 28, 33, 64, 65, 257] {
            assert!(!is_meta(RecordType::from(kind)), "{kind}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..1100)) {
            if let Read::Question(q) = read(&bytes) {
                let _ = (host_name(&q.name), readable(&q.name));
            }
        }

        /// A valid header makes the fuzzer reach the rest more often.
        #[test]
        fn any_question_is_read_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), extra in 0u8..2) {
            bytes.splice(0..0, [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, extra]);
            if let Read::Question(q) = read(&bytes) {
                let _ = (host_name(&q.name), readable(&q.name));
            }
        }

        #[test]
        fn a_damaged_question_is_read_without_panic(at in 0usize..40, with in any::<u8>()) {
            let mut bytes = bytes(&question("a.b.example.", RecordType::A));
            if let Some(byte) = bytes.get_mut(at) {
                *byte = with;
            }
            let _ = read(&bytes);
        }
    }
}
