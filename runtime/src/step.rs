//! The one list of step names. Errors, the sync protocol between parent and child, and tests use these names and no
//! others, so that a failure reads the same everywhere.

use std::fmt;

/// A step of bringing a container up, or of acting on one that exists.
///
/// The set-up steps are declared in the order in which they begin, and of several things that are wrong with a container
/// the first in this order is reported. Four go on after a later one has begun: `Join` opens namespaces in the caller and
/// enters them in the first process; `Mounts`, `Devices` and `Root` open what is the host's, and are finished inside the
/// root, for which `Paths` has made its masks before `Network`; `Exec` finds the program before the limits and executes it last. Two things are done by the caller beside the
/// first process, under the name of the step to which they belong: the owner of standard streams (`Credentials`), before
/// the clone, and the OOM score (`Rlimits`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Step {
    /// Reading `config.json` and the bundle.
    Bundle,
    /// Reading or writing the state directory.
    State,
    /// Creating the cgroup and its limits.
    Cgroup,
    /// Joining namespaces that exist.
    Join,
    /// `clone3` of the container's first process, which hides from tracers first.
    Clone,
    /// Joining the v1 hierarchies and making the cgroup namespace.
    JoinCgroup,
    /// Writing uid and gid maps.
    IdMaps,
    /// Building the root file system (layers, volume, overlay), opening and attaching it.
    Root,
    /// Making and attaching mounts.
    Mounts,
    /// Filling `/dev`.
    Devices,
    /// Switching to root of the container's user namespace, session and keyring.
    Identity,
    /// Bringing the loopback link up.
    Network,
    /// Host name, domain name and sysctls.
    Names,
    /// The pseudo terminal and the console socket.
    Terminal,
    /// Masking paths and making paths read-only.
    Paths,
    /// `pivot_root` into the new root.
    Pivot,
    /// Working directory, inherited descriptors and `execve`.
    Exec,
    /// Resource limits of the process (`setrlimit`), oom score, umask.
    Rlimits,
    /// User, groups and the five capability sets.
    Credentials,
    /// Waiting for `start`.
    Start,
    /// Loading the system call filter.
    Seccomp,
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
            Self::Join => "join",
            Self::Clone => "clone",
            Self::JoinCgroup => "join-cgroup",
            Self::IdMaps => "id-maps",
            Self::Root => "root",
            Self::Mounts => "mounts",
            Self::Devices => "devices",
            Self::Identity => "identity",
            Self::Network => "network",
            Self::Names => "names",
            Self::Terminal => "terminal",
            Self::Paths => "paths",
            Self::Pivot => "pivot",
            Self::Exec => "exec",
            Self::Rlimits => "rlimits",
            Self::Credentials => "credentials",
            Self::Start => "start",
            Self::Seccomp => "seccomp",
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
