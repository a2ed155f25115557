//! Answers: errors in the shape that clients understand, and bodies read with a limit.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use super::patient::TooSlow;
use super::plain;
use crate::http::v2::wire::{Empty, ErrorBody};
use crate::refusal::Refusal;

/// Longest JSON body of a request, unless its route says otherwise.
pub(super) const JSON_BYTES_MAX: usize = 1024 * 1024;
/// Delay for `Retry-After` of a refused request.
const RETRY_AFTER_SECONDS: &str = "1";

/// Result of a handler.
pub(super) type Answer<T> = Result<axum::Json<T>, Refusal>;

/// The answer of endpoints whose clients ignore the body.
pub(super) fn done() -> Answer<Empty> {
    Ok(axum::Json(Empty {}))
}

/// An error in the clients' shape.
pub(super) fn error(status: StatusCode, text: impl Into<String>) -> Response {
    (status, axum::Json(ErrorBody { error: text.into() })).into_response()
}

pub(super) fn status_of(refusal: &Refusal) -> StatusCode {
    match refusal {
        Refusal::Invalid(_) => StatusCode::BAD_REQUEST,
        Refusal::Unauthorized => StatusCode::UNAUTHORIZED,
        Refusal::Forbidden(_) => StatusCode::FORBIDDEN,
        Refusal::NotFound(_) => StatusCode::NOT_FOUND,
        Refusal::Conflict(_) => StatusCode::CONFLICT,
        Refusal::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
        Refusal::Limit(_) => StatusCode::TOO_MANY_REQUESTS,
        Refusal::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        Refusal::NoSpace(_) => StatusCode::INSUFFICIENT_STORAGE,
        Refusal::TooSlow(_) => StatusCode::REQUEST_TIMEOUT,
        Refusal::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
        Refusal::NotYet(_) => StatusCode::NOT_IMPLEMENTED,
        Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        if let Refusal::Failed(cause) = &self {
            tracing::error!(error = cause.chain(), "a request failed");
        }
        let status = status_of(&self);
        let mut response = error(status, self.to_string());
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            let after = header::HeaderValue::from_static(RETRY_AFTER_SECONDS);
            response.headers_mut().insert(header::RETRY_AFTER, after);
        }
        response
    }
}

/// A JSON body of at most [`JSON_BYTES_MAX`] bytes. An empty body counts as an empty object; the content type is
/// ignored, as clients differ in it.
#[derive(Debug)]
pub(super) struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Refusal> {
        let bytes = read_body(request.into_body(), JSON_BYTES_MAX).await?;
        parse_json(&bytes).map(Self)
    }
}

/// Reads a whole body, up to a limit.
pub(super) async fn read_body(body: Body, limit: usize) -> Result<Bytes, Refusal> {
    axum::body::to_bytes(body, limit).await.map_err(|cause| body_refusal(&cause, limit as u64))
}

/// Why a body could not be read.
pub(super) fn body_refusal(cause: &axum::Error, limit: u64) -> Refusal {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(cause);
    while let Some(inner) = source {
        if inner.is::<http_body_util::LengthLimitError>() {
            return Refusal::TooLarge(format!("the body must have at most {limit} bytes"));
        }
        if inner.is::<TooSlow>() {
            return Refusal::TooSlow(format!("{TooSlow}; send it without long pauses"));
        }
        source = inner.source();
    }
    Refusal::Invalid("the body could not be read to its end".into())
}

/// Reads JSON; the text of a refusal describes the error.
pub(super) fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => return parse_json(b"{}"),
        Some(b'{') => {}
        // serde would read an array as the fields of an object in their order.
        Some(_) => return Err(Refusal::Invalid("the body must be a JSON object".into())),
    }
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let body = serde_path_to_error::deserialize(&mut parser);
    let body = body.map_err(|cause| Refusal::Invalid(plain::json_error(&cause)))?;
    parser.end().map_err(|_| Refusal::Invalid("the body is not valid JSON: something follows the object".into()))?;
    Ok(body)
}

/// The query of a request.
#[derive(Debug)]
pub(super) struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        axum::extract::Query::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(|cause| Refusal::Invalid(plain::query_error(&cause.body_text())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::v2::wire::{CreateBox, ExecBody};

    #[tokio::test]
    async fn errors_have_the_one_shape() {
        let response = Refusal::unknown_box("x").into_response();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        let bytes = read_body(response.into_body(), 1000).await.expect("a body");
        assert_eq!(bytes, r#"{"error":"box 'x' does not exist"}"#);
    }

    #[test]
    fn null_and_absent_are_the_same_and_mistakes_are_named() {
        let body: CreateBox = parse_json(br#"{"name":null,"labels":null,"network_policy":null}"#).expect("nulls");
        assert_eq!(body, CreateBox::default());
        assert_eq!(parse_json::<CreateBox>(b"").expect("nothing"), CreateBox::default());
        let refused = parse_json::<ExecBody>(b"{}").expect_err("no command").to_string();
        assert!(refused.contains("command"), "{refused}");
        let deep = "[".repeat(100_000);
        assert!(parse_json::<serde_json::Value>(deep.as_bytes()).is_err());
        let deep = r#"{"a":"#.repeat(100_000);
        assert!(parse_json::<serde_json::Value>(deep.as_bytes()).is_err());
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_too_large() {
        let refused = read_body(Body::from(vec![b' '; 11]), 10).await.expect_err("too large");
        assert!(matches!(refused, Refusal::TooLarge(_)), "{refused:?}");
    }
}
