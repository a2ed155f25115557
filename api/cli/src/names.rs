//! File names as the text of the HTTP API, and back.
//!
//! A name on Linux is bytes. The API writes a byte that is no valid UTF-8 as one character of a private range of Unicode:
//! U+EF80 for 0x80 to U+EFFF for 0xFF (docs/api.md). A real character of that range is written byte by byte, so each name
//! has one text. `icebox_shim::names` is the other side; this program is built without it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

/// The characters that stand for the bytes 0x80 to 0xFF.
const BYTES: std::ops::RangeInclusive<u32> = 0xEF80..=0xEFFF;

/// The text of a local name.
pub(crate) fn to_text(name: &OsStr) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.as_bytes().utf8_chunks() {
        for character in chunk.valid().chars() {
            if BYTES.contains(&u32::from(character)) {
                escape(character.encode_utf8(&mut [0; 4]).as_bytes(), &mut text);
            } else {
                text.push(character);
            }
        }
        escape(chunk.invalid(), &mut text);
    }
    text
}

/// The local name for a text of the API.
pub(crate) fn to_name(text: &str) -> OsString {
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        match byte_of(character) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    OsString::from_vec(bytes)
}

/// Whether a text stands for a name that is not UTF-8, so that it is not the name itself.
pub(crate) fn is_escaped(text: &str) -> bool {
    text.chars().any(|character| byte_of(character).is_some())
}

fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    BYTES.contains(&code).then(|| 0x80 | (code - BYTES.start()) as u8)
}

/// Bytes below 0x80 are valid characters, so each of these is above.
fn escape(bytes: &[u8], text: &mut String) {
    text.extend(bytes.iter().filter_map(|byte| char::from_u32(BYTES.start() + u32::from(byte & 0x7f))));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_one_text_which_gives_it_back() {
        for (name, text) in [
            ("a b".as_bytes(), "a b"),
            ("é".as_bytes(), "é"),
            (b"a\xff\xfe", "a\u{efff}\u{effe}"),
            ("\u{ef80}".as_bytes(), "\u{efee}\u{efbe}\u{ef80}"),
        ] {
            let name = OsStr::from_bytes(name);
            assert_eq!(to_text(name), text);
            assert_eq!(to_name(text), name);
            assert_eq!(is_escaped(text), text.contains(|c| ('\u{ef80}'..='\u{efff}').contains(&c)));
        }
    }
}
