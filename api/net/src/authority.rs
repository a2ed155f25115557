//! The certificate authority of an installation. It signs the certificates with which the egress proxy answers.
//!
//! Owns: the authority's key and certificate, and the host certificates made on demand. Only boxes trust it, and only
//! the egress proxy uses it.
//!
//! Invariants: the key is on disk sealed and readable by its owner only, and never leaves the process otherwise. It is
//! made once, because boxes have its certificate in their trust stores. An unreadable file is an error, not a reason to
//! make another.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};

use super::secret::{SealingKey, Wiped, create_private, read_private};
use crate::error::{Cause, Error};

/// Host certificates kept in memory.
const HOSTS_MAX: usize = 1024;
/// The file holds key and certificate, sealed; a few hundred bytes.
const FILE_BYTES_MAX: usize = 16 * 1024;
/// The sealing context.
const CONTEXT: &str = "authority";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const AUTHORITY_LIFE: Duration = Duration::from_secs(3653 * 24 * 60 * 60);
const LEAF_LIFE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Certificates begin this long ago, for clocks that are behind.
const BACKDATED: Duration = HOUR;
/// The only protocol that the proxy speaks.
const ALPN: &[u8] = b"http/1.1";

/// The crypto provider of all our TLS, named here because no process default is installed.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

struct Host {
    config: Arc<ServerConfig>,
    made: SystemTime,
    used: u64,
}

#[derive(Default)]
struct Hosts {
    hosts: HashMap<String, Host>,
    uses: u64,
}

/// The authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
    tickets: Arc<dyn ProducesTickets>,
    hosts: Mutex<Hosts>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

fn failed(operation: &'static str) -> impl Fn(rcgen::Error) -> Error {
    move |cause| Error::new(operation, "", std::io::Error::other(cause.to_string()))
}

fn failed_tls(operation: &'static str) -> impl Fn(rustls::Error) -> Error {
    move |cause| Error::new(operation, "", std::io::Error::other(cause))
}

impl Authority {
    /// Loads the authority from the file at `path`, sealed with `key`. Makes one if there is no file.
    ///
    /// # Errors
    /// The file cannot be read or does not open with the key. To replace the authority, remove the file; running boxes
    /// trust only the old one.
    pub fn load_or_create(path: &Path, key: &SealingKey) -> Result<Self, Error> {
        if let Some(sealed) = read_private(path, FILE_BYTES_MAX)? {
            return Self::read(path, key, &sealed);
        }
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed("make the key of the authority"))?;
        let certificate = params(&pair)?.self_signed(&pair).map_err(failed("sign the authority"))?;
        let plain = Wiped(pack(pair.serialized_der(), certificate.der()));
        if create_private(path, &key.seal(CONTEXT, &plain.0)?)? {
            return Self::new(pair, certificate.der().clone());
        }
        let other = read_private(path, FILE_BYTES_MAX)?.ok_or_else(|| strange(path))?;
        Self::read(path, key, &other)
    }

    fn read(path: &Path, key: &SealingKey, sealed: &Wiped) -> Result<Self, Error> {
        let plain = Wiped(key.open(CONTEXT, &sealed.0)?);
        let (pair, certificate) = unpack(&plain.0).ok_or_else(|| strange(path))?;
        let pair = KeyPair::try_from(pair).map_err(|_| strange(path))?;
        Self::new(pair, CertificateDer::from(certificate.to_vec()))
    }

    fn new(pair: KeyPair, certificate: CertificateDer<'static>) -> Result<Self, Error> {
        let issuer = Issuer::new(params(&pair)?, pair);
        let tickets = rustls::crypto::ring::Ticketer::new().map_err(failed_tls("make a key for TLS tickets"))?;
        Ok(Self { issuer, certificate, provider: provider(), tickets, hosts: Mutex::default() })
    }

    /// Its certificate, for the trust stores of boxes.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        let text = base64::engine::general_purpose::STANDARD.encode(&self.certificate);
        let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    }

    /// The TLS server configuration for `host`, a name in its normal form.
    ///
    /// # Errors
    /// No certificate can be made for this name.
    pub(crate) fn answer_for(&self, host: &str) -> Result<Arc<ServerConfig>, Error> {
        let now = SystemTime::now();
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.uses += 1;
        let used = hosts.uses;
        if let Some(known) = hosts.hosts.get_mut(host)
            && now.duration_since(known.made).is_ok_and(|age| age < LEAF_LIFE - DAY)
        {
            known.used = used;
            return Ok(Arc::clone(&known.config));
        }
        let config = Arc::new(self.make(host, now)?);
        if hosts.hosts.len() >= HOSTS_MAX && !hosts.hosts.contains_key(host) {
            let oldest = hosts.hosts.iter().min_by_key(|(_, host)| host.used).map(|(name, _)| name.clone());
            oldest.map(|name| hosts.hosts.remove(&name));
        }
        hosts.hosts.insert(host.to_owned(), Host { config: Arc::clone(&config), made: now, used });
        Ok(config)
    }

    fn make(&self, host: &str, now: SystemTime) -> Result<ServerConfig, Error> {
        let (leaf, pair) = self.leaf(host, now)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(failed_tls("choose versions of TLS"))?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone(), self.certificate.clone()], key)
            .map_err(failed_tls("use the certificate of a host"))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Session state is kept by the client (tickets), so nothing grows here.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Arc::clone(&self.tickets);
        Ok(config)
    }

    fn leaf(&self, host: &str, now: SystemTime) -> Result<(Certificate, KeyPair), Error> {
        let failed = failed("make a certificate of a host");
        let mut params = CertificateParams::new(vec![host.to_owned()]).map_err(&failed)?;
        params.not_before = date_time_ymd(1970, 1, 1) + since_epoch(now - BACKDATED);
        params.not_after = date_time_ymd(1970, 1, 1) + since_epoch(now + LEAF_LIFE);
        params.distinguished_name = DistinguishedName::new();
        // Long names do not fit into the common name, and current clients read only the SAN.
        if host.len() <= 64 {
            params.distinguished_name.push(DnType::CommonName, host);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial());
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(&failed)?;
        let leaf = params.signed_by(&pair, &self.issuer).map_err(&failed)?;
        Ok((leaf, pair))
    }
}

