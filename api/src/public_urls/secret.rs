//! Credentials of a public URL: generated here, shown once, stored as a digest, compared in constant time.

use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rand::RngCore;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::db::PublicUrlRow;

/// The user of basic authentication.
pub const USER: &str = "user";
/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;

/// A new secret, as text, and its digest.
pub(super) fn new_secret() -> (String, [u8; 32]) {
    let mut bytes = [0_u8; SECRET_BYTES];
    // A generator that the operating system has seeded, fit for keys.
    rand::rng().fill_bytes(&mut bytes);
    let text = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let digest = digest(text.as_bytes());
    (text, digest)
}

fn digest(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// Result of the access check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// The URL needs no credentials.
    Free,
    /// The `Authorization` header is valid.
    Opened,
    /// The credentials are missing or wrong.
    Refused,
}

/// Checks the headers of a request.
pub(super) fn entry(url: &PublicUrlRow, headers: &HeaderMap) -> Entry {
    if url.token_sha256.is_none() && url.password_sha256.is_none() {
        return Entry::Free;
    }
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    // Two headers are ambiguous: the proxy and the box might read different ones.
    let (Some(value), None) = (all.next(), all.next()) else { return Entry::Refused };
    let value = value.as_bytes();
    let Some(space) = value.iter().position(|byte| *byte == b' ') else { return Entry::Refused };
    let (scheme, rest) = value.split_at(space);
    let rest = rest.trim_ascii();
    let opens = if scheme.eq_ignore_ascii_case(b"bearer") {
        is(url.token_sha256.as_ref(), rest)
    } else if scheme.eq_ignore_ascii_case(b"basic") {
        let decoded = BASE64.decode(rest).unwrap_or_default();
        let user = [USER.as_bytes(), b":"].concat();
        decoded.strip_prefix(user.as_slice()).is_some_and(|password| is(url.password_sha256.as_ref(), password))
    } else {
        false
    };
    if opens { Entry::Opened } else { Entry::Refused }
}

fn is(kept: Option<&[u8; 32]>, given: &[u8]) -> bool {
    kept.is_some_and(|kept| bool::from(kept.ct_eq(&digest(given))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(bearer: bool, basic: bool) -> (PublicUrlRow, String, String) {
        let ((token, token_digest), (password, password_digest)) = (new_secret(), new_secret());
        let row = PublicUrlRow {
            box_id: "b".into(),
            port: 80,
            created_ms: 0,
            token_sha256: bearer.then_some(token_digest),
            password_sha256: basic.then_some(password_digest),
        };
        (row, token, password)
    }

    fn asked(url: &PublicUrlRow, values: &[String]) -> Entry {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, value.parse().expect("a value"));
        }
        entry(url, &headers)
    }

    fn basic(user: &str, password: &str) -> String {
        format!("Basic {}", BASE64.encode(format!("{user}:{password}")))
    }

    #[test]
    fn secrets_are_long_and_never_the_same() {
        let (one, two) = (new_secret().0, new_secret().0);
        assert!(one.len() == 64 && one != two);
    }

    #[test]
    fn what_was_asked_for_opens_and_nothing_else() {
        for (with_bearer, with_basic) in [(true, false), (false, true), (true, true)] {
            let (row, token, password) = url(with_bearer, with_basic);
            let opened = |opens| if opens { Entry::Opened } else { Entry::Refused };
            assert_eq!(asked(&row, &[format!("bEaReR  {token}")]), opened(with_bearer));
            assert_eq!(asked(&row, &[basic("user", &password)]), opened(with_basic));
            for wrong in [
                String::new(),
                "Bearer".into(),
                "Bearer ".into(),
                format!("Bearer {password}"),
                format!("Bearer {token}x"),
                format!("Token {token}"),
                basic("user", &token),
                basic("user", ""),
                basic("root", &password),
                basic("", &password),
                "Basic ????".into(),
            ] {
                assert_eq!(asked(&row, std::slice::from_ref(&wrong)), Entry::Refused, "{wrong}");
            }
            assert_eq!(asked(&row, &[]), Entry::Refused);
            let right = if with_bearer { format!("Bearer {token}") } else { basic("user", &password) };
            assert_eq!(asked(&row, &[right.clone(), right]), Entry::Refused, "two headers");
        }
    }

    #[test]
    fn one_without_credentials_is_open() {
        let (row, ..) = url(false, false);
        assert_eq!(asked(&row, &[]), Entry::Free);
        assert_eq!(asked(&row, &["Bearer for-the-box".into()]), Entry::Free);
    }
}
