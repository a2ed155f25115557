//! Programs that keep credentials: `docker-credential-NAME`.

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::timeout;

use crate::error::{Cause, refuse, shown};

/// A helper may have to ask another service.
const DEADLINE: Duration = Duration::from_secs(30);
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;
/// What helpers say when they have nothing.
const NOT_FOUND: &str = "credentials not found";

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Kept {
    pub(crate) username: String,
    pub(crate) secret: String,
}

/// Asks a helper for the credentials of a registry.
pub(crate) async fn get(name: &str, registry: &str) -> Result<Option<Kept>, Cause> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.starts_with('.') || !name.bytes().all(good) {
        refuse!("the credential helper '{}' has no name of a program", shown(name));
    }
    ask(&format!("docker-credential-{name}"), registry).await
}

async fn ask(program: &str, registry: &str) -> Result<Option<Kept>, Cause> {
    let failed = |why: String| Cause::Denied(format!("the credential helper {program} fails: {why}"));
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|cause| failed(cause.to_string()))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let work = async {
        if let Some(mut stdin) = stdin {
            // One that does not read is judged by its answer.
            let _ = stdin.write_all(registry.as_bytes()).await;
        }
        let mut output = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(OUTPUT_BYTES_MAX).read_to_end(&mut output).await?;
        }
        Ok::<_, std::io::Error>((child.wait().await?, output))
    };
    let done = timeout(DEADLINE, work).await.map_err(|_| failed("it does not end".to_owned()))?;
    let (status, output) = done.map_err(|cause| failed(cause.to_string()))?;
    let text = String::from_utf8_lossy(&output);
    if !status.success() {
        return if text.contains(NOT_FOUND) { Ok(None) } else { Err(failed(format!("{status}: {}", shown(&text)))) };
    }
    // Its output has the secret: an error does not show it.
    serde_json::from_slice(&output).map(Some).map_err(|_| failed("it answers with no credentials".to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn a_helper_is_asked_for_a_registry() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("helper");
        let program = path.display().to_string();
        let script = "#!/bin/sh\n[ \"$1\" = get ] || exit 1\ncase \"$(cat)\" in\n\
            good.example) echo '{\"ServerURL\":\"x\",\"Username\":\"me\",\"Secret\":\"s\"}' ;;\n\
            odd.example) echo secret ;;\n\
            none.example) echo credentials not found in native keychain; exit 1 ;;\n\
            *) echo locked; exit 3 ;;\nesac\n";
        std::fs::write(&path, script).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a program");
        let kept = ask(&program, "good.example").await.expect("no failure").expect("credentials");
        assert_eq!((kept.username.as_str(), kept.secret.as_str()), ("me", "s"));
        assert!(ask(&program, "none.example").await.expect("no failure").is_none());
        let told = |result: Result<Option<Kept>, Cause>| result.err().expect("a failure").to_string();
        assert!(told(ask(&program, "locked.example").await).contains("locked"));
        let odd = told(ask(&program, "odd.example").await);
        assert!(odd.contains("no credentials") && !odd.contains("secret"), "{odd}");
        assert!(told(get("../x", "good.example").await).contains("no name of a program"));
    }
}
