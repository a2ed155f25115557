//! Trust in TLS servers: the authorities of the host and those that an operator adds.
//!
//! The one place that loads them, for the egress proxy of boxes and for the client of registries.
//! Leaves out: connections, and which server may be reached.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

/// The reason why there is no configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The added file cannot be read, or is not PEM.
    NotPem,
    /// There is no certificate in the added file.
    Empty,
    /// A certificate in the added file is not that of an authority.
    Unfit,
    /// The cryptography does not offer the versions of TLS.
    Versions,
}

impl Fault {
    /// The text of it.
    #[must_use]
    pub fn text(&self) -> &'static str {
        match self {
            Self::NotPem => "expected certificates in PEM",
            Self::Empty => "there is no certificate in the file",
            Self::Unfit => "one certificate is not of an authority",
            Self::Versions => "its versions of TLS are not offered",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Fault {}

/// The configuration of an HTTP/1.1 client that trusts the host's authorities and those in the file `extra`.
///
/// # Errors
/// The file is unfit. Unfit certificates of the host are left out with a warning.
pub fn client(extra: Option<&Path>) -> Result<Arc<ClientConfig>, Fault> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "a certificate of the host cannot be read");
    }
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = extra {
        add(&mut roots, path)?;
    }
    if roots.is_empty() {
        tracing::warn!("the host trusts no authority: no TLS server can be reached");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| Fault::Versions)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(client))
}

fn add(roots: &mut RootCertStore, path: &Path) -> Result<(), Fault> {
    let list = CertificateDer::pem_file_iter(path).map_err(|_| Fault::NotPem)?;
    let list = list.collect::<Result<Vec<_>, _>>().map_err(|_| Fault::NotPem)?;
    if list.is_empty() {
        return Err(Fault::Empty);
    }
    list.into_iter().try_for_each(|certificate| roots.add(certificate).map_err(|_| Fault::Unfit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_trusted_is_refused_with_its_reason() {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = rcgen::generate_simple_self_signed(["a.test".to_owned()]).expect("a certificate").cert.pem();
        let unfit = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (name, text, wanted) in [
            ("good", authority.as_str(), None),
            ("empty", "", Some(Fault::Empty)),
            ("unfit", unfit, Some(Fault::Unfit)),
            ("cut", "-----BEGIN CERTIFICATE-----\nAAAA\n", Some(Fault::NotPem)),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("a file");
            assert_eq!(client(Some(&path)).err(), wanted, "{name}");
        }
        assert_eq!(client(Some(&dir.path().join("missing"))).err(), Some(Fault::NotPem));
        assert_eq!(client(None).expect("a configuration").alpn_protocols, [b"http/1.1".to_vec()]);
    }
}
