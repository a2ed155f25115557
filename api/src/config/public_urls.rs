//! Configuration of public URLs.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

/// Longest domain: a box's label and a dot must fit before it.
const DOMAIN_BYTES_MAX: usize = 253 - 64;

/// The section `public_urls`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PublicUrls {
    /// All names below this one belong to boxes: `<box>-<port>.<domain>`. It should have no other names below it and
    /// share no cookies with other sites (a name of its own, on the public suffix list if strangers have boxes).
    pub domain: String,
    /// The scheme that clients see: `http` or `https`. Default: `https` if the listener here has a certificate.
    pub scheme: Option<String>,
    /// The port that clients see, if a proxy stands before the listener. Default: the listener's own.
    pub port: Option<u16>,
    /// A listener for public URLs only. They are served at the API's address as well.
    pub listen: Option<SocketAddr>,
    /// The certificate (PEM, with its chain) of that listener, for `*.<domain>`. Read again when the file changes.
    pub tls_certificate: Option<PathBuf>,
    /// The key of the certificate (PEM).
    pub tls_key: Option<PathBuf>,
    /// Serve `/preview/<box>-<port>/…` too, for clients that cannot resolve names below the domain.
    pub path_form: bool,
    /// Requests and sockets of all public URLs that may be open at once.
    pub connections_max: u32,
    /// The same limit for one box.
    pub connections_per_box_max: u32,
}

impl Default for PublicUrls {
    fn default() -> Self {
        Self {
            domain: "localhost".into(),
            scheme: None,
            port: None,
            listen: None,
            tls_certificate: None,
            tls_key: None,
            path_form: true,
            connections_max: 4096,
            connections_per_box_max: 512,
        }
    }
}

impl PublicUrls {
    /// The invalid key, and its expected value.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let label = |label: &str| {
            let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            !label.is_empty() && label.len() <= 63 && label.bytes().all(inner) && !label.starts_with('-')
        };
        if self.domain.len() > DOMAIN_BYTES_MAX || !self.domain.split('.').all(label) {
            return Err(("public_urls.domain", "must be a domain name in lower case, such as preview.example.com"));
        }
        if self.scheme.as_deref().is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
            return Err(("public_urls.scheme", "must be http or https"));
        }
        if self.port == Some(0) {
            return Err(("public_urls.port", "must be 1 to 65535"));
        }
        if self.tls_certificate.is_some() != self.tls_key.is_some() {
            return Err(("public_urls.tls_certificate, public_urls.tls_key", "must be given together"));
        }
        if self.tls_certificate.is_some() && self.listen.is_none() {
            return Err(("public_urls.tls_certificate", "needs public_urls.listen"));
        }
        if self.connections_max == 0 || self.connections_per_box_max == 0 {
            return Err(("public_urls.connections_max, public_urls.connections_per_box_max", "must be at least 1"));
        }
        Ok(())
    }

    /// The scheme that clients see.
    #[must_use]
    pub fn scheme(&self) -> &str {
        match &self.scheme {
            Some(scheme) => scheme,
            None if self.tls_certificate.is_some() => "https",
            None => "http",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(PublicUrls::default().check(), Ok(()));
        for text in [
            "domain = ''",
            "domain = '.x'",
            "domain = 'X.example'",
            "domain = 'a_b'",
            "scheme = 'ftp'",
            "port = 0",
            "tls_key = '/k'",
            "tls_certificate = '/c'\ntls_key = '/k'",
            "connections_max = 0",
            "connections_per_box_max = 0",
        ] {
            let read: PublicUrls = toml::from_str(text).expect("readable");
            assert!(read.check().is_err(), "{text}");
        }
        assert!(toml::from_str::<PublicUrls>("domian = 'x'").is_err());
    }

    #[test]
    fn a_certificate_makes_it_https() {
        let read = |text| toml::from_str::<PublicUrls>(text).expect("readable");
        assert_eq!(read("").scheme(), "http");
        let with = "listen = '127.0.0.1:1'\ntls_certificate = '/c'\ntls_key = '/k'";
        assert_eq!((read(with).scheme(), read(with).check()), ("https", Ok(())));
        assert_eq!(read("scheme = 'https'").scheme(), "https");
    }
}
