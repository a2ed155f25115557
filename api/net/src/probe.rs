//! Probes whether this host can connect boxes, in temporary namespaces.
//!
//! Owns: a check of each feature that [`HostSide`](super::HostSide) needs, by the code that uses it, and the remedy for
//! each failure.
//!
//! Leaves out: the host's own namespace, which is neither queried nor changed.

use super::address::Pair;
use super::cidr::Cidr;
use super::conntrack::Tracker;
use super::firewall::kernel::{NFTABLES, Part, missing};
use super::firewall::{Firewall, ProxyPorts, Settings};
use super::link::{LinkSpec, Links};
use super::namespace::Namespace;
use super::nflog;
use crate::error::{Cause, Error};

/// A documentation network (RFC 5737), in use by no host.
const POOL: Cidr = Cidr::known(192, 0, 2, 0, 24);
const GUEST: [u8; 4] = [192, 0, 2, 3];
const MTU: u32 = 1500;

const VETH: Part = Part { module: "veth", option: "VETH" };
const TRACKING: Part = Part { module: "nf_conntrack_netlink", option: "NF_CT_NETLINK" };
const LOG: Part = Part { module: "nfnetlink_log", option: "NETFILTER_NETLINK_LOG" };

/// The result of the probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// True if only a running daemon can change the firewall's table.
    pub is_guarded: bool,
    /// The failures, with remedies.
    pub lacks: Vec<String>,
}

/// Tries everything that connecting a box needs.
#[must_use]
pub fn probe() -> Probed {
    let mut found = Probed { is_guarded: false, lacks: Vec::new() };
    let (host, guest) = match Namespace::make().and_then(|host| Ok((host, Namespace::make()?))) {
        Ok(both) => both,
        Err(error) => {
            let advice = "needs root, and NET_NS in the kernel; see also /proc/sys/user/max_net_namespaces";
            found.lacks.push(format!("network namespaces ({}): {advice}", error.chain()));
            return found;
        }
    };
    match host.run(firewall) {
        Ok(is_guarded) => found.is_guarded = is_guarded,
        Err(error) => found.lacks.push(nftables(&host, &error)),
    }
    let pair = Pair::of(GUEST.into());
    let spec = LinkSpec { id: "check".to_owned(), pair, namespace: guest, mtu: MTU };
    let others = [
        ("links", VETH, host.run(|| Links::open()?.create(&spec))),
        ("tracked connections", TRACKING, host.run(|| Tracker::open()?.connections(pair.guest()).map(drop))),
        ("netfilter's log", LOG, host.run(|| nflog::listeners().map(drop))),
    ];
    let failed = others.into_iter().filter_map(|(what, part, tried)| Some((what, part, tried.err()?)));
    found.lacks.extend(failed.map(|(what, part, error)| lack(what, &[part], &error)));
    found
}

/// Creates the table with all its sets and rules; true if no other process can change it.
fn firewall() -> Result<bool, Error> {
    let settings = Settings {
        pool: POOL,
        smtp_allowed: false,
        ports: ProxyPorts::default(),
        connections_max: Some(1),
        opened: Vec::new(),
        guarded: true,
    };
    Ok(Firewall::open(&settings)?.is_guarded())
}

fn nftables(host: &Namespace, error: &Error) -> String {
    // Without nftables the query itself fails.
    let parts = host.run(missing).unwrap_or_else(|_| vec![NFTABLES]);
    lack("nftables", &parts, error)
}

fn lack(what: &str, parts: &[Part], error: &Error) -> String {
    let error_text = error.chain();
    if matches!(error.cause(), Cause::Io(e) if e.kind() == std::io::ErrorKind::PermissionDenied) || parts.is_empty() {
        return format!("{what}: {error_text}");
    }
    let list = |of: fn(&Part) -> &str, between: &str| parts.iter().map(of).collect::<Vec<_>>().join(between);
    let (modules, options) = (list(|p| p.module, " "), list(|p| p.option, ", "));
    format!("{what} ({error_text}): `modprobe -a {modules}`, or a kernel with {options}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_what_to_do() {
        let error = |kind: i32| Error::new("try", "it", std::io::Error::from_raw_os_error(kind));
        let text = lack("links", &[VETH, LOG], &error(libc::EOPNOTSUPP));
        assert!(text.starts_with("links (try it: ") && text.contains("`modprobe -a veth nfnetlink_log`"), "{text}");
        assert!(text.ends_with("a kernel with VETH, NETFILTER_NETLINK_LOG"), "{text}");
        // No module fixes these errors.
        for text in [lack("links", &[VETH], &error(libc::EPERM)), lack("links", &[], &error(libc::EIO))] {
            assert!(!text.contains("modprobe"), "{text}");
        }
    }
}
