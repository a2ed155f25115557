//! `--chmod`: octal, or symbolic as in chmod(1).

use crate::error::Fault;

/// A change of permission bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Chmod {
    Octal(u32),
    Symbolic(Vec<Clause>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Clause {
    /// The bits of the classes: user, group, others.
    classes: u32,
    operator: char,
    permissions: String,
}

impl Chmod {
    pub(crate) fn read(text: &str) -> Result<Self, Fault> {
        let wrong = || {
            let what = format!("--chmod={text} is not understood");
            Fault::instead(what, "write an octal number up to 07777, or changes as in u=rwX,go=rX")
        };
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
            return mode.map(Self::Octal).ok_or_else(wrong);
        }
        let clause = |part: &str| {
            let at = part.find(['+', '-', '='])?;
            let mut classes = 0;
            for c in part[..at].chars() {
                classes |= match c {
                    'u' => 0o4700,
                    'g' => 0o2070,
                    'o' => 0o1007,
                    'a' => 0o7777,
                    _ => return None,
                };
            }
            let permissions = &part[at + 1..];
            permissions.chars().all(|c| "rwxXst".contains(c)).then(|| Clause {
                classes: if classes == 0 { 0o7777 } else { classes },
                operator: part.as_bytes()[at].into(),
                permissions: permissions.to_owned(),
            })
        };
        text.split(',').map(clause).collect::<Option<_>>().map(Self::Symbolic).ok_or_else(wrong)
    }

    /// The new mode of a file that has `mode`.
    pub(crate) fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        let clauses = match self {
            Self::Octal(new) => return *new,
            Self::Symbolic(clauses) => clauses,
        };
        let mut mode = mode;
        for clause in clauses {
            let mut bits = 0;
            for c in clause.permissions.chars() {
                bits |= match c {
                    'r' => 0o444,
                    'w' => 0o222,
                    'X' if !is_dir && mode & 0o111 == 0 => 0,
                    'x' | 'X' => 0o111,
                    's' => 0o6000,
                    _ => 0o1000,
                };
            }
            // The sticky bit belongs to no class.
            bits &= clause.classes | 0o1000;
            match clause.operator {
                '+' => mode |= bits,
                '-' => mode &= !bits,
                _ => mode = (mode & !(clause.classes & 0o777)) | bits,
            }
        }
        mode
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_changed_as_by_chmod() {
        for (text, mode, is_dir, wanted) in [
            ("755", 0o644, false, 0o755),
            ("0", 0o644, false, 0),
            ("4755", 0o644, false, 0o4755),
            ("+x", 0o644, false, 0o755),
            ("u+x", 0o644, false, 0o744),
            ("go-r", 0o644, false, 0o600),
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o700, true, 0o755),
            ("a=r", 0o777, false, 0o444),
            ("u+s", 0o755, false, 0o4755),
            ("+t", 0o777, true, 0o1777),
        ] {
            assert_eq!(Chmod::read(text).expect(text).apply(mode, is_dir), wanted, "{text}");
        }
        for text in ["", "x", "8", "10000", "u+q", "z+x", "u"] {
            assert!(Chmod::read(text).is_err(), "{text}");
        }
    }
}
