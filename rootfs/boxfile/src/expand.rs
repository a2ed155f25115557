//! Variables and quotes in the words of an instruction: `$x`, `${x}`, `${x:-y}`, `${x:+y}`, `${x:?y}` (each also without the
//! colon), `${x#p}`, `${x##p}`, `${x%p}`, `${x%%p}`, `${x/p/r}` and `${x//p/r}`.
//!
//! The rules are those that the Dockerfile reference describes. A variable that is not set is empty.

use crate::error::Fault;
use crate::pattern::ShellPattern;

/// Variables in the order in which they were set first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Env(Vec<(String, String)>);

impl Env {
    /// The variables of a list of `NAME=VALUE`.
    #[must_use]
    pub fn of(list: &[String]) -> Self {
        let mut env = Self::default();
        for item in list {
            let (name, value) = item.split_once('=').unwrap_or((item, ""));
            env.set(name, value);
        }
        env
    }

    /// Sets a variable; one that is set already keeps its place.
    pub fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }

    /// The value of a variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The variables.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// As a list of `NAME=VALUE`.
    #[must_use]
    pub fn to_list(&self) -> Vec<String> {
        self.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }
}

/// How words are read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lexer {
    /// The character of the `escape` directive.
    pub(crate) escape: char,
    /// Quotes are kept in the result.
    pub(crate) raw_quotes: bool,
    /// Escapes are kept in the result.
    pub(crate) raw_escapes: bool,
    /// Quotes are characters like any other.
    pub(crate) no_quotes: bool,
    /// Variables that are not set stay as they are written.
    pub(crate) keep_unset: bool,
}

impl Lexer {
    pub(crate) fn new(escape: char) -> Self {
        Self { escape, raw_quotes: false, raw_escapes: false, no_quotes: false, keep_unset: false }
    }

    /// For the content of a here-document: no quotes.
    pub(crate) fn of_heredoc() -> Self {
        Self { no_quotes: true, ..Self::new('\\') }
    }

    /// The whole text as one word.
    pub(crate) fn word(self, text: &str, env: &Env) -> Result<String, Fault> {
        Ok(self.run(text, env)?.0)
    }

    /// The words into which the text falls once variables are replaced.
    pub(crate) fn words(self, text: &str, env: &Env) -> Result<Vec<String>, Fault> {
        Ok(self.run(text, env)?.1)
    }

    fn run(self, text: &str, env: &Env) -> Result<(String, Vec<String>), Fault> {
        let mut reader = Reader { chars: text.chars().collect(), at: 0, lexer: self, env, depth: 0 };
        reader.until(None, self.raw_escapes).map_err(|fault| Fault::new(format!("{} in '{text}'", fault.what)))
    }
}

/// Splits a text into words while it grows.
#[derive(Default)]
struct Words {
    word: String,
    in_word: bool,
    done: Vec<String>,
}

impl Words {
    fn plain(&mut self, c: char) {
        if !c.is_whitespace() {
            self.raw(c);
        } else if self.in_word && !self.word.is_empty() {
            self.done.push(std::mem::take(&mut self.word));
            self.in_word = false;
        }
    }

    fn raw(&mut self, c: char) {
        self.word.push(c);
        self.in_word = true;
    }

    fn finish(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.done.push(self.word);
        }
        self.done
    }
}

/// Deepest nesting of `${a:-${b:-...}}`.
const DEPTH_MAX: usize = 64;

