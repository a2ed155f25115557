//! Which tests run in one world only. All others run in both: here, and in the guest with pure cgroup v2.
//!
//! Both lists are checked: a name in them that no test has fails the tier, and so does a test binary for the guest that
//! is missing here.

use super::suites::Suite;
use crate::error::{Cause, Error, Result};
use crate::vm::Flavour;

/// Test binaries whose names begin so run in the guest only, and each of them is in [`GUEST_ONLY`].
pub(super) const GUEST_PREFIX: &str = "guest_";

/// Tests that run here only: binary, the beginning of their names (empty: all), and why.
const HOST_ONLY: [(&str, &str, &str); 28] = [
    ("edges", "", "reads the workspace, which is the same everywhere and isn't carried along"),
    // The guest's processor is software. What these count or fill takes long there, and is not the kernel's.
    (
        "priv_attach",
        "priv_a_gigabyte",
        "37 s for the gigabyte, more beside other tests; fifty megabytes go the same way in both worlds",
    ),
    (
        "priv_attach",
        "priv_finished_runs_are_bounded",
        "25 s for 1100 runs, more beside other tests; the bound is a count in memory",
    ),
    ("churn", "a_hundred_boxes", "3 minutes; boxes_made_and_deleted_by_many_clients does the same with fewer"),
    (
        "full_disk",
        "a_full_disk_refuses",
        "76 s, and more than 120 s once: on Linux 6.1 ext4 finds a lost write of metadata only when it empties its journal",
    ),
    ("copy", "more_than_a_hundred", "minutes for the megabytes; the bytes meet nothing of the kernel's"),
    ("limits", "a_gigabyte_of_yes", "minutes for the gigabyte; a reader that stops is tested in both worlds"),
    (
        "priv_net",
        "priv_of_all_ports",
        "more than 4 minutes for 131,070 connections; priv_the_host_is_closed_but_for_its_proxies tries the ports in use",
    ),
    (
        "net_bypass",
        "of_all_ports",
        "108 s for 131,070 connections; the ways to the host are tried by the others of net_bypass",
    ),
    (
        "net_kill",
        "a_kill_within_a_start",
        "minutes for 60 restarts; the other operations of net_kill restart after each step in both worlds",
    ),
    (
        "net_kill",
        "a_kill_within_a_create",
        "73 s for 28 restarts; priv_net stops between the steps of a link in both worlds, net_kill within all others",
    ),
    (
        "net_install",
        "",
        "100 s for npm, pip and apt at each of two policies; net_policy and net_headers go the same ways",
    ),
    // HTTP in iceboxd, which is the same in both worlds. What the kernel has a part in (namespaces, dialling, thawing, one
    // body, one upgrade) stays: the rest of public_urls, net_wake, net_headers.
    ("public_urls", "large_bodies", "66 s for the megabytes; net_headers streams bodies in both worlds"),
    (
        "public_urls",
        "a_port_is_waited_for",
        "48 s, most of it waiting; the others of public_urls wake boxes by requests",
    ),
    ("public_url_attacks", "", "102 s of hostile HTTP, which iceboxd refuses before a box is touched"),
    ("public_url_sleep", "", "128 s of freezing under open sockets; net_wake freezes under connections in both worlds"),
    ("sdk_npm", "", "62 s, most of it for node; sdk_pypi does the same and more in both worlds"),
    (
        "priv_pool",
        "priv_a_pool_offers_what",
        "on Linux 6.1 the disk did not have all of its space back after 70 s, 0.5 s here; the cause is open",
    ),
    (
        "priv_images",
        "priv_an_image_is_the_tree",
        "umoci and skopeo are not in the guest; what is unpacked is the same in both",
    ),
    (
        "priv_images",
        "priv_images_of_buildah",
        "buildah and podman are not in the guest; archives are read there by the others",
    ),
    ("boxfile_conformance", "", "buildah and podman are not in the guest; boxfile builds in both worlds"),
    (
        "boxfile_mounts",
        "a_cache_lasts",
        "minutes for a dozen builds; caches_that_are_too_large builds with caches in both worlds",
    ),
    ("boxfile_mounts", "options_of", "minutes for a dozen builds; what the options change is in the daemon"),
    (
        "boxfile_url",
        "",
        "minutes for as many builds; net_policy tries what a box may reach in both worlds, by the same sockets",
    ),
    (
        "registry",
        "",
        "docker-registry, skopeo and podman are not in the guest; priv_registry speaks to servers of its own in both worlds",
    ),
    (
        "runtime_node",
        "",
        "packages come by the machine's own network, which the guest has not; runtimes builds and serves in both worlds",
    ),
    (
        "runtimes",
        "a_build_uses_the_daemons_network",
        "it asks for localhost by name, and the guest has no /etc/hosts; the proxy has unit tests of its own",
    ),
    ("limits", "a_memory_hog", "minutes to fill four gigabytes; guest_limits does it in 192 MiB"),
];

