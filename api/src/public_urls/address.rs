//! The target of a request: maps its host name or its path to a box and a port.
//!
//! Strict, because proxies are attacked through two readings of one request: exactly one Host, in agreement with the
//! request line; a name of ours is exactly `<id>-<port>.<domain>`. No part of it is ever resolved, decoded or taken as
//! an address.

use axum::http::request::Parts;
use axum::http::{HeaderMap, Version, header};

/// Prefix of the path form.
const PATH_PREFIX: &str = "/preview/";

/// A port of a box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Id of the box.
    pub box_id: String,
    /// The port.
    pub port: u16,
}

/// Target of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addressed {
    /// A port of a box, by its host name.
    Name(Target),
    /// A port of a box, by its path; with the prefix that names it, without a slash at its end.
    Path(Target, String),
    /// A name below our domain, or in our path, that cannot be one of our names.
    NoBox,
    /// Another site that is served here.
    Other,
}

/// Determines the target of a request. The error describes the invalid request.
pub(super) fn addressed(parts: &Parts, domain: &str, path_form: bool) -> Result<Addressed, &'static str> {
    if let Some(host) = host(parts)?
        && let Some(label) = host.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.'))
    {
        return Ok(target(label).map_or(Addressed::NoBox, Addressed::Name));
    }
    match parts.uri.path().strip_prefix(PATH_PREFIX) {
        Some(rest) if path_form => {
            let label = rest.split('/').next().unwrap_or_default();
            let by_path = |target| Addressed::Path(target, format!("{PATH_PREFIX}{label}"));
            Ok(target(label).map_or(Addressed::NoBox, by_path))
        }
        _ => Ok(Addressed::Other),
    }
}

/// The path of the path form, without a slash at its end.
pub(super) fn path_of(target: &Target) -> String {
    format!("{PATH_PREFIX}{}-{}", target.box_id, target.port)
}

/// `<id>-<port>`; the last dash separates them.
fn target(label: &str) -> Option<Target> {
    let (id, port) = label.rsplit_once('-')?;
    let is_id = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if id.is_empty() || id.starts_with('-') || !id.bytes().all(is_id) {
        return None;
    }
    // `parse` alone would take a sign and zeros before the number.
    if port.starts_with('0') || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(Target { box_id: id.to_owned(), port: port.parse().ok()? })
}

/// The requested host name: lower case, without port and final dot. `None` for a client of HTTP/1.0 that sends none.
fn host(parts: &Parts) -> Result<Option<String>, &'static str> {
    let named = only_host(&parts.headers)?;
    let Some(named) = named else {
        return if parts.version >= Version::HTTP_11 || parts.uri.authority().is_some() {
            Err("a Host header is missing")
        } else {
            Ok(None)
        };
    };
    let (host, port) = split(named)?;
    if let Some(authority) = parts.uri.authority() {
        let (other, other_port) = split(authority.as_str())?;
        let or_default = |port: Option<u16>| port.unwrap_or(80);
        if other != host || or_default(other_port) != or_default(port) {
            return Err("the Host header and the request line name different hosts");
        }
    }
    Ok(Some(host))
}

fn only_host(headers: &HeaderMap) -> Result<Option<&str>, &'static str> {
    let mut all = headers.get_all(header::HOST).iter();
    let first = all.next();
    if all.next().is_some() {
        return Err("there is more than one Host header");
    }
    first.map(|value| value.to_str().map_err(|_| "the Host header is no host name")).transpose()
}

