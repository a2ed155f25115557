//! Host name, domain name, sysctls, and the loopback link.

use std::{
    io::{self, Write as _},
    os::fd::AsFd as _,
};

use rustix::{
    fs::{Mode, OFlags, openat},
    mount::MountAttrFlags,
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
};

use super::mount_parts::new_filesystem;
use crate::{
    Error, Result, Step,
    error::OnStep as _,
    plan::{Namespace, Plan, sysctl_path},
    sys::process as sys,
};

/// Sets the names and the kernel parameters of the new namespaces. Runs while a procfs of the host is in sight, which
/// the kernel demands for a new procfs in a user namespace.
pub(super) fn set(plan: &Plan) -> Result<()> {
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes()).on(Step::Names, format!("host name {name:?}"))?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes()).on(Step::Names, format!("domain name {name:?}"))?;
    }
    sysctls(&plan.sysctls)
}

fn sysctls(sysctls: &[(String, String)]) -> Result<()> {
    if sysctls.is_empty() {
        return Ok(());
    }
    // A procfs of our own that is attached nowhere: nothing can have been mounted over the files that are written
    // (CVE-2019-16884, CVE-2025-52881).
    let proc = new_filesystem("proc", &[], MountAttrFlags::empty()).on(Step::Names, "private procfs")?;
    for (key, value) in sysctls {
        let path = sysctl_path(key).map(|path| format!("sys/{path}")).ok_or_else(|| {
            Error::invalid(Step::Names, format!("sysctl {key:?}"), "not the name of a kernel parameter")
        })?;
        let write = || -> io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = openat(&proc, &path, flags, Mode::empty())?;
            std::fs::File::from(file).write_all(value.as_bytes())
        };
        write().on(Step::Names, format!("sysctl {key} = {value}"))?;
    }
    Ok(())
}

/// Brings `lo` up in a new network namespace.
pub(super) fn loopback_up(network: &Namespace) -> Result<()> {
    if !network.is_new() {
        return Ok(());
    }
    let socket =
        socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).on(Step::Network, "socket")?;
    sys::loopback_up(socket.as_fd()).on(Step::Network, "lo")
}
