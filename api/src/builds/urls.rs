//! What is known of URLs: what this build has fetched, and what those with a checksum were in earlier builds.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use icebox_boxfile::{Fetched, digest_text};
use sha2::{Digest as _, Sha256};

use super::cache::Cache;
use crate::boxes::Entry;

const DIGEST_PREFIX: &str = "sha256:";
const DIGEST_HEX: usize = 64;

/// What a build has fetched.
#[derive(Debug, Default)]
pub(super) struct Urls {
    /// The box in whose network files are fetched.
    pub(super) in_box: Option<Arc<Entry>>,
    /// The URLs of files by their digests.
    pub(super) by_digest: BTreeMap<String, String>,
    /// The files that are here, by their digests.
    pub(super) files: BTreeMap<String, PathBuf>,
}

/// The checksum of a URL is one that is known here.
pub(super) fn check_form(checksum: &str) -> Result<(), String> {
    let hex = checksum.strip_prefix(DIGEST_PREFIX);
    let fits = hex.is_some_and(|hex| hex.len() == DIGEST_HEX && hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if fits {
        Ok(())
    } else {
        Err(format!("--checksum={checksum} is not {DIGEST_PREFIX} and {DIGEST_HEX} hexadecimal digits"))
    }
}

/// The name of the note about a URL with a checksum.
fn note(url: &str, checksum: &str) -> String {
    let text = digest_text(&Sha256::digest(format!("{} {url}", checksum.to_ascii_lowercase())));
    format!("url-{}", &text[DIGEST_PREFIX.len()..])
}

impl Cache {
    /// What a URL with this checksum was.
    pub(super) fn url(&self, url: &str, checksum: &str) -> io::Result<Option<Fetched>> {
        let text = match fs::read(self.urls().join(note(url, checksum))) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // A note that a crash has cut is none.
        let known = serde_json::from_slice(&text).ok();
        Ok(known.map(|(digest, size, mtime)| Fetched { digest, size, mtime }))
    }

    /// Notes it.
    pub(super) fn note_url(&self, url: &str, fetched: &Fetched) -> io::Result<()> {
        let dir = self.urls();
        fs::create_dir_all(&dir)?;
        let text = serde_json::to_vec(&(&fetched.digest, fetched.size, fetched.mtime))?;
        fs::write(dir.join(note(url, &fetched.digest)), text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_known_by_its_checksum() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = Cache::open(dir.path().join("cache")).expect("a cache");
        let digest = digest_text(&Sha256::digest(b"x"));
        check_form(&digest).expect("a digest");
        let fetched = Fetched { digest: digest.clone(), size: 1, mtime: 5 };
        cache.note_url("http://a.test/x", &fetched).expect("noted");
        assert_eq!(
            cache.url("http://a.test/x", &digest.to_uppercase().replace("SHA", "sha")).ok(),
            Some(Some(fetched))
        );
        assert_eq!(cache.url("http://a.test/y", &digest).ok(), Some(None));
        for bad in ["", "sha512:00", "sha256:00", &digest.replace(':', "-"), &format!("{digest}0")] {
            assert!(check_form(bad).is_err(), "{bad}");
        }
    }
}