fn strange(path: &Path) -> Error {
    let cause = Cause::Invalid("this is not an authority of this version");
    Error::new("read authority", path.display().to_string(), cause)
}

/// The certificate parameters of an authority. Only the dates differ for the same key, so later certificates name their
/// issuer correctly.
fn params(pair: &KeyPair) -> Result<CertificateParams, Error> {
    let now = SystemTime::now();
    let mut params = CertificateParams::new(Vec::new()).map_err(failed("describe the authority"))?;
    let hash = Sha256::digest(pair.public_key_raw());
    params.distinguished_name = DistinguishedName::new();
    let name = format!("Icebox {:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3]);
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(1970, 1, 1) + since_epoch(now - DAY);
    params.not_after = date_time_ymd(1970, 1, 1) + since_epoch(now + AUTHORITY_LIFE);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial());
    Ok(params)
}

/// A positive, unique serial number.
fn serial() -> SerialNumber {
    let mut bytes = uuid::Uuid::new_v4().into_bytes();
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn pack(key: &[u8], certificate: &[u8]) -> Vec<u8> {
    let length = u32::try_from(key.len()).unwrap_or_default().to_be_bytes();
    let mut all = Vec::with_capacity(length.len() + key.len() + certificate.len());
    all.extend_from_slice(&length);
    all.extend_from_slice(key);
    all.extend_from_slice(certificate);
    all
}

fn unpack(all: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = all.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};

    use super::*;

    fn authority() -> (tempfile::TempDir, SealingKey, Authority) {
        let folder = tempfile::tempdir().expect("folder");
        let key = SealingKey::load_or_create(&folder.path().join("key")).expect("key");
        let authority = Authority::load_or_create(&folder.path().join("authority"), &key).expect("authority");
        (folder, key, authority)
    }

    /// True if a client that trusts `root` accepts, as `wanted`, what `authority` answers for `answered`.
    fn handshake(root: &str, authority: &Authority, answered: &str, wanted: &str) -> Result<(), rustls::Error> {
        use rustls::pki_types::pem::PemObject as _;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(root.as_bytes()).expect("PEM"))?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), ALPN.to_vec()];
        let name = ServerName::try_from(wanted.to_owned()).expect("a name");
        let mut client = ClientConnection::new(Arc::new(config), name)?;
        let mut server = ServerConnection::new(authority.answer_for(answered).expect("config"))?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).expect("memory");
            server.read_tls(&mut wire.as_slice()).expect("memory");
            server.process_new_packets()?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).expect("memory");
            client.read_tls(&mut wire.as_slice()).expect("memory");
            client.process_new_packets()?;
        }
        assert_eq!(client.alpn_protocol(), Some(ALPN), "HTTP/2 is not offered");
        Ok(())
    }

    #[test]
    fn it_vouches_for_hosts_one_by_one() {
        let (_folder, _, authority) = authority();
        let (_folder_2, _, other) = self::authority();
        let root = authority.certificate_pem();
        let long = format!("{}.example.com", ["a234567890123456789012345678901234567890"; 4].join("."));
        for host in ["example.com", "a_b.example.com", "xn--bcher-kva.example", &long] {
            handshake(&root, &authority, host, host).expect(host);
        }
        handshake(&root, &authority, "example.com", "www.example.com").expect_err("another name");
        handshake(&root, &other, "example.com", "example.com").expect_err("another authority");
    }

    #[test]
    fn it_is_made_once_and_sealed() {
        let (folder, key, authority) = authority();
        let path = folder.path().join("authority");
        assert_eq!(fs::metadata(&path).expect("file").permissions().mode() & 0o7777, 0o600);
        let raw = fs::read(&path).expect("file");
        assert!(!raw.windows(7).any(|w| w == b"Icebox "), "it is there in the clear");
        let again = Authority::load_or_create(&path, &key).expect("authority");
        assert_eq!(again.certificate_pem(), authority.certificate_pem());
        handshake(&authority.certificate_pem(), &again, "example.com", "example.com").expect("the same authority");
        let other = SealingKey::load_or_create(&folder.path().join("other")).expect("key");
        Authority::load_or_create(&path, &other).expect_err("another key");
        fs::write(&path, key.seal(CONTEXT, b"\0\0\0\x05text").expect("sealed")).expect("write");
        Authority::load_or_create(&path, &key).expect_err("no authority");
    }

    #[test]
    fn certificates_of_hosts_are_kept_and_their_number_is_bounded() {
        let (_folder, _, authority) = authority();
        let first = authority.answer_for("first.example").expect("config");
        for n in 0..HOSTS_MAX + 8 {
            authority.answer_for(&format!("n{n}.example")).expect("config");
            assert!(Arc::ptr_eq(&first, &authority.answer_for("first.example").expect("config")), "after {n}");
        }
        let hosts = authority.hosts.lock().expect("hosts");
        assert_eq!(hosts.hosts.len(), HOSTS_MAX);
        assert!(!hosts.hosts.contains_key("n0.example"));
    }
}
