//! Trust in registries.

use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::error::{At, Cause, Result};

/// The configuration that trusts the authorities of the system and those in a file.
pub(crate) fn client(extra: Option<&Path>) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "a certificate of the host cannot be read");
    }
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = extra {
        add(&mut roots, path).at("read the certificates in", path.display())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Cause::Refused(error.to_string()))
        .at("choose", "versions of TLS")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(client))
}

fn add(roots: &mut RootCertStore, path: &Path) -> Result<(), Cause> {
    let unfit = |_| Cause::Refused("it must have certificates in PEM".to_owned());
    let list = CertificateDer::pem_file_iter(path).map_err(unfit)?;
    let list = list.collect::<std::result::Result<Vec<_>, _>>().map_err(unfit)?;
    if list.is_empty() {
        return Err(Cause::Refused("there is no certificate in it".to_owned()));
    }
    for certificate in list {
        roots.add(certificate).map_err(|error| Cause::Refused(format!("one of them is unfit: {error}")))?;
    }
    Ok(())
}
