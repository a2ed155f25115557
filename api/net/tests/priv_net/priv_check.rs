//! `iceboxd check`: whether this host can connect boxes.

use std::path::PathBuf;
use std::process::{Command, Output};

use crate::world::World;

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The daemon that was built beside this test.
fn iceboxd() -> PathBuf {
    let beside = || {
        let exe = std::env::current_exe().expect("the path of this test");
        exe.ancestors().nth(2).expect("the profile's folder").to_owned()
    };
    let path = std::env::var_os("ICEBOX_BIN_DIR").map_or_else(beside, PathBuf::from).join("iceboxd");
    assert!(path.exists(), "{} is not built: cargo build -p icebox-api", path.display());
    path
}

/// In a namespace where something would be seen of it.
#[test]
fn priv_nft_a_check_finds_the_network_good_and_changes_nothing() {
    let mut world = World::new();
    world.die();
    let state = |world: &World| {
        let interfaces = || Ok(std::fs::read_to_string("/proc/thread-self/net/dev").expect("interfaces"));
        let names = world.host.run(interfaces).expect("a thread there");
        let names: Vec<_> = names.lines().filter_map(|line| line.split_once(':')).map(|(n, _)| n.to_owned()).collect();
        (names, world.nft(&["list", "ruleset"]))
    };
    let before = state(&world);
    let check = || Ok(Command::new(iceboxd()).arg("check").output().expect("iceboxd"));
    let text = said(&world.host.run(check).expect("a thread there"));
    assert!(text.contains("\nok       network: links, nftables, "), "{text}");
    assert!(!text.contains("MISSING  network"), "{text}");
    assert_eq!(state(&world), before);
}

#[test]
fn priv_a_check_says_what_the_network_lacks() {
    let iceboxd = iceboxd();
    // Root in a user namespace may make network namespaces, unless there may be none.
    let check = format!("echo 0 >/proc/sys/user/max_net_namespaces && exec {} check", iceboxd.display());
    let output = Command::new("unshare").args(["--user", "--map-root-user", "sh", "-c", &check]).output();
    let output = output.expect("unshare");
    let text = said(&output);
    assert!(text.contains("\nMISSING  network: network namespaces (") && text.contains("max_net_namespaces"), "{text}");
    assert!(!output.status.success() && !text.contains("ok       network"), "{text}");
    let output = Command::new(iceboxd).args(["--netns", "nobodys-namespace", "check"]).output().expect("iceboxd");
    let text = said(&output);
    assert!(text.contains("\nMISSING  network: netns: open network namespace"), "{text}");
    assert!(!output.status.success(), "{text}");
}
