//! The HTTP API.
//!
//! Owns: routes, extractors, bodies and errors of the wire format, and the server that carries them. Invariants: every
//! error has the one shape `{"error": "…"}`; the key is checked first; a box is looked up among the caller's own and is
//! unknown otherwise; there are no redirects. Only this module knows the JSON of the API (`v1::wire`, `v2::wire`).
//! Leaves out: every decision about boxes (`lifecycle`, `boxes`) and runs (`runs`).

mod account;
mod accounts;
mod app;
mod auth;
mod boxes;
mod create;
mod exec;
mod extract;
mod files;
mod flush;
mod host_router;
mod lifecycle;
mod not_implemented;
mod patient;
mod plain;
mod public_urls;
mod reply;
mod routes;
mod seats;
mod server;
mod session;
mod settings;
mod shares;
mod stream_body;
mod system;
mod unread;
mod upload;
pub mod v1;
pub mod v2;

pub use app::{App, AppParts};
pub use host_router::{Front, UrlsOnly};
pub use routes::{Api, api, openapi};
pub use seats::SeatLimits;
pub use server::{Door, Listening, OperatorSocket, serve};
