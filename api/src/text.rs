//! Helpers for untrusted texts: they may be long and contain any character.

/// Cuts a text to at most `bytes_max` bytes, between characters, and marks the cut with an ellipsis.
#[must_use]
pub fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text;
    }
    let mut end = bytes_max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text.push('…');
    text
}

/// A text on one line: control characters become blanks.
#[must_use]
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("short".into(), 10), "short");
        assert_eq!(cut("ééé".into(), 3), "é…");
        assert_eq!(cut(String::new(), 0), "");
    }

    #[test]
    fn control_characters_do_not_break_lines() {
        assert_eq!(one_line("a\nb\x1b[31m"), "a b [31m");
    }
}
