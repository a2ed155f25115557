//! Filtering of request and response heads.
//!
//! Each side has its own connection, so hop-by-hop fields (framing, keep-alive, upgrades) are removed and generated
//! anew by the HTTP library from the parsed message. Only the proxy may set the fields that describe the client.

use axum::http::request::Parts;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header, response};
use icebox_net::hop_by_hop;

/// Fields that clients may not send to a box: the proxy sets their address, and the box must not see the API's key.
const NOT_FROM_CLIENTS: [&str; 4] = ["forwarded", "x-real-ip", "x-box-api-key", "expect"];
/// Fields that a box may not send to a browser on the path form, where it shares an origin with the API and other
/// boxes.
const NOT_FOR_THE_ORIGIN: [&str; 5] = [
    "strict-transport-security",
    "clear-site-data",
    "service-worker-allowed",
    "public-key-pins",
    "origin-agent-cluster",
];
/// A document of the path form is sandboxed: no storage, no cookies, no access to other content of this origin.
const SANDBOX: &str = "sandbox allow-downloads allow-forms allow-modals allow-pointer-lock allow-popups allow-scripts";

/// Facts about the client that the proxy sends to the box.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) address: std::net::IpAddr,
    /// Scheme of its connection.
    pub(super) scheme: String,
    /// Path prefix that does not belong to the box.
    pub(super) prefix: Option<String>,
}

/// Converts the head of a client's request into the proxy's. Returns the protocol of a requested upgrade.
pub(super) fn to_box(
    parts: &mut Parts,
    client: &Client,
    credentials_were_ours: bool,
) -> Result<Option<HeaderValue>, &'static str> {
    let upgrade = wanted_upgrade(parts);
    let host = parts.headers.get(header::HOST).cloned().ok_or("a Host header is missing")?;
    hop_by_hop::strip_request(&mut parts.headers);
    let ours =
        |name: &HeaderName| name.as_str().starts_with("x-forwarded-") || NOT_FROM_CLIENTS.contains(&name.as_str());
    let told: Vec<HeaderName> = parts.headers.keys().filter(|name| ours(name)).cloned().collect();
    for name in told {
        parts.headers.remove(name);
    }
    if credentials_were_ours {
        parts.headers.remove(header::AUTHORIZATION);
    }
    let path = match &client.prefix {
        Some(prefix) => parts.uri.path().strip_prefix(prefix.as_str()).unwrap_or_default(),
        None => parts.uri.path(),
    };
    let query = parts.uri.query().map_or_else(String::new, |query| format!("?{query}"));
    let path = if path.is_empty() { "/" } else { path };
    let path: PathAndQuery = format!("{path}{query}").parse().map_err(|_| "the path cannot be read")?;
    parts.uri = Uri::from(path);
    parts.version = Version::HTTP_11;
    let value = |text: &str| HeaderValue::from_str(text).map_err(|_| "the request cannot be passed on");
    let headers = &mut parts.headers;
    headers.insert(HeaderName::from_static("x-forwarded-for"), value(&client.address.to_string())?);
    headers.insert(HeaderName::from_static("x-forwarded-proto"), value(&client.scheme)?);
    headers.insert(HeaderName::from_static("x-forwarded-host"), host.clone());
    if let Some(prefix) = &client.prefix {
        headers.insert(HeaderName::from_static("x-forwarded-prefix"), value(prefix)?);
    }
    headers.insert(header::HOST, host);
    if let Some(protocol) = &upgrade {
        hop_by_hop::upgrade_to(headers, protocol.clone());
    }
    Ok(upgrade)
}

