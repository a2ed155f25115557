//! Netlink's bytes: attributes, messages, and one transaction of nftables.
//!
//! Why this is not `netlink-packet-netfilter` (0.4): of the twelve expressions the ruleset uses, six (`ct`, `counter`,
//! `limit`, `connlimit`, `masq`, `reject`) are untyped bytes there, so that more would be
//! written by hand than taken; it has no batch; and it reads set elements only together with expressions it knows.
//! What is left to do is this file.
//!
//! Leaves out: what the attributes mean.

/// Bytes of a message's header.
pub(super) const HEADER: usize = 16;
/// Bytes of the header of netfilter's messages, after the former.
pub(super) const FAMILY_HEADER: usize = 4;
/// Bytes of an attribute's header.
const ATTRIBUTE_HEADER: usize = 4;
/// Attributes whose value is made of attributes.
const NESTED: u16 = 1 << 15;
/// Bits of an attribute's type that are not its number.
const KIND_MASK: u16 = !(NESTED | 1 << 14);

/// Part of netfilter (`NFNL_SUBSYS_NFTABLES`).
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFPROTO_INET`: IPv4 and IPv6.
const FAMILY: u8 = 1;

/// `NLM_F_REQUEST`
pub(super) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`
pub(super) const ACK: u16 = 0x4;
/// `NLM_F_DUMP`
pub(super) const DUMP: u16 = 0x300;
/// `NLM_F_CREATE`
pub(super) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`
pub(super) const APPEND: u16 = 0x800;

/// What a message asks for (`enum nf_tables_msg_types`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Verb {
    NewTable = 0,
    GetTable = 1,
    DeleteTable = 2,
    NewChain = 3,
    NewRule = 6,
    DeleteRule = 8,
    NewSet = 9,
    NewElements = 12,
    GetElements = 13,
    DeleteElements = 14,
}

/// A list of attributes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attrs(Vec<u8>);

impl Attrs {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// An attribute of any value. A value that does not fit into 64 KiB is an error of whoever made it: lists are cut
    /// long before (`batch::ELEMENTS_PER_MESSAGE`).
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).expect("attributes are shorter than 64 KiB");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn be64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(super) fn nested(self, kind: u16, value: &Self) -> Self {
        self.bytes(kind | NESTED, &value.0)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The attributes in `bytes`: number and value. What is cut short ends the list.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & KIND_MASK, value))
    })
}

/// The value of the attribute `kind` in `bytes`.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// The number in a value of four bytes.
pub(super) fn be32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// The number in a value of eight bytes.
pub(super) fn be64(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.try_into().ok()?))
}

/// One message; `kind` is its full type.
fn push_message(out: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, family: [u8; FAMILY_HEADER], body: &[u8]) {
    let length = u32::try_from(HEADER + FAMILY_HEADER + body.len()).expect("messages are shorter than 4 GiB");
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&0_u32.to_ne_bytes());
    out.extend_from_slice(&family);
    out.extend_from_slice(body);
}

/// A question, outside of any transaction.
pub(super) fn question(verb: Verb, flags: u16, sequence: u32, body: &Attrs) -> Vec<u8> {
    let mut out = Vec::new();
    let kind = SUBSYSTEM << 8 | u16::from(verb as u8);
    push_message(&mut out, kind, REQUEST | flags, sequence, [FAMILY, 0, 0, 0], body.as_bytes());
    out
}

/// Changes that happen all at once or not at all.
#[derive(Debug, Default)]
pub(super) struct Batch {
    messages: Vec<(Verb, u16, Attrs)>,
}

impl Batch {
    pub(super) fn push(&mut self, verb: Verb, flags: u16, body: Attrs) {
        self.messages.push((verb, flags, body));
    }

    pub(super) fn append(&mut self, mut other: Self) {
        self.messages.append(&mut other.messages);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The bytes to send, and the number of the last message, which is the one that will be acknowledged. The first has
    /// the number `sequence`.
    pub(super) fn encode(&self, sequence: u32) -> (Vec<u8>, u32) {
        let mut out = Vec::new();
        let mut number = sequence;
        let [high, low] = SUBSYSTEM.to_be_bytes();
        push_message(&mut out, BATCH_BEGIN, REQUEST, number, [0, 0, high, low], &[]);
        for (index, (verb, flags, body)) in self.messages.iter().enumerate() {
            number = number.wrapping_add(1);
            let ack = if index + 1 == self.messages.len() { ACK } else { 0 };
            let kind = SUBSYSTEM << 8 | u16::from(*verb as u8);
            push_message(&mut out, kind, REQUEST | flags | ack, number, [FAMILY, 0, 0, 0], body.as_bytes());
        }
        push_message(&mut out, BATCH_END, REQUEST, number.wrapping_add(1), [0, 0, high, low], &[]);
        (out, number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let inner = Attrs::new().be32(1, 7).text(2, "abc");
        let attrs = Attrs::new().bytes(3, &[1, 2, 3, 4, 5]).nested(4, &inner).be64(5, 9);
        assert_eq!(attrs.as_bytes().len() % 4, 0);
        let read: Vec<_> = attributes(attrs.as_bytes()).collect();
        assert_eq!(read[0], (3, &[1_u8, 2, 3, 4, 5][..]));
        assert_eq!(read[1], (4, inner.as_bytes()));
        assert_eq!(attribute(read[1].1, 2), Some(&b"abc\0"[..]));
        assert_eq!(attribute(read[1].1, 1).and_then(be32), Some(7));
        assert_eq!(be64(read[2].1), Some(9));
        assert_eq!(attribute(attrs.as_bytes(), 6), None);
    }

    #[test]
    fn what_is_cut_short_ends_the_list() {
        let attrs = Attrs::new().be32(1, 7).be32(2, 8);
        for cut in 0..attrs.as_bytes().len() {
            assert!(attributes(&attrs.as_bytes()[..cut]).count() <= 1, "cut at {cut}");
        }
        // A length below the header's own would stand still for ever.
        assert_eq!(attributes(&[2, 0, 1, 0, 0, 0, 0, 0]).count(), 0);
        assert_eq!(attributes(&[0, 0, 0, 0]).count(), 0);
    }

    #[test]
    fn only_the_last_message_of_a_batch_is_acknowledged() {
        let mut batch = Batch::default();
        assert!(batch.is_empty());
        batch.push(Verb::NewTable, CREATE, Attrs::new().text(1, "icebox"));
        batch.push(Verb::NewChain, CREATE, Attrs::new().text(1, "icebox"));
        let (bytes, last) = batch.encode(100);
        assert_eq!(last, 102);
        let mut found = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length = u32::from_ne_bytes(rest[..4].try_into().expect("four")) as usize;
            let kind = u16::from_ne_bytes(rest[4..6].try_into().expect("two"));
            found.push((kind, u16::from_ne_bytes(rest[6..8].try_into().expect("two"))));
            rest = &rest[length..];
        }
        assert_eq!(found, [(0x10, 1), (0xa00, 0x401), (0xa03, 0x405), (0x11, 1)]);
    }
}
