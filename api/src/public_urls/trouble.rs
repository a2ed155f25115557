//! Error answers to a visitor when there is no answer of a box. They do not reveal whether a box exists.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;

use crate::db::PublicUrlRow;

/// `Retry-After` for a visitor of a box that is starting.
const RETRY_AFTER_SECONDS: &str = "5";

/// Reason for the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The request is invalid.
    Malformed(&'static str),
    /// No such box, or no such URL: the answers are the same.
    Unknown,
    /// The credentials are missing or wrong.
    Unauthorized { bearer: bool, basic: bool },
    /// The limit of connections is reached.
    Full,
    /// The box runs, and the port has no listener.
    NothingListens(u16),
    /// The box has been woken, and the port has no listener yet.
    StillStarting,
    /// The program in the box takes too long.
    TooSlow,
    /// The program in the box has sent no answer, or no HTTP.
    NoAnswer,
    /// An internal error; the log has the details.
    Broken,
}

impl Trouble {
    pub(super) fn unauthorized(url: &PublicUrlRow) -> Self {
        Self::Unauthorized { bearer: url.token_sha256.is_some(), basic: url.password_sha256.is_some() }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Unknown => StatusCode::NOT_FOUND,
            Self::Unauthorized { .. } => StatusCode::UNAUTHORIZED,
            Self::Full | Self::StillStarting => StatusCode::SERVICE_UNAVAILABLE,
            Self::NothingListens(_) | Self::NoAnswer | Self::Broken => StatusCode::BAD_GATEWAY,
            Self::TooSlow => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn text(self) -> String {
        match self {
            Self::Malformed(text) => text.into(),
            Self::Unknown => "there is no such public URL".into(),
            Self::Unauthorized { .. } => "this public URL wants credentials".into(),
            Self::Full => "too many connections to this box are open; try again".into(),
            Self::NothingListens(port) => format!("nothing listens on port {port} of this box"),
            Self::StillStarting => "the box is awake, but its server is not ready yet; try again".into(),
            Self::TooSlow => "the server in the box takes too long".into(),
            Self::NoAnswer => "the server in the box has given no usable answer".into(),
            Self::Broken => "the box cannot be reached".into(),
        }
    }

    /// The answer; an HTML page for browsers if `page`.
    pub(super) fn response(self, page: bool) -> Response {
        let text = self.text();
        let again = matches!(self, Self::Full | Self::StillStarting);
        let (kind, body) = if page {
            ("text/html; charset=utf-8", html(self.status(), &text, again))
        } else {
            ("text/plain; charset=utf-8", text + "\n")
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if again {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
        }
        if let Self::Unauthorized { bearer, basic } = self {
            for (wanted, scheme) in [(basic, "Basic realm=\"box\""), (bearer, "Bearer realm=\"box\"")] {
                if wanted {
                    headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
                }
            }
        }
        response
    }
}

/// None of the texts has characters that need escaping in HTML.
fn html(status: StatusCode, text: &str, again: bool) -> String {
    let refresh =
        if again { format!("<meta http-equiv=\"refresh\" content=\"{RETRY_AFTER_SECONDS}\">") } else { String::new() };
    let note = if again { "<p>This page looks again by itself.</p>" } else { "" };
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">{refresh}<title>{status}</title><style>body{{font:1rem \
         system-ui,sans-serif;margin:4rem auto;max-width:34rem;padding:0 1rem}}</style></head><body><h1>{}</h1><p>{text}</p>\
         {note}</body></html>\n",
        status.as_u16()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_page_that_is_worth_looking_at_again_looks_again() {
        let response = Trouble::StillStarting.response(true);
        assert_eq!(
            (response.status().as_u16(), &response.headers()["retry-after"]),
            (503, &HeaderValue::from_static("5"))
        );
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.expect("a body");
        assert!(String::from_utf8_lossy(&body).contains("http-equiv=\"refresh\" content=\"5\""));
        let response = Trouble::NothingListens(80).response(true);
        assert!(!response.headers().contains_key("retry-after"));
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.expect("a body");
        assert!(!String::from_utf8_lossy(&body).contains("http-equiv"));
    }

    #[test]
    fn what_opens_the_url_is_named() {
        let response = Trouble::Unauthorized { bearer: true, basic: true }.response(false);
        let offered: Vec<&HeaderValue> = response.headers().get_all("www-authenticate").iter().collect();
        assert_eq!(offered, ["Basic realm=\"box\"", "Bearer realm=\"box\""]);
    }
}
