//! The ClientHello of a TLS client, as far as it names the server.
//!
//! Pure. Strict: anything but exactly one ClientHello of RFC 8446 with at most one host name is refused, because a
//! message that two parsers read differently can bypass the check.
//!
//! Leaves out: the negotiated parameters.

use crate::policy::normalized;

/// Longest ClientHello. Those of browsers have about two thousand bytes.
const HELLO_BYTES_MAX: usize = 16 * 1024;
/// The same with the record headers around its fragments.
pub(super) const RECORDS_BYTES_MAX: usize = 24 * 1024;
/// Longest record (RFC 8446, 5.1).
const RECORD_BYTES_MAX: usize = 16 * 1024;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ENCRYPTED_HELLO: u16 = 0xfe0d;

/// The parsed ClientHello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    /// The server name in its normal form, if present.
    pub(super) name: Option<String>,
    /// True if it contains, or seems to contain, an encrypted ClientHello, which may name another server.
    pub(super) hides_another: bool,
}

/// The result of looking at a client's bytes so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Look {
    /// Possibly the beginning of a ClientHello.
    More,
    /// Not TLS.
    NotTls,
    /// TLS, but not a valid ClientHello.
    Bad(&'static str),
    /// A ClientHello.
    Hello(Hello),
}

/// Inspects all bytes that a client has sent so far.
pub(super) fn look(bytes: &[u8]) -> Look {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        match rest {
            [] => break,
            [kind, ..] if *kind != HANDSHAKE => {
                return if message.is_empty() { Look::NotTls } else { Look::Bad("another record inside of it") };
            }
            [_, major, ..] if *major != 3 => return Look::NotTls,
            [_, _, _, high, low, after @ ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                if length == 0 || length > RECORD_BYTES_MAX {
                    return Look::Bad("a record without a right length");
                }
                let (part, after) = after.split_at(length.min(after.len()));
                message.extend_from_slice(part);
                match body(&message) {
                    Ok(Some(body)) => return hello(body).map_or_else(Look::Bad, Look::Hello),
                    Ok(None) => rest = after,
                    Err(why) => return Look::Bad(why),
                }
            }
            _ => break,
        }
    }
    if bytes.len() > RECORDS_BYTES_MAX { Look::Bad("it is too long") } else { Look::More }
}

/// The body of the message, once complete.
fn body(message: &[u8]) -> Result<Option<&[u8]>, &'static str> {
    match message {
        [kind, ..] if *kind != CLIENT_HELLO => Err("another message"),
        [_, a, b, c, body @ ..] => {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if length > HELLO_BYTES_MAX {
                return Err("it is too long");
            }
            match body.len() {
                have if have < length => Ok(None),
                have if have == length => Ok(Some(body)),
                _ => Err("something after it"),
            }
        }
        _ => Ok(None),
    }
}

/// A parser that takes parts off the front of a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], &'static str> {
        let (front, rest) = self.0.split_at_checked(count).ok_or("it is cut off")?;
        self.0 = rest;
        Ok(front)
    }

    fn number(&mut self, bytes: usize) -> Result<usize, &'static str> {
        Ok(self.take(bytes)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    }

    /// The content after a length of this many bytes.
    fn list(&mut self, length_bytes: usize) -> Result<Reader<'a>, &'static str> {
        let length = self.number(length_bytes)?;
        self.take(length).map(Reader)
    }
}

fn hello(body: &[u8]) -> Result<Hello, &'static str> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?;
    let session = reader.list(1)?;
    let suites = reader.list(2)?;
    let compressions = reader.list(1)?;
    if session.0.len() > 32 || suites.0.is_empty() || suites.0.len() % 2 != 0 || compressions.0.is_empty() {
        return Err("a list without a right length");
    }
    let mut found = Hello { name: None, hides_another: false };
    if reader.0.is_empty() {
        return Ok(found);
    }
    let mut extensions = reader.list(2)?;
    if !reader.0.is_empty() {
        return Err("something after its extensions");
    }
    let mut kinds = Vec::new();
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)? as u16;
        let content = extensions.list(2)?;
        kinds.push(kind);
        match kind {
            EXTENSION_SERVER_NAME => found.name = Some(server_name(content)?),
            EXTENSION_ENCRYPTED_HELLO => found.hides_another = true,
            _ => {}
        }
    }
    kinds.sort_unstable();
    if kinds.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("an extension that is there twice");
    }
    Ok(found)
}

