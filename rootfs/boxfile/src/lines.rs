//! From the text of a Boxfile to its logical lines: directives, comments, continuations and here-documents.
//!
//! The crate `parse-dockerfile` 0.1.9 was tried first, with 32 of the examples of the Dockerfile reference. It refuses four
//! of them (a here-document after a command, two here-documents in one RUN, one with a descriptor, an empty
//! ENTRYPOINT), does not give the names of here-documents, which are the names of the files that COPY makes, and leaves the
//! continuations and the comments in the command of a RUN. So the lines are read here.

use crate::error::{Error, Fault};
use crate::expand::{Env, Lexer};
use crate::words;

/// Largest Boxfile.
pub const BOXFILE_BYTES_MAX: usize = 1 << 20;

/// A here-document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heredoc {
    /// Its delimiter, without quotes.
    pub(crate) name: String,
    /// Its lines. With `<<-`, without their leading tabs.
    pub(crate) content: String,
    /// The lines as they are written.
    pub(crate) raw: String,
    /// True if variables in it are replaced: its delimiter is not quoted.
    pub(crate) expand: bool,
}

/// An instruction that may span several lines of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// Its first line in the file, counted from 1.
    pub(crate) line: usize,
    /// The keyword, in upper case.
    pub(crate) keyword: String,
    /// `--name=value` before the arguments.
    pub(crate) flags: Vec<String>,
    /// The arguments, continuations joined.
    pub(crate) rest: String,
    pub(crate) heredocs: Vec<Heredoc>,
}

/// All logical lines of a Boxfile.
#[derive(Debug)]
pub(crate) struct Lines {
    pub(crate) escape: char,
    pub(crate) lines: Vec<Line>,
}

