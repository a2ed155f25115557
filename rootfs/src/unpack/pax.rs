//! Records of extended headers (pax Interchange Format, POSIX `pax`), and the keys of GNU tar and star among them.

use super::fault::{Fault, refuse};

/// Most segments of a sparse file.
pub(crate) const SEGMENTS_MAX: usize = 1 << 16;
/// Extended attributes of one entry, and their total size. Linux has 64 KiB per attribute.
const XATTRS_MAX: usize = 256;
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// What the extended header of one entry says. Absent values are those of the plain header.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<SparseKeys>,
}

/// The `GNU.sparse.` keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SparseKeys {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Segments of the versions 0.0 and 0.1: offset, length.
    pub(super) map: Vec<(u64, u64)>,
    /// An offset whose length has not come yet (version 0.0).
    offset: Option<u64>,
}

/// Parses the whole body of an extended header.
pub(super) fn parse(mut body: &[u8]) -> Result<Pax, Fault> {
    let mut pax = Pax::default();
    while !body.is_empty() {
        let (key, value, rest) = record(body)?;
        body = rest;
        pax.take(key, value)?;
    }
    if pax.sparse.as_ref().is_some_and(|sparse| sparse.offset.is_some()) {
        refuse!("its extended header has an offset of a sparse segment without a length");
    }
    Ok(pax)
}

/// A record's key and value, and the bytes after it.
type Record<'b> = (&'b [u8], &'b [u8], &'b [u8]);

/// One record, `LENGTH KEY=VALUE\n`.
fn record(body: &[u8]) -> Result<Record<'_>, Fault> {
    const BAD: &str = "its extended header has a malformed record";
    let bad = || Fault::refused(BAD);
    let space = body.iter().take(20).position(|byte| *byte == b' ').ok_or_else(bad)?;
    let digits = &body[..space];
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(bad());
    }
    let length: usize = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).ok_or_else(bad)?;
    if length < space + 4 || length > body.len() || body[length - 1] != b'\n' {
        return Err(bad());
    }
    let text = &body[space + 1..length - 1];
    let equals = text.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
    if equals == 0 {
        return Err(bad());
    }
    Ok((&text[..equals], &text[equals + 1..], &body[length..]))
}

impl Pax {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
            if name.is_empty() || name.contains(&0) {
                refuse!("its extended header names an attribute without a name");
            }
            self.xattrs.retain(|(known, _)| known != name);
            if self.xattrs.len() >= XATTRS_MAX {
                refuse!("it has more than {XATTRS_MAX} extended attributes");
            }
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        // POSIX: an empty value means that the plain header counts.
        let given = || (!value.is_empty()).then_some(value);
        match key {
            b"path" => self.path = name(key, given())?,
            b"linkpath" => self.link = name(key, given())?,
            b"size" => self.size = given().map(|value| number(key, value)).transpose()?,
            b"uid" => self.uid = given().map(|value| number(key, value)).transpose()?,
            b"gid" => self.gid = given().map(|value| number(key, value)).transpose()?,
            b"mtime" => self.mtime = given().map(time).transpose()?,
            _ => {
                if let Some(sub) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.get_or_insert_default().take(sub, value)?;
                }
            }
        }
        Ok(())
    }
}

