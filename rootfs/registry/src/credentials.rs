//! Credentials from the file that `podman login`, `skopeo login` and `docker login` write.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use hyper::header::HeaderValue;
use serde::Deserialize;

use crate::error::{At as _, Cause, Result, refuse};
use crate::helper;

/// Files that are looked for, the first one counts. The home directory is out of the daemon's reach under its unit of systemd.
const FILES: [&str; 2] = ["/etc/icebox/auth.json", "/run/containers/0/auth.json"];
const FILES_AT_HOME: [&str; 2] = [".config/containers/auth.json", ".docker/config.json"];
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Docker's own registry, as `docker login` writes it.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user of a helper's answer that means an identity token.
const IDENTITY_USER: &str = "<token>";

/// Where credentials are.
#[derive(Debug)]
pub(crate) struct Credentials {
    pub(crate) file: Option<PathBuf>,
}

/// What is known to a registry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    Password(String, String),
    /// A token by which a service gives others.
    Identity(String),
}

#[derive(Default, Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
struct Entry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default, rename = "identitytoken")]
    identity: Option<String>,
}

impl Credential {
    /// The value of `Authorization`, if it is a password.
    pub(crate) fn basic(&self) -> Option<HeaderValue> {
        let Self::Password(user, password) = self else { return None };
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        let mut value = HeaderValue::from_str(&format!("Basic {pair}")).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl Credentials {
    /// The credentials for a repository of a registry, if there are some.
    pub(crate) async fn get(&self, registry: &str, repository: &str) -> Result<Option<Credential>> {
        let Some(path) = self.path() else { return Ok(None) };
        let shown = path.display().to_string();
        let read = tokio::task::spawn_blocking(move || read(&path)).await.map_err(std::io::Error::other);
        let file = read.at("read the credentials in", &shown)?.at("read the credentials in", &shown)?;
        file.find(registry, repository).await.at("find the credentials for", registry)
    }

    fn path(&self) -> Option<PathBuf> {
        if let Some(file) = &self.file {
            return Some(file.clone());
        }
        if let Some(file) = std::env::var_os("REGISTRY_AUTH_FILE") {
            return Some(file.into());
        }
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
        let at_home = FILES_AT_HOME.iter().map(|file| home.join(file));
        FILES.iter().map(PathBuf::from).chain(at_home).find(|file| file.is_file())
    }
}

fn read(path: &Path) -> Result<AuthFile, Cause> {
    let facts = std::fs::metadata(path)?;
    if !facts.is_file() || facts.len() > FILE_BYTES_MAX {
        refuse!("it must be a file of at most {FILE_BYTES_MAX} bytes");
    }
    // What is wrong stays unsaid beyond its place: the file has passwords.
    serde_json::from_slice(&std::fs::read(path)?).map_err(|cause| {
        Cause::Refused(format!("it is no JSON of credentials (line {}, column {})", cause.line(), cause.column()))
    })
}

impl AuthFile {
    async fn find(&self, registry: &str, repository: &str) -> Result<Option<Credential>, Cause> {
        let server = if registry == "docker.io" { DOCKER_HUB_KEY } else { registry };
        let helper = self.helpers.get(registry).or(self.store.as_ref());
        if let Some(name) = helper
            && let Some(kept) = helper::get(name, server).await?
        {
            return Ok(Some(match kept.username.as_str() {
                IDENTITY_USER => Credential::Identity(kept.secret),
                _ => Credential::Password(kept.username, kept.secret),
            }));
        }
        // The most specific entry counts: podman writes them for namespaces and repositories too.
        let whole = format!("{registry}/{repository}");
        let mut wanted = whole.as_str();
        loop {
            if let Some(entry) = self.auths.iter().find(|(key, _)| normal(key) == wanted).map(|(_, entry)| entry)
                && let Some(found) = entry.read(registry)?
            {
                return Ok(Some(found));
            }
            match wanted.rsplit_once('/') {
                Some((shorter, _)) => wanted = shorter,
                None => return Ok(None),
            }
        }
    }
}

/// A key of the file as `HOST[/PATH]`. Docker writes URLs.
fn normal(key: &str) -> &str {
    let (key, url) = match key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")) {
        Some(rest) => (rest, true),
        None => (key, false),
    };
    let key = if url { key.split('/').next().unwrap_or(key) } else { key.trim_end_matches('/') };
    match key {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        key => key,
    }
}

impl Entry {
    fn read(&self, registry: &str) -> Result<Option<Credential>, Cause> {
        if let Some(token) = self.identity.as_ref().filter(|token| !token.is_empty()) {
            return Ok(Some(Credential::Identity(token.clone())));
        }
        if let (Some(user), Some(password)) = (&self.username, &self.password)
            && !user.is_empty()
        {
            return Ok(Some(Credential::Password(user.clone(), password.clone())));
        }
        let Some(auth) = self.auth.as_ref().filter(|auth| !auth.is_empty()) else { return Ok(None) };
        let decoded = base64::engine::general_purpose::STANDARD.decode(auth.trim()).ok();
        let pair = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        match pair.as_deref().and_then(|pair| pair.trim_end_matches('\0').split_once(':')) {
            Some((user, password)) => Ok(Some(Credential::Password(user.to_owned(), password.to_owned()))),
            None => Err(Cause::Refused(format!("the entry of {registry} is not the base64 of USER:PASSWORD"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn find(text: &str, registry: &str, repository: &str) -> Option<Credential> {
        let file: AuthFile = serde_json::from_str(text).expect("JSON");
        file.find(registry, repository).await.expect("no failure")
    }

    fn password(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password(user.to_owned(), password.to_owned()))
    }

    #[tokio::test]
    async fn the_most_specific_entry_counts() {
        let text = r#"{"auths": {
            "r.example:5000": {"auth": "aG9zdDpw"},
            "r.example:5000/team": {"auth": "dGVhbTpw"},
            "r.example:5000/team/app": {"auth": "YXBwOnA6cQ=="},
            "https://index.docker.io/v1/": {"username": "hub", "password": "p"},
            "https://old.example/v2/": {"identitytoken": "t"},
            "empty.example": {}
        }}"#;
        let got = async |registry, repository| find(text, registry, repository).await;
        assert!(got("r.example:5000", "other").await == password("host", "p"));
        assert!(got("r.example:5000", "team/x").await == password("team", "p"));
        assert!(got("r.example:5000", "team/app").await == password("app", "p:q"));
        assert!(got("r.example:5000", "teammate").await == password("host", "p"));
        assert!(got("docker.io", "library/debian").await == password("hub", "p"));
        assert!(got("old.example", "x").await == Some(Credential::Identity("t".to_owned())));
        for none in ["r.example", "empty.example", "unknown.example"] {
            assert!(got(none, "x").await.is_none(), "{none}");
        }
    }

    #[tokio::test]
    async fn what_is_malformed_is_refused_without_being_shown() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("auth.json");
        for (text, why) in [
            (r#"{"auths": {"r.example": {"auth": "c2VjcmV0"}}}"#, "USER:PASSWORD"),
            (r#"{"auths": {"r.example": {"auth": "secret"}}}"#, "USER:PASSWORD"),
            (r#"{"auths": {"r.example": "secret"}}"#, "line 1"),
            (r#"{"credHelpers": {"r.example": "../secret"}}"#, "no name of a program"),
            (r#"{"credsStore": "icebox-does-not-exist"}"#, "docker-credential-icebox-does-not-exist fails"),
        ] {
            std::fs::write(&path, text).expect("written");
            let credentials = Credentials { file: Some(path.clone()) };
            let Err(error) = credentials.get("r.example", "x").await else { panic!("{text} is no error") };
            let told = format!("{error}: {}", error.cause());
            assert!(told.contains(why), "{told}");
            assert!(!told.contains("c2VjcmV0") && !told.contains(r#""secret"#), "{told}");
        }
        let missing = Credentials { file: Some(dir.path().join("none")) };
        assert!(missing.get("r.example", "x").await.is_err(), "a file that is named must be there");
    }
}
