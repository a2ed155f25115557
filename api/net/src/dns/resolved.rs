//! An upstream's response, reduced to the records that may be passed on.
//!
//! Owns: which records of a response count. Pure. An honest upstream may pass on what an attacker has put in the
//! attacker's own zone, so only records that match the question by name and type are taken.

use std::net::Ipv4Addr;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

/// Longest TTL that is passed on; a longer one in an answer is cut to it.
pub(super) const TTL_SECONDS_MAX: u32 = 300;
/// The same for a name that does not exist.
pub(super) const NEGATIVE_TTL_SECONDS_MAX: u32 = 60;
/// Most records of one answer, without aliases. An answer with more is a failure (SERVFAIL): a part of it, told as the
/// whole, would be wrong. All addresses of an answer are added to the firewall in one netlink message of at most 64 KiB.
pub(super) const RECORDS_MAX: usize = 512;
/// Longest chain of aliases.
const ALIASES_MAX: usize = 16;

/// The answer to one question, the same for every box.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Resolved {
    /// No error, NXDOMAIN, or a failure.
    pub(super) code: ResponseCode,
    /// The chain of aliases from the name on, then the records of the requested type.
    pub(super) records: Vec<Record>,
    /// The SOA that says how long the negative answer is valid.
    pub(super) authority: Option<Record>,
    /// The TTL in seconds.
    pub(super) ttl: u32,
}

impl Resolved {
    /// The part of `response` that answers the question.
    pub(super) fn of(response: Message, name: &Name, kind: RecordType) -> Self {
        let code = match response.response_code {
            code @ (ResponseCode::NoError | ResponseCode::NXDomain) => code,
            _ => return Self::failed(),
        };
        let is_in = |record: &&Record| record.dns_class == DNSClass::IN;
        let mut records: Vec<Record> = Vec::new();
        let mut end = name;
        let mut aliases = 0;
        while kind != RecordType::CNAME
            && aliases < ALIASES_MAX
            && let Some((record, target)) = response.answers.iter().filter(is_in).find_map(|r| match &r.data {
                RData::CNAME(target) if r.name == *end => Some((r, &target.0)),
                _ => None,
            })
        {
            records.push(record.clone());
            end = target;
            aliases += 1;
        }
        let asked = |r: &&Record| r.record_type() == kind && r.name == *end;
        let found = response.answers.iter().filter(is_in).filter(asked).take(RECORDS_MAX + 1);
        records.extend(found.cloned());
        if records.len() > aliases + RECORDS_MAX {
            return Self::failed();
        }
        let ttl = records.iter().map(|r| r.ttl).min().unwrap_or(TTL_SECONDS_MAX).min(TTL_SECONDS_MAX);
        if code == ResponseCode::NoError && records.len() > aliases {
            return Self { code, records, authority: None, ttl };
        }
        let start = |r: &&Record| matches!(r.data, RData::SOA(_)) && r.name.zone_of(end);
        let authority = response.authorities.iter().filter(is_in).find(start).cloned();
        let good_for = authority.as_ref().map_or(0, |r| match &r.data {
            RData::SOA(soa) => r.ttl.min(soa.minimum),
            _ => 0,
        });
        Self { code, records, authority, ttl: ttl.min(good_for).min(NEGATIVE_TTL_SECONDS_MAX) }
    }

    /// The result when no upstream could answer.
    pub(super) fn failed() -> Self {
        Self { code: ResponseCode::ServFail, records: Vec::new(), authority: None, ttl: 0 }
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.records.iter().filter_map(address)
    }

    /// Approximate size in bytes.
    pub(super) fn bytes(&self) -> usize {
        use hickory_proto::serialize::binary::BinEncodable as _;
        let data = |r: &Record| size_of::<Record>() + r.name.len() + r.data.to_bytes().map_or(0, |b| b.len());
        size_of::<Self>() + self.records.iter().chain(&self.authority).map(data).sum::<usize>()
    }
}

/// The address in a record.
pub(super) fn address(record: &Record) -> Option<Ipv4Addr> {
    match record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    }
}

