//! Decides the answer to a box's question, by policy, closed networks and pins.
//!
//! Owns: the decision about one question. Invariants: no answer contains an address in a closed network or one that the
//! policy denies. Under `custom` an address is answered only after it is pinned, under the policy that allows its name.
//! Nothing about a name that is not allowed goes upstream.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::limits::{Limits, TooMuch};
use super::metrics::{Metrics, count};
use super::pinner::Pinner;
use super::question::{Question, Read, host_name, is_meta, read, readable};
use super::reply::{Reason, Reply, Transport};
use super::resolved::{TTL_SECONDS_MAX, address};
use super::resolver::Resolver;
use super::reverse::{Reverse, reverse};
use crate::cidr::Cidr;
use crate::denial::Denial;
use crate::error::{Cause, Error};
use crate::firewall::{self, Pin};
use crate::policy::BoxPolicy;
use crate::table::{BoxNet, OnDenial};

/// A pin outlives its answer by this much: programs connect a little after they ask.
const PIN_GRACE: Duration = Duration::from_secs(60);
/// Most decisions of one question, if the policy changes meanwhile.
const DECISIONS_MAX: usize = 4;

/// Decides about questions.
pub(super) struct Judge {
    resolver: Resolver,
    pool: Cidr,
    pinner: Arc<dyn Pinner>,
    on_denial: OnDenial,
    pub(super) limits: Limits,
    pub(super) metrics: Arc<Metrics>,
}

/// The decision about a question.
enum Verdict {
    /// The answer needs no upstream.
    Here(Reply),
    /// A rule refuses it.
    Refused(Reply, &'static str, Option<Ipv4Addr>),
    /// An upstream is asked.
    Ask,
}

impl Judge {
    pub(super) fn new(
        resolver: Resolver,
        pool: Cidr,
        pinner: Arc<dyn Pinner>,
        on_denial: OnDenial,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { resolver, pool, pinner, on_denial, limits: Limits::default(), metrics }
    }

    /// The answer to a message of a box; none if the message gets none.
    pub(super) async fn answer(&self, box_: &Arc<BoxNet>, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        match read(bytes) {
            Read::Question(question) => {
                count(&self.metrics.questions);
                self.decide(box_, &question).await.write(&question, transport)
            }
            Read::Wrong(reply) => {
                count(&self.metrics.malformed);
                Some(reply)
            }
            Read::Nothing => {
                count(&self.metrics.malformed);
                None
            }
        }
    }

    /// Counts a question that is dropped unread.
    pub(super) fn drop_question(&self, box_: &BoxNet, too_much: TooMuch) {
        count(&self.metrics.dropped);
        if too_much.tell {
            let rule = "too many questions".to_owned();
            let denial = Denial { rule, protocol: "dns".into(), address: None, port: None, name: None };
            (self.on_denial)(box_, denial);
        }
    }

    /// Resolves a name for our own use.
    pub(super) async fn addresses(&self, name: &str) -> Result<Vec<Ipv4Addr>, Error> {
        let failed = |why| Error::new("look up", name, Cause::Invalid(why));
        let mut asked = Name::from_ascii(name).map_err(|_| failed("this is no name"))?;
        asked.set_fqdn(true);
        let (answer, _) = self.resolver.resolve(&(asked, RecordType::A)).await;
        match answer.code {
            ResponseCode::ServFail => Err(failed("no DNS server could say")),
            _ => Ok(answer.addresses().filter(|a| !firewall::closed(self.pool, *a)).collect()),
        }
    }

    async fn decide(&self, box_: &Arc<BoxNet>, question: &Question) -> Reply {
        let host = host_name(&question.name);
        for _ in 0..DECISIONS_MAX {
            let policy = box_.policy();
            match self.verdict(box_, &policy, question, host.as_deref()) {
                Verdict::Here(reply) => return reply,
                Verdict::Refused(reply, rule, address) => {
                    self.tell(box_, question, rule, address);
                    return reply;
                }
                Verdict::Ask => {}
            }
            let reply = self.ask(box_, &policy, question, host.as_deref()).await;
            if Arc::ptr_eq(&policy, &box_.policy()) {
                return reply;
            }
        }
        Reply::refused(ResponseCode::ServFail, Reason::Network, "the policy changes all the time")
    }

    fn tell(&self, box_: &BoxNet, question: &Question, rule: &str, address: Option<Ipv4Addr>) {
        count(&self.metrics.refused);
        let name = Some(readable(&question.name));
        (self.on_denial)(box_, Denial { rule: rule.into(), protocol: "dns".into(), address, port: None, name });
    }

