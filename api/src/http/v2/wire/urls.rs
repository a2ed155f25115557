//! Public URLs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of the request for a public URL.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct OpenUrl {
    /// Port of the box, 1 to 65535.
    pub port: Option<i64>,
    /// Make a bearer token for access.
    pub bearer_token: Option<bool>,
    /// Make a password for access.
    pub basic_auth: Option<bool>,
}

/// A public URL that was just made.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PublicUrl {
    /// Its address, in a form that works for the client that asks: the host form, or the path form at the address of this
    /// API where names below the domain do not resolve.
    pub url: String,
    /// The host form of the address. Each port is an origin of its own, as browsers need it.
    pub host_url: String,
    /// Port of the box.
    pub port: u16,
    /// Token for `Authorization: Bearer`. Shown only here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The user of basic authentication.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Password for basic authentication with `username`. Shown only here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// The path of the path form at the address of this API; present if the server offers this form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// Keeps secrets out of logs.
impl std::fmt::Debug for PublicUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PublicUrl").field("url", &self.url).field("port", &self.port).finish_non_exhaustive()
    }
}

/// A public URL in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PublicUrlItem {
    /// `<box>-<port>`.
    pub id: String,
    /// Port of the box.
    pub port: u16,
    /// Its address, in a form that works for the client that asks: the host form, or the path form at the address of this
    /// API where names below the domain do not resolve.
    pub url: String,
    /// The host form of the address. Each port is an origin of its own, as browsers need it.
    pub host_url: String,
    /// Unix seconds.
    pub created_at: i64,
    /// True if a password gives access.
    pub basic_auth: bool,
    /// True if a token gives access.
    pub bearer_token: bool,
    /// The path of the path form at the address of this API; present if the server offers this form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// The public URLs of a box.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PublicUrlList {
    /// The URLs, by port.
    pub previews: Vec<PublicUrlItem>,
}
