//! The mounts of a RUN: `--mount=type=cache,...` and `--mount=type=tmpfs,...`.

use crate::error::Fault;
use crate::plan::Origin;

/// How builds share a cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sharing {
    /// All use it at the same time.
    #[default]
    Shared,
    /// Each has its own if it is in use.
    Private,
    /// One after the other.
    Locked,
}

/// What a new cache begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// The stage or the image.
    pub origin: Origin,
    /// The directory in it.
    pub path: String,
}

/// A mount as it is written: pairs whose values may have variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountText(Vec<(String, Option<String>)>);

/// A mount of a RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// A directory that outlives the build.
    Cache {
        /// Its name. Builds with this name share it.
        id: String,
        /// The path in the box.
        target: String,
        /// How it is shared.
        sharing: Sharing,
        /// The owner of a new one.
        uid: u32,
        /// The group of a new one.
        gid: u32,
        /// The mode of a new one.
        mode: u32,
        /// True if nothing that the command writes is kept.
        read_only: bool,
        /// What a new one begins with; nothing if there is none.
        from: Option<Seed>,
    },
    /// A directory in memory.
    Tmpfs {
        /// The path in the box.
        target: String,
        /// Its size, if it is limited.
        size_bytes: Option<u64>,
    },
}

impl Mount {
    /// The path in the box.
    #[must_use]
    pub fn target(&self) -> &str {
        match self {
            Self::Cache { target, .. } | Self::Tmpfs { target, .. } => target,
        }
    }
}

impl MountText {
    pub(crate) fn read(text: &str) -> Result<Self, Fault> {
        let pair = |field: &str| match field.split_once('=') {
            Some((key, value)) => (key.trim().to_ascii_lowercase(), Some(value.to_owned())),
            None => (field.trim().to_ascii_lowercase(), None),
        };
        let pairs: Vec<(String, Option<String>)> = text.split(',').map(pair).collect();
        let kind =
            pairs.iter().find(|(key, _)| key == "type").and_then(|(_, value)| value.as_deref()).unwrap_or("bind");
        let instead = match kind {
            "cache" | "tmpfs" => return Ok(Self(pairs)),
            "bind" => "copy what the command reads with COPY or COPY --from",
            "secret" => "let the network policy of the build attach the credential to requests (attach_headers)",
            "ssh" => "fetch with HTTPS; the network policy of the build can attach credentials (attach_headers)",
            _ => "the types of mounts are cache and tmpfs",
        };
        Err(Fault::instead(format!("RUN --mount=type={kind} is not supported"), instead))
    }

    /// The stage or image that `from` names.
    pub(crate) fn from(&self) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == "from").and_then(|(_, value)| value.as_deref())
    }

    /// The mount, its variables replaced by `expand`. Relative targets begin at `workdir`. `origin` is what `from` names.
    pub(crate) fn mount(
        &self,
        workdir: &str,
        expand: &dyn Fn(&str) -> Result<String, Fault>,
        origin: Option<Origin>,
    ) -> Result<Mount, Fault> {
        let mut tmpfs = false;
        let mut source = None;
        let (mut target, mut id, mut sharing, mut size) = (None, None, Sharing::Shared, None);
        let (mut uid, mut gid, mut mode, mut read_only) = (0, 0, 0o755, false);
        for (key, value) in &self.0 {
            let value = value.as_deref().map(expand).transpose()?;
            let wrong =
                || Fault::new(format!("the mount option '{key}={}' is not valid", value.as_deref().unwrap_or("")));
            let needed = || value.clone().filter(|value| !value.is_empty()).ok_or_else(wrong);
            match key.as_str() {
                "type" => tmpfs = needed()? == "tmpfs",
                "target" | "dst" | "destination" => target = Some(needed()?),
                "id" if !tmpfs => id = Some(needed()?),
                "sharing" if !tmpfs => {
                    sharing = match needed()?.to_ascii_lowercase().as_str() {
                        "shared" => Sharing::Shared,
                        "private" => Sharing::Private,
                        "locked" => Sharing::Locked,
                        _ => return Err(wrong()),
                    };
                }
                "uid" if !tmpfs => uid = needed()?.parse().map_err(|_| wrong())?,
                "gid" if !tmpfs => gid = needed()?.parse().map_err(|_| wrong())?,
                "mode" if !tmpfs => {
                    mode = u32::from_str_radix(&needed()?, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(wrong)?;
                }
                "readonly" | "ro" => read_only = switch(value.as_deref()).ok_or_else(wrong)?,
                "readwrite" | "rw" => read_only = !switch(value.as_deref()).ok_or_else(wrong)?,
                "size" if tmpfs => size = Some(bytes(&needed()?).ok_or_else(wrong)?),
                "from" if !tmpfs => drop(needed()?),
                "source" | "src" if !tmpfs => source = Some(needed()?),
                _ => return Err(Fault::new(format!("the mount option '{key}' is not known"))),
            }
        }
        let target =
            target.ok_or_else(|| Fault::instead("a mount has no target", "write --mount=type=cache,target=/PATH"))?;
        let target = crate::paths::absolute(workdir, &target);
        if target == "/" {
            return Err(Fault::new("a mount cannot have the target /"));
        }
        if tmpfs {
            return Ok(Mount::Tmpfs { target, size_bytes: size });
        }
        if source.is_some() && origin.is_none() {
            let instead = "write from=STAGE,source=/PATH, or leave source out: a cache begins empty then";
            return Err(Fault::instead("a cache mount has a source without from", instead));
        }
        let path = crate::paths::absolute("/", source.as_deref().unwrap_or("/"));
        let from = origin.map(|origin| Seed { origin, path });
        let id = id.unwrap_or_else(|| target.clone());
        Ok(Mount::Cache { id, target, sharing, uid, gid, mode, read_only, from })
    }
}

