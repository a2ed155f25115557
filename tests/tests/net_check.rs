//! `iceboxd check`: whether this host can connect boxes.

use std::process::{Command, Output};

use icebox_tests::daemon::binary;
use icebox_tests::net::World;

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The links and the firewall of the host's namespace.
fn state(world: &World) -> (Vec<String>, String) {
    let names = || std::fs::read_to_string("/proc/thread-self/net/dev").expect("interfaces");
    let names = world.host.run(names);
    let names = names.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect();
    let list = || Command::new("nft").args(["list", "ruleset"]).output().expect("these tests need nft");
    let rules = world.host.run(list);
    assert!(rules.status.success(), "{}", said(&rules));
    (names, said(&rules))
}

/// A daemon that was killed has left its table there, so a change would be seen.
#[test]
fn a_check_finds_the_network_good_and_changes_nothing() {
    let world = World::new();
    world.daemon().kill9();
    let before = state(&world);
    assert!(before.1.contains("table inet icebox"), "{before:?}");
    let check = || Command::new(binary("iceboxd")).arg("check").output().expect("iceboxd");
    let text = said(&world.host.run(check));
    assert!(text.contains("\nok       network: links, nftables, "), "{text}");
    assert!(!text.contains("MISSING  network"), "{text}");
    assert_eq!(state(&world), before);
}

#[test]
fn a_check_says_what_the_network_lacks() {
    let iceboxd = binary("iceboxd");
    // Root in a user namespace may make network namespaces, unless there may be none.
    let check = format!("echo 0 >/proc/sys/user/max_net_namespaces && exec {} check", iceboxd.display());
    let output = Command::new("unshare").args(["--user", "--map-root-user", "sh", "-c", &check]).output();
    let output = output.expect("unshare");
    let text = said(&output);
    assert!(text.contains("\nMISSING  network: network namespaces (") && text.contains("max_net_namespaces"), "{text}");
    assert!(!output.status.success() && !text.contains("ok       network"), "{text}");
    let output = Command::new(iceboxd).args(["--netns", "not-there", "check"]).output().expect("iceboxd");
    let text = said(&output);
    assert!(text.contains("\nMISSING  network: netns: open network namespace"), "{text}");
    assert!(!output.status.success(), "{text}");
}
