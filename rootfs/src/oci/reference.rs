//! Names of images as people write them: `debian`, `debian:trixie`, `registry.example.com:5000/team/app@sha256:...`.
//!
//! The rules are those of Docker: without a registry it is `docker.io`, without a namespace there it is `library`, without
//! tag and digest the tag is `latest`.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::Digest;

use crate::error::{Cause, Error, Result, Step};

/// The registry of names that have none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Other spellings of it.
const DEFAULT_REGISTRY_ALIAS: &str = "index.docker.io";
/// The namespace of names that have none, in the default registry.
const DEFAULT_NAMESPACE: &str = "library";
/// The tag of names that have neither tag nor digest.
const DEFAULT_TAG: &str = "latest";
/// Longest repository (the limit of the distribution specification's reference grammar).
const REPOSITORY_BYTES_MAX: usize = 255;
/// Longest tag.
const TAG_BYTES_MAX: usize = 128;

/// The name of an image, complete.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Host and port of the registry.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in the registry, such as `library/debian`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that pins the content.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The tag or digest by which a registry is asked.
    #[must_use]
    pub fn tag_or_digest(&self) -> &str {
        self.digest.as_ref().map(AsRef::as_ref).or(self.tag.as_deref()).unwrap_or(DEFAULT_TAG)
    }

    /// As people write it: without the parts that are the default.
    #[must_use]
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let Some(rest) = full.strip_prefix("docker.io/") else { return full };
        rest.strip_prefix("library/").unwrap_or(rest).to_owned()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            Err(Error::new(Step::ReadReference, text.escape_default().to_string(), Cause::Refused(why.to_owned())))
        };
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => match Digest::from_str(digest) {
                Ok(digest) if known_digest(&digest) => (rest, Some(digest)),
                _ => return refuse("what follows @ must be a digest such as sha256: and 64 hexadecimal digits"),
            },
        };
        // A colon after the last slash begins the tag; before it, a port.
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return refuse("a tag has 1 to 128 of the characters A-Z a-z 0-9 _ . - and begins with none of . -");
        }
        let (registry, repository) = match rest.split_once('/') {
            Some((first, repository)) if is_registry(first) => (first, repository),
            _ => (DEFAULT_REGISTRY, rest),
        };
        let registry = if registry == DEFAULT_REGISTRY_ALIAS { DEFAULT_REGISTRY } else { registry };
        if !is_host(registry) {
            return refuse("the registry must be a host name or address, with a port or without");
        }
        let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            format!("{DEFAULT_NAMESPACE}/{repository}")
        } else {
            repository.to_owned()
        };
        if repository.len() > REPOSITORY_BYTES_MAX || !repository.split('/').all(is_component) {
            return refuse(
                "a name consists of parts of a-z 0-9 with single . _ __ or - inside, separated by /; \
                 write it as REGISTRY/NAME:TAG",
            );
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG),
            (tag, _) => tag,
        };
        Ok(Self { registry: registry.to_owned(), repository, tag: tag.map(str::to_owned), digest })
    }
}

/// A digest that this crate can compute.
pub(crate) fn known_digest(digest: &Digest) -> bool {
    *digest.algorithm() == oci_spec::image::DigestAlgorithm::Sha256
}

fn is_tag(tag: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=TAG_BYTES_MAX).contains(&tag.len()) && tag.bytes().all(good) && !tag.starts_with(['.', '-'])
}

/// The first part of a name is a registry if it can't be a namespace.
fn is_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_host(registry: &str) -> bool {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (registry, None),
    };
    let good_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0));
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return good_port && address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    good_port && host.len() <= 253 && host.split('.').all(label)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(part: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !word(*first) || !word(*last) {
        return false;
    }
    part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|byte| byte == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b";

    #[test]
    fn names_are_completed_as_docker_does() {
        let digest = format!("sha256:{HEX}");
        for (text, full, familiar) in [
            ("debian", "docker.io/library/debian:latest", "debian:latest"),
            ("debian:trixie-slim", "docker.io/library/debian:trixie-slim", "debian:trixie-slim"),
            ("team/app", "docker.io/team/app:latest", "team/app:latest"),
            ("index.docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
            ("localhost/app:1", "localhost/app:1", "localhost/app:1"),
            ("127.0.0.1:5000/a/b__c:x_Y.z", "127.0.0.1:5000/a/b__c:x_Y.z", "127.0.0.1:5000/a/b__c:x_Y.z"),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
            ("r.example.com/a.b/c-d", "r.example.com/a.b/c-d:latest", "r.example.com/a.b/c-d:latest"),
        ] {
            let reference: Reference = text.parse().expect(text);
            assert_eq!((reference.to_string().as_str(), reference.familiar().as_str()), (full, familiar));
            assert_eq!(full.parse::<Reference>().expect(full), reference);
        }
        let pinned: Reference = format!("debian:12@{digest}").parse().expect("pinned");
        assert_eq!((pinned.tag(), pinned.tag_or_digest()), (Some("12"), digest.as_str()));
        let only: Reference = format!("r.io/x@{digest}").parse().expect("pinned");
        assert_eq!((only.tag(), only.to_string()), (None, format!("r.io/x@{digest}")));
    }

    #[test]
    fn what_is_no_name_is_refused_and_shown() {
        let long = "a".repeat(256);
        let short = format!("a@sha256:{}", &HEX[1..]);
        for text in [
            "",
            ":",
            "a:",
            "A",
            "a/B",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a b",
            "a:b c",
            "a:-x",
            "../a",
            "a@sha256:xyz",
            "a@md5:d41d8cd98f00b204e9800998ecf8427e",
            "host:99999/a",
            "host:0/a",
            "ho_st.x/a",
            "a\n",
            "http://r.io/a",
            "[::z]:1/a",
            &long,
            &short,
        ] {
            let error = text.parse::<Reference>().expect_err(text);
            assert_eq!(error.kind(), crate::ErrorKind::InvalidInput, "{text}");
        }
    }
}
