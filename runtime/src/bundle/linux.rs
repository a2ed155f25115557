//! OCI linux section: namespaces, id maps, devices, resources, sysctls.

use std::path::PathBuf;

use oci_spec::runtime::{
    Linux, LinuxDeviceCgroup, LinuxDeviceType, LinuxIdMapping, LinuxNamespaceType, LinuxResources, LinuxThrottleDevice,
};

use crate::{
    Error, Result, Step,
    cgroup::{Access, DeviceKind as RuleKind, DeviceRule, IoMax, Limits, io_weight_from_blkio, weight_from_shares},
    plan::{DeviceKind, DeviceNode, IdMap, IdMaps, Namespace, Namespaces, default_device_rules},
};

const DEVICE_MODE_DEFAULT: u32 = 0o666;

/// The place of a namespace in the plan.
type Slot = fn(&mut Namespaces) -> &mut Namespace;

/// The namespaces that a container can have, each with its place in the plan.
pub(super) const NAMESPACES: [(LinuxNamespaceType, Slot); 7] = [
    (LinuxNamespaceType::User, |n| &mut n.user),
    (LinuxNamespaceType::Mount, |n| &mut n.mount),
    (LinuxNamespaceType::Pid, |n| &mut n.pid),
    (LinuxNamespaceType::Network, |n| &mut n.net),
    (LinuxNamespaceType::Ipc, |n| &mut n.ipc),
    (LinuxNamespaceType::Uts, |n| &mut n.uts),
    (LinuxNamespaceType::Cgroup, |n| &mut n.cgroup),
];

pub(super) fn namespaces(linux: &Linux) -> Result<Namespaces> {
    let mut namespaces = Namespaces::default();
    for (index, entry) in linux.namespaces().iter().flatten().enumerate() {
        let subject = format!("linux.namespaces[{index}]");
        let wanted = match entry.path() {
            Some(path) if !path.as_os_str().is_empty() => Namespace::Join(path.clone()),
            _ => Namespace::New,
        };
        let Some((_, slot)) = NAMESPACES.iter().find(|(kind, _)| *kind == entry.typ()) else {
            let cause = format!("{} namespaces are not supported; remove the entry", entry.typ());
            return Err(Error::unsupported(Step::Bundle, subject, cause));
        };
        let slot = slot(&mut namespaces);
        if *slot != Namespace::Host {
            return Err(Error::invalid(Step::Bundle, subject, format!("{} is listed twice", entry.typ())));
        }
        *slot = wanted;
    }
    Ok(namespaces)
}

pub(super) fn id_maps(linux: &Linux, namespaces: &Namespaces) -> Result<Option<IdMaps>> {
    let lines = |list: &Option<Vec<LinuxIdMapping>>| -> Vec<IdMap> {
        list.iter()
            .flatten()
            .map(|m| IdMap { inside: m.container_id(), outside: m.host_id(), count: m.size() })
            .collect()
    };
    let maps = IdMaps { uids: lines(linux.uid_mappings()), gids: lines(linux.gid_mappings()) };
    if namespaces.user.is_new() {
        return Ok(Some(maps));
    }
    if maps.uids.is_empty() && maps.gids.is_empty() || namespaces.user != Namespace::Host {
        return Ok(None);
    }
    Err(Error::invalid(Step::IdMaps, "linux.uidMappings", "id maps without a user namespace"))
}

pub(super) fn paths(list: &Option<Vec<String>>) -> Vec<PathBuf> {
    list.iter().flatten().map(PathBuf::from).collect()
}

pub(super) fn devices(linux: &Linux) -> Result<Vec<DeviceNode>> {
    linux
        .devices()
        .iter()
        .flatten()
        .map(|device| {
            let subject = format!("linux.devices {}", device.path().display());
            let kind = match device.typ() {
                LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Char,
                LinuxDeviceType::B => DeviceKind::Block,
                LinuxDeviceType::P => DeviceKind::Fifo,
                LinuxDeviceType::A => return Err(Error::invalid(Step::Devices, subject, "type `a` is not a node")),
            };
            let number =
                |n: i64| u32::try_from(n).map_err(|_| Error::invalid(Step::Devices, &subject, "bad device number"));
            Ok(DeviceNode {
                path: device.path().clone(),
                kind,
                major: if kind == DeviceKind::Fifo { 0 } else { number(device.major())? },
                minor: if kind == DeviceKind::Fifo { 0 } else { number(device.minor())? },
                mode: device.file_mode().unwrap_or(DEVICE_MODE_DEFAULT) & 0o7777,
                uid: device.uid().unwrap_or(0),
                gid: device.gid().unwrap_or(0),
            })
        })
        .collect()
}

