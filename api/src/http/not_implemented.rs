//! Endpoints of the public API that this version does not implement, from one table. They answer 501 with a reason.

use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, on};

use super::App;
use super::auth::Caller;
use super::extract::TheBox;
use crate::refusal::Refusal;

/// An endpoint that is not implemented yet.
#[derive(Debug, Clone)]
pub(super) struct Later {
    /// Its method.
    pub method: Method,
    /// Its path.
    pub path: &'static str,
    /// Its feature, with its verb.
    what: &'static str,
}

const fn later(method: Method, path: &'static str, what: &'static str) -> Later {
    Later { method, path, what }
}

const SNAPSHOTS: &str = "snapshots are";
const AGENTS: &str = "agents are";
const SKILLS: &str = "skills are";
const GIT: &str = "the git endpoints are";
const SCHEDULES: &str = "schedules are";
const BROWSER: &str = "the browser is";

/// The table.
pub(super) const LATER: [Later; 45] = [
    later(Method::POST, "/v2/box/from-snapshot", SNAPSHOTS),
    later(Method::DELETE, "/v2/box/snapshots", SNAPSHOTS),
    later(Method::PUT, "/v2/box/{id}/config/model", AGENTS),
    later(Method::PUT, "/v2/box/{id}/config/custom-runner", AGENTS),
    later(Method::POST, "/v2/box/{id}/config/skills", SKILLS),
    later(Method::DELETE, "/v2/box/{id}/config/skills/{owner}/{repo}/{skill}", SKILLS),
    later(Method::POST, "/v2/box/{id}/run", AGENTS),
    later(Method::POST, "/v2/box/{id}/run/stream", AGENTS),
    later(Method::POST, "/v2/box/{id}/git/clone", GIT),
    later(Method::GET, "/v2/box/{id}/git/diff", GIT),
    later(Method::GET, "/v2/box/{id}/git/status", GIT),
    later(Method::POST, "/v2/box/{id}/git/commit", GIT),
    later(Method::POST, "/v2/box/{id}/git/push", GIT),
    later(Method::POST, "/v2/box/{id}/git/create-pr", GIT),
    later(Method::POST, "/v2/box/{id}/git/create-issue", GIT),
    later(Method::POST, "/v2/box/{id}/git/exec", GIT),
    later(Method::POST, "/v2/box/{id}/git/checkout", GIT),
    later(Method::POST, "/v2/box/{id}/snapshots", SNAPSHOTS),
    later(Method::GET, "/v2/box/{id}/snapshots", SNAPSHOTS),
    later(Method::DELETE, "/v2/box/{id}/snapshots/{snapshot}", SNAPSHOTS),
    later(Method::POST, "/v2/box/{id}/schedules", SCHEDULES),
    later(Method::GET, "/v2/box/{id}/schedules", SCHEDULES),
    later(Method::GET, "/v2/box/{id}/schedules/{schedule}", SCHEDULES),
    later(Method::PATCH, "/v2/box/{id}/schedules/{schedule}", SCHEDULES),
    later(Method::POST, "/v2/box/{id}/schedules/{schedule}/pause", SCHEDULES),
    later(Method::POST, "/v2/box/{id}/schedules/{schedule}/resume", SCHEDULES),
    later(Method::DELETE, "/v2/box/{id}/schedules/{schedule}", SCHEDULES),
    later(Method::POST, "/v2/box/{id}/browser/tabs", BROWSER),
    later(Method::GET, "/v2/box/{id}/browser/tabs", BROWSER),
    later(Method::DELETE, "/v2/box/{id}/browser/tabs/{tab}", BROWSER),
    later(Method::POST, "/v2/box/{id}/browser/goto", BROWSER),
    later(Method::GET, "/v2/box/{id}/browser/content", BROWSER),
    later(Method::GET, "/v2/box/{id}/browser/screenshot", BROWSER),
    later(Method::POST, "/v2/box/{id}/browser/extract", BROWSER),
    later(Method::POST, "/v2/box/{id}/browser/observe", BROWSER),
    later(Method::POST, "/v2/box/{id}/browser/act", BROWSER),
    later(Method::POST, "/v2/box/{id}/browser/connect", BROWSER),
    later(Method::POST, "/v2/box/{id}/browser/screencast", BROWSER),
    later(Method::POST, "/v2/box/{id}/browser/recordings", BROWSER),
    later(Method::GET, "/v2/box/{id}/browser/recordings", BROWSER),
    later(Method::POST, "/v2/box/{id}/browser/recordings/stop", BROWSER),
    later(Method::GET, "/v2/box/{id}/browser/recordings/{recording}", BROWSER),
    later(Method::GET, "/v2/box/{id}/browser/recordings/{recording}/download", BROWSER),
    later(Method::GET, "/v2/box/{id}/browser/recordings/{recording}/playlist", BROWSER),
    // Used by an older client.
    later(Method::POST, "/v2/box/{id}/browser/run", BROWSER),
];

impl Later {
    /// The route: checks key and box as all routes do, then answers 501.
    pub(super) fn route(&self) -> MethodRouter<App> {
        let what = self.what;
        // The table has only the usual methods.
        let filter = MethodFilter::try_from(self.method.clone()).unwrap_or(MethodFilter::GET);
        if self.path.contains("{id}") {
            on(filter, move |_found: TheBox| async move { Refusal::not_yet(what) })
        } else {
            on(filter, move |_caller: Caller| async move { Refusal::not_yet(what) })
        }
    }
}
