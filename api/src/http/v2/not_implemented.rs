//! Endpoints of the public API that this version does not implement, from one table. They answer 501 with a reason.

use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, on};

use crate::http::App;
use crate::http::auth::Caller;
use crate::http::extract::TheBox;
use crate::refusal::Refusal;

/// An endpoint that is not implemented yet.
#[derive(Debug, Clone)]
pub(in crate::http) struct Endpoint {
    /// Its method.
    pub method: Method,
    /// Its path.
    pub path: &'static str,
    /// Its feature, with its verb.
    what: &'static str,
}

const fn not_implemented(method: Method, path: &'static str, what: &'static str) -> Endpoint {
    Endpoint { method, path, what }
}

const AGENTS: &str = "agents are";
const SKILLS: &str = "skills are";
const GIT: &str = "the git endpoints are";
const SCHEDULES: &str = "schedules are";
const BROWSER: &str = "the browser is";

/// The table.
pub(in crate::http) const NOT_IMPLEMENTED: [Endpoint; 40] = [
    not_implemented(Method::PUT, "/v2/box/{id}/config/model", AGENTS),
    not_implemented(Method::PUT, "/v2/box/{id}/config/custom-runner", AGENTS),
    not_implemented(Method::POST, "/v2/box/{id}/config/skills", SKILLS),
    not_implemented(Method::DELETE, "/v2/box/{id}/config/skills/{owner}/{repo}/{skill}", SKILLS),
    not_implemented(Method::POST, "/v2/box/{id}/run", AGENTS),
    not_implemented(Method::POST, "/v2/box/{id}/run/stream", AGENTS),
    not_implemented(Method::POST, "/v2/box/{id}/git/clone", GIT),
    not_implemented(Method::GET, "/v2/box/{id}/git/diff", GIT),
    not_implemented(Method::GET, "/v2/box/{id}/git/status", GIT),
    not_implemented(Method::POST, "/v2/box/{id}/git/commit", GIT),
    not_implemented(Method::POST, "/v2/box/{id}/git/push", GIT),
    not_implemented(Method::POST, "/v2/box/{id}/git/create-pr", GIT),
    not_implemented(Method::POST, "/v2/box/{id}/git/create-issue", GIT),
    not_implemented(Method::POST, "/v2/box/{id}/git/exec", GIT),
    not_implemented(Method::POST, "/v2/box/{id}/git/checkout", GIT),
    not_implemented(Method::POST, "/v2/box/{id}/schedules", SCHEDULES),
    not_implemented(Method::GET, "/v2/box/{id}/schedules", SCHEDULES),
    not_implemented(Method::GET, "/v2/box/{id}/schedules/{schedule}", SCHEDULES),
    not_implemented(Method::PATCH, "/v2/box/{id}/schedules/{schedule}", SCHEDULES),
    not_implemented(Method::POST, "/v2/box/{id}/schedules/{schedule}/pause", SCHEDULES),
    not_implemented(Method::POST, "/v2/box/{id}/schedules/{schedule}/resume", SCHEDULES),
    not_implemented(Method::DELETE, "/v2/box/{id}/schedules/{schedule}", SCHEDULES),
    not_implemented(Method::POST, "/v2/box/{id}/browser/tabs", BROWSER),
    not_implemented(Method::GET, "/v2/box/{id}/browser/tabs", BROWSER),
    not_implemented(Method::DELETE, "/v2/box/{id}/browser/tabs/{tab}", BROWSER),
    not_implemented(Method::POST, "/v2/box/{id}/browser/goto", BROWSER),
    not_implemented(Method::GET, "/v2/box/{id}/browser/content", BROWSER),
    not_implemented(Method::GET, "/v2/box/{id}/browser/screenshot", BROWSER),
    not_implemented(Method::POST, "/v2/box/{id}/browser/extract", BROWSER),
    not_implemented(Method::POST, "/v2/box/{id}/browser/observe", BROWSER),
    not_implemented(Method::POST, "/v2/box/{id}/browser/act", BROWSER),
    not_implemented(Method::POST, "/v2/box/{id}/browser/connect", BROWSER),
    not_implemented(Method::POST, "/v2/box/{id}/browser/screencast", BROWSER),
    not_implemented(Method::POST, "/v2/box/{id}/browser/recordings", BROWSER),
    not_implemented(Method::GET, "/v2/box/{id}/browser/recordings", BROWSER),
    not_implemented(Method::POST, "/v2/box/{id}/browser/recordings/stop", BROWSER),
    not_implemented(Method::GET, "/v2/box/{id}/browser/recordings/{recording}", BROWSER),
    not_implemented(Method::GET, "/v2/box/{id}/browser/recordings/{recording}/download", BROWSER),
    not_implemented(Method::GET, "/v2/box/{id}/browser/recordings/{recording}/playlist", BROWSER),
    // Used by an older client.
    not_implemented(Method::POST, "/v2/box/{id}/browser/run", BROWSER),
];

impl Endpoint {
    /// The route: checks key and box as all routes do, then answers 501.
    pub(in crate::http) fn route(&self) -> MethodRouter<App> {
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
