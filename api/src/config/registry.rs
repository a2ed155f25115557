//! Configuration of registries, from which images are pulled and to which they are pushed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use icebox_registry::Settings;
use icebox_rootfs::oci::Reference;
use serde::Deserialize;

/// Mirrors of one registry.
const MIRRORS_MAX: usize = 16;

/// The section `registry`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    /// For a registry, the places that are asked before it, in order: `HOST[:PORT]`, or with a path that stands before the
    /// repositories there.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Registries and mirrors, as `HOST[:PORT]`, that may be asked without TLS. Those of this machine always may.
    pub insecure: BTreeSet<String>,
    /// Authorities (PEM) that registries are trusted by, beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// The file with credentials, as `podman login --authfile` writes it. Default: the first of the usual ones that is there.
    pub auth_file: Option<PathBuf>,
}

impl Registry {
    /// The invalid key, and its expected value.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let absolute = |path: &Option<PathBuf>| path.as_ref().is_none_or(|path| path.is_absolute());
        if !absolute(&self.ca_file) {
            return Err(("registry.ca_file", "must be an absolute path"));
        }
        if !absolute(&self.auth_file) {
            return Err(("registry.auth_file", "must be an absolute path"));
        }
        if !self.insecure.iter().all(|host| is_registry(host)) {
            return Err((
                "registry.insecure",
                "must be hosts, with a port or without, such as registry.example.com:5000",
            ));
        }
        if !self.mirrors.keys().all(|host| is_registry(host)) {
            return Err(("registry.mirrors", "must have registries as keys, such as \"docker.io\""));
        }
        if self.mirrors.values().any(|places| places.len() > MIRRORS_MAX) {
            return Err(("registry.mirrors", "must have at most 16 places for a registry"));
        }
        if !self.mirrors.values().flatten().all(|place| is_place(place)) {
            return Err((
                "registry.mirrors",
                "must have places such as mirror.example.com:5000 or mirror.example.com/hub",
            ));
        }
        Ok(())
    }

    /// What the client of registries is told.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            mirrors: self.mirrors.clone(),
            insecure: self.insecure.clone(),
            ca_file: self.ca_file.clone(),
            auth_file: self.auth_file.clone(),
        }
    }
}

/// A host as names of images have it.
fn is_registry(host: &str) -> bool {
    !host.contains('/') && format!("{host}/x").parse::<Reference>().is_ok_and(|name| name.registry() == host)
}

fn is_place(place: &str) -> bool {
    match place.split_once('/') {
        Some((host, path)) => {
            is_registry(host)
                && format!("{host}/{path}").parse::<Reference>().is_ok_and(|name| name.repository() == path)
        }
        None => is_registry(place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_and_checked() {
        let read = |text: &str| toml::from_str::<Registry>(text);
        let text = "insecure = [\"r.lan:5000\"]\nca_file = \"/ca.pem\"\n[mirrors]\n\"docker.io\" = [\"m.lan:5000\", \"m.lan/hub\"]";
        let good = read(text).expect("readable");
        assert_eq!((good.check(), good.settings().mirrors["docker.io"].len()), (Ok(()), 2));
        assert_eq!(Registry::default().check(), Ok(()));
        for bad in [
            "ca_file = \"ca.pem\"",
            "auth_file = \"auth.json\"",
            "insecure = [\"http://r.lan\"]",
            "insecure = [\"r.lan/x\"]",
            "insecure = [\"\"]",
            "[mirrors]\ndocker = [\"m.lan\"]",
            "[mirrors]\n\"docker.io\" = [\"https://m.lan\"]",
            "[mirrors]\n\"docker.io\" = [\"m.lan/\"]",
            "[mirrors]\n\"docker.io\" = [\"m.lan/../x\"]",
        ] {
            assert!(read(bad).expect("readable").check().is_err(), "{bad}");
        }
        assert!(read("mirror = 1").is_err());
    }
}
