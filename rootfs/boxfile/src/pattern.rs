//! Patterns: those of `${name#pattern}`, those of COPY, and those of `.dockerignore`.

use crate::error::Fault;

/// A pattern of a parameter expansion: `*`, `?` and characters.
pub(crate) struct ShellPattern(Vec<Token>);

#[derive(Clone, Copy)]
enum Token {
    Any,
    One,
    Char(char),
}

impl ShellPattern {
    pub(crate) fn new(pattern: &str) -> Result<Self, Fault> {
        let mut tokens = Vec::new();
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' => Token::Any,
                '?' => Token::One,
                '\\' => match chars.next() {
                    Some(escaped @ ('*' | '?' | '\\' | '}' | '/')) => Token::Char(escaped),
                    _ => return Err(Fault::new(format!("the pattern '{pattern}' has an escape that is not known"))),
                },
                other => Token::Char(other),
            });
        }
        Ok(Self(tokens))
    }

    /// The lengths of all beginnings of `text` that match, ascending.
    fn ends(&self, text: &[char]) -> Vec<usize> {
        let mut at: Vec<bool> = vec![false; text.len() + 1];
        at[0] = true;
        for token in &self.0 {
            let mut next = vec![false; text.len() + 1];
            match token {
                Token::Any => {
                    let first = at.iter().position(|set| *set).unwrap_or(text.len() + 1);
                    next.iter_mut().skip(first).for_each(|set| *set = true);
                }
                Token::One => next[1..].copy_from_slice(&at[..text.len()]),
                Token::Char(c) => {
                    for (i, known) in text.iter().enumerate() {
                        next[i + 1] = at[i] && known == c;
                    }
                }
            }
            at = next;
        }
        at.iter().enumerate().filter(|(_, set)| **set).map(|(length, _)| length).collect()
    }

    /// Without the beginning that matches.
    pub(crate) fn trim_start(&self, text: &str, longest: bool) -> String {
        let chars: Vec<char> = text.chars().collect();
        let ends = self.ends(&chars);
        let cut = if longest { ends.last() } else { ends.first() };
        chars[cut.copied().unwrap_or(0)..].iter().collect()
    }

    /// Without the end that matches.
    pub(crate) fn trim_end(&self, text: &str, longest: bool) -> String {
        let chars: Vec<char> = text.chars().collect();
        let matches = |from: usize| self.ends(&chars[from..]).last() == Some(&(chars.len() - from));
        let mut starts = (0..=chars.len()).filter(|from| matches(*from));
        let cut = if longest { starts.next() } else { starts.next_back() };
        chars[..cut.unwrap_or(chars.len())].iter().collect()
    }

    /// With the first match replaced, or all of them.
    pub(crate) fn replace(&self, text: &str, with: &str, all: bool) -> String {
        let chars: Vec<char> = text.chars().collect();
        let (mut result, mut at, mut done) = (String::new(), 0, false);
        while at <= chars.len() {
            let length = if done && !all { None } else { self.ends(&chars[at..]).last().copied() };
            match length {
                Some(length) if length > 0 => {
                    result.push_str(with);
                    at += length;
                    done = true;
                }
                _ => {
                    result.extend(chars.get(at));
                    at += 1;
                }
            }
        }
        result
    }
}