fn switch(value: Option<&str>) -> Option<bool> {
    match value {
        None | Some("true" | "1") => Some(true),
        Some("false" | "0") => Some(false),
        Some(_) => None,
    }
}

/// `64m`, `1g`, `1024`.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let shift = match &lower[digits..] {
        "" | "b" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        _ => return None,
    };
    lower[..digits].parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(text: &str) -> Result<Mount, Fault> {
        let text = MountText::read(text)?;
        let origin = text.from().map(|_| Origin::Stage(0));
        text.mount("/work", &|word| Ok(word.replace("$x", "value")), origin)
    }

    #[test]
    fn mounts_are_read() {
        let cache = |id: &str, target: &str| Mount::Cache {
            id: id.to_owned(),
            target: target.to_owned(),
            sharing: Sharing::Shared,
            uid: 0,
            gid: 0,
            mode: 0o755,
            read_only: false,
            from: None,
        };
        assert_eq!(mount("type=cache,target=/a"), Ok(cache("/a", "/a")));
        assert_eq!(mount("type=cache,id=$x,dst=a/"), Ok(cache("value", "/work/a")));
        assert_eq!(
            mount("type=tmpfs,target=/t,size=1m"),
            Ok(Mount::Tmpfs { target: "/t".into(), size_bytes: Some(1 << 20) })
        );
        assert!(matches!(
            mount("type=cache,target=/a,sharing=locked,uid=1,gid=2,mode=700,ro"),
            Ok(Mount::Cache { sharing: Sharing::Locked, uid: 1, gid: 2, mode: 0o700, read_only: true, .. })
        ));
        let seed = |path: &str| Some(Seed { origin: Origin::Stage(0), path: path.to_owned() });
        for (text, wanted) in [
            ("type=cache,target=/a,from=b", seed("/")),
            ("type=cache,target=/a,from=b,source=c/", seed("/c")),
            ("type=cache,target=/a,src=/c,from=b", seed("/c")),
        ] {
            assert!(matches!(mount(text), Ok(Mount::Cache { from, .. }) if from == wanted), "{text}");
        }
        for (text, wanted) in [
            ("target=/a", "type=bind is not supported"),
            ("type=secret,id=a", "type=secret"),
            ("type=ssh", "type=ssh"),
            ("type=wrong", "type=wrong"),
            ("type=cache", "no target"),
            ("type=cache,target=/", "target /"),
            ("type=cache,target=/a,source=b", "source without from"),
            ("type=cache,target=/a,from=", "'from='"),
            ("type=tmpfs,target=/a,from=b", "'from'"),
            ("type=cache,target=/a,mode=9", "'mode=9'"),
            ("type=cache,target=/a,size=1", "'size'"),
            ("type=tmpfs,target=/a,size=x", "'size=x'"),
        ] {
            let fault = mount(text).expect_err(text);
            assert!(fault.what.contains(wanted), "{text}: {}", fault.what);
        }
    }
}
