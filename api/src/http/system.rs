//! Endpoints without an account: health, metrics, the description of the API.

use std::net::SocketAddr;

use axum::Extension;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::App;
use super::auth::Caller;
use crate::domain::BoxStatus;
use crate::error::{Cause, Error};
use crate::refusal::Refusal;

/// The peer of the connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// True if the connection is TLS.
    pub secure: bool,
    /// True if it came through the operator's socket.
    pub operator: bool,
}

/// Answer of the health check.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub(super) struct Health {
    /// Always `ok`: a daemon that cannot serve does not answer.
    status: &'static str,
    /// Version of Icebox.
    version: &'static str,
}

/// Reports that the daemon serves. Needs no key.
#[utoipa::path(get, path = "/healthz", tag = "system", responses((status = 200, body = Health)), security(()))]
pub(super) async fn healthz() -> axum::Json<Health> {
    axum::Json(Health { status: "ok", version: env!("CARGO_PKG_VERSION") })
}

/// Counters for Prometheus. Needs no key from this machine's loopback interface, and any key from elsewhere.
#[utoipa::path(get, path = "/metrics", tag = "system", responses((status = 200, content_type = "application/openmetrics-text")))]
pub(super) async fn metrics(
    State(app): State<App>,
    peer: Option<Extension<Peer>>,
    request: Request,
) -> Result<Response, Refusal> {
    let local = peer.is_some_and(|Extension(peer)| peer.address.ip().is_loopback());
    if !local {
        let (mut parts, _) = request.into_parts();
        Caller::from_request_parts(&mut parts, &app).await?;
    }
    let boxes = app.boxes.clone();
    let counted = tokio::task::spawn_blocking(move || {
        let all = [
            BoxStatus::Creating,
            BoxStatus::Idle,
            BoxStatus::Running,
            BoxStatus::Paused,
            BoxStatus::Stopped,
            BoxStatus::Error,
        ];
        let mut counts = all.map(|status| (status.as_str(), 0));
        for status in boxes.all().iter().map(|entry| entry.status().as_str()) {
            if let Some((_, count)) = counts.iter_mut().find(|(known, _)| *known == status) {
                *count += 1;
            }
        }
        (counts, boxes.together())
    });
    let (counts, (footprint, pressure)) =
        counted.await.map_err(|_| Error::new("count the boxes", "", Cause::WorkerEnded))?;
    app.metrics.set_together(&footprint, &pressure);
    let passed: Vec<(String, u64)> = match local {
        true => app.boxes.all().iter().map(|entry| (entry.id.clone(), entry.passed.bytes())).collect(),
        false => Vec::new(),
    };
    app.metrics.set_passed(&passed);
    let ready = app.boxes.ready_counts().await;
    let shown = |runtime: Option<String>| runtime.unwrap_or_else(|| "base".to_owned());
    app.metrics.set_ready(ready.into_iter().map(|one| (shown(one.runtime), one.size.as_str(), one.held)));
    app.metrics.set_proc_files(app.boxes.proc_file_counts());
    // The owner of a key must not learn of the boxes of others.
    app.boxes.count_networks(local).await?;
    let text = app.metrics.text(&counts);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