impl SparseKeys {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        match key {
            b"major" => self.major = Some(number(key, value)?),
            b"minor" => self.minor = Some(number(key, value)?),
            b"name" => self.name = name(key, Some(value))?,
            b"realsize" | b"size" => self.real_size = Some(number(key, value)?),
            b"offset" => {
                let last = self.offset.replace(number(key, value)?);
                if last.is_some() {
                    refuse!("its extended header has an offset of a sparse segment without a length");
                }
            }
            b"numbytes" => {
                let Some(offset) = self.offset.take() else {
                    refuse!("its extended header has a length of a sparse segment without an offset");
                };
                self.push(offset, number(key, value)?)?;
            }
            b"map" => {
                let mut numbers = value.split(|byte| *byte == b',');
                while let Some(offset) = numbers.next() {
                    if offset.is_empty() && self.map.is_empty() {
                        break;
                    }
                    let Some(length) = numbers.next() else {
                        refuse!("its extended header has a map of sparse segments with an odd number of numbers");
                    };
                    self.push(number(key, offset)?, number(key, length)?)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, offset: u64, length: u64) -> Result<(), Fault> {
        if self.map.len() >= SEGMENTS_MAX {
            refuse!("it has more than {SEGMENTS_MAX} sparse segments");
        }
        self.map.push((offset, length));
        Ok(())
    }
}

fn name(key: &[u8], value: Option<&[u8]>) -> Result<Option<Vec<u8>>, Fault> {
    if value.is_some_and(|value| value.contains(&0)) {
        refuse!("its extended header has a NUL byte in {}", key.escape_ascii());
    }
    Ok(value.map(<[u8]>::to_vec))
}

pub(super) fn number(key: &[u8], value: &[u8]) -> Result<u64, Fault> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
    number.ok_or_else(|| Fault::refused(format!("its extended header has a bad number for {}", key.escape_ascii())))
}

/// Seconds since 1970 with up to nine decimal places; more are cut off.
fn time(value: &[u8]) -> Result<(i64, u32), Fault> {
    let parsed = (|| {
        let text = std::str::from_utf8(value).ok()?;
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let negative = whole.starts_with('-');
        if !whole.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let seconds: i64 = whole.parse().ok()?;
        if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let nanoseconds: u32 = format!("{:0<9}", &fraction[..fraction.len().min(9)]).parse().ok()?;
        Some(match (negative, nanoseconds) {
            (true, 1..) => (seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds),
            _ => (seconds, nanoseconds),
        })
    })();
    parsed.ok_or_else(|| Fault::refused("its extended header has a bad time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(records: &[(&str, &str)]) -> Vec<u8> {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = format!(" {key}={value}\n");
            let mut length = rest.len() + 1;
            while length.to_string().len() + rest.len() != length {
                length += 1;
            }
            body.extend(format!("{length}{rest}").bytes());
        }
        body
    }

    #[test]
    fn records_become_values() {
        let pax = parse(&body(&[
            ("path", "first"),
            ("path", "last"),
            ("linkpath", ""),
            ("size", "8589934592"),
            ("uid", "70000"),
            ("mtime", "1700000000.123456789123"),
            ("SCHILY.xattr.user.a", "x=y\nz"),
            ("comment", "ignored"),
            ("GNU.sparse.map", "0,10,4096,5"),
            ("GNU.sparse.size", "9000"),
        ]))
        .unwrap();
        assert_eq!((pax.path.as_deref(), pax.link, pax.size), (Some(b"last".as_slice()), None, Some(1 << 33)));
        assert_eq!((pax.uid, pax.mtime), (Some(70000), Some((1_700_000_000, 123_456_789))));
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"x=y\nz".to_vec())]);
        let sparse = pax.sparse.unwrap();
        assert_eq!((sparse.map, sparse.real_size), (vec![(0, 10), (4096, 5)], Some(9000)));
        assert_eq!(time(b"-1.5").unwrap(), (-2, 500_000_000));
        assert_eq!(time(b"5").unwrap(), (5, 0));
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            "x",
            "5 a=",
            "3 a\n",
            "0 a=b\n",
            "999 a=b\n",
            "+6 a=b\n",
            "6 =ab\n",
            "7 a=bc\nx",
            "99999999999999999999999 a=b\n",
            "6 a=b\n6 a",
            " 6 a=b\n",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        for (key, value) in [
            ("size", "-1"),
            ("size", "0x10"),
            ("size", "99999999999999999999"),
            ("uid", "1 "),
            ("mtime", "1.x"),
            ("mtime", "--1"),
            ("path", "a\0b"),
            ("SCHILY.xattr.", "x"),
            ("GNU.sparse.map", "1"),
            ("GNU.sparse.offset", "1"),
            ("GNU.sparse.numbytes", "1"),
        ] {
            assert!(parse(&body(&[(key, value)])).is_err(), "{key}={value:?}");
        }
    }
}
