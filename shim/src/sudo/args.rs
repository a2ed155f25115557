//! sudo's command line, as far as it makes sense in a box.

use serde::{Deserialize, Serialize};

/// The way a command is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    /// As it is.
    Command,
    /// By a shell (`-s`).
    Shell,
    /// By a login shell in the user's home (`-i`).
    Login,
}

/// The caller's variables that are passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Preserve {
    /// The harmless ones (terminal, locale).
    Usual,
    /// All (`-E`).
    All,
    /// The usual and these (`--preserve-env=list`).
    Also(Vec<String>),
}

/// The request of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// `-h`.
    Help,
    /// `-V`.
    Version,
    /// `-k`, `-K` or `-v` without a command: nothing to do, since there are no time stamps.
    Nothing,
    /// `-l`: lists the user's rights, or checks a command and prints its file.
    List(Option<String>),
    /// Run something.
    Run(Command),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) argv: Vec<String>,
    pub(super) mode: Mode,
    pub(super) user: Option<String>,
    /// `-g`: the group to run as.
    pub(super) group: Option<String>,
    /// `-D`: the folder to run in.
    pub(super) folder: Option<String>,
    pub(super) preserve: Preserve,
    /// `-H`: HOME is the target's even with `-E`.
    pub(super) set_home: bool,
    pub(super) background: bool,
    /// `VAR=value` before the command.
    pub(super) assignments: Vec<(String, String)>,
}

/// Options with a value, by both names.
const LONG_WITH_VALUE: [(&str, char); 11] = [
    ("user", 'u'),
    ("group", 'g'),
    ("chdir", 'D'),
    ("chroot", 'R'),
    ("prompt", 'p'),
    ("close-from", 'C'),
    ("other-user", 'U'),
    ("command-timeout", 'T'),
    ("role", 'r'),
    ("type", 't'),
    ("host", '\0'),
];
const EDIT: &str = "sudoedit is not available in a box: edit a copy, then `sudo cp` it";

/// Reads the arguments after the program's name.
pub(super) fn parse(arguments: &[String]) -> Result<Asked, String> {
    let mut parser = Parser {
        rest: arguments.iter(),
        command: Command {
            argv: Vec::new(),
            mode: Mode::Command,
            user: None,
            group: None,
            folder: None,
            preserve: Preserve::Usual,
            set_home: false,
            background: false,
            assignments: Vec::new(),
        },
        stamps_only: false,
        list: false,
    };
    parser.run()
}

struct Parser<'a> {
    rest: std::slice::Iter<'a, String>,
    command: Command,
    stamps_only: bool,
    list: bool,
}

