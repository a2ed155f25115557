//! The input of execve: argument and environment strings, and the candidate files for a program's name.
//!
//! Everything is decided and allocated before the fork. Leaves out: the identity (`user`) and the start (`spawn`).

use std::ffi::CString;

use super::user::Identity;
use crate::error::{Error, ErrorKind};

/// PATH of a login, and what is searched when a program's environment has none.
pub(crate) const LOGIN_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// TERM of a run on a terminal, unless the request says otherwise.
const TERMINAL: &str = "xterm-256color";

/// A program ready for execve.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) argv: Vec<CString>,
    pub(crate) env: Vec<CString>,
    /// The files to try, in order.
    pub(crate) files: Vec<CString>,
}

fn c_string(text: String, step: &'static str) -> Result<CString, Error> {
    CString::new(text).map_err(|e| Error::new(ErrorKind::InvalidInput, step, "NUL byte").because(e))
}

/// The environment of a login of that user. Users other than root have their own programs first, in `~/.local/bin`, where
/// pip, uv and the installers of agents put them (Debian's `~/.profile` does the same for login shells).
pub(crate) fn login_env(identity: &Identity, terminal: bool) -> Vec<(String, String)> {
    let path = match identity.uid {
        0 => LOGIN_PATH.to_owned(),
        _ => format!("{}/.local/bin:{LOGIN_PATH}", identity.home.trim_end_matches('/')),
    };
    let mut env: Vec<(String, String)> = [
        ("PATH", path.as_str()),
        ("HOME", &identity.home),
        ("USER", &identity.name),
        ("LOGNAME", &identity.name),
        ("SHELL", &identity.shell),
        ("LANG", "C.UTF-8"),
    ]
    .iter()
    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
    .collect();
    if terminal {
        env.push(("TERM".to_owned(), TERMINAL.to_owned()));
    }
    env
}

/// Sets or replaces a variable.
pub(crate) fn set(env: &mut Vec<(String, String)>, name: &str, value: &str) {
    match env.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => value.clone_into(old),
        None => env.push((name.to_owned(), value.to_owned())),
    }
}

impl Program {
    /// Checks and packs argument vector and environment.
    pub(crate) fn new(argv: &[String], env: &[(String, String)]) -> Result<Self, Error> {
        let name = argv
            .first()
            .filter(|name| !name.is_empty())
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "read command", "empty"))?;
        let path = env.iter().find(|(known, _)| known == "PATH").map_or(LOGIN_PATH, |(_, value)| value);
        let files =
            candidates(name, path).into_iter().map(|file| c_string(file, "read command")).collect::<Result<_, _>>()?;
        let argv = argv.iter().map(|argument| c_string(argument.clone(), "read command")).collect::<Result<_, _>>()?;
        let mut packed = Vec::with_capacity(env.len());
        for (name, value) in env {
            if name.is_empty() || name.contains('=') {
                let step = "read environment";
                return Err(Error::new(ErrorKind::InvalidInput, step, name));
            }
            packed.push(c_string(format!("{name}={value}"), "read environment")?);
        }
        Ok(Self { argv, env: packed, files })
    }
}

impl Program {
    /// Gives the program another name than that of its file.
    pub(crate) fn rename(&mut self, name: &str) -> Result<(), Error> {
        let name = c_string(name.to_owned(), "read command")?;
        if let Some(first) = self.argv.first_mut() {
            *first = name;
        }
        Ok(())
    }
}

/// A name with a slash is a file; any other is looked for in PATH, where an empty part is the current folder.
fn candidates(name: &str, path: &str) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    path.split(':')
        .map(|folder| match folder {
            "" => format!("./{name}"),
            _ => format!("{folder}/{name}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn a_plain_name_is_searched_and_a_path_is_not() {
        assert_eq!(candidates("ls", "/a::/b"), ["/a/ls", "./ls", "/b/ls"]);
        assert_eq!(candidates("./ls", "/a"), ["./ls"]);
        assert_eq!(candidates("/bin/ls", "/a"), ["/bin/ls"]);
    }

    #[test]
    fn what_the_kernel_could_misread_is_refused() {
        let env = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        assert!(Program::new(&[], &[]).is_err());
        assert!(Program::new(&strings(&[""]), &[]).is_err());
        assert!(Program::new(&strings(&["a\0b"]), &[]).is_err());
        assert!(Program::new(&strings(&["a"]), &env("", "x")).is_err());
        assert!(Program::new(&strings(&["a"]), &env("A=B", "x")).is_err());
        assert!(Program::new(&strings(&["a"]), &env("A", "x\0y")).is_err());
        assert!(Program::new(&strings(&["a", ""]), &env("A", "=x")).is_ok());
    }

    #[test]
    fn the_environments_own_path_is_used() {
        let env = vec![("PATH".to_owned(), "/only".to_owned())];
        let program = Program::new(&strings(&["tool"]), &env).unwrap();
        assert_eq!(program.files, [c"/only/tool".to_owned()]);
    }

    #[test]
    fn set_replaces() {
        let mut env = vec![("A".to_owned(), "1".to_owned())];
        set(&mut env, "A", "2");
        set(&mut env, "B", "3");
        assert_eq!(env.len(), 2);
        assert_eq!(env[0].1, "2");
    }
}
