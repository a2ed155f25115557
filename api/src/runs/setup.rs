//! What Icebox itself runs in a box: git's identity, and the owner's init command.

use std::sync::Arc;

use super::collect::collect;
use super::command::{Command, HOME};
use super::stream::stream;
use crate::boxes::{Awake, Boxes, Entry, WorkKind};
use crate::db::LogRow;
use crate::domain::{LogLevel, LogSource};
use crate::refusal::Refusal;

/// Where the certificate of our authority is in a box with headers.
pub const CERTIFICATE_PATH: &str = "/usr/local/share/ca-certificates/icebox.crt";
/// What `update-ca-certificates` would do for one certificate, in a hundredth of its time: the file, the bundle, and the link
/// by which OpenSSL finds it. `$0` is the file, `$1` its text.
const TRUST_SCRIPT: &str = "set -e; printf %s \"$1\" > \"$0\"; printf %s \"$1\" >> /etc/ssl/certs/ca-certificates.crt; \
                            ln -sf \"$0\" /etc/ssl/certs/icebox.pem; \
                            ln -sf icebox.pem \"/etc/ssl/certs/$(openssl x509 -hash -noout -in \"$0\").0\"";

/// First things in a new box. A failure is a word in its log, not a failed creation.
pub async fn prepare_new_box(boxes: &Boxes, entry: &Arc<Entry>) {
    if let Err(refusal) = write_git_config(boxes, entry).await {
        warn(boxes, entry, format!("git's identity could not be set: {refusal}"));
    }
    if let Err(refusal) = trust_certificate(boxes, entry).await {
        warn(boxes, entry, format!("the certificate for attach_headers could not be put in place: {refusal}"));
    }
    run_init_command(boxes, entry).await;
}

/// A new box has no configuration of git of its own yet, so the file may simply be written. Without a wish of the owner
/// the image's identity is in force and nothing need be written.
async fn write_git_config(boxes: &Boxes, entry: &Arc<Entry>) -> Result<(), Refusal> {
    let settings = entry.settings();
    if settings.git_user_name.is_none() && settings.git_user_email.is_none() {
        return Ok(());
    }
    let _awake = boxes.ensure_awake(entry, WorkKind::Request).await?;
    let identity = settings.git_identity();
    let text = format!("[user]\n\tname = {}\n\temail = {}\n", quote(&identity.name), quote(&identity.email));
    let mut file = entry.handle().file_write(&format!("{HOME}/.gitconfig")).await?;
    file.write(text.as_bytes()).await?;
    file.finish().await.map_err(Refusal::from)
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

/// Puts the certificate of our authority into the trust stores of a new box with headers. It is where Debian keeps those
/// of an administrator, so `update-ca-certificates` keeps it.
async fn trust_certificate(boxes: &Boxes, entry: &Arc<Entry>) -> Result<(), Refusal> {
    let Some(certificate) = boxes.certificate_for(entry) else { return Ok(()) };
    let awake = boxes.ensure_awake(entry, WorkKind::Request).await?;
    let argv = ["sudo", "-n", "sh", "-c", TRUST_SCRIPT, CERTIFICATE_PATH, &certificate].map(str::to_owned).to_vec();
    let command = Command { hidden: true, ..Command::exec(argv, None)? };
    let outcome = collect(boxes, &awake, &command).await?.await;
    let failed = || Refusal::Unavailable("the box stopped during the request; try again".into());
    let outcome = outcome.map_err(|_| failed())?;
    if outcome.finished.exit_code == 0 {
        return Ok(());
    }
    Err(Refusal::Conflict(String::from_utf8_lossy(&outcome.stderr).trim().to_owned()))
}

/// Brings git's configuration in a box up to date. Other settings in it stay.
pub async fn apply_git_config(boxes: &Boxes, awake: &Awake) -> Result<(), Refusal> {
    let identity = awake.entry.settings().git_identity();
    for (key, value) in [("user.name", identity.name), ("user.email", identity.email)] {
        let argv = ["git", "config", "--global", key, &value].map(str::to_owned).to_vec();
        let command = Command { hidden: true, ..Command::exec(argv, None)? };
        let outcome = collect(boxes, awake, &command).await?.await;
        let failed = || Refusal::Unavailable("the box stopped during the request; try again".into());
        let outcome = outcome.map_err(|_| failed())?;
        if outcome.finished.exit_code != 0 {
            let text = String::from_utf8_lossy(&outcome.stderr).into_owned();
            return Err(Refusal::Conflict(format!("git refused its configuration: {}", text.trim())));
        }
    }
    Ok(())
}

/// Runs the owner's init command in the background, once per start of the box. Its output goes to nobody; what it
/// starts lives on. It is no work in the sense of the idle rule.
pub async fn run_init_command(boxes: &Boxes, entry: &Arc<Entry>) {
    let Some(text) = entry.settings().init_command.filter(|text| !text.trim().is_empty()) else { return };
    let argv = vec!["bash".to_owned(), "-c".to_owned(), text];
    let started = match Command::exec(argv, None) {
        Ok(command) => {
            // Not `ensure_awake`: the caller has just started the box and may hold its lifecycle lock.
            let awake = Awake { entry: Arc::clone(entry), work: entry.activity.begin(WorkKind::Request) };
            // A stream that nobody listens to: a server may write for months.
            stream(boxes, &awake, &Command { hidden: true, ..command }).await.map(drop)
        }
        Err(refusal) => Err(refusal),
    };
    match started {
        Ok(()) => boxes.db().log(LogRow::system(&entry.id, "init command started")),
        Err(refusal) => warn(boxes, entry, format!("the init command could not be started: {refusal}")),
    }
}

fn warn(boxes: &Boxes, entry: &Entry, text: String) {
    boxes.db().log(LogRow::new(&entry.id, LogLevel::Warn, LogSource::System, text));
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