/// RFC 6066, 3: a list with at most one name of each kind; only one kind exists.
fn server_name(mut content: Reader<'_>) -> Result<String, &'static str> {
    let mut names = content.list(2)?;
    let kind = names.number(1)?;
    let name = names.list(2)?;
    if kind != 0 || !names.0.is_empty() || !content.0.is_empty() {
        return Err("another list of server names than one host name");
    }
    let name = std::str::from_utf8(name.0).ok().filter(|name| !name.ends_with('.')).and_then(normalized);
    name.ok_or("a server name that is no host name")
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn listed(length_bytes: usize, content: &[u8]) -> Vec<u8> {
        [&content.len().to_be_bytes()[8 - length_bytes..], content].concat()
    }

    pub(in crate::egress) fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &listed(2, content)].concat()
    }

    pub(in crate::egress) fn names(list: &[(u8, &str)]) -> Vec<u8> {
        let one = |(kind, name): &(u8, &str)| [&[*kind][..], &listed(2, name.as_bytes())].concat();
        extension(EXTENSION_SERVER_NAME, &listed(2, &list.iter().flat_map(one).collect::<Vec<_>>()))
    }

    pub(in crate::egress) fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend(listed(1, &[1; 32]));
        body.extend(listed(2, &[0x13, 1]));
        body.extend(listed(1, &[0]));
        body.extend(listed(2, &extensions.concat()));
        [&[CLIENT_HELLO][..], &listed(3, &body)].concat()
    }

    pub(in crate::egress) fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|part| [&[HANDSHAKE, 3, 1][..], &listed(2, part)].concat()).collect()
    }

    fn of(extensions: &[Vec<u8>]) -> Look {
        look(&records(&message(extensions), RECORD_BYTES_MAX))
    }

    fn hello_for(name: Option<&str>, hides_another: bool) -> Look {
        Look::Hello(Hello { name: name.map(str::to_owned), hides_another })
    }

    #[test]
    fn the_name_is_found_in_its_normal_form() {
        assert_eq!(of(&[names(&[(0, "Example.COM")])]), hello_for(Some("example.com"), false));
        let other = extension(16, b"\0\x03\x02h2");
        assert_eq!(of(&[other.clone(), names(&[(0, "a.b")])]), hello_for(Some("a.b"), false));
        assert_eq!(of(&[other]), hello_for(None, false));
        assert_eq!(of(&[names(&[(0, "a.b")]), extension(0xfe0d, b"\0rest")]), hello_for(Some("a.b"), true));
    }

    #[test]
    fn however_it_is_cut_it_is_the_same() {
        let message = message(&[extension(21, &[0; 1500]), names(&[(0, "example.com")])]);
        let wanted = hello_for(Some("example.com"), false);
        for size in [1, 2, 3, 5, 64, message.len()] {
            let bytes = records(&message, size);
            assert_eq!(look(&bytes), wanted, "records of {size}");
            for end in 0..bytes.len() {
                assert_eq!(look(&bytes[..end]), Look::More, "{end} of {} in records of {size}", bytes.len());
            }
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_bad() {
        let twice = [names(&[(0, "a.example")]), names(&[(0, "b.example")])];
        for extensions in [
            &[names(&[(0, "a.example"), (0, "b.example")])][..],
            &[names(&[(0, "a.example"), (0, "a.example")])],
            &twice,
            &[names(&[])],
            &[names(&[(1, "a.example")])],
            &[names(&[(0, "")])],
            &[names(&[(0, "a.example.")])],
            &[names(&[(0, "192.0.2.1")])],
            &[names(&[(0, "2001:db8::1")])],
            &[names(&[(0, "a.example\0.b.example")])],
            &[names(&[(0, "a.example:443")])],
            &[names(&[(0, "*.example")])],
            &[extension(0, b"")],
            &[vec![0, 0, 0, 9, 0]],
        ] {
            assert!(matches!(of(extensions), Look::Bad(_)), "{extensions:?}: {:?}", of(extensions));
        }
        let good = message(&[names(&[(0, "a.example")])]);
        let more = [&good[..], &[20, 0, 0, 0]].concat();
        assert!(matches!(look(&records(&more, RECORD_BYTES_MAX)), Look::Bad(_)), "something after it");
        let mut longer = good.clone();
        longer.push(0);
        longer[3] += 1;
        assert!(matches!(look(&records(&longer, RECORD_BYTES_MAX)), Look::Bad(_)), "something after the extensions");
        let mut cut = records(&good, 40);
        cut[45] = 23;
        assert!(matches!(look(&cut), Look::Bad(_)), "application data inside of it");
        assert!(matches!(look(&[22, 3, 1, 0, 0]), Look::Bad(_)), "an empty record");
        assert!(matches!(look(&[22, 3, 1, 0x40, 1]), Look::Bad(_)), "too long a record");
        assert!(matches!(look(&[22, 3, 1, 0, 4, 1, 0, 0x40, 1]), Look::Bad(_)), "too long a message");
        assert!(matches!(look(&[22, 3, 1, 0, 4, 2, 0, 0, 1]), Look::Bad(_)), "a ServerHello");
    }

    #[test]
    fn other_protocols_are_told() {
        for bytes in
            [&b"GET / HTTP/1.1"[..], b"SSH-2.0-", b"\x80\x2e\x01\x03\x01", b"\x16\x02\x00", b"\0", b"\x15\x03\x01"]
        {
            assert_eq!(look(bytes), Look::NotTls, "{bytes:?}");
        }
        assert_eq!(look(b""), Look::More);
    }

    proptest! {
        #[test]
        fn nothing_breaks_it(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), at in 0_usize..600, as_tls in any::<bool>()) {
            if as_tls {
                let mut message = message(&[names(&[(0, "example.com")])]);
                let length = message.len();
                bytes.truncate(8);
                message.splice(at % length..at % length, bytes.iter().copied());
                bytes = records(&message, 100);
            }
            look(&bytes);
        }
    }
}
