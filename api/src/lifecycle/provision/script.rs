//! Shell scripts of Icebox's own in a box, as its root.

use crate::boxes::Awake;
use crate::lifecycle::Lifecycle;
use crate::refusal::Refusal;
use crate::runs::{Command, collect};

impl Lifecycle {
    /// Runs a script with these arguments, `$0` first.
    pub(super) async fn run_script(&self, awake: &Awake, script: &str, arguments: &[&str]) -> Result<(), Refusal> {
        let argv = ["sudo", "-n", "sh", "-c", script].iter().chain(arguments).map(|word| (*word).to_owned()).collect();
        let command = Command { hidden: true, ..Command::exec(argv, None)? };
        let outcome = collect(&self.runs, awake, &command).await?.await;
        if outcome.finished.lost {
            return Err(Refusal::Unavailable("the box stopped during the request; try again".into()));
        }
        if outcome.finished.exit_code == 0 {
            return Ok(());
        }
        Err(Refusal::Conflict(String::from_utf8_lossy(&outcome.stderr).trim().to_owned()))
    }
}
