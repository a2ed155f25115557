//! The configuration of an image: OCI's, with the fields that Docker adds to it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::healthcheck::Healthcheck;

/// The configuration document of an image. Fields that are not known here are kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// When the image was made, as RFC 3339 says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Its author (MAINTAINER).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// The architecture, in Go's words.
    pub architecture: String,
    /// The operating system, in Go's words.
    pub os: String,
    /// How its containers run.
    #[serde(deserialize_with = "null_is_default")]
    pub config: Config,
    /// Its layers.
    pub rootfs: RootFs,
    /// How it was made.
    #[serde(deserialize_with = "null_is_default")]
    pub history: Vec<History>,
    /// What is not known here.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// How containers of an image run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    /// `USER[:GROUP]`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Ports, such as `80/tcp`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub exposed_ports: BTreeMap<String, Map<String, Value>>,
    /// `NAME=VALUE`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    /// What the arguments are appended to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// The command, or the default arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Paths of volumes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub volumes: BTreeMap<String, Map<String, Value>>,
    /// The working directory.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
    /// The signal that ends it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// How to find out if it works.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// The shell of RUN, CMD and ENTRYPOINT in shell form.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub shell: Vec<String>,
    /// Instructions for images that are built from this one.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub on_build: Vec<String>,
    /// What is not known here.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The layers of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The digests of their archives, the lowest first.
    #[serde(deserialize_with = "null_is_default")]
    pub diff_ids: Vec<String>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: "layers".to_owned(), diff_ids: Vec::new() }
    }
}

/// How a layer was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// When, as RFC 3339 says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// By which instruction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Its author.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// A remark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// True if it made no layer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// Docker writes `null` for lists and maps that are empty.
fn null_is_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

impl ImageConfig {
    /// The configuration of `FROM scratch`: nothing but a search path.
    #[must_use]
    pub fn scratch() -> Self {
        let config = Config { env: vec![format!("PATH={DEFAULT_PATH}")], ..Config::default() };
        Self { architecture: architecture().to_owned(), os: "linux".to_owned(), config, ..Self::default() }
    }
}

/// The search path of images that set none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// This machine's architecture, in Go's words.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_kept_and_null_is_nothing() {
        let text = r#"{"architecture":"amd64","os":"linux","variant":"v8","config":{"Env":null,"Cmd":["sh"],
            "ExposedPorts":{"80/tcp":{}},"Memory":0,"OnBuild":null,"Labels":null,"Volumes":null,"Entrypoint":null},
            "rootfs":{"type":"layers","diff_ids":["sha256:00"]},"history":null}"#;
        let config: ImageConfig = serde_json::from_str(text).expect("a configuration");
        assert!(config.config.entrypoint.is_none() && config.config.env.is_empty());
        let again = serde_json::to_value(&config).expect("JSON");
        assert_eq!(again["variant"], "v8");
        assert_eq!(again["config"]["Memory"], 0);
        assert_eq!(again["config"]["ExposedPorts"]["80/tcp"], serde_json::json!({}));
        assert!(again["config"].get("Env").is_none());
    }
}
