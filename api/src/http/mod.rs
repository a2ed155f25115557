//! The HTTP API.
//!
//! Owns: routes, extractors, bodies and errors of the wire format, and the server that carries them. Invariants: every
//! error has the one shape `{"error": "…"}`; the key is checked first; a box is looked up among the caller's own and is
//! unknown otherwise; there are no redirects. Only this module knows the JSON of the API (`v1::wire`, `v2::wire`).
//! Leaves out: every decision about boxes (`lifecycle`, `boxes`) and runs (`runs`).

mod accounts;
mod again;
mod app;
mod auth;
mod extract;
mod flush;
mod host_router;
mod operator;
mod patient;
mod plain;
mod reply;
mod routes;
mod seats;
mod server;
mod shares;
mod system;
mod unread;
pub mod v1;
pub mod v2;

pub use app::{App, AppParts};
pub use host_router::{HostRouter, UrlsOnly};
pub use routes::{Api, api, openapi};
pub use seats::SeatLimits;
pub use server::{Door, Listening, OperatorSocket, serve};
