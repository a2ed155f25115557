//! Hop-by-hop headers: those that concern one connection, so that a proxy does not pass them on (RFC 9110, 7.6.1).
//!
//! Owns: the one list of them, for the egress proxy and for public URLs. What one side says of its connection must not
//! reach the other side: it could hide a request in another, or let credentials for one proxy reach the next.
//!
//! Leaves out: framing. The HTTP library writes each message anew, from the parsed body. Only two headers tell it what
//! it cannot see in the body, and stay: `Transfer-Encoding: chunked` (without it, the body of a GET would be dropped) and,
//! with it, `Trailer` (fields that it does not name are not sent).

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Hop-by-hop headers, beside those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 10] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];
/// Headers that give a message's length or target; `Connection` cannot remove them.
const KEPT: [HeaderName; 2] = [header::HOST, header::CONTENT_LENGTH];

/// True for a header that always concerns one connection.
#[must_use]
pub(crate) fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(name)
}

/// Removes the hop-by-hop headers of a request. `TE: trailers` is declared again for the next hop. An upgrade that the
/// proxy handles is the caller's to declare again ([`upgrade_to`]).
pub fn strip_request(headers: &mut HeaderMap) {
    let takes_trailers = has_token(headers, &header::TE, "trailers");
    strip(headers);
    if takes_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("TE"));
    }
}

/// Removes the hop-by-hop headers of an answer.
pub fn strip_answer(headers: &mut HeaderMap) {
    strip(headers);
}

/// Declares an upgrade for the next hop.
pub fn upgrade_to(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

/// True if a list in a header has this element, in upper or lower case.
#[must_use]
pub fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|found| found.eq_ignore_ascii_case(token))
}

/// The elements of all lists in a header.
pub(crate) fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

fn strip(headers: &mut HeaderMap) {
    let is_chunked =
        tokens(headers, &header::TRANSFER_ENCODING).last().is_some_and(|t| t.eq_ignore_ascii_case("chunked"));
    let trailers: Vec<HeaderValue> = headers.get_all(header::TRAILER).iter().filter(|_| is_chunked).cloned().collect();
    let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION).filter_map(|token| token.parse().ok()).collect();
    for name in named.iter().filter(|name| !KEPT.contains(name)).chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    if is_chunked {
        // Chunks win over a length (RFC 9112, 6.3).
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        for trailer in trailers {
            headers.append(header::TRAILER, trailer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        list.iter().map(pair).collect()
    }

    /// What is left of `list`, in order.
    fn left(list: &[(&'static str, &'static str)], strip: fn(&mut HeaderMap)) -> Vec<(String, String)> {
        let mut map = headers(list);
        strip(&mut map);
        let text = |value: &HeaderValue| value.to_str().expect("text").to_owned();
        let mut left: Vec<_> = map.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        left.sort();
        left
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    const ALL: [(&str, &str); 16] = [
        ("connection", "keep-alive, X-Secret"),
        ("connection", "close,host , Content-Length"),
        ("x-secret", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-authenticate", "Basic"),
        ("proxy-authorization", "Basic eA=="),
        ("proxy-connection", "keep-alive"),
        ("te", "gzip"),
        ("trailer", "x-after"),
        ("transfer-encoding", "gzip"),
        ("upgrade", "websocket"),
        ("http2-settings", "AAA"),
        ("host", "a.example"),
        ("content-length", "3"),
        ("authorization", "Bearer x"),
        ("x-other", "2"),
    ];

    #[test]
    fn what_concerns_one_connection_goes_in_both_directions() {
        let kept =
            pairs(&[("authorization", "Bearer x"), ("content-length", "3"), ("host", "a.example"), ("x-other", "2")]);
        assert_eq!(left(&ALL, strip_request), kept);
        assert_eq!(left(&ALL, strip_answer), kept);
    }

    #[test]
    fn trailers_are_taken_by_the_next_hop_and_declared_with_chunks_only() {
        let chunked = [
            ("te", "gzip, Trailers"),
            ("transfer-encoding", "gzip"),
            ("transfer-encoding", "Chunked"),
            ("content-length", "3"),
            ("trailer", "x-after"),
            ("trailer", "x-last"),
            ("connection", "te, trailer, transfer-encoding"),
        ];
        let framing = [("trailer", "x-after"), ("trailer", "x-last"), ("transfer-encoding", "chunked")];
        assert_eq!(left(&chunked, strip_answer), pairs(&framing));
        let declared = [&[("connection", "TE"), ("te", "trailers")][..], &framing].concat();
        assert_eq!(left(&chunked, strip_request), pairs(&declared));
        assert_eq!(
            left(&[("trailer", "x-after"), ("content-length", "3")], strip_answer),
            pairs(&[("content-length", "3")])
        );
    }

    #[test]
    fn a_protocol_is_declared_again_by_the_caller_only() {
        let mut map = headers(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        strip_request(&mut map);
        assert!(map.is_empty());
        upgrade_to(&mut map, HeaderValue::from_static("websocket"));
        assert!(has_token(&map, &header::CONNECTION, "Upgrade") && map[header::UPGRADE] == "websocket");
    }
}