/// Test binaries that run in the guest only: the flavour, and why.
const GUEST_ONLY: [(&str, Flavour, &str); 4] = [
    ("guest_limits", Flavour::Minimal, "v2's files, pressure and device filter; here most controllers are v1's"),
    ("guest_lvm", Flavour::Minimal, "thin pools of the device mapper, which this kernel has not got"),
    ("guest_reclaim", Flavour::Minimal, "needs swap of its own and memory.reclaim; v1's part is in limits"),
    ("guest_systemd", Flavour::Systemd, "systemd is PID 1 there, and the units are installed"),
];

/// Test binaries that run when all others are done, one test after the other: what they change is the whole machine's.
const ALONE: [(&str, &str); 1] = [("guest_reclaim", "swap, with which no memory limit of another test would kill")];

/// Whether a binary's tests must have the guest for themselves.
pub(super) fn is_alone(binary: &str) -> bool {
    ALONE.iter().any(|(name, _)| *name == binary)
}

/// Where the guest's part of a binary's tests runs, or `None` for a test that runs here only.
pub(super) fn flavour_of(binary: &str, test: &str) -> Option<Flavour> {
    let is_of_host = |(name, start, _): &(&str, &str, &str)| *name == binary && last(test).starts_with(start);
    if HOST_ONLY.iter().any(is_of_host) {
        return None;
    }
    let special = GUEST_ONLY.iter().find(|(name, ..)| *name == binary);
    Some(special.map_or(Flavour::Minimal, |(_, flavour, _)| *flavour))
}

/// A test's name without its modules.
fn last(test: &str) -> &str {
    test.rsplit("::").next().unwrap_or(test)
}

/// A name that no test has is out of date, and hides that a test runs nowhere or everywhere.
pub(super) fn check(suites: &[Suite]) -> Result<()> {
    let wrong = |subject: String, why: &str| Err(Error::new("sort", subject, Cause::Unexpected(why.to_owned())));
    for (binary, start, _) in HOST_ONLY {
        let mut tests = suites.iter().filter(|suite| suite.name == binary).flat_map(|suite| &suite.tests);
        if !tests.any(|test| last(test).starts_with(start)) {
            return wrong(format!("{binary} {start}"), "no test is called so any more; see HOST_ONLY");
        }
    }
    for (binary, ..) in GUEST_ONLY {
        if !suites.iter().any(|suite| suite.name == binary && !suite.tests.is_empty()) {
            return wrong(binary.to_owned(), "there is no such test binary; see GUEST_ONLY");
        }
    }
    if let Some((name, _)) = ALONE.iter().find(|(name, _)| !GUEST_ONLY.iter().any(|(listed, ..)| listed == name)) {
        return wrong((*name).to_owned(), "what runs alone has to be in GUEST_ONLY; see ALONE");
    }
    let unlisted = |suite: &&Suite| {
        suite.name.starts_with(GUEST_PREFIX) && !GUEST_ONLY.iter().any(|(name, ..)| *name == suite.name)
    };
    match suites.iter().find(unlisted) {
        Some(suite) => wrong(suite.name.clone(), "a test binary for the guest has to be in GUEST_ONLY"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(name: &str, test: &str) -> Suite {
        Suite { name: name.into(), package: String::new(), path: "/".into(), tests: vec![format!("module::{test}_x")] }
    }

    fn all() -> Vec<Suite> {
        let host = HOST_ONLY.iter().map(|(name, start, _)| suite(name, start));
        host.chain(GUEST_ONLY.iter().map(|(name, ..)| suite(name, ""))).collect()
    }

    #[test]
    fn what_runs_here_only_is_named() {
        assert_eq!(flavour_of("edges", "anything"), None);
        assert_eq!(flavour_of("priv_cgroup", "priv_tree::priv_x"), Some(Flavour::Minimal));
    }

    #[test]
    fn lists_are_checked_against_what_there_is() {
        assert!(check(&all()).is_ok());
        assert!(check(&[]).is_err());
        let mut more = all();
        more.push(suite("guest_unknown", ""));
        assert!(check(&more).is_err());
    }
}