    /// The decision, as far as it needs no upstream.
    fn verdict(&self, box_: &BoxNet, policy: &BoxPolicy, question: &Question, host: Option<&str>) -> Verdict {
        if is_meta(question.kind) {
            let reply = Reply::refused(ResponseCode::Refused, Reason::NotSupported, "type of question");
            return Verdict::Refused(reply, "type of question", None);
        }
        if let Some(reply) = local(box_, question, host) {
            return Verdict::Here(reply);
        }
        let refuse = |rule| {
            let reply = Reply::refused(ResponseCode::Refused, Reason::Prohibited, rule);
            Verdict::Refused(reply, rule, None)
        };
        let mut is_allowed = match policy {
            BoxPolicy::DenyAll => return refuse("deny-all"),
            // This includes names that are no host names.
            BoxPolicy::AllowAll => true,
            BoxPolicy::Custom { .. } => host.is_some_and(|name| policy.allows_name(name)),
        };
        match reverse(&question.name) {
            // The operator's records of private networks are not for boxes, and programs ask for them often.
            Reverse::V6 => return Verdict::Here(Reply::of(ResponseCode::NXDomain, Vec::new())),
            Reverse::Of(address, _) if firewall::closed(self.pool, address) => {
                return Verdict::Here(Reply::of(ResponseCode::NXDomain, Vec::new()));
            }
            Reverse::Of(address, true) => {
                is_allowed = is_allowed || policy.allows_address(address) || box_.names.knows(address);
            }
            _ => {}
        }
        if !is_allowed {
            return refuse("not in allowed_domains");
        }
        match question.kind {
            // Boxes have no IPv6. Service bindings carry ECH keys, which hide the name in a TLS handshake, and address
            // hints that bypass the A question.
            RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB => Verdict::Here(Reply::empty()),
            _ => Verdict::Ask,
        }
    }

    /// Asks upstream, removes addresses that the box must not see, and pins the rest.
    async fn ask(&self, box_: &Arc<BoxNet>, policy: &Arc<BoxPolicy>, question: &Question, host: Option<&str>) -> Reply {
        let (answer, ttl) = self.resolver.resolve(&(question.name.to_lowercase(), question.kind)).await;
        if answer.code == ResponseCode::ServFail {
            return Reply::refused(ResponseCode::ServFail, Reason::Network, "no upstream could say");
        }
        let mut hidden = None;
        let mut answers: Vec<Record> = Vec::with_capacity(answer.records.len());
        for record in &answer.records {
            let rule = address(record).and_then(|address| Some((self.hides(policy, address)?, address)));
            match rule {
                Some(rule) => hidden = hidden.or(Some(rule)),
                None => {
                    let mut record = record.clone();
                    record.ttl = ttl;
                    // The name as this box wrote it, not as another box wrote it.
                    if record.name == question.name {
                        record.name = question.name.clone();
                    }
                    answers.push(record);
                }
            }
        }
        let addresses: Vec<Ipv4Addr> = answers.iter().filter_map(address).collect();
        if let Some((rule, hidden)) = hidden {
            self.tell(box_, question, rule, Some(hidden));
            if addresses.is_empty() {
                // The name exists and has no address for the box: true, final, and valid for this type only.
                return Reply::refused(ResponseCode::NoError, Reason::Blocked, rule);
            }
        }
        if let (Some(name), false) = (host, addresses.is_empty())
            && let Err(error) = self.open(box_, policy, name, &addresses, ttl).await
        {
            count(&self.metrics.pin_failures);
            tracing::debug!(id = box_.id, error = error.chain(), "an answer cannot be pinned");
            return Reply::refused(ResponseCode::ServFail, Reason::Network, "the way cannot be opened");
        }
        let mut reply = Reply::of(answer.code, answers);
        reply.authority = answer.authority.clone().map(|mut record| {
            record.ttl = record.ttl.min(ttl);
            record
        });
        reply
    }

    /// The rule that hides an address from a box.
    fn hides(&self, policy: &BoxPolicy, address: Ipv4Addr) -> Option<&'static str> {
        if firewall::closed(self.pool, address) {
            Some("answer in a closed network")
        } else if policy.denies(address) {
            Some("denied_cidrs")
        } else {
            None
        }
    }

    /// Records the addresses of a name and has them pinned. Under `allow-all` no pin is needed, but a later policy uses
    /// the records to decide which connections go to allowed names.
    async fn open(
        &self,
        box_: &Arc<BoxNet>,
        policy: &Arc<BoxPolicy>,
        name: &str,
        addresses: &[Ipv4Addr],
        ttl: u32,
    ) -> Result<(), Error> {
        let time = Duration::from_secs(ttl.into()) + PIN_GRACE;
        box_.names.answered(name, addresses, time);
        if **policy == BoxPolicy::AllowAll {
            return Ok(());
        }
        let pins = addresses.iter().map(|address| Pin { address: *address, time }).collect();
        let pinning = self.limits.pinning(box_.pair.guest(), Instant::now());
        let _one_at_a_time = pinning.lock().await;
        self.pinner.pin(box_, policy, pins).await
    }
}

/// Names of the box itself, and reserved names without an owner (RFC 6761, RFC 7686).
fn local(box_: &BoxNet, question: &Question, host: Option<&str>) -> Option<Reply> {
    let host = host?;
    let own = |address: Ipv4Addr| {
        let record = Record::from_rdata(question.name.clone(), TTL_SECONDS_MAX, RData::A(A(address)));
        let is_asked = question.kind == RecordType::A;
        Some(Reply::of(ResponseCode::NoError, if is_asked { vec![record] } else { Vec::new() }))
    };
    if host == box_.id {
        return own(box_.pair.guest());
    }
    match host.rsplit('.').next() {
        Some("localhost") => own(Ipv4Addr::LOCALHOST),
        Some("invalid" | "onion") => Some(Reply::of(ResponseCode::NXDomain, Vec::new())),
        _ => None,
    }
}
