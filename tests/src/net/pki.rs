//! Certificates of the world's servers, made when a name is asked for.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// Names below this are signed by an untrusted CA.
pub const UNTRUSTED: &str = "untrusted.test";
/// Names below this have certificates whose time is over.
pub const EXPIRED: &str = "expired.test";
/// Names below this show the certificate of another name.
pub const MISNAMED: &str = "misnamed.test";
/// The certificate for a client without SNI.
const NAMELESS: &str = "nameless.test";

struct Signer {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Signer {
    fn new(name: &str) -> (Self, String) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        (Self { certificate: certificate.der().clone(), issuer: Issuer::new(params, key) }, certificate.pem())
    }

    fn sign(&self, name: &str, is_over: bool) -> CertifiedKey {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        if is_over {
            (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = any_supported_type(&key).expect("a signing key");
        CertifiedKey::new(vec![certificate.der().clone(), self.certificate.clone()], key)
    }
}

struct Shared {
    trusted: Signer,
    untrusted: Signer,
    pem: String,
    made: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

/// A certificate authority.
#[derive(Clone)]
pub struct Authority {
    shared: Arc<Shared>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// A new one.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let (trusted, pem) = Signer::new(name);
        let (untrusted, _) = Signer::new("Untrusted");
        Self { shared: Arc::new(Shared { trusted, untrusted, pem, made: Mutex::default() }) }
    }

    /// Its certificate.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.shared.pem
    }

    /// What a TLS server needs; it has a certificate for each name that it is asked for.
    #[must_use]
    pub fn server_config(&self) -> Arc<rustls::ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.expect("protocol versions").with_no_client_auth();
        let mut config = builder.with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }

    fn certificate(&self, name: &str) -> Arc<CertifiedKey> {
        let mut made = self.shared.made.lock().unwrap_or_else(PoisonError::into_inner);
        let is_below = |suffix: &str| name == suffix || name.ends_with(&format!(".{suffix}"));
        let make = || {
            let signer = if is_below(UNTRUSTED) { &self.shared.untrusted } else { &self.shared.trusted };
            let shown = if is_below(MISNAMED) { "another-name.test" } else { name };
            Arc::new(signer.sign(shown, is_below(EXPIRED)))
        };
        Arc::clone(made.entry(name.to_owned()).or_insert_with(make))
    }
}

impl ResolvesServerCert for Authority {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certificate(hello.server_name().unwrap_or(NAMELESS)))
    }
}
