//! All routes, their description, and the layers around every handler.

use std::any::Any;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};
use utoipa::OpenApi;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityRequirement, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::patient::patient;
use super::seats::Seat;
use super::shares::{Full, Share};
use super::system::Peer;
use super::v2::not_implemented::NOT_IMPLEMENTED;
use super::v2::{account, boxes, create, exec, files, lifecycle, public_urls, session, settings, snapshots, upload};
use super::{App, auth, reply, system, v1};
use crate::refusal::Refusal;

/// The whole API as a service.
#[derive(Debug, Clone)]
pub struct Api {
    router: Router,
}

#[derive(Debug, OpenApi)]
#[openapi(info(
    title = "Icebox",
    description = "Isolated Linux boxes that live, sleep and wake, billed for the CPU they use. `/v2` follows the wire \
                   format of the public box clients, `/v1` is our own. Endpoints of the public API that are not described \
                   here answer 501."
))]
struct Description;

fn documented() -> (Router<App>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(create::create, boxes::list, boxes::delete_many))
        .routes(routes!(boxes::get, boxes::delete))
        .routes(routes!(snapshots::restore))
        .routes(routes!(snapshots::of_account, snapshots::delete_many))
        .routes(routes!(snapshots::take, snapshots::of_box))
        .routes(routes!(snapshots::delete))
        .routes(routes!(account::get_env, account::replace_env))
        .routes(routes!(account::set_env, account::remove_env))
        .routes(routes!(lifecycle::status))
        .routes(routes!(lifecycle::pause))
        .routes(routes!(lifecycle::resume))
        .routes(routes!(lifecycle::get_startup, lifecycle::set_startup, lifecycle::remove_startup))
        .routes(routes!(lifecycle::logs))
        .routes(routes!(lifecycle::list_runs))
        .routes(routes!(lifecycle::cancel))
        .routes(routes!(settings::network_policy))
        .routes(routes!(settings::add_label))
        .routes(routes!(settings::remove_label))
        .routes(routes!(settings::git_config))
        .routes(routes!(settings::config_git))
        .routes(routes!(exec::exec))
        .routes(routes!(exec::code))
        .routes(routes!(exec::exec_stream))
        .routes(routes!(exec::code_stream))
        .routes(routes!(session::exec_session))
        .routes(routes!(files::read))
        .routes(routes!(files::write))
        .routes(routes!(files::list))
        .routes(routes!(files::download))
        .routes(routes!(files::stat))
        .routes(routes!(files::mkdir))
        .routes(routes!(files::rename))
        .routes(routes!(files::remove))
        .merge(OpenApiRouter::new().routes(routes!(upload::upload)).layer(upload::limit()))
        .routes(routes!(public_urls::open, public_urls::list))
        .routes(routes!(public_urls::close))
        .routes(routes!(v1::boxes::account_usage))
        .routes(routes!(v1::boxes::box_usage))
        .routes(routes!(v1::boxes::view))
        .routes(routes!(v1::boxes::why))
        .routes(routes!(v1::boxes::list_runs))
        .routes(routes!(v1::boxes::box_idle))
        .routes(routes!(v1::boxes::keep, v1::boxes::release))
        .routes(routes!(v1::boxes::account_idle))
        .routes(routes!(v1::boxes::account_headers))
        .routes(routes!(v1::boxes::top))
        .routes(routes!(v1::boxes::net))
        .routes(routes!(v1::boxes::reclaim))
        .routes(routes!(v1::boxes::restart))
        .routes(routes!(v1::forks::fork))
        .routes(routes!(v1::forks::promote))
        .routes(routes!(v1::forks::diff))
        .routes(routes!(v1::portable::export))
        .merge(OpenApiRouter::new().routes(routes!(v1::portable::import)).layer(v1::portable::limit()))
        .routes(routes!(v1::schedule::show, v1::schedule::set, v1::schedule::remove))
        .routes(routes!(v1::undo::show, v1::undo::on, v1::undo::off, v1::undo::undo))
        .merge(OpenApiRouter::new().routes(routes!(v1::build::build)).layer(DefaultBodyLimit::disable()))
        .routes(routes!(v1::storage::resize))
        .routes(routes!(v1::storage::storage))
        .routes(routes!(v1::volumes::list, v1::volumes::create))
        .routes(routes!(v1::volumes::show, v1::volumes::remove))
        .routes(routes!(v1::volumes::resize))
        .routes(routes!(v1::events::events))
        .merge(OpenApiRouter::new().routes(routes!(v1::files::write)).layer(v1::files::limit()))
        .routes(routes!(v1::images::list))
        .routes(routes!(v1::runtimes::list))
        .routes(routes!(v1::images::show, v1::images::remove))
        .routes(routes!(v1::images::prune))
        .routes(routes!(v1::images::tag))
        .routes(routes!(v1::images::pull))
        .routes(routes!(v1::images::push))
        .routes(routes!(v1::images::export))
        .merge(OpenApiRouter::new().routes(routes!(v1::images::import)).layer(v1::images::limit()))
        .routes(routes!(system::healthz))
        .routes(routes!(system::metrics))
        .split_for_parts()
}

