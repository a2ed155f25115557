//! Files that the daemon writes for local tools: its address, and the first key.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::config::Config;
use crate::error::Error;

const FACTS: &str = "iceboxd.json";
const KEY: &str = "key";

/// Makes the run directory, for root only.
pub(super) fn make_run_dir(config: &Config) -> Result<(), Error> {
    let failed = |cause| Error::new("make the run directory", config.run_dir.display().to_string(), cause);
    let boxes = config.run_dir.join("boxes");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&boxes).map_err(failed)?;
    // It may have existed with another mode: its contents give access to boxes.
    for dir in [&config.run_dir, &boxes] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}

/// Writes the address of the daemon.
pub(super) fn write_facts(config: &Config, address: SocketAddr) -> Result<(), Error> {
    // A wildcard address is reached by loopback.
    let host = match address {
        SocketAddr::V4(address) if address.ip().is_unspecified() => "127.0.0.1".to_owned(),
        SocketAddr::V6(address) if address.ip().is_unspecified() => "[::1]".to_owned(),
        SocketAddr::V4(address) => address.ip().to_string(),
        SocketAddr::V6(address) => format!("[{}]", address.ip()),
    };
    let facts = serde_json::json!({
        "url": format!("http://{host}:{}", address.port()),
        "pid": std::process::id(),
        "version": env!("CARGO_PKG_VERSION"),
        "data_dir": config.data_dir,
    });
    write_file(&config.run_dir.join(FACTS), format!("{facts}\n").as_bytes())
}

/// Removes the address: the daemon no longer listens.
pub(super) fn remove_facts(config: &Config) {
    let path = config.run_dir.join(FACTS);
    if let Err(cause) = std::fs::remove_file(&path) {
        tracing::warn!(path = %path.display(), %cause, "cannot remove the daemon's facts");
    }
}

/// Stores a key for root's tools on this machine. The run directory does not survive a reboot: a key that was generated
/// here, of which there is no other copy, is stored in the data directory too.
pub(super) fn write_key(config: &Config, key: &str, made_here: bool) -> Result<(), Error> {
    let text = format!("{key}\n");
    if made_here {
        write_file(&config.data_dir.join(KEY), text.as_bytes())?;
    }
    write_file(&config.run_dir.join(KEY), text.as_bytes())
}

/// Copies the key from the data directory to the run directory after a reboot.
pub(super) fn restore_key(config: &Config) -> Result<(), Error> {
    let (kept, wanted) = (config.data_dir.join(KEY), config.run_dir.join(KEY));
    if wanted.exists() {
        return Ok(());
    }
    match std::fs::read(&kept) {
        Ok(bytes) => write_file(&wanted, &bytes),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(cause) => Err(Error::new("read the first key", kept.display().to_string(), cause)),
    }
}

/// Writes a file for root only, atomically.
fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = path.with_extension("new");
    let write = || {
        let _ = std::fs::remove_file(&temporary);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|cause| Error::new("write", path.display().to_string(), cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path) -> Config {
        let config = Config { data_dir: dir.join("data"), run_dir: dir.join("run"), ..Config::default() };
        std::fs::create_dir(&config.data_dir).expect("a data directory");
        make_run_dir(&config).expect("a run directory");
        config
    }

    #[test]
    fn facts_name_a_reachable_address() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = config(dir.path());
        write_facts(&config, SocketAddr::from(([0, 0, 0, 0], 7070))).expect("written");
        let text = std::fs::read_to_string(config.run_dir.join(FACTS)).expect("read");
        let facts: serde_json::Value = serde_json::from_str(&text).expect("json");
        assert_eq!(facts["url"], "http://127.0.0.1:7070");
        assert_eq!(facts["pid"], std::process::id());
    }

    #[test]
    fn a_key_made_here_survives_the_loss_of_the_run_directory() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = config(dir.path());
        write_key(&config, "box_made", true).expect("written");
        let path = config.run_dir.join(KEY);
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        std::fs::remove_file(&path).expect("a reboot");
        restore_key(&config).expect("restored");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "box_made\n");
    }

    #[test]
    fn a_key_from_outside_is_not_kept_in_the_data_directory() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = config(dir.path());
        write_key(&config, "box_given", false).expect("written");
        assert!(!config.data_dir.join(KEY).exists());
    }
}
