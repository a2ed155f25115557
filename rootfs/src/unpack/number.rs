//! Numbers in the headers of a tar archive.

use tar::Header;

use super::fault::{Fault, refuse};

/// The sum of all bytes, with the sum's own field taken as spaces. Old writers took the bytes as signed.
pub(super) fn check_sum(header: &Header) -> Result<(), Fault> {
    let said = i64::try_from(number(&header.as_old().cksum, "checksum")?).unwrap_or(-1);
    let bytes = header.as_bytes();
    let counted = |(at, byte): (usize, &u8)| if (148..156).contains(&at) { b' ' } else { *byte };
    let unsigned: i64 = bytes.iter().enumerate().map(counted).map(i64::from).sum();
    let signed: i64 = bytes.iter().enumerate().map(counted).map(|byte| i64::from(byte.cast_signed())).sum();
    if said != unsigned && said != signed {
        refuse!("a header's checksum is wrong: this is no tar archive, or it is damaged");
    }
    Ok(())
}

/// A number in a header that can't be negative.
pub(super) fn number(field: &[u8], what: &str) -> Result<u64, Fault> {
    u64::try_from(signed(field, what)?).map_err(|_| Fault::refused(format!("the {what} in a header is negative")))
}

/// A number in a header: octal digits, or base 256 if the first bit is set.
pub(super) fn signed(field: &[u8], what: &str) -> Result<i64, Fault> {
    let bad = || Fault::refused(format!("the {what} in a header is not a number"));
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (index, byte) in field.iter().enumerate() {
            let byte = if index == 0 && !negative { byte & 0x7f } else { *byte };
            value = (value << 8) | i128::from(byte);
            if i64::try_from(value).is_err() {
                return Err(bad());
            }
        }
        return i64::try_from(value).map_err(|_| bad());
    }
    let text = field.split(|byte| *byte == 0).next().unwrap_or_default().trim_ascii();
    if text.is_empty() {
        return Ok(0);
    }
    let text = std::str::from_utf8(text).map_err(|_| bad())?;
    if !text.bytes().all(|byte| (b'0'..=b'7').contains(&byte)) {
        return Err(bad());
    }
    i64::from_str_radix(text, 8).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(signed(b"0000644\0", "mode").unwrap(), 0o644);
        assert_eq!(signed(b"   644 \0", "mode").unwrap(), 0o644);
        assert_eq!(signed(b"\0\0\0\0\0\0\0\0", "mode").unwrap(), 0);
        assert_eq!(signed(b"\x80\0\0\0\0\0\x01\0", "size").unwrap(), 256);
        assert_eq!(signed(b"\xff\xff\xff\xff\xff\xff\xff\xfe", "time").unwrap(), -2);
        assert!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe", "size").is_err());
        for bad in [
            b"0000648\0".as_slice(),
            b"-000644\0",
            b"0x00644\0",
            b"64 4\0\0\0\0",
            b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert!(signed(bad, "mode").is_err(), "{bad:?}");
        }
    }
}