/// The OpenAPI description of the API, generated from its code.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    let (_, mut description) = documented();
    let key = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-Box-Api-Key")));
    description.components.get_or_insert_default().security_schemes.insert("key".to_owned(), key.into());
    description.security = Some(vec![SecurityRequirement::new::<_, [&str; 0], &str>("key", [])]);
    description
}

/// All routes of a server.
#[must_use]
pub fn api(app: App) -> Api {
    let (mut router, _) = documented();
    for endpoint in &NOT_IMPLEMENTED {
        router = router.route(endpoint.path, endpoint.route());
    }
    // Computed once: it does not change while the daemon runs.
    let description = openapi();
    router = router.route("/openapi.json", axum::routing::get(move || async move { axum::Json(description) }));
    let router = router
        .fallback(|| async { reply::error(StatusCode::NOT_FOUND, "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            reply::error(StatusCode::METHOD_NOT_ALLOWED, "this path does not have this method")
        })
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(app.clone(), admit))
        .layer(cors(&app.config.cors_origins))
        .with_state(app);
    Api { router }
}

impl Api {
    /// Answers one request.
    pub async fn answer(&self, mut request: Request) -> Response {
        use tower::ServiceExt;
        if let Some(uri) = collapsed(request.uri()) {
            *request.uri_mut() = uri;
        }
        match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// The path without doubled slashes: clients join base address and path carelessly. A trailing slash stays and matches
/// no route: a client with an empty id sends it.
fn collapsed(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    if !path.contains("//") {
        return None;
    }
    let mut single = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !single.ends_with('/') {
            single.push(character);
        }
    }
    let query = uri.query().map_or_else(String::new, |query| format!("?{query}"));
    format!("{single}{query}").parse().ok()
}

/// Refuses requests when too many are in progress, and counts the answered ones.
async fn admit(State(app): State<App>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let operator = request.extensions().get::<Peer>().is_some_and(|peer| peer.operator);
    // The operator can reach the daemon even when it is busy.
    let response = if operator || matches!(route.as_str(), "/healthz" | "/metrics") {
        next.run(request).await
    } else {
        match share(&app, request).await {
            Ok((request, share)) => {
                let response = next.run(request).await;
                drop(share);
                response
            }
            Err(refusal) => refusal.into_response(),
        }
    };
    app.metrics.request(&route, response.status().as_u16(), began.elapsed());
    response
}

/// Finds the account of the request and takes a place from its share.
async fn share(app: &App, request: Request) -> Result<(Request, Share), Refusal> {
    let (mut parts, body) = request.into_parts();
    let account = match Caller::from_request_parts(&mut parts, app).await {
        Ok(Caller(account)) => account.id,
        // The handler reports it. Until then all of these requests share one place.
        Err(Refusal::Unauthorized) => String::new(),
        Err(refusal) => return Err(refusal),
    };
    if !account.is_empty() && !parts.extensions.get::<Seat>().is_none_or(|seat| seat.belongs_to(&account)) {
        return Err(Refusal::Limit("this account has too many connections in use; close some, or try again".into()));
    }
    let share = app.shares.take(&account).map_err(|full| match full {
        Full::Account if !account.is_empty() => {
            Refusal::Limit("this account has too many requests in progress; try again".into())
        }
        _ => Refusal::Unavailable("too many requests are in progress; try again".into()),
    })?;
    let pause = Duration::from_secs(app.config.body_timeout_seconds);
    Ok((Request::from_parts(parts, patient(body, pause)), share))
}

fn panicked(_cause: Box<dyn Any + Send + 'static>) -> Response {
    tracing::error!("a handler panicked");
    reply::error(StatusCode::INTERNAL_SERVER_ERROR, "internal error; the log of iceboxd has the details")
}

/// Lets web pages of these origins use the API. The key is a header, there are no cookies: a browser sends no
/// credentials by itself.
fn cors(origins: &[String]) -> CorsLayer {
    let origins: Vec<HeaderValue> = origins.iter().filter_map(|origin| origin.parse().ok()).collect();
    if origins.is_empty() {
        return CorsLayer::new();
    }
    let telemetry = ["upstash-telemetry-sdk", "upstash-telemetry-runtime", "upstash-telemetry-platform"];
    let headers = [auth::KEY_HEADER, v1::events::LAST_EVENT_ID]
        .map(HeaderName::from_static)
        .into_iter()
        .chain([header::CONTENT_TYPE])
        .chain(telemetry.map(HeaderName::from_static));
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_headers(headers.collect::<Vec<_>>())
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
}

#[cfg(test)]
mod tests;
