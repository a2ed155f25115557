//! What people do first in a box: `pip install`, `npm install`, `git clone`, `apt-get install`. Against mirrors in the
//! world of namespaces, under a policy that names just their hosts, and without one.
//!
//! The base image has no npm. It comes from where the public clients are installed, and gets into the box as any file does.

use std::net::Ipv4Addr;
use std::path::Path;

use icebox_tests::net::World;
use icebox_tests::net::dns::Answer;
use icebox_tests::sdk::sdk_dir;
use icebox_tests::{Daemon, TestBox};
use serde_json::{Map, Value, json};

const MIRRORS: &str = include_str!("../net/mirrors.py");
const HOSTS: [&str; 6] =
    ["pypi.test", "files.pythonhosted.test", "registry.test", "git.test", "deb.test", "tools.test"];

/// Two of the hosts share an address.
fn address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, 100 + u8::try_from(index / 2).expect("few hosts"))
}

fn decode(text: &str) -> Vec<u8> {
    let value = |b: u8| match b {
        b'A'..=b'Z' => u32::from(b - b'A'),
        b'a'..=b'z' => u32::from(b - b'a') + 26,
        b'0'..=b'9' => u32::from(b - b'0') + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut bytes = Vec::new();
    for chunk in text.trim_end_matches('=').as_bytes().chunks(4) {
        let bits = chunk.iter().fold(0, |bits, b| bits << 6 | value(*b)) << (6 * (4 - chunk.len()));
        bytes.extend(&bits.to_be_bytes()[1..chunk.len()]);
    }
    bytes
}

/// A directory as a tar archive.
fn tar(dir: &Path) -> Vec<u8> {
    let output = std::process::Command::new("tar").args(["-czhf", "-", "-C"]).arg(dir).arg(".").output().expect("tar");
    assert!(output.status.success(), "tar {}: {}", dir.display(), String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The mirrors are made by a box without network, with its own tools.
fn start() -> (World, Daemon) {
    let world = World::new();
    for (index, host) in HOSTS.iter().enumerate() {
        world.dns.set(host, Answer::of(&[address(index)]));
    }
    let daemon = world.daemon();
    let maker = daemon.api().create(&json!({ "network_policy": { "mode": "deny-all" } }));
    maker.write("mirrors.py", MIRRORS);
    let files: Map<String, Value> = serde_json::from_str(&maker.out("python3 mirrors.py")).expect("JSON");
    for (path, content) in files {
        let (host, path) = path.split_once('/').expect("host/path");
        world.web.put(host, &format!("/{path}"), decode(content.as_str().expect("text")));
    }
    maker.delete();
    world.web.put("tools.test", "/npm.tgz", tar(&sdk_dir().join("node_modules/npm")));
    (world, daemon)
}

/// The world's authority is none that a box trusts by itself; every tool is told of it in its own way.
fn install_everything(world: &World, made: &TestBox) {
    made.write("ca.pem", world.authority.pem());
    made.out("mkdir -p tools/npm && curl -sSf http://tools.test/npm.tgz | tar -xzf - -C tools/npm");
    let options = "--quiet --no-input --disable-pip-version-check --cert ca.pem --index-url https://pypi.test/simple/";
    let import = "-c 'import tinypack; print(tinypack.WORD)'";
    // For the user, for all users, and in a virtual environment.
    made.out(&format!("pip install {options} tinypack"));
    assert_eq!(made.out(&format!("python3 {import}")), "from the wheel");
    made.out("pip uninstall --quiet --yes tinypack");
    made.out(&format!("sudo pip install {options} --root-user-action ignore tinypack"));
    assert_eq!(made.out(&format!("cd /; python3 {import}")), "from the wheel");
    made.out(&format!("python3 -m venv venv && venv/bin/pip install {options} tinypack"));
    assert_eq!(made.out(&format!("venv/bin/python {import}")), "from the wheel");
    made.out("npm_config_cafile=$PWD/ca.pem node tools/npm/bin/npm-cli.js install --no-audit --no-fund --no-update-notifier --registry https://registry.test/ tinymodule");
    assert_eq!(made.out("node -p \"require('tinymodule')\""), "from the tarball");
    made.out("GIT_SSL_CAINFO=$PWD/ca.pem git clone -q https://git.test/tiny.git");
    assert_eq!(made.out("cat tiny/README"), "from the repository");
    made.out("git clone -q http://git.test/tiny.git by-http");
    made.out("echo 'deb [trusted=yes] http://deb.test/ ./' | sudo tee /etc/apt/sources.list >/dev/null; sudo rm -rf /etc/apt/sources.list.d/*");
    made.out("sudo apt-get -q update && sudo apt-get -q install -y tinydeb");
    assert_eq!(made.out("cat /usr/share/tinydeb/word"), "from the package");
}

#[test]
fn packages_install_under_a_policy_that_names_their_hosts() {
    let (world, daemon) = start();
    let policy = json!({ "mode": "custom", "allowed_domains": HOSTS });
    let made = daemon.api().create(&json!({ "network_policy": policy }));
    install_everything(&world, &made);
}

#[test]
fn packages_install_without_a_policy() {
    let (world, daemon) = start();
    let made = daemon.api().create_default();
    install_everything(&world, &made);
}