/// True for a complete response that matches this question.
pub(super) fn is_answer(response: &Message, id: u16, name: &Name, kind: RecordType) -> bool {
    use hickory_proto::op::{MessageType, OpCode};
    let is_response = response.message_type == MessageType::Response && response.op_code == OpCode::Query;
    let same_question = match response.queries.as_slice() {
        [query] => query.name() == name && query.query_type() == kind && query.query_class() == DNSClass::IN,
        _ => false,
    };
    is_response && response.id == id && same_question
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{MessageType, OpCode, Query};
    use hickory_proto::rr::rdata::{A, CNAME, SOA, TXT};
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect(text)
    }

    fn a(owner: &str, ttl: u32, last: u8) -> Record {
        Record::from_rdata(name(owner), ttl, RData::A(A::new(192, 0, 2, last)))
    }

    fn alias(owner: &str, ttl: u32, target: &str) -> Record {
        Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
    }

    fn response(code: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) -> Message {
        let mut message = Message::new(7, MessageType::Response, OpCode::Query);
        message.metadata.response_code = code;
        message.add_query(Query::query(name("a.example."), RecordType::A));
        message.answers = answers;
        message.authorities = authorities;
        message
    }

    fn resolved(answers: Vec<Record>) -> Resolved {
        Resolved::of(response(ResponseCode::NoError, answers, Vec::new()), &name("A.example."), RecordType::A)
    }

    fn lasts(resolved: &Resolved) -> Vec<u8> {
        resolved.addresses().map(|a| a.octets()[3]).collect()
    }

    #[test]
    fn aliases_are_followed_in_any_order() {
        let got = resolved(vec![
            a("c.example.", 50, 1),
            alias("b.example.", 90, "C.example."),
            a("c.example.", 9000, 2),
            alias("a.example.", 70, "b.example."),
        ]);
        assert_eq!((lasts(&got), got.records.len(), got.ttl), (vec![1, 2], 4, 50));
        assert_eq!(got.records[0].name, name("a.example."));
        assert_eq!(resolved(vec![a("a.example.", 9000, 1)]).ttl, TTL_SECONDS_MAX);
        assert_eq!(resolved(vec![a("a.example.", 0, 1)]).ttl, 0);
    }

    #[test]
    fn what_was_not_asked_for_is_left_out() {
        let mut chaos = a("a.example.", 60, 9);
        chaos.dns_class = DNSClass::CH;
        let text = Record::from_rdata(name("a.example."), 60, RData::TXT(TXT::new(vec!["x".into()])));
        let got = resolved(vec![a("other.example.", 60, 7), chaos, text, a("a.example.", 60, 1)]);
        assert_eq!((lasts(&got), got.records.len()), (vec![1], 1));
        // A circular alias ends.
        let circle = resolved(vec![alias("a.example.", 60, "b.example."), alias("b.example.", 60, "a.example.")]);
        assert_eq!((circle.records.len(), lasts(&circle).len()), (ALIASES_MAX, 0));
    }

    #[test]
    fn an_answer_is_passed_on_whole_or_is_a_failure() {
        let of = |count: usize| resolved((0..count).map(|n| a("a.example.", 60, n as u8)).collect());
        assert_eq!(of(240).records.len(), 240);
        assert_eq!(of(RECORDS_MAX).records.len(), RECORDS_MAX);
        assert_eq!(of(RECORDS_MAX + 1), Resolved::failed());
    }

    #[test]
    fn that_there_is_nothing_is_good_as_long_as_its_zone_says() {
        let soa = |owner: &str, ttl, minimum| {
            let data = SOA::new(name("ns.example."), name("root.example."), 1, 2, 3, 4, minimum);
            Record::from_rdata(name(owner), ttl, RData::SOA(data))
        };
        let none = |authorities| {
            let message = response(ResponseCode::NXDomain, Vec::new(), authorities);
            Resolved::of(message, &name("a.example."), RecordType::A)
        };
        assert_eq!(none(vec![soa("example.", 40, 30)]).ttl, 30);
        assert_eq!(none(vec![soa("example.", 4000, 3000)]).ttl, NEGATIVE_TTL_SECONDS_MAX);
        assert_eq!(none(vec![soa("other.", 40, 30)]), none(vec![]), "not the zone of the name");
        assert_eq!((none(vec![]).ttl, none(vec![]).code), (0, ResponseCode::NXDomain));
        let failed = response(ResponseCode::Refused, vec![a("a.example.", 60, 1)], Vec::new());
        assert_eq!(Resolved::of(failed, &name("a.example."), RecordType::A), Resolved::failed());
    }

    #[test]
    fn only_the_answer_to_the_question_is_one() {
        let good = response(ResponseCode::NoError, Vec::new(), Vec::new());
        let is = |m: &Message| is_answer(m, 7, &name("A.EXAMPLE."), RecordType::A);
        assert!(is(&good));
        let changed = |change: &dyn Fn(&mut Message)| {
            let mut message = good.clone();
            change(&mut message);
            is(&message)
        };
        assert!(!changed(&|m| m.metadata.id = 8));
        assert!(!changed(&|m| m.metadata.message_type = MessageType::Query));
        assert!(!changed(&|m| m.metadata.op_code = OpCode::Update));
        assert!(!changed(&|m| m.queries.clear()));
        assert!(!changed(&|m| m.queries = vec![Query::query(name("b.example."), RecordType::A)]));
        assert!(!changed(&|m| m.queries = vec![Query::query(name("a.example."), RecordType::TXT)]));
        assert!(!changed(&|m| m.queries.push(Query::query(name("a.example."), RecordType::A))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        /// A response damaged by an upstream or forged in its name.
        #[test]
        fn any_response_is_reduced_without_panic(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            tail in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let records = vec![alias("a.example.", 60, "b.example."), a("b.example.", 60, 1)];
            let mut bytes = response(ResponseCode::NoError, records, Vec::new()).to_vec().expect("bytes");
            for (at, with) in damage {
                let at = at.index(bytes.len());
                bytes[at] = with;
            }
            bytes.extend(tail);
            if let Ok(message) = Message::from_vec(&bytes) {
                let _ = is_answer(&message, 7, &name("a.example."), RecordType::A);
                let got = Resolved::of(message, &name("a.example."), RecordType::A);
                prop_assert!(got.records.len() <= RECORDS_MAX + ALIASES_MAX && got.ttl <= TTL_SECONDS_MAX);
                let _ = got.bytes();
            }
        }
    }
}
