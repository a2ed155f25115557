//! Endpoints 65 to 67: public URLs.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};

use crate::boxes::WorkKind;
use crate::http::App;
use crate::http::extract::TheBox;
use crate::http::reply::{Answer, Json, done};
use crate::http::v2::wire::{Empty, ErrorBody, OpenUrl, PublicUrl, PublicUrlItem, PublicUrlList};
use crate::public_urls::USER;
use crate::refusal::Refusal;

/// Makes the public URL of a port, and wakes the box. An existing one is replaced, with its credentials. The secrets
/// are shown here and never again.
#[utoipa::path(post, path = "/v2/box/{id}/preview", tag = "urls", params(("id" = String, Path)), request_body = OpenUrl, responses((status = 200, body = PublicUrl), (status = 400, body = ErrorBody)))]
pub(in crate::http) async fn open(
    State(app): State<App>,
    found: TheBox,
    headers: HeaderMap,
    Json(body): Json<OpenUrl>,
) -> Answer<PublicUrl> {
    found.not_ephemeral("public URLs are")?;
    let port = check_port(body.port)?;
    let _awake = app.lifecycle.ensure_awake(&found.entry, WorkKind::Request).await?;
    let (bearer, basic) = (body.bearer_token.unwrap_or(false), body.basic_auth.unwrap_or(false));
    let opened = app.urls.open(&found.entry, port, bearer, basic).await?;
    let addresses = app.urls.addresses(&found.entry.id, port, host_of(&headers));
    Ok(axum::Json(PublicUrl {
        url: addresses.url,
        host_url: addresses.host_url,
        port,
        username: opened.password.is_some().then(|| USER.to_owned()),
        token: opened.token,
        password: opened.password,
        path: addresses.path,
    }))
}

/// The public URLs of the box. Wakes nothing.
#[utoipa::path(get, path = "/v2/box/{id}/preview", tag = "urls", params(("id" = String, Path)), responses((status = 200, body = PublicUrlList), (status = 400, body = ErrorBody)))]
pub(in crate::http) async fn list(State(app): State<App>, found: TheBox, headers: HeaderMap) -> Answer<PublicUrlList> {
    found.not_ephemeral("public URLs are")?;
    let asked = host_of(&headers);
    let urls = app.urls.list(&found.entry).into_iter().map(|row| {
        let addresses = app.urls.addresses(&row.box_id, row.port, asked);
        PublicUrlItem {
            id: format!("{}-{}", row.box_id, row.port),
            url: addresses.url,
            host_url: addresses.host_url,
            path: addresses.path,
            port: row.port,
            created_at: row.created_ms.div_euclid(1000),
            basic_auth: row.password_sha256.is_some(),
            bearer_token: row.token_sha256.is_some(),
        }
    });
    Ok(axum::Json(PublicUrlList { previews: urls.collect() }))
}

/// Removes the public URL of a port and ends the connections through it. A missing one is not an error.
#[utoipa::path(delete, path = "/v2/box/{id}/preview/{port}", tag = "urls", params(("id" = String, Path), ("port" = String, Path)), responses((status = 200, body = Empty), (status = 400, body = ErrorBody)))]
pub(in crate::http) async fn close(
    State(app): State<App>,
    found: TheBox,
    Path(path): Path<(String, String)>,
) -> Answer<Empty> {
    found.not_ephemeral("public URLs are")?;
    let port = check_port(path.1.parse().ok())?;
    app.urls.close(&found.entry, port).await?;
    done()
}

/// The address by which the client reached the API.
fn host_of(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::HOST).and_then(|host| host.to_str().ok())
}

fn check_port(port: Option<i64>) -> Result<u16, Refusal> {
    let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    port.ok_or_else(|| Refusal::Invalid("port must be 1 to 65535".into()))
}
