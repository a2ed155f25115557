//! `.dockerignore`, and the patterns of `--exclude`.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::Fault;
use crate::pattern;

/// Patterns of paths that are left out; the last one that matches decides.
#[derive(Debug, Clone, Default)]
pub struct Ignore {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    parts: Vec<Vec<u8>>,
    keep: bool,
}

impl Ignore {
    /// The patterns of a `.dockerignore` file. `Err` names the line of a malformed one.
    ///
    /// # Errors
    /// A pattern is malformed.
    pub fn read(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut patterns = Vec::new();
        for (at, line) in text.lines().enumerate() {
            // A comment begins in the first column.
            let line = if line.starts_with('#') { "" } else { line.trim() };
            if !line.is_empty() {
                Self::new(&[line.to_owned()]).map_err(|fault| format!(".dockerignore:{}: {}", at + 1, fault.what))?;
                patterns.push(line.to_owned());
            }
        }
        Self::new(&patterns).map_err(|fault| fault.what)
    }

    pub(crate) fn new(patterns: &[String]) -> Result<Self, Fault> {
        let mut rules = Vec::new();
        for pattern in patterns {
            let (keep, text) = pattern.strip_prefix('!').map_or((false, pattern.as_str()), |rest| (true, rest.trim()));
            if text.is_empty() {
                return Err(Fault::new(format!("the pattern '{pattern}' excludes nothing")));
            }
            let clean = crate::paths::absolute("/", text);
            let parts: Vec<Vec<u8>> =
                clean.split('/').filter(|part| !part.is_empty()).map(|part| part.as_bytes().to_vec()).collect();
            for part in &parts {
                pattern::component(part, b"")?;
            }
            // `.` stands for nothing.
            if !parts.is_empty() {
                rules.push(Rule { parts, keep });
            }
        }
        Ok(Self { rules })
    }

    /// True if there are no patterns.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// True if a path is left out. A pattern that matches a directory matches everything below it.
    #[must_use]
    pub fn ignores(&self, path: &Path) -> bool {
        let parts: Vec<&[u8]> = path
            .components()
            .filter_map(|part| if let std::path::Component::Normal(name) = part { Some(name.as_bytes()) } else { None })
            .collect();
        let mut ignored = false;
        for rule in &self.rules {
            if rule.keep == ignored {
                let pattern: Vec<&[u8]> = rule.parts.iter().map(Vec::as_slice).collect();
                let matches = (1..=parts.len()).any(|end| pattern::path(&pattern, &parts[..end]).unwrap_or(false));
                if matches {
                    ignored = !rule.keep;
                }
            }
        }
        ignored
    }

    /// True if nothing below a directory that is left out can be kept.
    #[must_use]
    pub fn prunes(&self, dir: &Path) -> bool {
        self.ignores(dir) && !self.rules.iter().any(|rule| rule.keep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_match_decides() {
        for (text, path, wanted) in [
            ("*/temp*", "somedir/temporary.txt", true),
            ("*/temp*", "somedir/temp/x", true),
            ("*/temp*", "a/b/temp", false),
            ("*/*/temp*", "a/b/temp", true),
            ("temp?", "tempa", true),
            ("temp?", "temp", false),
            ("**/*.go", "a/b/c.go", true),
            ("**/*.go", "c.go", true),
            ("*.md\n!README.md", "README.md", false),
            ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", true),
            ("*.md\nREADME-secret.md\n!README*.md", "README-secret.md", false),
            ("*\n!src", "src/a.rs", false),
            ("*\n!src", "other", true),
            ("docs\n!docs/keep", "docs/keep", false),
            ("docs\n!docs/keep", "docs/drop", true),
            ("# comment\n\n  a  ", "a", true),
            ("/a", "a", true),
            ("a/", "a/b", true),
            ("./a/../b", "b", true),
            ("a/**", "a/b/c", true),
            ("**", "a", true),
            (".", "a", false),
            ("! b\nb", "b", true),
        ] {
            assert_eq!(Ignore::read(text).expect(text).ignores(Path::new(path)), wanted, "{text:?} {path}");
        }
        assert!(Ignore::read("a\n[").is_err_and(|error| error.contains(".dockerignore:2")));
        assert!(Ignore::read("!").is_err());
        let pruning = Ignore::read("node_modules").expect("a pattern");
        assert!(pruning.prunes(Path::new("node_modules")) && !pruning.prunes(Path::new("src")));
        assert!(!Ignore::read("a\n!a/b").expect("patterns").prunes(Path::new("a")));
    }
}