/// Kernel parameters, sorted by name. [`super::ownership`] has refused those of the host.
pub(super) fn sysctls(linux: &Linux) -> Vec<(String, String)> {
    let mut list: Vec<(String, String)> = linux.sysctl().clone().unwrap_or_default().into_iter().collect();
    list.sort();
    list
}

pub(super) fn limits(linux: &Linux) -> Result<Limits> {
    let mut limits = Limits::default();
    let Some(resources) = linux.resources() else {
        limits.devices = device_rules(&[])?;
        return Ok(limits);
    };
    limits.devices = device_rules(resources.devices().as_deref().unwrap_or_default())?;
    memory(resources, &mut limits)?;
    cpu(resources, &mut limits);
    block_io(resources, &mut limits)?;
    if let Some(pids) = resources.pids() {
        // An absent limit reads as 0 here, and 0 means "unlimited" in runc as well.
        limits.pids_max = Some(if pids.limit() <= 0 { -1 } else { pids.limit() });
    }
    for entry in resources.hugepage_limits().iter().flatten() {
        let bytes = u64::try_from(entry.limit()).unwrap_or(u64::MAX);
        limits.hugetlb.push((entry.page_size().clone(), bytes));
    }
    for (key, value) in resources.unified().iter().flatten() {
        limits.unified.insert(key.clone(), value.clone());
    }
    Ok(limits)
}

fn memory(resources: &LinuxResources, limits: &mut Limits) -> Result<()> {
    let Some(memory) = resources.memory() else { return Ok(()) };
    // Docker, Podman and runc use 0 for "not set"; as a limit it would kill every process.
    let limit = memory.limit().filter(|limit| *limit != 0);
    limits.memory_max_bytes = limit;
    limits.memory_low_bytes = memory.reservation().filter(|low| *low != 0);
    limits.memory_swap_max_bytes = match (memory.swap().filter(|both| *both != 0), limit) {
        (None, _) => None,
        (Some(-1), _) => Some(-1),
        // OCI counts memory and swap together; this crate's limit is swap alone.
        (Some(both), Some(limit)) if limit > 0 && both >= limit => Some(both - limit),
        (Some(both), _) => {
            let cause = format!("swap {both} (memory and swap together) needs a memory limit that is not larger");
            return Err(Error::invalid(Step::Cgroup, "linux.resources.memory.swap", cause));
        }
    };
    Ok(())
}

fn cpu(resources: &LinuxResources, limits: &mut Limits) {
    let Some(cpu) = resources.cpu() else { return };
    limits.cpu_quota_us = cpu.quota().filter(|quota| *quota != 0);
    limits.cpu_period_us = cpu.period().filter(|period| *period != 0);
    limits.cpu_burst_us = cpu.burst();
    limits.cpu_weight = cpu.shares().filter(|shares| *shares != 0).map(weight_from_shares);
    limits.cpu_idle = cpu.idle().map(|idle| idle != 0);
    limits.cpuset_cpus = cpu.cpus().clone().filter(|list| !list.is_empty());
    limits.cpuset_mems = cpu.mems().clone().filter(|list| !list.is_empty());
}

fn block_io(resources: &LinuxResources, limits: &mut Limits) -> Result<()> {
    let Some(io) = resources.block_io() else { return Ok(()) };
    limits.io_weight = match io.weight().filter(|weight| *weight != 0) {
        // The bounds are those of OCI config-linux, "Block IO".
        Some(weight) if !(10..=1000).contains(&weight) => {
            let cause = format!("{weight} is not between 10 and 1000");
            return Err(Error::invalid(Step::Cgroup, "linux.resources.blockIO.weight", cause));
        }
        weight => weight.map(|weight| io_weight_from_blkio(u64::from(weight))),
    };
    let mut add = |list: &Option<Vec<LinuxThrottleDevice>>, set: fn(&mut IoMax, u64)| -> Result<()> {
        for entry in list.iter().flatten() {
            let number = |n: i64| {
                u32::try_from(n)
                    .map_err(|_| Error::invalid(Step::Cgroup, "linux.resources.blockIO", "bad device number"))
            };
            let (major, minor) = (number(entry.major())?, number(entry.minor())?);
            let at = limits.io_max.iter().position(|m| (m.major, m.minor) == (major, minor));
            let at = at.unwrap_or_else(|| {
                limits.io_max.push(IoMax { major, minor, ..IoMax::default() });
                limits.io_max.len() - 1
            });
            // 0 removes a limit in blkio's files, whose values these are.
            set(&mut limits.io_max[at], if entry.rate() == 0 { u64::MAX } else { entry.rate() });
        }
        Ok(())
    };
    add(io.throttle_read_bps_device(), |m, v| m.rbps = Some(v))?;
    add(io.throttle_write_bps_device(), |m, v| m.wbps = Some(v))?;
    add(io.throttle_read_iops_device(), |m, v| m.riops = Some(v))?;
    add(io.throttle_write_iops_device(), |m, v| m.wiops = Some(v))
}

