//! The words of an instruction before variables are replaced.

use crate::error::Fault;

/// The strings of a JSON array; none if the text is not one. A JSON array of anything else is `Err` in [`list`].
pub(crate) fn json(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text.trim()).ok()
}

/// A JSON array of strings, or none if the text is not a JSON array.
pub(crate) fn list(text: &str) -> Result<Option<Vec<String>>, Fault> {
    match serde_json::from_str::<Vec<serde_json::Value>>(text.trim()) {
        Ok(_) => json(text).map(Some).ok_or_else(|| {
            Fault::instead("a JSON array has an item that is not a string", "put quotes around each item")
        }),
        Err(_) => Ok(None),
    }
}

/// Words between white space; quotes and escapes stay in them.
pub(crate) fn split(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            words.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_default();
        if c == escape && quote != Some('\'') {
            // An escape character at the very end is dropped.
            if let Some(escaped) = chars.next() {
                word.extend([c, escaped]);
            }
            continue;
        }
        match quote {
            Some(open) if open == c => quote = None,
            None if matches!(c, '\'' | '"') => quote = Some(c),
            _ => {}
        }
        word.push(c);
    }
    words.extend(word);
    words
}

/// `NAME=VALUE ...`, or the older `NAME VALUE`.
pub(crate) fn pairs(keyword: &str, text: &str, escape: char) -> Result<Vec<(String, String)>, Fault> {
    let words = split(text, escape);
    let example = || format!("write {keyword} NAME=VALUE");
    let Some(first) = words.first() else {
        return Err(Fault::instead(format!("{keyword} has no arguments"), example()));
    };
    if !first.contains('=') {
        let old = text.split_once(char::is_whitespace).map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
        let missing = || Fault::instead(format!("{keyword} {first} has no value"), example());
        return Ok(vec![old.ok_or_else(missing)?]);
    }
    let pair = |word: &String| match word.split_once('=') {
        Some(("", _)) => Err(Fault::instead(format!("a name of {keyword} is empty"), example())),
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err(Fault::instead(
            format!("'{word}' has no '='"),
            format!("write {word}=VALUE, or put quotes around a value with spaces"),
        )),
    };
    words.iter().map(pair).collect()
}

/// `--name=value` words at the beginning, without their quotes, and the text after them.
pub(crate) fn flags(text: &str, escape: char) -> Result<(Vec<String>, &str), Fault> {
    let mut flags = Vec::new();
    let mut rest = text;
    loop {
        let trimmed = rest.trim_start();
        if !trimmed.starts_with("--") {
            return Ok((flags, trimmed));
        }
        let (flag, length) = flag(trimmed, escape)?;
        rest = &trimmed[length..];
        if flag == "--" {
            return Ok((flags, rest));
        }
        flags.push(flag);
    }
}

/// One flag and its length in the text.
fn flag(text: &str, escape: char) -> Result<(String, usize), Fault> {
    let (mut flag, mut quote) = (String::new(), None);
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => return Ok((flag, at)),
            Some(open) if open == c => quote = None,
            None if matches!(c, '\'' | '"') => quote = Some(c),
            _ if c == escape => flag.extend(chars.next().map(|(_, escaped)| escaped)),
            _ => flag.push(c),
        }
    }
    match quote {
        Some(_) => Err(Fault::new(format!("a quote in '{text}' is not closed"))),
        None => Ok((flag, text.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_their_quotes() {
        for (text, wanted) in [
            ("a  b", vec!["a", "b"]),
            ("n=\"John Doe\" d=Rex\\ The c=x", vec!["n=\"John Doe\"", "d=Rex\\ The", "c=x"]),
            ("'a b'c \"d\\\" e\"", vec!["'a b'c", "\"d\\\" e\""]),
            ("''", vec!["''"]),
            ("a\\", vec!["a"]),
            ("", vec![]),
        ] {
            assert_eq!(split(text, '\\'), wanted, "{text}");
        }
    }

    #[test]
    fn pairs_have_two_forms() {
        for (text, wanted) in [
            ("a=b c=\"d e\"", Some(vec![("a", "b"), ("c", "\"d e\"")])),
            ("ONE TWO= THREE=world", Some(vec![("ONE", "TWO= THREE=world")])),
            ("a=", Some(vec![("a", "")])),
            ("a=b=c", Some(vec![("a", "b=c")])),
            ("a=b c", None),
            ("a", None),
            ("=b", None),
            ("", None),
        ] {
            let wanted = wanted.map(|pairs| {
                pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<Vec<_>>()
            });
            assert_eq!(pairs("ENV", text, '\\').ok(), wanted, "{text}");
        }
    }

    #[test]
    fn flags_come_first() {
        for (text, wanted, rest) in [
            ("--a=b c --d", vec!["--a=b"], "c --d"),
            ("  --m=type=cache,target=/x --n y", vec!["--m=type=cache,target=/x", "--n"], "y"),
            ("--a=\"b c\" d", vec!["--a=b c"], "d"),
            ("-- --a", vec![], " --a"),
            ("-a", vec![], "-a"),
        ] {
            assert_eq!(
                flags(text, '\\').expect(text),
                (wanted.into_iter().map(str::to_owned).collect(), rest),
                "{text}"
            );
        }
        assert!(flags("--a=\"b", '\\').is_err());
    }

    #[test]
    fn json_is_strict() {
        assert_eq!(list("[\"a\", \"b c\"]").expect("a list"), Some(vec!["a".to_owned(), "b c".to_owned()]));
        assert_eq!(list("[]").expect("a list"), Some(vec![]));
        assert_eq!(list("['a']").expect("no list"), None);
        assert_eq!(list("[ -f /x ] || exit 1").expect("no list"), None);
        assert!(list("[\"a\", 1]").is_err());
    }
}
