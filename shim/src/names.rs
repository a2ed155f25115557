//! File names and paths as text, for JSON and query strings: any bytes, reversibly.
//!
//! A name on Linux is bytes; mostly they are UTF-8, and then the text is the name. A byte that is not part of a valid
//! character is written as one character of a private range of Unicode, U+EF80 for 0x80 to U+EFFF for 0xFF. The characters
//! of that range themselves, should a name have them, are written byte by byte. So each name has one text, and each text
//! that was made of a name gives that name back.

/// The character that stands for the byte 0x80.
const FIRST: u32 = 0xEF80;
/// The character that stands for the byte 0xFF.
const LAST: u32 = 0xEFFF;

/// The text for these bytes.
#[must_use]
pub fn to_text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if (FIRST..=LAST).contains(&u32::from(character)) {
                escape(character.encode_utf8(&mut [0; 4]).as_bytes(), &mut text);
            } else {
                text.push(character);
            }
        }
        escape(chunk.invalid(), &mut text);
    }
    text
}

/// The bytes for this text.
#[must_use]
pub fn to_bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        match u32::from(character) {
            code @ FIRST..=LAST => bytes.push(0x80 + (code - FIRST) as u8),
            _ => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// Bytes below 0x80 are valid characters, so none of them comes here.
fn escape(bytes: &[u8], text: &mut String) {
    text.extend(bytes.iter().filter_map(|byte| char::from_u32(FIRST + u32::from(byte & 0x7f))));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_utf8_stays_as_it_is() {
        for name in ["a b", "é", "\u{301}", "🎉", "%2F#?"] {
            assert_eq!(to_text(name.as_bytes()), name);
        }
        assert_eq!(to_text(b"a\xff\xfe"), "a\u{efff}\u{effe}");
    }

    proptest! {
        #[test]
        fn every_name_comes_back(bytes in prop::collection::vec(any::<u8>(), 0..40), text in "[\u{ef70}-\u{f010}]{0,8}") {
            prop_assert_eq!(to_bytes(&to_text(&bytes)), bytes);
            prop_assert_eq!(to_bytes(&to_text(text.as_bytes())), text.as_bytes());
        }
    }
}