/// The rules of the configuration, then those of every container: its default nodes, terminals, and `mknod` of any
/// device (harmless without access). The last matching rule wins.
fn device_rules(list: &[LinuxDeviceCgroup]) -> Result<Vec<DeviceRule>> {
    let mut rules =
        vec![DeviceRule { allow: false, kind: RuleKind::All, major: None, minor: None, access: Access::ALL }];
    for rule in list {
        rules.push(device_rule(rule)?);
    }
    for kind in [RuleKind::Char, RuleKind::Block] {
        rules.push(DeviceRule { allow: true, kind, major: None, minor: None, access: Access::MKNOD });
    }
    rules.extend(default_device_rules());
    Ok(rules)
}

fn device_rule(rule: &LinuxDeviceCgroup) -> Result<DeviceRule> {
    let number = |n: Option<i64>| -> Result<Option<u32>> {
        match n {
            None | Some(-1) => Ok(None),
            Some(n) => u32::try_from(n)
                .map(Some)
                .map_err(|_| Error::invalid(Step::Cgroup, "linux.resources.devices", format!("bad device number {n}"))),
        }
    };
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => RuleKind::All,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => RuleKind::Char,
        Some(LinuxDeviceType::B) => RuleKind::Block,
        Some(LinuxDeviceType::P) => {
            return Err(Error::invalid(Step::Cgroup, "linux.resources.devices", "type `p` has no device rules"));
        }
    };
    let access = match rule.access().as_deref() {
        None | Some("") => Access::ALL,
        Some(text) => Access::parse(text)
            .ok_or_else(|| Error::invalid(Step::Cgroup, "linux.resources.devices", format!("bad access {text:?}")))?,
    };
    Ok(DeviceRule { allow: rule.allow(), kind, major: number(rule.major())?, minor: number(rule.minor())?, access })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(resources: serde_json::Value) -> Result<Limits> {
        let linux: Linux = serde_json::from_value(serde_json::json!({ "resources": resources })).unwrap();
        limits(&linux)
    }

    #[test]
    fn every_kind_of_limit_is_taken_over() {
        let limits = mapped(serde_json::json!({
            "memory": { "limit": 1000, "swap": 1500, "reservation": 300 },
            "cpu": { "shares": 1024, "quota": 5000, "period": 10_000, "cpus": "0-1", "mems": "0" },
            "pids": { "limit": 7 },
            "blockIO": { "weight": 1000, "throttleWriteBpsDevice": [{ "major": 8, "minor": 16, "rate": 9 }] },
            "hugepageLimits": [{ "pageSize": "2MB", "limit": 4 }],
            "unified": { "memory.high": "900" },
        }))
        .unwrap();
        assert_eq!((limits.memory_max_bytes, limits.memory_swap_max_bytes), (Some(1000), Some(500)));
        assert_eq!((limits.memory_low_bytes, limits.pids_max), (Some(300), Some(7)));
        assert_eq!(
            (limits.cpu_weight, limits.cpu_quota_us, limits.cpu_period_us),
            (Some(100), Some(5000), Some(10_000))
        );
        assert_eq!((limits.cpuset_cpus.as_deref(), limits.cpuset_mems.as_deref()), (Some("0-1"), Some("0")));
        assert_eq!(limits.io_weight, Some(10_000));
        assert_eq!(limits.io_max, [IoMax { major: 8, minor: 16, wbps: Some(9), ..IoMax::default() }]);
        assert_eq!(limits.hugetlb, [("2MB".to_owned(), 4)]);
        assert_eq!(limits.unified["memory.high"], "900");
    }

    #[test]
    fn zero_is_not_set_and_takes_a_rate_away() {
        let limits = mapped(serde_json::json!({
            "memory": { "limit": 0, "swap": 0, "reservation": 0, "kernel": 0 },
            "cpu": { "shares": 0, "quota": 0, "period": 0, "cpus": "", "mems": "" },
            "blockIO": { "weight": 0, "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 0 }] },
        }))
        .unwrap();
        let io_max = vec![IoMax { major: 8, minor: 0, rbps: Some(u64::MAX), ..IoMax::default() }];
        assert_eq!(limits, Limits { io_max, devices: limits.devices.clone(), ..Limits::default() });
    }

    #[test]
    fn wrong_values_are_refused_by_name() {
        for (resources, name) in [
            (serde_json::json!({ "memory": { "swap": 5 } }), "memory.swap"),
            (serde_json::json!({ "blockIO": { "weight": 5 } }), "blockIO.weight"),
        ] {
            let refused = mapped(resources.clone()).unwrap_err();
            let text = format!("{} {}", refused.subject, refused.cause);
            assert!(text.contains(name), "{resources}: {text}");
        }
    }
}
