//! Git's identity in a box.

use std::sync::Arc;

use crate::boxes::{Awake, Entry, WorkKind};
use crate::lifecycle::Lifecycle;
use crate::refusal::Refusal;
use crate::runs::{Command, HOME, collect};

impl Lifecycle {
    /// A new box has no git configuration of its own yet, so the file is simply written. Without settings of the owner
    /// the image's identity applies and no file is written.
    pub(super) async fn write_git_config(&self, entry: &Arc<Entry>) -> Result<(), Refusal> {
        let settings = entry.settings();
        if settings.git_user_name.is_none() && settings.git_user_email.is_none() {
            return Ok(());
        }
        let _awake = self.ensure_awake(entry, WorkKind::Request).await?;
        let identity = settings.git_identity();
        let text = format!("[user]\n\tname = {}\n\temail = {}\n", quote(&identity.name), quote(&identity.email));
        let mut file = entry.handle().file_write(&format!("{HOME}/.gitconfig")).await?;
        file.write(text.as_bytes()).await?;
        file.finish().await.map_err(Refusal::from)
    }

    /// Like [`Lifecycle::apply_git_config`], for a box that need not be awake.
    pub(super) async fn apply_git_config_now(&self, entry: &Arc<Entry>) -> Result<(), Refusal> {
        let awake = self.ensure_awake(entry, WorkKind::Request).await?;
        self.apply_git_config(&awake).await
    }

    /// Brings git's configuration in a box up to date. Other settings in it stay.
    pub async fn apply_git_config(&self, awake: &Awake) -> Result<(), Refusal> {
        let identity = awake.entry.settings().git_identity();
        for (key, value) in [("user.name", identity.name), ("user.email", identity.email)] {
            let argv = ["git", "config", "--global", key, &value].map(str::to_owned).to_vec();
            let command = Command { hidden: true, ..Command::exec(argv, None)? };
            let outcome = collect(&self.runs, awake, &command).await?.await;
            if outcome.finished.lost {
                return Err(Refusal::Unavailable("the box stopped during the request; try again".into()));
            }
            if outcome.finished.exit_code != 0 {
                let text = String::from_utf8_lossy(&outcome.stderr).into_owned();
                return Err(Refusal::Conflict(format!("git refused its configuration: {}", text.trim())));
            }
        }
        Ok(())
    }
}

/// A value in git's configuration syntax.
fn quote(value: &str) -> String {
    let mut quoted = String::from("\"");
    for character in value.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_leave_their_quotes() {
        assert_eq!(quote("A B"), "\"A B\"");
        assert_eq!(quote("a\"b\\c\n[core]"), "\"a\\\"b\\\\c\\n[core]\"");
    }
}
