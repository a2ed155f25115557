//! The answers to boxes: written, and cut to fit.
//!
//! Pure. An answer holds only the records decided upon: no additional records, and of the authority section only the
//! SOA that says how long a name does not exist.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::opt::EdnsOption;

use super::question::Question;

/// Longest datagram (DNS flag day 2020): it passes every path without fragments.
pub(super) const PAYLOAD_BYTES_MAX: u16 = 1232;
/// Longest datagram for a client without EDNS (RFC 1035).
const PAYLOAD_BYTES_DEFAULT: u16 = 512;
/// The EDNS option for the reason (RFC 8914).
const OPTION_EXTENDED_ERROR: u16 = 15;

/// Why an answer has less than was asked for. The numbers are those of RFC 8914.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Reason {
    /// The answer was in a closed network.
    Blocked = 15,
    /// The policy does not allow it.
    Prohibited = 18,
    /// The type or class of the question is not served here.
    NotSupported = 21,
    /// No upstream answered.
    Network = 23,
}

/// The transport of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// One UDP datagram.
    Udp,
    /// A TCP stream.
    Tcp,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reply {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    pub(super) authority: Option<Record>,
    pub(super) reason: Option<(Reason, &'static str)>,
}

impl Reply {
    /// The name exists, without records of this type.
    pub(super) fn empty() -> Self {
        Self::of(ResponseCode::NoError, Vec::new())
    }

    /// A refusal or failure with its reason.
    pub(super) fn refused(code: ResponseCode, reason: Reason, text: &'static str) -> Self {
        Self { reason: Some((reason, text)), ..Self::of(code, Vec::new()) }
    }

    /// An answer of ours.
    pub(super) fn of(code: ResponseCode, answers: Vec<Record>) -> Self {
        Self { code, answers, authority: None, reason: None }
    }

    /// The message. None if it cannot be written, which does not happen for records that were parsed before.
    pub(super) fn write(self, question: &Question, transport: Transport) -> Option<Vec<u8>> {
        let mut message = Message::new(question.id, MessageType::Response, OpCode::Query);
        message.metadata.recursion_desired = question.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.response_code = self.code;
        message.add_query(Query::query(question.name.clone(), question.kind));
        message.answers = self.answers;
        message.authorities = self.authority.into_iter().collect();
        // A client without EDNS must not get EDNS.
        if question.payload.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD_BYTES_MAX).set_version(0);
            if let Some((reason, text)) = self.reason {
                let option = [&(reason as u16).to_be_bytes(), text.as_bytes()].concat();
                edns.options_mut().insert(EdnsOption::Unknown(OPTION_EXTENDED_ERROR, option));
            }
            message.set_edns(edns);
        }
        let limit = match transport {
            Transport::Tcp => u16::MAX,
            Transport::Udp => question.payload.unwrap_or_default().clamp(PAYLOAD_BYTES_DEFAULT, PAYLOAD_BYTES_MAX),
        };
        let bytes = message.to_vec().ok()?;
        if bytes.len() <= usize::from(limit) {
            return Some(bytes);
        }
        message.truncate().to_vec().ok().filter(|bytes| bytes.len() <= usize::from(limit))
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, RecordType};

    use super::*;

    fn question(payload: Option<u16>) -> Question {
        let name = Name::from_ascii("Many.example.").expect("name");
        Question { id: 9, name, kind: RecordType::A, recursion_desired: true, payload }
    }

    fn addresses(count: u8) -> Reply {
        let name = Name::from_ascii("many.example.").expect("name");
        let record = |n| Record::from_rdata(name.clone(), 60, RData::A(A::new(192, 0, 2, n)));
        Reply::of(ResponseCode::NoError, (0..count).map(record).collect())
    }

    fn written(reply: Reply, payload: Option<u16>, transport: Transport) -> (usize, Message) {
        let bytes = reply.write(&question(payload), transport).expect("written");
        (bytes.len(), Message::from_vec(&bytes).expect("a message"))
    }

    #[test]
    fn an_answer_repeats_the_question_and_fits() {
        let (_, message) = written(addresses(3), None, Transport::Udp);
        assert_eq!((message.id, message.answers.len(), message.truncation), (9, 3, false));
        assert!(message.recursion_available && message.recursion_desired && message.edns.is_none());
        assert_eq!(message.queries[0].name().to_ascii(), "Many.example.");
        for (payload, most) in [(None, 512), (Some(100), 512), (Some(600), 600), (Some(4096), 1232)] {
            let (length, message) = written(addresses(200), payload, Transport::Udp);
            assert!(length <= most && message.truncation && message.answers.is_empty(), "{payload:?}");
            assert_eq!(message.edns.is_some(), payload.is_some());
        }
        let (_, message) = written(addresses(60), Some(4096), Transport::Udp);
        assert_eq!((message.answers.len(), message.truncation), (60, false));
        let (_, message) = written(addresses(200), None, Transport::Tcp);
        assert_eq!((message.answers.len(), message.truncation), (200, false));
    }

    #[test]
    fn a_refusal_says_why_to_who_can_read_it() {
        let refused = || Reply::refused(ResponseCode::Refused, Reason::Prohibited, "why");
        let (_, message) = written(refused(), Some(1232), Transport::Udp);
        assert_eq!(message.response_code, ResponseCode::Refused);
        let edns = message.edns.expect("EDNS");
        let option = edns.option(OPTION_EXTENDED_ERROR.into()).expect("the option");
        assert_eq!(option, &EdnsOption::Unknown(15, b"\0\x12why".to_vec()));
        assert!(written(refused(), None, Transport::Udp).1.edns.is_none());
    }
}
