//! Pull and push of images: a client of the registries of the OCI distribution specification.
//!
//! Owns: where a registry is (mirrors, TLS, plain HTTP, proxies), the credentials for it, and the bounds of what it may do.
//! Layers go through `icebox_rootfs::images`, which unpacks them and enters the image. Leaves out: which images may be
//! pulled and who may do it.
//!
//! **A registry is not trusted.** Every document and blob has a limit before it is read, and is compared with its digest.
//! A registry names other places: where a token is got, where a blob lies, where an upload goes. Credentials go to the
//! registry and to its token service, never along a redirect to another host. A place that a registry names is connected to only if
//! its address is as public as the registry's, or more ([`reach`]), so a registry on the internet leads to no host of
//! this network.
//!
//! **Why not the crate `oci-client`.** It follows redirects and realms wherever they lead, reads manifests of any size,
//! knows neither mirrors nor files with credentials, and brings 15 crates. With these parts around it, what remains of it is
//! the paths of six requests. HTTP is hyper's and TLS is rustls's, as in the rest of the workspace.

#![forbid(unsafe_code)]

mod answer;
mod blob;
mod challenge;
mod connect;
mod credentials;
mod endpoint;
mod error;
mod event;
mod exchange;
mod helper;
mod manifest;
mod proxy;
mod pull;
mod push;
pub mod reach;
mod settings;
mod thread;
mod timing;
mod token;

pub use error::{Cause, Error, Result};
pub use event::{Event, Report};
pub use push::Pushed;
pub use settings::{Registries, Settings};
pub use timing::Timing;