impl Parser<'_> {
    fn run(&mut self) -> Result<Asked, String> {
        let parser = self;
        while let Some(argument) = parser.rest.as_slice().first() {
            if argument == "--" {
                parser.rest.next();
                break;
            }
            if let Some(long) = argument.strip_prefix("--") {
                parser.rest.next();
                if let Some(asked) = parser.long(long)? {
                    return Ok(asked);
                }
            } else if let Some(short) = argument.strip_prefix('-').filter(|s| !s.is_empty()) {
                parser.rest.next();
                if let Some(asked) = parser.short(short)? {
                    return Ok(asked);
                }
            } else if let Some(pair) = assignment(argument) {
                // sudo takes them between options too, though not behind `--`.
                parser.rest.next();
                parser.command.assignments.push(pair);
            } else {
                break;
            }
        }
        parser.finish()
    }

    fn finish(&mut self) -> Result<Asked, String> {
        self.command.argv = self.rest.as_slice().to_vec();
        if self.list {
            return Ok(Asked::List(self.command.argv.first().cloned()));
        }
        if self.command.argv.is_empty() && self.command.mode == Mode::Command {
            if self.stamps_only {
                return Ok(Asked::Nothing);
            }
            return Err(String::new());
        }
        Ok(Asked::Run(self.command.clone()))
    }

    fn long(&mut self, long: &str) -> Result<Option<Asked>, String> {
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (long, None),
        };
        let with_value = LONG_WITH_VALUE.iter().find(|(long, _)| *long == name);
        if let Some((_, letter)) = with_value {
            let value = match value {
                Some(value) => value.to_owned(),
                None => self.value(format!("option '--{name}' requires an argument"))?,
            };
            self.set(*letter, &value)?;
            return Ok(None);
        }
        if value.is_some() && name != "preserve-env" {
            return Err(format!("option '--{name}' doesn't allow an argument"));
        }
        match (name, value) {
            ("preserve-env", None) => self.command.preserve = Preserve::All,
            ("preserve-env", Some(list)) => self.preserve_also(list),
            ("set-home", None) => self.command.set_home = true,
            ("login", None) => self.mode(Mode::Login)?,
            ("shell", None) => self.mode(Mode::Shell)?,
            ("non-interactive" | "stdin" | "askpass" | "bell" | "preserve-groups", None) => {}
            ("background", None) => self.command.background = true,
            ("reset-timestamp" | "remove-timestamp" | "validate", None) => self.stamps_only = true,
            ("list", None) => self.list = true,
            ("help", None) => return Ok(Some(Asked::Help)),
            ("version", None) => return Ok(Some(Asked::Version)),
            ("edit", None) => return Err(EDIT.to_owned()),
            _ => return Err(format!("unrecognized option '--{name}'")),
        }
        Ok(None)
    }

    /// One argument may hold several letters; a value is the rest of it or the next argument.
    fn short(&mut self, letters: &str) -> Result<Option<Asked>, String> {
        for (at, letter) in letters.char_indices() {
            let after = letters.get(at + letter.len_utf8()..).unwrap_or_default();
            match letter {
                letter if LONG_WITH_VALUE.iter().any(|(_, known)| *known == letter) => {
                    let value = if after.is_empty() {
                        self.value(format!("option requires an argument -- '{letter}'"))?
                    } else {
                        after.to_owned()
                    };
                    self.set(letter, &value)?;
                    return Ok(None);
                }
                'E' => self.command.preserve = Preserve::All,
                'H' => self.command.set_home = true,
                'A' | 'B' | 'n' | 'P' | 'S' => {}
                'l' => self.list = true,
                'e' => return Err(EDIT.to_owned()),
                'i' => self.mode(Mode::Login)?,
                's' => self.mode(Mode::Shell)?,
                'b' => self.command.background = true,
                'k' | 'K' | 'v' => self.stamps_only = true,
                'V' => return Ok(Some(Asked::Version)),
                'h' => return Ok(Some(Asked::Help)),
                _ => return Err(format!("invalid option -- '{letter}'")),
            }
        }
        Ok(None)
    }

    fn value(&mut self, missing: String) -> Result<String, String> {
        self.rest.next().cloned().ok_or(missing)
    }

    /// An option with a value. Prompts and the policy's own options mean nothing here.
    fn set(&mut self, letter: char, value: &str) -> Result<(), String> {
        match letter {
            'u' => self.command.user = Some(id(value, "user")?),
            'g' => self.command.group = Some(id(value, "group")?),
            'D' => self.command.folder = Some(value.to_owned()),
            'R' => return Err("you are not permitted to use the -R option: a box has one root".to_owned()),
            _ => {}
        }
        Ok(())
    }

    fn mode(&mut self, mode: Mode) -> Result<(), String> {
        if self.command.mode != Mode::Command && self.command.mode != mode {
            return Err("you may not specify both the -i and -s options".to_owned());
        }
        self.command.mode = mode;
        Ok(())
    }

    fn preserve_also(&mut self, list: &str) {
        let names = list.split(',').filter(|name| !name.is_empty());
        let names = names.map(str::to_owned);
        match &mut self.command.preserve {
            Preserve::All => {}
            Preserve::Also(known) => known.extend(names),
            Preserve::Usual => self.command.preserve = Preserve::Also(names.collect()),
        }
    }
}

