//! Reads an OCI bundle's `config.json` into a [`Plan`]. Only the keys in the table of [`fields`] are carried out; other
//! keys of the specification are refused by their path, so that no container runs with less than it asked for.

mod features;
mod fields;
mod linux;
mod mounts;
mod ownership;
mod prepass;
mod process;
pub(crate) mod seccomp;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use oci_spec::runtime::Spec;

pub use self::features::features;
use self::prepass::CONFIG_BYTES_MAX;
pub(crate) use self::process::{ExecOverrides, ForExec, for_exec};
use crate::{
    Error, Result, Step,
    cgroup::{CgroupPath, Manager},
    error::OnStep as _,
    plan::{
        CgroupPlan, Dev, Mount, MountSource, Namespace, Plan, Root, RootSource, default_dev_links, default_device_nodes,
    },
};

/// A parsed bundle.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// The bundle's directory, absolute.
    pub(crate) dir: PathBuf,
    /// The unchanged bytes of the configuration, for later steps.
    pub(crate) bytes: Vec<u8>,
    pub(crate) spec: Spec,
    /// Ignored values, such as unknown capabilities.
    pub(crate) warnings: Vec<String>,
}

impl Bundle {
    /// Reads `config.json` of a bundle directory.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let dir = fs::canonicalize(dir).on(Step::Bundle, dir.display())?;
        let path = dir.join("config.json");
        let length = fs::metadata(&path).on(Step::Bundle, path.display())?.len();
        if length > CONFIG_BYTES_MAX {
            return Err(Error::invalid(Step::Bundle, path.display(), format!("larger than {CONFIG_BYTES_MAX} bytes")));
        }
        let bytes = fs::read(&path).on(Step::Bundle, path.display())?;
        Self::parse(dir, bytes)
    }

    /// Parses configuration bytes that belong to a bundle directory.
    pub(crate) fn parse(dir: PathBuf, bytes: Vec<u8>) -> Result<Self> {
        let (spec, warnings) = prepass::parse(&bytes)?;
        Ok(Self { dir, bytes, spec, warnings })
    }

    pub(crate) fn annotations(&self) -> HashMap<String, String> {
        self.spec.annotations().clone().unwrap_or_default()
    }

    /// The root directory, absolute.
    pub(crate) fn rootfs(&self) -> Result<PathBuf> {
        let root = self.spec.root().as_ref().ok_or_else(|| Error::invalid(Step::Bundle, "root", "missing"))?;
        let path = self.dir.join(root.path());
        let path = fs::canonicalize(&path).on(Step::Bundle, format!("root.path {}", path.display()))?;
        if !path.is_dir() {
            return Err(Error::invalid(Step::Bundle, format!("root.path {}", path.display()), "not a directory"));
        }
        Ok(path)
    }

    /// The plan for a container of this name.
    pub(crate) fn plan(&self, id: &str) -> Result<Plan> {
        let spec = &self.spec;
        let linux = spec.linux().as_ref().ok_or_else(|| Error::invalid(Step::Bundle, "linux", "missing"))?;
        let process = spec.process().as_ref().ok_or_else(|| Error::invalid(Step::Bundle, "process", "missing"))?;
        let mut namespaces = linux::namespaces(linux)?;
        ownership::check(spec, &namespaces)?;
        let mounts = mounts::from_oci(spec.mounts().as_deref().unwrap_or_default(), &self.dir)?;
        if mounts.iter().any(|m| m.source == MountSource::Cgroup2) && namespaces.cgroup == Namespace::Host {
            // A cgroup mount without a namespace would show the whole host. runc binds the container's own part on
            // v1; a namespace gives the same view on v2.
            namespaces.cgroup = Namespace::New;
        }
        let dev = if binds_dev(&mounts) {
            // The nodes and links would be made in the host's own /dev. runc leaves it alone as well.
            Dev::default()
        } else {
            let mut nodes = default_device_nodes();
            nodes.extend(linux::devices(linux)?);
            Dev { nodes, links: default_dev_links() }
        };
        Ok(Plan {
            id_maps: linux::id_maps(linux, &namespaces)?,
            clocks_from_zero: false,
            root: Root {
                source: RootSource::Directory(self.rootfs()?),
                readonly: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
            },
            mounts,
            dev,
            masked_paths: linux::paths(linux.masked_paths()),
            readonly_paths: linux::paths(linux.readonly_paths()),
            hostname: spec.hostname().clone().filter(|name| !name.is_empty()),
            domainname: spec.domainname().clone().filter(|name| !name.is_empty()),
            sysctls: linux::sysctls(linux),
            oom_score_adj: process.oom_score_adj(),
            cgroup: Some(CgroupPlan {
                manager: Manager::Cgroupfs,
                path: self.cgroup_path(id)?,
                limits: linux::limits(linux)?,
                unenforced: crate::cgroup::Unenforced::Refuse,
                leaf: None,
                joins_from: None,
            }),
            process: process::from_oci(process, linux)?,
            wait_for_start: true,
            namespaces,
        })
    }

    /// `linux.cgroupsPath`, or `icerun/<id>`. An absolute path counts from the cgroup root, a relative one from there
    /// too: this runtime never moves a container below its caller (OCI config-linux, "Cgroups Path", leaves it open).
    pub(crate) fn cgroup_path(&self, id: &str) -> Result<CgroupPath> {
        let given = self.spec.linux().as_ref().and_then(|l| l.cgroups_path().clone());
        let text = match given {
            Some(path) => path.to_string_lossy().trim_matches('/').to_owned(),
            None => format!("icerun/{id}"),
        };
        if text.contains(':') {
            return Err(Error::unsupported(
                Step::Cgroup,
                format!("linux.cgroupsPath {text}"),
                "the systemd form slice:prefix:name is not supported yet; give a path",
            ));
        }
        CgroupPath::new(&text)
            .map_err(|error| Error::invalid(Step::Cgroup, "linux.cgroupsPath", crate::error::chain(&error)))
    }
}

/// True if `/dev` is a directory of the host.
fn binds_dev(mounts: &[Mount]) -> bool {
    mounts.iter().any(|mount| {
        matches!(mount.source, MountSource::Bind { .. }) && mount.target.components().eq(Path::new("/dev").components())
    })
}