/// True if the text has a character that makes it a pattern.
pub(crate) fn has_wildcards(text: &str) -> bool {
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// Matches one component of a path, by the rules of Go's `filepath.Match`. `Err`: the pattern is malformed.
pub(crate) fn component(pattern: &[u8], name: &[u8]) -> Result<bool, Fault> {
    let malformed = || Fault::new(format!("the pattern '{}' is malformed", pattern.escape_ascii()));
    // The last `*` and the place in the name from which it is tried again.
    let mut retry: Option<(usize, usize)> = None;
    let (mut p, mut n) = (0, 0);
    loop {
        let matched = match pattern.get(p) {
            None if n == name.len() => return Ok(true),
            None => None,
            Some(b'*') => {
                retry = Some((p, n));
                p += 1;
                continue;
            }
            Some(b'?') => name.get(n).map(|first| (1, utf8_length(*first))),
            Some(b'[') => {
                let (length, hit) = class(&pattern[p..], name.get(n).copied()).ok_or_else(malformed)?;
                hit.then_some((length, 1))
            }
            Some(b'\\') => {
                let escaped = pattern.get(p + 1).ok_or_else(malformed)?;
                (name.get(n) == Some(escaped)).then_some((2, 1))
            }
            Some(c) => (name.get(n) == Some(c)).then_some((1, 1)),
        };
        match (matched, retry) {
            (Some((pattern_bytes, name_bytes)), _) => {
                p += pattern_bytes;
                n = (n + name_bytes).min(name.len());
            }
            (None, Some((star, from))) if from < name.len() => {
                retry = Some((star, from + 1));
                (p, n) = (star + 1, from + 1);
            }
            _ => {
                // The rest of a pattern that does not match must be well formed, too.
                check(&pattern[p.min(pattern.len())..]).ok_or_else(malformed)?;
                return Ok(false);
            }
        }
    }
}

fn check(mut pattern: &[u8]) -> Option<()> {
    while let Some(c) = pattern.first() {
        let length = match c {
            b'[' => class(pattern, None)?.0,
            b'\\' => 2,
            _ => 1,
        };
        pattern = pattern.get(length..)?;
    }
    Some(())
}

fn utf8_length(first: u8) -> usize {
    match first {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    }
}

/// `[a-z]` at the beginning of `pattern`: its length, and whether `byte` is in it.
fn class(pattern: &[u8], byte: Option<u8>) -> Option<(usize, bool)> {
    let mut at = 1;
    let negated = pattern.get(at) == Some(&b'^');
    at += usize::from(negated);
    let begin = at;
    let mut hit = false;
    let one = |at: &mut usize| {
        let escaped = pattern.get(*at)? == &b'\\';
        *at += usize::from(escaped);
        let c = *pattern.get(*at)?;
        *at += 1;
        Some((c, escaped))
    };
    loop {
        if at > begin && pattern.get(at) == Some(&b']') {
            return byte.map_or(Some((at + 1, false)), |_| Some((at + 1, hit != negated)));
        }
        let (low, escaped) = one(&mut at)?;
        if !escaped && matches!(low, b']' | b'-') {
            return None;
        }
        let high = if pattern.get(at) == Some(&b'-') {
            at += 1;
            one(&mut at)?.0
        } else {
            low
        };
        hit |= byte.is_some_and(|byte| (low..=high).contains(&byte));
    }
}

/// Matches a whole path; `**` stands for any number of components.
pub(crate) fn path(pattern: &[&[u8]], parts: &[&[u8]]) -> Result<bool, Fault> {
    // The pairs that are open, row by row, so that many `**` take no exponential time.
    let mut open = vec![false; parts.len() + 1];
    open[0] = true;
    for item in pattern {
        let mut next = vec![false; parts.len() + 1];
        if *item == b"**" {
            if let Some(first) = open.iter().position(|set| *set) {
                next[first..].iter_mut().for_each(|set| *set = true);
            }
        } else {
            for (i, part) in parts.iter().enumerate() {
                next[i + 1] = open[i] && component(item, part)?;
            }
        }
        open = next;
    }
    Ok(open[parts.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_matches_as_in_go() {
        for (pattern, name, wanted) in [
            ("abc", "abc", Some(true)),
            ("*", "abc", Some(true)),
            ("*c", "abc", Some(true)),
            ("a*", "a", Some(true)),
            ("a*", "ba", Some(false)),
            ("a*b?c*x", "abxbbxdbxebxczzx", Some(true)),
            ("a*b?c*x", "abxbbxdbxebxczzy", Some(false)),
            ("ab[c]", "abc", Some(true)),
            ("ab[b-d]", "abc", Some(true)),
            ("ab[e-g]", "abc", Some(false)),
            ("ab[^c]", "abc", Some(false)),
            ("ab[^e-g]", "abc", Some(true)),
            ("a\\*b", "a*b", Some(true)),
            ("a\\*b", "ab", Some(false)),
            ("a?b", "aäb", Some(true)),
            ("arr[[]0].txt", "arr[0].txt", Some(true)),
            ("[\\]a]", "]", Some(true)),
            ("[\\-]", "-", Some(true)),
            ("[]a]", "]", None),
            ("[-]", "-", None),
            ("[", "a", None),
            ("[^", "a", None),
            ("a[", "a", None),
            ("a[", "ab", None),
            ("x[", "a", None),
            ("\\", "a", None),
        ] {
            assert_eq!(component(pattern.as_bytes(), name.as_bytes()).ok(), wanted, "{pattern} {name}");
        }
    }

    #[test]
    fn two_stars_span_components() {
        fn split(text: &str) -> Vec<&[u8]> {
            text.split('/').map(str::as_bytes).collect()
        }
        for (pattern, text, wanted) in [
            ("**", "a/b/c", true),
            ("**/c", "a/b/c", true),
            ("**/c", "c", true),
            ("a/**/c", "a/c", true),
            ("a/**/c", "a/x/y/c", true),
            ("a/**", "b/a", false),
            ("*/b", "a/b", true),
            ("*", "a/b", false),
        ] {
            assert_eq!(path(&split(pattern), &split(text)).expect(pattern), wanted, "{pattern} {text}");
        }
        let many: Vec<&[u8]> = vec![b"**"; 200];
        let long: Vec<&[u8]> = vec![b"x"; 200];
        assert!(path(&many, &long).expect("quick"));
    }
}
