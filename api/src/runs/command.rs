//! The command to execute.

use std::collections::BTreeMap;

use bytes::Bytes;
use icebox_shim::handle::Winsize;

use crate::boxes::{Entry, StreamClient};
use crate::ids;
use crate::refusal::Refusal;
use crate::text::cut;

/// Home and work folder of a box's user.
pub const HOME: &str = "/workspace/home";
/// Longest path that is accepted from a client.
const PATH_BYTES_MAX: usize = 4096;
/// Longest total of a command's arguments: fits into one message to the init with room to spare.
const ARGV_BYTES_MAX: usize = 512 * 1024;
/// Longest argument vector as it is recorded and shown.
const PROMPT_BYTES_MAX: usize = 4096;
/// Longest time limit that a client may ask for: a day.
const TIMEOUT_MS_MAX: f64 = 24.0 * 3600.0 * 1000.0;

/// A command, ready to be started.
#[derive(Debug, Clone, Default)]
pub struct Command {
    /// Argument vector.
    pub argv: Vec<String>,
    /// Absolute working directory.
    pub cwd: String,
    /// `name`, `uid` or `uid:gid`; the box's user if there is none.
    pub user: Option<String>,
    /// Environment above the box's own.
    pub env: Vec<(String, String)>,
    /// `env` is all of the environment, with the variables that a client may not set: a step of a build has its image's.
    pub env_is_whole: bool,
    /// Bytes for standard input; without them, standard input is empty.
    pub stdin: Option<Bytes>,
    /// Standard input is fed by an interactive client.
    pub interactive: bool,
    /// Size of the terminal, if there is one.
    pub tty: Option<Winsize>,
    /// Killed when its client disconnects.
    pub owned_by_client: bool,
    /// The client that streams the output.
    pub streamed_to: Option<StreamClient>,
    /// Killed after this time.
    pub timeout_ms: Option<u64>,
    /// The command as recorded.
    pub prompt: String,
    /// Icebox's own: neither recorded nor shown, and does not keep the box awake.
    pub hidden: bool,
}

impl Command {
    /// The command of an `exec` request.
    pub fn exec(argv: Vec<String>, folder: Option<&str>) -> Result<Self, Refusal> {
        if argv.first().is_none_or(String::is_empty) {
            return Err(Refusal::Invalid("command must be a list with at least the program's name".into()));
        }
        if argv.iter().any(|argument| argument.contains('\0')) {
            return Err(Refusal::Invalid("command must not contain NUL characters".into()));
        }
        if argv.iter().map(|argument| argument.len() + 1).sum::<usize>() > ARGV_BYTES_MAX {
            return Err(Refusal::TooLarge(format!("command must have at most {ARGV_BYTES_MAX} bytes")));
        }
        let prompt = prompt_of(&argv);
        Ok(Self { argv, cwd: resolve_folder(folder)?, prompt, ..Self::default() })
    }

    /// The environment of the run: its image's, overlaid by the box's own, overlaid by the command's. Variables that a client
    /// may not set are left out.
    pub(super) fn environment(&self, entry: &Entry) -> Vec<(String, String)> {
        if self.env_is_whole {
            return self.env.clone();
        }
        let mut own = entry.settings().env;
        own.extend(self.env.iter().cloned());
        let own = own.into_iter().filter(|(name, value)| ids::check_env(name, value).is_ok());
        let mut env: BTreeMap<String, String> = entry.image_env().into_iter().collect();
        env.extend(own);
        env.into_iter().collect()
    }
}

/// An argument vector as it is recorded.
#[must_use]
pub(super) fn prompt_of(argv: &[String]) -> String {
    cut(argv.join(" "), PROMPT_BYTES_MAX)
}

/// The working directory of a request: the home if absent, below it if relative.
pub fn resolve_folder(folder: Option<&str>) -> Result<String, Refusal> {
    match folder {
        None | Some("") => Ok(HOME.to_owned()),
        Some(folder) => resolve_path(folder),
    }
}

/// A path of a request, made absolute. It is not normalised: the kernel resolves `..` and links, inside the box.
pub fn resolve_path(path: &str) -> Result<String, Refusal> {
    if path.is_empty() || path.len() > PATH_BYTES_MAX || path.contains('\0') {
        return Err(Refusal::Invalid(format!("a path must have 1 to {PATH_BYTES_MAX} bytes, without NUL")));
    }
    if path.starts_with('/') { Ok(path.to_owned()) } else { Ok(format!("{HOME}/{path}")) }
}

/// A time limit in milliseconds as a client sends it.
pub fn clock_timeout(timeout: Option<f64>) -> Result<Option<u64>, Refusal> {
    match timeout {
        None => Ok(None),
        Some(ms) if (1.0..=TIMEOUT_MS_MAX).contains(&ms) =>
        {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
            Ok(Some(ms as u64))
        }
        Some(_) => Err(Refusal::Invalid("timeout must be 1 to 86400000 milliseconds".into())),
    }
}

/// The error text of a command whose box stopped under it.
#[must_use]
pub fn stopped_text() -> &'static str {
    "the box stopped while the command was running"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_resolved_against_the_home_and_not_normalised() {
        let resolved = |folder| resolve_folder(folder).expect("a good folder");
        assert_eq!(resolved(None), HOME);
        assert_eq!(resolved(Some("")), HOME);
        assert_eq!(resolved(Some("a/b")), "/workspace/home/a/b");
        assert_eq!(resolved(Some("/workspace/home/../y")), "/workspace/home/../y");
        assert!(resolve_folder(Some("a\0b")).is_err());
        assert!(resolve_path("").is_err());
        assert!(resolve_path(&"x".repeat(5000)).is_err());
    }

    #[test]
    fn a_command_is_an_argument_vector() {
        let good = Command::exec(vec!["ls".into(), "/x y".into()], None).expect("a command");
        assert_eq!(good.argv, ["ls", "/x y"]);
        assert_eq!(good.prompt, "ls /x y");
        for bad in [vec![], vec![String::new()], vec!["a\0".to_owned()], vec!["x".repeat(600_000)]] {
            assert!(Command::exec(bad, None).is_err());
        }
    }

    #[test]
    fn timeouts_are_whole_milliseconds_within_a_day() {
        assert_eq!(clock_timeout(None).expect("none"), None);
        assert_eq!(clock_timeout(Some(1500.7)).expect("good"), Some(1500));
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e12] {
            assert!(clock_timeout(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn long_prompts_are_cut_between_characters() {
        let prompt = prompt_of(&["é".repeat(5000)]);
        assert!(prompt.len() <= PROMPT_BYTES_MAX + 3 && prompt.ends_with('…'));
    }
}
