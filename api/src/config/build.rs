//! Configuration of builds of images.

use icebox_net::policy::DomainPattern;
use serde::{Deserialize, Deserializer};

/// Which builds reach the network through the daemon's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostProxy {
    /// None: commands of a build have the network of boxes, and nothing else.
    Off,
    /// The runtimes of this installation, whose Boxfiles are the operator's.
    #[default]
    Runtimes,
    /// All builds, those of tenants too.
    All,
}

/// Which runtimes a creation of a box has built when their images are missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCreate {
    /// None: the creation is refused, and says what the operator has to do.
    Off,
    /// Those that the base image cannot stand for.
    #[default]
    Needed,
    /// `node` and `python` too, in place of what the base image has of them.
    All,
}

/// The section `build`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Build {
    /// Which builds get a forward proxy (`http_proxy`) that connects from the daemon's own network. For machines on which the
    /// network of boxes leads nowhere, or to a proxy of the house only. Policy and closed networks hold there too.
    pub host_proxy: HostProxy,
    /// Which runtimes are built when a box asks for them.
    pub on_create: OnCreate,
    /// Hosts that this proxy reaches although they have an address in a closed network, such as mirrors of the house:
    /// names, or `*.suffix`.
    #[serde(deserialize_with = "patterns")]
    pub private_hosts: Vec<DomainPattern>,
}

fn patterns<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<DomainPattern>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let read = |text: &String| DomainPattern::parse(text);
    texts
        .iter()
        .map(read)
        .collect::<Result<_, _>>()
        .map_err(|why| serde::de::Error::custom(format!("build.private_hosts: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read() {
        let read = |text: &str| toml::from_str::<Build>(text);
        let build = read("host_proxy = \"all\"\nprivate_hosts = [\"*.corp.example\"]").expect("good");
        assert_eq!((build.host_proxy, build.private_hosts.len()), (HostProxy::All, 1));
        assert_eq!(read("").expect("empty").host_proxy, HostProxy::Runtimes);
        assert_eq!(read("").expect("empty").on_create, OnCreate::Needed);
        assert_eq!(read("on_create = \"all\"").expect("good").on_create, OnCreate::All);
        for bad in ["on_create = \"never\"", "host_proxy = true", "private_hosts = [\"10.0.0.1\"]", "colour = 1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