/// Converts the head of a box's answer into the proxy's.
pub(super) fn to_client(parts: &mut response::Parts, prefix: Option<&str>) {
    let protocol = parts.headers.get(header::UPGRADE).cloned();
    hop_by_hop::strip_answer(&mut parts.headers);
    // It would direct browsers past the proxy to a port that is not the box's.
    parts.headers.remove(header::ALT_SVC);
    if let (StatusCode::SWITCHING_PROTOCOLS, Some(protocol)) = (parts.status, protocol) {
        hop_by_hop::upgrade_to(&mut parts.headers, protocol);
    }
    if let Some(prefix) = prefix {
        for name in NOT_FOR_THE_ORIGIN {
            parts.headers.remove(name);
        }
        confine_cookies(&mut parts.headers, prefix);
        parts.headers.append(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(SANDBOX));
    }
}

/// The protocol of a requested upgrade. Not HTTP/2: requests on such a connection would pass unchecked.
fn wanted_upgrade(parts: &Parts) -> Option<HeaderValue> {
    let protocol = parts.headers.get(header::UPGRADE)?;
    let wanted = parts.version == Version::HTTP_11
        && parts.method != Method::CONNECT
        && hop_by_hop::has_token(&parts.headers, &header::CONNECTION, "upgrade")
        && !protocol.as_bytes().to_ascii_lowercase().starts_with(b"h2");
    wanted.then(|| protocol.clone())
}

/// Restricts cookies of the path form to the box's own path; a wider path that the box has set is replaced.
fn confine_cookies(headers: &mut HeaderMap, prefix: &str) {
    let cookies: Vec<HeaderValue> = headers.get_all(header::SET_COOKIE).iter().cloned().collect();
    headers.remove(header::SET_COOKIE);
    for cookie in cookies {
        // One that is not text cannot be confined.
        let Ok(cookie) = cookie.to_str() else { continue };
        if let Ok(confined) = confined(cookie, prefix).parse() {
            headers.append(header::SET_COOKIE, confined);
        }
    }
}

fn confined(cookie: &str, prefix: &str) -> String {
    let mut path = "/";
    let mut kept = Vec::new();
    for (index, part) in cookie.split(';').map(str::trim).enumerate() {
        let (name, value) = part.split_once('=').map_or((part, ""), |(name, value)| (name.trim(), value.trim()));
        if index > 0 && name.eq_ignore_ascii_case("path") {
            path = if value.starts_with('/') { value } else { "/" };
        } else if index == 0 || !name.eq_ignore_ascii_case("domain") {
            kept.push(part);
        }
    }
    format!("{}; Path={prefix}{path}", kept.join("; "))
}

#[cfg(test)]
mod tests {
    use axum::http::{Request, Response};

    use super::*;

    fn client(prefix: Option<&str>) -> Client {
        Client {
            address: std::net::IpAddr::from([192, 0, 2, 7]),
            scheme: "https".into(),
            prefix: prefix.map(str::to_owned),
        }
    }

    fn sent(uri: &str, headers: &[(&str, &str)], prefix: Option<&str>) -> (Parts, Option<HeaderValue>) {
        let mut request = Request::builder().uri(uri).header("host", "fox-80.localhost:7070");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut parts = request.body(()).expect("a request").into_parts().0;
        let upgrade = to_box(&mut parts, &client(prefix), false).expect("a good head");
        (parts, upgrade)
    }

    #[test]
    fn what_concerns_one_connection_stays_on_it() {
        let (parts, upgrade) = sent(
            "/a?b",
            &[
                ("connection", "keep-alive, X-Secret"),
                ("connection", "close,host"),
                ("x-secret", "1"),
                ("keep-alive", "5"),
                ("te", "gzip, trailers"),
                ("transfer-encoding", "chunked"),
                ("proxy-authorization", "x"),
                ("upgrade", "websocket"),
                ("expect", "100-continue"),
                ("x-other", "2"),
            ],
            None,
        );
        assert_eq!(upgrade, None, "Connection does not name it");
        let mut names: Vec<&str> = parts.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let told = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-other"];
        assert_eq!(names, [&["connection", "host", "te", "transfer-encoding"][..], &told].concat());
        assert!(parts.headers["te"] == "trailers" && parts.headers["connection"] == "TE", "{:?}", parts.headers);
        assert_eq!(parts.headers["host"], "fox-80.localhost:7070");
        assert_eq!(parts.uri, "/a?b");
    }

