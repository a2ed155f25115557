//! Tokens: a registry says which service gives them, and the service gets the credentials of the registry.

use bytes::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use url::{Url, form_urlencoded};

use crate::connect::{Dialer, Leash, place};
use crate::credentials::Credential;
use crate::error::{Cause, refuse};
use crate::exchange::{Call, Payload, lead};
use crate::reach::Reach;

const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// Which program asks.
const CLIENT: &str = "icebox";

/// What a token is for.
pub(crate) struct Wanted<'a> {
    /// The registry.
    pub(crate) registry: &'a Url,
    /// How public it is.
    pub(crate) reach: Option<Reach>,
    /// The service, as the registry names it.
    pub(crate) realm: &'a str,
    pub(crate) service: Option<&'a str>,
    pub(crate) scope: &'a str,
    pub(crate) credential: Option<&'a Credential>,
}

#[derive(Deserialize)]
struct Given {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

/// Gets a token: the value of `Authorization`.
pub(crate) async fn get(dialer: &Dialer, wanted: &Wanted<'_>) -> Result<HeaderValue, Cause> {
    let mut url = lead(wanted.registry, wanted.realm)?;
    url.set_fragment(None);
    let mut pairs: Vec<(&str, &str)> = wanted.service.map(|service| ("service", service)).into_iter().collect();
    pairs.push(("scope", wanted.scope));
    let leash = Leash::Within(wanted.reach.unwrap_or(Reach::Public));
    let call = match wanted.credential {
        Some(Credential::Identity(token)) => {
            pairs.extend([("grant_type", "refresh_token"), ("refresh_token", token), ("client_id", CLIENT)]);
            let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
            let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
            Call {
                method: Method::POST,
                headers: vec![(header::CONTENT_TYPE, form_type)],
                payload: Payload::Bytes(Bytes::from(form)),
                ..Call::get(url, leash)
            }
        }
        credential => {
            url.query_pairs_mut().extend_pairs(pairs);
            let authorization = credential.and_then(Credential::basic);
            Call { authorization, ..Call::get(url, leash) }
        }
    };
    let service = place(&call.url);
    let deadline = dialer.timing.answer;
    let answer = dialer.send(call).await?;
    if matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST) {
        let with =
            if wanted.credential.is_some() { "with the credentials that are known" } else { "without credentials" };
        let told = answer.failure(deadline).await;
        return Err(Cause::Denied(format!("{} gives no token {with} ({told})", place(wanted.registry))));
    }
    let text = answer.expect(&[StatusCode::OK], deadline).await?.document(ANSWER_BYTES_MAX, deadline).await?;
    let given: Option<Given> = serde_json::from_slice(&text).ok();
    let token = given.and_then(|given| given.token.filter(|token| !token.is_empty()).or(given.access_token));
    let value = token.and_then(|token| HeaderValue::from_str(&format!("Bearer {token}")).ok());
    let Some(mut value) = value else { refuse!("the token service {service} answers without a token") };
    value.set_sensitive(true);
    Ok(value)
}
