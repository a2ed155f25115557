//! The certificate of the listener of public URLs: read at the start, and again when its files have changed.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::PublicUrls;
use crate::error::Error;

/// Interval between checks of the files.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Time limit for a client's TLS handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Modification time and length of certificate and key: a different value means a different file.
type Version = [(SystemTime, u64); 2];

/// A certificate in use.
#[derive(Debug)]
pub struct Certificate {
    certificate: Box<Path>,
    key: Box<Path>,
    current: RwLock<(Version, Arc<ServerConfig>)>,
}

impl Certificate {
    /// The configured one, if there is one.
    pub fn of(config: &PublicUrls) -> Result<Option<Arc<Self>>, Error> {
        let (Some(certificate), Some(key)) = (&config.tls_certificate, &config.tls_key) else { return Ok(None) };
        let current = RwLock::new((version(certificate, key)?, load(certificate, key)?));
        Ok(Some(Arc::new(Self { certificate: certificate.as_path().into(), key: key.as_path().into(), current })))
    }

    /// Performs the TLS handshake with a client.
    pub async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let config = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).1);
        match tokio::time::timeout(HANDSHAKE_DEADLINE, TlsAcceptor::from(config).accept(stream)).await {
            Ok(accepted) => accepted,
            Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
        }
    }

    /// Checks the files periodically. Never returns.
    pub async fn watch(self: Arc<Self>) {
        let mut failed = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let certificate = Arc::clone(&self);
            let looked = tokio::task::spawn_blocking(move || certificate.look()).await;
            // Half of a change may be on disk: the old certificate stays until both files match.
            if let Ok(Err(error)) = looked {
                let text = error.chain();
                if failed.as_ref() != Some(&text) {
                    tracing::warn!(error = text, "the old certificate of public URLs stays in use");
                    failed = Some(text);
                }
            } else {
                failed = None;
            }
        }
    }

    fn look(&self) -> Result<(), Error> {
        let found = version(&self.certificate, &self.key)?;
        if self.current.read().unwrap_or_else(PoisonError::into_inner).0 == found {
            return Ok(());
        }
        let config = load(&self.certificate, &self.key)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = (found, config);
        tracing::info!("the certificate of public URLs was read again");
        Ok(())
    }
}

fn version(certificate: &Path, key: &Path) -> Result<Version, Error> {
    let of = |path: &Path| {
        let failed = |cause| Error::new("look at", path.display().to_string(), cause);
        let metadata = std::fs::metadata(path).map_err(failed)?;
        Ok::<_, Error>((metadata.modified().map_err(failed)?, metadata.len()))
    };
    Ok([of(certificate)?, of(key)?])
}

fn load(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, Error> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|cause| failed(certificate, cause))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|cause| failed(key, cause))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private));
    let mut config = config.map_err(|cause| failed(certificate, cause))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn failed(path: &Path, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new("read the certificate or key", path.display().to_string(), std::io::Error::other(cause))
}