/// Name and port of `name[:port]`, or of an address in brackets.
fn split(named: &str) -> Result<(String, Option<u16>), &'static str> {
    const WRONG: &str = "the Host header is no host name";
    let (name, port) = match named.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => {
            if !port.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(WRONG);
            }
            // An empty port after the colon means the default port.
            let port = if port.is_empty() { None } else { Some(port.parse().map_err(|_| WRONG)?) };
            (name, port)
        }
        _ => (named, None),
    };
    let bracketed = name.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
    let fine = match bracketed {
        Some(inner) => inner.bytes().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.' | b'%')),
        None => name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')),
    };
    if !fine || name.is_empty() {
        return Err(WRONG);
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    Ok((name.to_ascii_lowercase(), port))
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn ask(uri: &str, hosts: &[&str]) -> Result<Addressed, &'static str> {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header("host", *host);
        }
        addressed(&request.body(()).expect("a request").into_parts().0, "p.example", true)
    }

    fn by_name(box_id: &str, port: u16) -> Result<Addressed, &'static str> {
        Ok(Addressed::Name(Target { box_id: box_id.into(), port }))
    }

    #[test]
    fn names_below_the_domain_are_boxes() {
        assert_eq!(ask("/", &["icy-fox-10-80.p.example"]), by_name("icy-fox-10", 80));
        assert_eq!(ask("/preview/x-1/", &["icy-fox-10-65535.P.Example.:7070"]), by_name("icy-fox-10", 65535));
        assert_eq!(ask("/", &["ICY-fox-1.p.example:"]), by_name("icy-fox", 1));
        for unknown in [
            "fox-0",
            "fox-65536",
            "fox-080",
            "fox-+80",
            "fox--80x",
            "fox",
            "-80",
            "80",
            "a.fox-80",
            "fox_-80",
            "fox-",
            "",
            "fox-8%30",
            "xn--fox.80",
        ] {
            let host = format!("{unknown}.p.example");
            let told = ask("/", &[&host]);
            assert!(matches!(told, Ok(Addressed::NoBox) | Err(_)), "{host}: {told:?}");
        }
    }

    #[test]
    fn every_other_host_is_not_a_box() {
        for host in [
            "p.example",
            "127.0.0.1",
            "2130706433",
            "0177.0.0.1",
            "[::1]:80",
            "[::ffff:127.0.0.1]",
            "169.254.169.254",
            "fox-80.p.example.evil",
            "fox-80.xp.example",
            "fox-80.p.example.p",
            "localhost:7070",
        ] {
            assert_eq!(ask("/", &[host]), Ok(Addressed::Other), "{host}");
        }
    }

    #[test]
    fn a_host_is_one_and_the_same() {
        for hosts in [&[][..], &["a", "a"], &["a b"], &["a,b"], &["a@b"], &["a:x"], &["a:99999"], &["a/b"], &[""]] {
            assert!(ask("/", hosts).is_err(), "{hosts:?}");
        }
        let target = by_name("fox", 80);
        assert_eq!(ask("http://fox-80.p.example/x", &["fox-80.P.example"]), target);
        assert_eq!(ask("http://fox-80.p.example:80/x", &["fox-80.P.example"]), target);
        assert!(ask("http://fox-80.p.example/x", &["fox-81.p.example"]).is_err());
        assert!(ask("http://fox-80.p.example/x", &["fox-80.p.example:81"]).is_err());
        assert!(ask("http://a@fox-80.p.example/x", &["fox-80.p.example"]).is_err());
    }

    #[test]
    fn a_client_of_http_1_0_need_not_name_a_host() {
        let request = Request::builder().uri("/").version(Version::HTTP_10).body(()).expect("a request");
        assert_eq!(addressed(&request.into_parts().0, "p.example", true), Ok(Addressed::Other));
    }

    #[test]
    fn paths_are_read_as_they_are() {
        let told = |uri: &str| ask(uri, &["h"]).expect("a good host");
        let target = Target { box_id: "icy-fox-1".into(), port: 80 };
        let by_path = Addressed::Path(target.clone(), "/preview/icy-fox-1-80".into());
        for uri in [
            "/preview/icy-fox-1-80",
            "/preview/icy-fox-1-80/",
            "/preview/icy-fox-1-80/../x?y",
            "/preview/icy-fox-1-80?y",
        ] {
            assert_eq!(told(uri), by_path, "{uri}");
        }
        assert_eq!(path_of(&target), "/preview/icy-fox-1-80");
        for uri in [
            "/preview/",
            "/preview/x",
            "/preview/../x-80/",
            "/preview/fox%2d80/",
            "/preview//fox-80/",
            "/preview/FOX-80/",
        ] {
            assert_eq!(told(uri), Addressed::NoBox, "{uri}");
        }
        for uri in ["/preview", "//preview/fox-80/", "/v2/box", "/x/preview/fox-80"] {
            assert_eq!(told(uri), Addressed::Other, "{uri}");
        }
    }
}