/// sudo writes a numeric user or group as `#number`.
fn id(text: &str, what: &str) -> Result<String, String> {
    let id = text.strip_prefix('#').unwrap_or(text);
    if id.is_empty() {
        return Err(format!("unknown {what} {text}"));
    }
    Ok(id.to_owned())
}

fn assignment(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let mut letters = name.chars();
    let first = letters.next()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let good = (first.is_ascii_alphabetic() || first == '_') && letters.all(plain);
    good.then(|| (name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked(line: &str) -> Result<Asked, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse(&words)
    }

    fn command(line: &str) -> Command {
        match asked(line) {
            Ok(Asked::Run(command)) => command,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn everyday_lines() {
        assert_eq!(command("apt-get install -y x").argv.len(), 4);
        let c = command("-nE -u www-data A=1 B_2= ls -u");
        assert_eq!(c.user.as_deref(), Some("www-data"));
        assert_eq!(c.preserve, Preserve::All);
        assert_eq!(c.assignments.len(), 2);
        assert_eq!(c.argv, ["ls", "-u"]);
        assert_eq!(command("-uroot id").user.as_deref(), Some("root"));
        assert_eq!(command("-u #1000 id").user.as_deref(), Some("1000"));
        assert_eq!(command("--user=bob id").user.as_deref(), Some("bob"));
        assert_eq!(command("-- -x").argv, ["-x"]);
        assert_eq!(command("A=1 -u bob B=2 id").assignments.len(), 2);
        assert_eq!(command("-- A=1").argv, ["A=1"]);
        assert_eq!(command("-i").mode, Mode::Login);
        assert_eq!(command("-s echo hi").argv, ["echo", "hi"]);
        assert_eq!(command("--preserve-env=A,B id").preserve, Preserve::Also(vec!["A".into(), "B".into()]));
        assert!(command("-b sleep 1").background);
        assert!(command("-k id").argv == ["id"]);
    }

    #[test]
    fn without_a_command() {
        assert_eq!(asked("-v"), Ok(Asked::Nothing));
        assert_eq!(asked("-K"), Ok(Asked::Nothing));
        assert_eq!(asked("-V"), Ok(Asked::Version));
        assert_eq!(asked("--help"), Ok(Asked::Help));
        assert!(asked("").is_err());
        assert!(asked("A=1").is_err());
    }

    #[test]
    fn options_of_sudo_as_people_use_them() {
        assert_eq!(asked("-l"), Ok(Asked::List(None)));
        assert_eq!(asked("-nl apt-get update"), Ok(Asked::List(Some("apt-get".into()))));
        assert_eq!(asked("-U root --list"), Ok(Asked::List(None)));
        assert_eq!(command("-A -B -P -S -p x id").argv, ["id"]);
        let c = command("-g staff -D /tmp --prompt=x -u bob id");
        assert_eq!(
            (c.user.as_deref(), c.group.as_deref(), c.folder.as_deref()),
            (Some("bob"), Some("staff"), Some("/tmp"))
        );
        assert_eq!(command("--group=#5 --chdir /a id").group.as_deref(), Some("5"));
        assert_eq!(command("-C 3 -T 5 id -x").argv, ["id", "-x"]);
    }

    #[test]
    fn what_sudo_would_not_take_is_said_in_its_words() {
        for (line, text) in [
            ("", ""),
            ("-z id", "invalid option -- 'z'"),
            ("--nope id", "unrecognized option '--nope'"),
            ("-u", "option requires an argument -- 'u'"),
            ("--user", "option '--user' requires an argument"),
            ("--login=x", "option '--login' doesn't allow an argument"),
            ("-i -s", "you may not specify both the -i and -s options"),
            ("-u # id", "unknown user #"),
        ] {
            assert_eq!(asked(line), Err(text.to_owned()), "{line}");
        }
        assert!(asked("-e f").is_err() && asked("-R / id").is_err());
    }

    proptest! {
        #[test]
        fn no_line_panics(words in prop::collection::vec("-{0,2}[a-zA-Z#=é]{0,4}", 0..5)) {
            let _ = parse(&words);
        }
    }
}
