//! Netlink encoding: attributes and messages.
//!
//! Leaves out: their meaning.

/// Bytes of a message's header.
pub(super) const HEADER: usize = 16;
/// Bytes of the netfilter header, after the netlink header.
pub(crate) const FAMILY_HEADER: usize = 4;
/// Bytes of an attribute's header.
const ATTRIBUTE_HEADER: usize = 4;
/// The flag of attributes that contain attributes.
const NESTED: u16 = 1 << 15;
/// The flag bits of an attribute's type.
const KIND_MASK: u16 = !(NESTED | 1 << 14);

/// `NLM_F_REQUEST`
pub(crate) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`
pub(crate) const ACK: u16 = 0x4;
/// `NLM_F_DUMP`
pub(crate) const DUMP: u16 = 0x300;
/// `NLM_F_CREATE`
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`
pub(crate) const APPEND: u16 = 0x800;

/// A list of attributes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attrs(Vec<u8>);

impl Attrs {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// An attribute with any value. A value above 64 KiB is the caller's error: lists are split long before
    /// (`batch::ELEMENTS_PER_MESSAGE`).
    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).expect("attributes are shorter than 64 KiB");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn be64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn nested(self, kind: u16, value: &Self) -> Self {
        self.bytes(kind | NESTED, &value.0)
    }

    /// A nested attribute from received attributes.
    pub(crate) fn nested_bytes(self, kind: u16, value: &[u8]) -> Self {
        self.bytes(kind | NESTED, value)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The attributes in `bytes`: type and value. A truncated one ends the list.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
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
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// The big-endian number in a value of four bytes.
pub(crate) fn be32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// The big-endian number in a value of eight bytes.
pub(crate) fn be64(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.try_into().ok()?))
}

/// Appends one message; `kind` is its full type.
pub(crate) fn push_message(
    out: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: [u8; FAMILY_HEADER],
    body: &[u8],
) {
    let length = u32::try_from(HEADER + FAMILY_HEADER + body.len()).expect("messages are shorter than 4 GiB");
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&0_u32.to_ne_bytes());
    out.extend_from_slice(&family);
    out.extend_from_slice(body);
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
        // A length below that of the header would loop for ever.
        assert_eq!(attributes(&[2, 0, 1, 0, 0, 0, 0, 0]).count(), 0);
        assert_eq!(attributes(&[0, 0, 0, 0]).count(), 0);
    }
}
