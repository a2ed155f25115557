//! What an operator says about registries.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use crate::connect::Dialer;
use crate::credentials::Credentials;
use crate::error::{At as _, Cause, Result};
use crate::proxy::Proxies;
use crate::timing::Timing;

/// What an operator says about registries: plain data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Places that are asked before a registry, in order: `HOST[:PORT]`, or with a path before the repositories.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Registries and mirrors, as `HOST[:PORT]`, that may be asked without TLS. Those of this machine always may.
    pub insecure: BTreeSet<String>,
    /// Authorities (PEM) that are trusted beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// The file with credentials. Default: the first of the usual ones that exists.
    pub auth_file: Option<PathBuf>,
}

/// All registries. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registries {
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) mirrors: Arc<BTreeMap<String, Vec<String>>>,
}

impl Registries {
    /// Registries by these settings. Proxies are those of the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`).
    ///
    /// # Errors
    /// The file of authorities cannot be read, or a proxy of the environment is no URL.
    pub fn new(settings: &Settings, timing: Timing) -> Result<Self> {
        let proxies = Proxies::from_env(|name| std::env::var(name).ok())?;
        Self::with_proxies(settings, timing, proxies)
    }

    pub(crate) fn with_proxies(settings: &Settings, timing: Timing, proxies: Proxies) -> Result<Self> {
        let file = settings.ca_file.as_deref();
        let tls = icebox_tls::client(file)
            .map_err(|fault| Cause::Refused(fault.to_string()))
            .at("read the certificates in", file.map(|path| path.display().to_string()).unwrap_or_default())?;
        let dialer = Dialer { tls, proxies, insecure: settings.insecure.clone(), timing };
        Ok(Self {
            dialer: Arc::new(dialer),
            credentials: Arc::new(Credentials { file: settings.auth_file.clone() }),
            mirrors: Arc::new(settings.mirrors.clone()),
        })
    }
}
