//! Proxies of the environment: `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`, in capitals or not.

use std::net::IpAddr;

use base64::Engine as _;
use url::{Host, Url};

use crate::error::{At, Cause, Result};
use crate::reach::{self, Reach};

/// The proxies, and what is reached without one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Proxies {
    https: Option<Proxy>,
    http: Option<Proxy>,
    without: Vec<String>,
}

/// An HTTP proxy.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The value of `Proxy-Authorization`.
    pub(crate) authorization: Option<String>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Proxy({}:{})", self.host, self.port)
    }
}

impl Proxies {
    pub(crate) fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let either =
            |name: &str| get(name).or_else(|| get(&name.to_ascii_uppercase())).filter(|value| !value.is_empty());
        let read = |name: &str| either(name).map(|value| proxy(&value).at("read the proxy in", name)).transpose();
        let without = either("no_proxy").unwrap_or_default();
        let entry = |entry: &str| entry.trim().trim_start_matches("*.").trim_start_matches('.').to_ascii_lowercase();
        Ok(Self {
            https: read("https_proxy")?,
            http: read("http_proxy")?,
            without: without.split(',').map(entry).filter(|entry| !entry.is_empty()).collect(),
        })
    }

    /// The proxy for this URL. This machine is reached without.
    pub(crate) fn for_url(&self, url: &Url) -> Option<&Proxy> {
        let proxy = if url.scheme() == "https" { self.https.as_ref() } else { self.http.as_ref() }?;
        let host = url.host()?;
        let address = match host {
            Host::Ipv4(address) => Some(IpAddr::V4(address)),
            Host::Ipv6(address) => Some(IpAddr::V6(address)),
            Host::Domain(_) => None,
        };
        let name =
            url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        if name == "localhost" || address.is_some_and(|address| reach::of(address) == Reach::Loopback) {
            return None;
        }
        let port = url.port_or_known_default().unwrap_or(0);
        (!self.without.iter().any(|entry| excludes(entry, &name, address, port))).then_some(proxy)
    }
}

fn proxy(value: &str) -> Result<Proxy, Cause> {
    // The value may have a password: it is not shown.
    let unfit = || Cause::Refused("it must be a URL such as http://proxy.example.com:3128".to_owned());
    let text = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
    let url = Url::parse(&text).map_err(|_| unfit())?;
    if url.scheme() != "http" {
        return Err(Cause::Refused("only proxies with http:// are supported".to_owned()));
    }
    let plain = |text: &str| decoded(text).ok_or_else(unfit);
    let authorization = if url.username().is_empty() {
        None
    } else {
        let pair = format!("{}:{}", plain(url.username())?, plain(url.password().unwrap_or_default())?);
        Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
    };
    let host = url.host_str().ok_or_else(unfit)?.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(Proxy { host, port: url.port_or_known_default().unwrap_or(80), authorization })
}

/// A text without its percent-encoding.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

fn excludes(entry: &str, name: &str, address: Option<IpAddr>, port: u16) -> bool {
    if entry == "*" {
        return true;
    }
    if let (Some(address), Some((network, bits))) = (address, entry.split_once('/')) {
        return network.parse().is_ok_and(|network| within(address, network, bits.parse().unwrap_or(u32::MAX)));
    }
    let entry = match entry.rsplit_once(':') {
        Some((host, wanted)) if !host.contains(':') => {
            if wanted.parse() != Ok(port) {
                return false;
            }
            host
        }
        _ => entry,
    };
    name == entry || name.strip_suffix(entry).is_some_and(|start| start.ends_with('.') && address.is_none())
}

fn within(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            address.to_bits() & mask == network.to_bits() & mask
        }
        (IpAddr::V6(address), IpAddr::V6(network)) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            address.to_bits() & mask == network.to_bits() & mask
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(pairs: &[(&str, &str)]) -> Result<Proxies> {
        Proxies::from_env(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_environment_chooses() {
        let found = proxies(&[
            ("HTTPS_PROXY", "http://me:p%40ss@proxy.example:3128"),
            ("http_proxy", "plain.example"),
            ("no_proxy", ".corp.example, 10.0.0.0/8,r.example:5000,fd00::/8"),
        ])
        .expect("good");
        let of = |url: &str| found.for_url(&url.parse().expect(url)).map(|proxy| (proxy.host.clone(), proxy.port));
        let (https, http) = (Some(("proxy.example".to_owned(), 3128)), Some(("plain.example".to_owned(), 80)));
        for (url, expected) in [
            ("https://r.io/v2/", &https),
            ("http://r.io/v2/", &http),
            ("https://a.corp.example/", &None),
            ("https://corp.example/", &None),
            ("https://notcorp.example/", &https),
            ("https://10.9.9.9/", &None),
            ("https://11.9.9.9/", &https),
            ("https://[fd00::2]/", &None),
            ("https://r.example:5000/", &None),
            ("https://r.example/", &https),
            ("http://localhost:5000/", &None),
            ("http://127.1.1.1:5000/", &None),
            ("http://[::1]:5000/", &None),
        ] {
            assert_eq!(&of(url), expected, "{url}");
        }
        let authorization = found.https.as_ref().and_then(|proxy| proxy.authorization.as_deref());
        assert_eq!(authorization, Some("Basic bWU6cEBzcw=="));
        assert!(!format!("{found:?}").contains("bWU6"), "a password is not for logs");
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_its_password() {
        for value in ["socks5://me:secret@p", "http://", "http://me:secret@:1"] {
            let error = proxies(&[("https_proxy", value)]).expect_err(value);
            assert!(!format!("{error}: {}", error.cause()).contains("secret"));
        }
        assert!(proxies(&[("https_proxy", "")]).expect("none").https.is_none());
    }
}