    #[test]
    fn headers_about_the_client_are_ours_alone() {
        let (parts, _) = sent(
            "/",
            &[
                ("x-forwarded-for", "1.1.1.1"),
                ("x-forwarded-port", "1"),
                ("x-forwarded-proto", "gopher"),
                ("x-forwarded-host", "evil"),
                ("x-forwarded-prefix", "/evil"),
                ("forwarded", "for=1.1.1.1"),
                ("x-real-ip", "1.1.1.1"),
                ("x-box-api-key", "box_secret"),
            ],
            None,
        );
        assert_eq!(parts.headers["x-forwarded-for"], "192.0.2.7");
        assert_eq!(parts.headers["x-forwarded-proto"], "https");
        assert_eq!(parts.headers["x-forwarded-host"], "fox-80.localhost:7070");
        assert_eq!(parts.headers.len(), 4, "{:?}", parts.headers);
    }

    #[test]
    fn a_protocol_is_changed_on_request_only_and_never_to_http_2() {
        let asked = |protocol| sent("/", &[("connection", "Upgrade"), ("upgrade", protocol)], None);
        let (parts, upgrade) = asked("websocket");
        assert_eq!(upgrade, Some(HeaderValue::from_static("websocket")));
        assert_eq!(
            (&parts.headers["connection"], &parts.headers["upgrade"]),
            (&"upgrade".parse().expect("a value"), &"websocket".parse().expect("a value"))
        );
        assert_eq!(asked("h2c").1, None);
        assert_eq!(asked("H2").1, None);
    }

    #[test]
    fn the_prefix_of_the_path_form_is_taken_off_and_told() {
        let prefix = "/preview/fox-80";
        for (uri, path) in
            [("/preview/fox-80", "/"), ("/preview/fox-80/", "/"), ("/preview/fox-80//x/../y?z=1", "//x/../y?z=1")]
        {
            let (parts, _) = sent(uri, &[], Some(prefix));
            assert_eq!(
                (parts.uri.to_string().as_str(), &parts.headers["x-forwarded-prefix"]),
                (path, &prefix.parse().expect("a value"))
            );
        }
    }

    #[test]
    fn what_a_box_says_about_the_origin_is_not_passed_on_in_the_path_form() {
        let response = |prefix| {
            let mut parts = Response::builder()
                .header("alt-svc", "h3=\":1\"")
                .header("clear-site-data", "*")
                .header("connection", "close, X-Hop")
                .header("x-hop", "1")
                .header("proxy-authenticate", "Basic")
                .header("keep-alive", "timeout=5")
                .header("upgrade", "websocket")
                .header("set-cookie", "a=b; Domain=x.example; path=/in; Secure")
                .header("set-cookie", "domain=1")
                .body(())
                .expect("a response")
                .into_parts()
                .0;
            to_client(&mut parts, prefix);
            parts.headers
        };
        let by_name = response(None);
        assert!(by_name.contains_key("clear-site-data") && !by_name.contains_key("content-security-policy"));
        for gone in ["alt-svc", "connection", "x-hop", "proxy-authenticate", "keep-alive", "upgrade"] {
            assert!(!by_name.contains_key(gone), "{gone}");
        }
        let by_path = response(Some("/preview/fox-80"));
        let cookies: Vec<&HeaderValue> = by_path.get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a=b; Secure; Path=/preview/fox-80/in", "domain=1; Path=/preview/fox-80/"]);
        assert!(!by_path.contains_key("clear-site-data"));
        assert!(by_path["content-security-policy"].to_str().is_ok_and(|policy| policy.starts_with("sandbox ")));
    }
}
