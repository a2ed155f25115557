//! The one list of step names. Errors, the sync protocol between parent and child, and tests use these names and no
//! others, so that a failure reads the same everywhere.

use std::fmt;

/// A step of bringing a container up, or of acting on one that exists. The declaration order of the set-up steps is
/// the order in which they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Step {
    /// Reading `config.json` and the bundle.
    Bundle,
    /// Reading or writing the state directory.
    State,
    /// Creating the cgroup and its limits.
    Cgroup,
    /// `clone3` of the container's first process.
    Clone,
    /// Writing uid and gid maps.
    IdMaps,
    /// Joining the v1 hierarchies and making the cgroup namespace.
    JoinCgroup,
    /// Switching to root of the container's user namespace.
    Identity,
    /// Building the root file system (layers, volume, overlay).
    Root,
    /// Making and attaching mounts.
    Mounts,
    /// Filling `/dev`.
    Devices,
    /// Masking paths and making paths read-only.
    Paths,
    /// `pivot_root` into the new root.
    Pivot,
    /// Bringing the loopback link up.
    Network,
    /// Host name, domain name and sysctls.
    Names,
    /// The pseudo terminal and the console socket.
    Terminal,
    /// Resource limits of the process (`setrlimit`), oom score, umask.
    Rlimits,
    /// User, groups and the five capability sets.
    Credentials,
    /// Loading the system call filter.
    Seccomp,
    /// Working directory, inherited descriptors and `execve`.
    Exec,
    /// Waiting for `start`.
    Start,
    /// Joining the namespaces of a running container.
    Join,
    /// Sending a signal.
    Signal,
    /// Freezing or thawing.
    Freeze,
    /// Removing a container.
    Delete,
}

impl Step {
    /// The name as printed: lower case, words joined by a hyphen.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bundle => "bundle",
            Self::State => "state",
            Self::Cgroup => "cgroup",
            Self::Clone => "clone",
            Self::IdMaps => "id-maps",
            Self::JoinCgroup => "join-cgroup",
            Self::Identity => "identity",
            Self::Root => "root",
            Self::Mounts => "mounts",
            Self::Devices => "devices",
            Self::Paths => "paths",
            Self::Pivot => "pivot",
            Self::Network => "network",
            Self::Names => "names",
            Self::Terminal => "terminal",
            Self::Rlimits => "rlimits",
            Self::Credentials => "credentials",
            Self::Seccomp => "seccomp",
            Self::Exec => "exec",
            Self::Start => "start",
            Self::Join => "join",
            Self::Signal => "signal",
            Self::Freeze => "freeze",
            Self::Delete => "delete",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Step;

    #[test]
    fn serde_name_is_the_printed_name() {
        for step in [Step::Bundle, Step::IdMaps, Step::JoinCgroup, Step::Exec] {
            assert_eq!(serde_json::to_string(&step).unwrap(), format!("\"{}\"", step.name()));
        }
    }
}
