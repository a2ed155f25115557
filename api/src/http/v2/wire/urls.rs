//! Public URLs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of the request for a public URL.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct OpenUrl {
    /// Port of the box, 1 to 65535.
    pub port: Option<i64>,
    /// Make a token that opens it.
    pub bearer_token: Option<bool>,
    /// Make a password that opens it.
    pub basic_auth: Option<bool>,
}

/// A public URL that was just made.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PublicUrl {
    /// Its address.
    pub url: String,
    /// Port of the box.
    pub port: u16,
    /// Opens it, as `Authorization: Bearer`. Shown only here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The user of basic authentication.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Opens it, with `username`. Shown only here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// The same at the address of this API, for clients that cannot resolve the name; if the server has this form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// Secrets are not for logs.
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
    /// Its address.
    pub url: String,
    /// Unix seconds.
    pub created_at: i64,
    /// It opens with a password.
    pub basic_auth: bool,
    /// It opens with a token.
    pub bearer_token: bool,
    /// The same at the address of this API; if the server has this form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// The public URLs of a box.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PublicUrlList {
    /// By port.
    pub previews: Vec<PublicUrlItem>,
}