struct Reader<'a> {
    chars: Vec<char>,
    at: usize,
    lexer: Lexer,
    env: &'a Env,
    depth: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek();
        self.at += usize::from(c.is_some());
        c
    }

    /// Reads up to `stop`, or to the end.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Result<(String, Vec<String>), Fault> {
        let mut result = String::new();
        let mut words = Words::default();
        while let Some(c) = self.peek() {
            if stop == Some(c) {
                self.at += 1;
                return Ok((result, words.finish()));
            }
            match c {
                '$' => {
                    let value = self.dollar()?;
                    value.chars().for_each(|c| words.plain(c));
                    result.push_str(&value);
                }
                '\'' | '"' if !self.lexer.no_quotes => {
                    let text = if c == '"' { self.double(raw_escapes)? } else { self.single()? };
                    words.in_word = true;
                    words.word.push_str(&text);
                    result.push_str(&text);
                }
                _ => {
                    self.at += 1;
                    if c == self.lexer.escape {
                        if raw_escapes {
                            words.raw(c);
                            result.push(c);
                        }
                        let Some(escaped) = self.next() else { break };
                        words.raw(escaped);
                        result.push(escaped);
                    } else {
                        words.plain(c);
                        result.push(c);
                    }
                }
            }
        }
        match stop {
            Some(stop) => Err(Fault::new(format!("there is no '{stop}' that ends '${{'"))),
            None => Ok((result, words.finish())),
        }
    }

    fn single(&mut self) -> Result<String, Fault> {
        let mut result = String::new();
        self.at += 1;
        if self.lexer.raw_quotes {
            result.push('\'');
        }
        loop {
            match self.next() {
                None => return Err(Fault::new("a single quote is not closed")),
                Some('\'') => break,
                Some(c) => result.push(c),
            }
        }
        if self.lexer.raw_quotes {
            result.push('\'');
        }
        Ok(result)
    }

    fn double(&mut self, raw_escapes: bool) -> Result<String, Fault> {
        let mut result = String::new();
        self.at += 1;
        if self.lexer.raw_quotes {
            result.push('"');
        }
        loop {
            match self.peek() {
                None => return Err(Fault::new("a double quote is not closed")),
                Some('"') => break,
                Some('$') => result.push_str(&self.dollar()?),
                Some(mut c) => {
                    self.at += 1;
                    if c == self.lexer.escape {
                        if raw_escapes {
                            result.push(c);
                        }
                        match self.peek() {
                            None => continue,
                            Some(next) if next == '"' || next == '$' || next == self.lexer.escape => {
                                c = next;
                                self.at += 1;
                            }
                            Some(_) if raw_escapes => continue,
                            Some(_) => {}
                        }
                    }
                    result.push(c);
                }
            }
        }
        self.at += 1;
        if self.lexer.raw_quotes {
            result.push('"');
        }
        Ok(result)
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.peek() {
            if name.is_empty() && c.is_ascii_digit() {
                while let Some(digit) = self.peek().filter(char::is_ascii_digit) {
                    name.push(digit);
                    self.at += 1;
                }
                return name;
            }
            if name.is_empty() && "@*#?-$!".contains(c) {
                self.at += 1;
                return c.to_string();
            }
            if !c.is_alphanumeric() && c != '_' {
                break;
            }
            name.push(c);
            self.at += 1;
        }
        name
    }

    fn dollar(&mut self) -> Result<String, Fault> {
        self.at += 1;
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.env.get(&name) {
                Some(value) => value.to_owned(),
                None if self.lexer.keep_unset => format!("${name}"),
                None => String::new(),
            });
        }
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Fault::new("variables are nested too deep"));
        }
        let begin = self.at - 1;
        self.at += 1;
        if matches!(self.peek(), None | Some('{' | '}' | ':')) {
            return Err(Fault::new("a substitution is malformed"));
        }
        let name = self.name();
        let value = self.env.get(&name).map(str::to_owned);
        let result = self.modified(&name, value.as_deref())?;
        self.depth -= 1;
        if value.is_none() && self.lexer.keep_unset {
            return Ok(self.chars[begin..self.at].iter().collect());
        }
        Ok(result)
    }

    /// What follows the name in `${name`.
    fn modified(&mut self, name: &str, value: Option<&str>) -> Result<String, Fault> {
        let mut operator = self.next();
        let null_is_unset = operator == Some(':');
        if null_is_unset {
            operator = self.next();
        }
        let unset = value.is_none() || (null_is_unset && value == Some(""));
        let text = value.unwrap_or_default();
        match operator {
            Some('}') if !null_is_unset => Ok(text.to_owned()),
            Some('-') => {
                let word = self.until(Some('}'), false)?.0;
                Ok(if unset { word } else { text.to_owned() })
            }
            Some('+') => {
                let word = self.until(Some('}'), false)?.0;
                Ok(if unset { String::new() } else { word })
            }
            Some('?') => {
                let word = self.until(Some('}'), false)?.0;
                let reason = if word.is_empty() { "it must be set" } else { &word };
                if unset { Err(Fault::new(format!("{name}: {reason}"))) } else { Ok(text.to_owned()) }
            }
            Some(operator @ ('#' | '%')) if !null_is_unset => {
                let word = self.until(Some('}'), true)?.0;
                let (longest, pattern) = match word.strip_prefix(operator) {
                    Some(rest) => (true, rest),
                    None => (false, word.as_str()),
                };
                let pattern = ShellPattern::new(pattern)?;
                Ok(if operator == '#' { pattern.trim_start(text, longest) } else { pattern.trim_end(text, longest) })
            }
            Some('/') if !null_is_unset => {
                let all = self.peek() == Some('/');
                self.at += usize::from(all);
                let pattern = self.until(Some('/'), true)?.0;
                let with = self.until(Some('}'), true)?.0;
                Ok(ShellPattern::new(&pattern)?.replace(text, &with, all))
            }
            None => Err(Fault::new("there is no '}' that ends '${'")),
            Some(other) => Err(Fault::instead(
                format!("the substitution '{other}' of variable {name} is not known"),
                "the Dockerfile syntax has :-, :+, :?, #, ##, %, %%, / and //",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> Env {
        Env::of(&["foo=bar", "empty=", "path=foo-bar-baz-bar", "spaces=a b", "v=1.2.3", "u=Ünïcode"].map(String::from))
    }

    #[test]
    fn words_are_expanded() {
        for (text, wanted) in [
            ("$foo", "bar"),
            ("${foo}", "bar"),
            ("a${foo}b", "abarb"),
            ("$foobar", ""),
            ("$foo-bar", "bar-bar"),
            ("\\$foo", "$foo"),
            ("\\${foo}", "${foo}"),
            ("'$foo'", "$foo"),
            ("\"$foo\"", "bar"),
            ("\"\\$foo\"", "$foo"),
            ("\"a\\b\"", "a\\b"),
            ("$", "$"),
            ("$1", ""),
            ("a$ b", "a$ b"),
            ("${none:-word}", "word"),
            ("${none-word}", "word"),
            ("${empty:-word}", "word"),
            ("${empty-word}", ""),
            ("${foo:-word}", "bar"),
            ("${none:-$foo}", "bar"),
            ("${none:-${empty:-${foo}x}}", "barx"),
            ("${foo:+word}", "word"),
            ("${none:+word}", ""),
            ("${empty:+word}", ""),
            ("${empty+word}", "word"),
            ("${foo:?gone}", "bar"),
            ("${path#*-}", "bar-baz-bar"),
            ("${path##*-}", "bar"),
            ("${path%-*}", "foo-bar-baz"),
            ("${path%%-*}", "foo"),
            ("${path%.tar}", "foo-bar-baz-bar"),
            ("${path/bar/x}", "foo-x-baz-bar"),
            ("${path//bar/x}", "foo-x-baz-x"),
            ("${path//b?r/}", "foo--baz-"),
            ("${v%%.*}", "1"),
            ("${v%.*}", "1.2"),
            ("${u#?}", "nïcode"),
            ("a\\ b", "a b"),
            ("end\\", "end"),
        ] {
            assert_eq!(Lexer::new('\\').word(text, &env()).as_deref(), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn a_malformed_word_is_refused() {
        for text in
            ["${", "${}", "${{foo}", "${:}", "${foo", "${foo:-x", "'a", "\"a", "${foo^^}", "${none:?no}", "${empty:?}"]
        {
            let fault = Lexer::new('\\').word(text, &env()).expect_err(text);
            assert!(fault.what.contains(text), "{}", fault.what);
        }
        let deep = "${a:-".repeat(100);
        assert!(Lexer::new('\\').word(&deep, &env()).is_err());
    }

    #[test]
    fn words_are_split_after_the_expansion() {
        for (text, wanted) in [
            ("a b", vec!["a", "b"]),
            ("$spaces c", vec!["a", "b", "c"]),
            ("\"$spaces\" c", vec!["a b", "c"]),
            ("'a b'c", vec!["a bc"]),
            ("a\\ b", vec!["a b"]),
            ("  ", vec![]),
            ("$none", vec![]),
        ] {
            assert_eq!(Lexer::new('\\').words(text, &env()).expect(text), wanted, "{text}");
        }
    }

    #[test]
    fn the_escape_character_is_that_of_the_directive() {
        let lexer = Lexer::new('`');
        assert_eq!(lexer.word("`$foo c:\\", &env()).as_deref(), Ok("$foo c:\\"));
        let kept = Lexer { keep_unset: true, ..Lexer::new('\\') };
        assert_eq!(kept.word("$none ${none:-x} $foo", &env()).as_deref(), Ok("$none ${none:-x} bar"));
        assert_eq!(Lexer::of_heredoc().word("\"$foo\" 'x' \\$foo", &env()).as_deref(), Ok("\"bar\" 'x' $foo"));
    }
}