/// Reads the lines of a Boxfile that is called `file`.
pub(crate) fn read(file: &str, text: &str) -> Result<Lines, Error> {
    let whole = |what: String| Error { file: file.to_owned(), line: None, what, instead: None };
    if text.len() > BOXFILE_BYTES_MAX {
        return Err(whole(format!("the file has {} bytes; at most {BOXFILE_BYTES_MAX} are read", text.len())));
    }
    if text.contains('\0') {
        return Err(whole("the file has a NUL byte: it is not a text".to_owned()));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let source: Vec<&str> = text.split_inclusive('\n').collect();
    let escape = directives(&source).map_err(|(fault, line)| fault.at(file, line))?;
    let mut lines = Vec::new();
    let mut at = 0;
    while at < source.len() {
        let first = at + 1;
        if let Some(line) = logical(&source, &mut at, escape).map_err(|fault| fault.at(file, first))? {
            lines.push(line);
        }
    }
    if lines.is_empty() {
        return Err(whole("the file has no instructions".to_owned()));
    }
    Ok(Lines { escape, lines })
}

/// The directives at the beginning of the file. Gives the escape character.
fn directives(source: &[&str]) -> Result<char, (Fault, usize)> {
    let mut escape = '\\';
    let mut seen: Vec<String> = Vec::new();
    for (at, line) in source.iter().enumerate() {
        let Some((key, value)) = line.strip_prefix('#').and_then(|comment| comment.split_once('=')) else { break };
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
        if value.is_empty() || !["syntax", "escape", "check"].contains(&key.as_str()) {
            break;
        }
        if seen.contains(&key) {
            return Err((Fault::new(format!("the directive '{key}' is there twice")), at + 1));
        }
        if key == "escape" {
            escape = match value {
                "\\" => '\\',
                "`" => '`',
                other => {
                    let what = format!("the escape character '{other}' is not known");
                    return Err((Fault::instead(what, "write '# escape=\\' or '# escape=`'"), at + 1));
                }
            };
        }
        seen.push(key);
    }
    Ok(escape)
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// Without its line end, and without the escape character at its end, if it goes on.
fn continuation(line: &str, escape: char) -> (&str, bool) {
    let line = line.trim_end_matches(['\n', '\r']);
    let trimmed = line.trim_end_matches([' ', '\t']);
    match trimmed.strip_suffix(escape) {
        // Two escape characters are one that was escaped.
        Some(before) if !before.ends_with(escape) => (before, true),
        _ => (line, false),
    }
}

/// The next instruction; none for an empty line or a comment.
fn logical(source: &[&str], at: &mut usize, escape: char) -> Result<Option<Line>, Fault> {
    let first = *at;
    *at += 1;
    if is_comment(source[first]) {
        return Ok(None);
    }
    let (begin, mut goes_on) = continuation(source[first].trim_start(), escape);
    let mut text = begin.to_owned();
    while goes_on && *at < source.len() {
        let line = source[*at];
        *at += 1;
        if is_comment(line) || line.trim().is_empty() {
            continue;
        }
        let (part, more) = continuation(line, escape);
        text.push_str(part);
        goes_on = more;
    }
    if text.trim().is_empty() {
        return Ok(None);
    }
    let mut line = split(&text, first + 1, escape)?;
    let names = match line.keyword.as_str() {
        "RUN" | "COPY" | "ADD" if words::json(&line.rest).is_none() => found(&line.rest)?,
        "ONBUILD" => found(&line.rest)?,
        _ => Vec::new(),
    };
    for name in names {
        line.heredocs.push(body(name, source, at)?);
    }
    Ok(Some(line))
}

/// Keyword, flags and arguments of a logical line.
pub(crate) fn split(text: &str, line: usize, escape: char) -> Result<Line, Fault> {
    let text = text.trim();
    let (keyword, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let keyword = keyword.to_ascii_uppercase();
    let (flags, rest) = words::flags(rest, escape)?;
    Ok(Line { line, keyword, flags, rest: rest.trim().to_owned(), heredocs: Vec::new() })
}

/// The line of an ONBUILD trigger, whose here-documents follow it in the same text.
pub(crate) fn trigger(text: &str, line: usize, escape: char) -> Result<Line, Fault> {
    let source: Vec<&str> = text.split_inclusive('\n').collect();
    let mut at = 0;
    let mut read = logical(&source, &mut at, escape)?.ok_or_else(|| Fault::new("an ONBUILD trigger is empty"))?;
    read.line = line;
    Ok(read)
}

/// The start of a here-document: `[N]<<[-]NAME`.
struct Start {
    name: String,
    expand: bool,
    chomp: bool,
}

/// The here-documents that a line starts.
fn found(rest: &str) -> Result<Vec<Start>, Fault> {
    if !rest.contains("<<") {
        return Ok(Vec::new());
    }
    let lexer = Lexer { raw_quotes: true, raw_escapes: true, keep_unset: true, ..Lexer::new('\\') };
    // A line whose quotes are not closed here is for the shell to judge.
    let words = lexer.words(rest, &Env::default()).unwrap_or_default();
    words.iter().filter_map(|word| start(word).transpose()).collect()
}

/// The here-document that a word starts.
fn start(word: &str) -> Result<Option<Start>, Fault> {
    let Some(name) = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<") else { return Ok(None) };
    let (chomp, name) = name.strip_prefix('-').map_or((false, name), |name| (true, name));
    if name.is_empty() || name.contains('<') {
        return Ok(None);
    }
    let lexer = Lexer { keep_unset: true, ..Lexer::new('\\') };
    let mut words = lexer.words(name, &Env::default())?;
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    match (words.pop(), words.is_empty()) {
        (Some(word), true) => Ok(Some(Start { expand: quotes(&word) == quotes(name), name: word, chomp })),
        _ => Ok(None),
    }
}

/// The name of the here-document that a word of COPY stands for.
pub(crate) fn heredoc_name(word: &str) -> Result<Option<String>, Fault> {
    Ok(start(word)?.map(|start| start.name))
}

fn body(start: Start, source: &[&str], at: &mut usize) -> Result<Heredoc, Fault> {
    let Start { name, expand, chomp } = start;
    let (mut content, mut raw) = (String::new(), String::new());
    while *at < source.len() {
        let line = source[*at];
        *at += 1;
        let chomped = if chomp { line.trim_start_matches('\t') } else { line };
        if chomped.trim_end_matches(['\r', '\n']) == name {
            return Ok(Heredoc { name, content, raw, expand });
        }
        content.push_str(chomped);
        raw.push_str(line);
    }
    Err(Fault::instead(
        format!("the here-document '{name}' does not end"),
        format!("write a line '{name}' after its content"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(text: &str) -> Vec<(usize, String)> {
        let lines = read("F", text).expect(text).lines;
        lines.into_iter().map(|line| (line.line, format!("{} {}", line.keyword, line.rest))).collect()
    }

    #[test]
    fn continuations_and_comments_are_joined() {
        for (text, wanted) in [
            ("FROM a\nRUN x\n", vec![(1, "FROM a"), (2, "RUN x")]),
            ("# c\n\n  FROM a\r\nRUN a \\\r\n  b\r\n", vec![(3, "FROM a"), (4, "RUN a   b")]),
            ("RUN echo hello \\\n# comment\nworld\n", vec![(1, "RUN echo hello world")]),
            ("RUN echo hello \\\n   # comment\nworld\n", vec![(1, "RUN echo hello world")]),
            ("RUN a \\\n\n\nb\nRUN c", vec![(1, "RUN a b"), (5, "RUN c")]),
            ("RUN a\\\\\nRUN b", vec![(1, "RUN a\\\\"), (2, "RUN b")]),
            ("RUN a \\  \nb", vec![(1, "RUN a b")]),
            ("RUN echo \\", vec![(1, "RUN echo")]),
            ("run a # not a comment\n", vec![(1, "RUN a # not a comment")]),
            ("# escape=`\nRUN dir `\n c:\\\nCOPY t c:\\\n", vec![(2, "RUN dir  c:\\"), (4, "COPY t c:\\")]),
            ("#syntax=x\n# Escape = `\nRUN a `\nb", vec![(3, "RUN a b")]),
            ("# comment\n# escape=`\nRUN a `\nRUN b", vec![(3, "RUN a `"), (4, "RUN b")]),
            ("\u{feff}FROM a", vec![(1, "FROM a")]),
        ] {
            let wanted: Vec<(usize, String)> = wanted.into_iter().map(|(line, text)| (line, text.to_owned())).collect();
            assert_eq!(rest(text), wanted, "{text:?}");
        }
    }

    fn heredocs(text: &str) -> Vec<(String, String, bool)> {
        let lines = read("F", text).expect(text).lines;
        lines[0].heredocs.iter().map(|doc| (doc.name.clone(), doc.content.clone(), doc.expand)).collect()
    }

    #[test]
    fn here_documents_are_taken() {
        for (text, wanted) in [
            ("RUN <<EOF\necho a\nEOF\n", vec![("EOF", "echo a\n", true)]),
            ("RUN python3 <<EOF\nprint(1)\nEOF\n", vec![("EOF", "print(1)\n", true)]),
            ("RUN 3<<EOF cat <&3\nx\nEOF\n", vec![("EOF", "x\n", true)]),
            ("RUN <<A cat > /f && <<B cat\n1\nA\n2\nB\n", vec![("A", "1\n", true), ("B", "2\n", true)]),
            ("COPY <<-\"E\" /x\n\t\thi $x\n\tE\n", vec![("E", "hi $x\n", false)]),
            ("COPY <<'E' /x\nE\n", vec![("E", "", false)]),
            ("ADD <<E <<F /x/\n# kept\nE\n\\\nF\n", vec![("E", "# kept\n", true), ("F", "\\\n", true)]),
            ("ONBUILD RUN <<E\nx\nE\n", vec![("E", "x\n", true)]),
            ("RUN [\"<<EOF\"]\n", vec![]),
            ("RUN cat <<<EOF\n", vec![]),
            ("RUN \"<<EOF\"\n", vec![]),
            ("RUN a<<EOF\n", vec![]),
            ("USER <<EOF\n", vec![]),
        ] {
            let wanted: Vec<(String, String, bool)> =
                wanted.into_iter().map(|(name, text, expand)| (name.to_owned(), text.to_owned(), expand)).collect();
            assert_eq!(heredocs(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn a_fault_names_its_line() {
        for (text, line, what) in [
            ("FROM a\nRUN <<EOF\nx\n", Some(2), "'EOF' does not end"),
            ("# escape=x\nFROM a", Some(1), "escape character 'x'"),
            ("# escape=`\n# escape=`\nFROM a", Some(2), "twice"),
            ("# nothing\n\n", None, "no instructions"),
            ("FROM a\0", None, "NUL"),
        ] {
            let error = read("dir/F", text).expect_err(text);
            assert_eq!(error.line, line, "{error}");
            assert!(error.to_string().starts_with("dir/F") && error.what.contains(what), "{error}");
        }
        assert!(read("F", &"x".repeat(BOXFILE_BYTES_MAX + 1)).is_err());
    }
}
