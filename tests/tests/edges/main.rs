//! The architecture, as far as a program can check it: who depends on whom, where unsafe code lives, who names what.
//! Reads the sources; needs no root and makes no boxes.

mod imports;
mod inner;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Longest source file.
const FILE_LINES_MAX: usize = 600;
/// Crates that are ours, and the crates of ours that each may depend on. `icebox-tests` may use anything public.
const EDGES: [(&str, &[&str]); 10] = [
    ("icebox-runtime", &[]),
    ("icebox-rootfs", &[]),
    ("icebox-boxfile", &[]),
    ("icebox-registry", &["icebox-rootfs", "icebox-tls"]),
    ("icebox-tls", &[]),
    ("icebox-shim", &["icebox-runtime"]),
    ("icebox-api", &["icebox-boxfile", "icebox-net", "icebox-registry", "icebox-rootfs", "icebox-shim"]),
    ("icebox-cli", &["icebox-boxfile"]),
    ("icebox-net", &["icebox-tls"]),
    ("xtask", &["icebox-rootfs"]),
];
const FOLDERS: [&str; 6] = ["runtime", "rootfs", "shim", "api", "tests", "xtask"];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn cargo(args: &[&str]) -> String {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo).args(args).arg("--offline").current_dir(workspace()).output().expect("run cargo");
    assert!(output.status.success(), "cargo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Every Rust source of a folder of the workspace, with its text.
fn sources(folder: &str) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![workspace().join(folder)];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("read {}: {e}", dir.display())) {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("a source");
                found.insert(path, text);
            }
        }
    }
    assert!(!found.is_empty(), "no sources in {folder}");
    found
}

/// The identifiers of a text.
fn identifiers(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| !w.is_empty())
}

/// A line without its comment. (A `//` inside a string cuts too much, which can only hide what follows in that line.)
fn code(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

#[test]
fn crates_depend_on_each_other_only_as_drawn() {
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--format-version", "1", "--no-deps"])).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let names: BTreeSet<&str> = packages.iter().map(|p| p["name"].as_str().expect("name")).collect();
    let known: BTreeSet<&str> = EDGES.iter().map(|e| e.0).chain(["icebox-tests"]).collect();
    assert_eq!(names, known, "a crate came or went: draw its edges here");
    for package in packages {
        let name = package["name"].as_str().expect("name");
        let Some((_, allowed)) = EDGES.iter().find(|e| e.0 == name) else {
            continue;
        };
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let target = dependency["name"].as_str().expect("name");
            assert!(!names.contains(target) || allowed.contains(&target), "{name} depends on {target}");
        }
    }
}

#[test]
fn the_runtime_has_no_async_executor_and_the_command_line_no_daemon() {
    let tree = cargo(&["tree", "--package", "icebox-runtime", "--edges", "normal", "--prefix", "none"]);
    let names: BTreeSet<&str> = tree.lines().filter_map(|l| l.split(' ').next()).collect();
    assert!(names.contains("rustix"), "the tree was read wrongly: {tree}");
    for forbidden in ["tokio", "hyper", "axum", "reqwest", "rusqlite", "async-std", "futures"] {
        assert!(!names.contains(forbidden), "{forbidden} is in the runtime's tree");
    }
    let tree = cargo(&["tree", "--package", "icebox-cli", "--edges", "normal", "--prefix", "none"]);
    let names: BTreeSet<&str> = tree.lines().filter_map(|l| l.split(' ').next()).collect();
    assert!(names.contains("reqwest"), "the tree was read wrongly: {tree}");
    for forbidden in ["axum", "rusqlite", "rcgen", "rtnetlink", "hickory-proto", "utoipa"] {
        assert!(!names.contains(forbidden), "{forbidden} is in the command line's tree");
    }
    for (path, text) in sources("runtime/src") {
        assert!(!text.contains("thread::spawn"), "{} starts a thread", path.display());
    }
}

#[test]
fn unsafe_code_lives_in_sys_modules() {
    let mut found = Vec::new();
    for folder in FOLDERS {
        for (path, text) in sources(folder) {
            // Tests outside of `src` may fork; they say so with an attribute of their own.
            let lifted = ["sys", "sys.rs", "tests"];
            let in_sys = path.components().any(|c| lifted.iter().any(|l| c.as_os_str() == *l));
            let mut previous = "";
            for (number, line) in text.lines().enumerate() {
                let at = format!("{}:{}", path.display(), number + 1);
                let words: Vec<&str> = identifiers(code(line)).collect();
                if !in_sys && words.contains(&"unsafe") && !line.contains('"') {
                    found.push(format!("{at}: unsafe outside of a sys module: {line}"));
                }
                let lifts = previous.starts_with("#[") && previous.contains("unsafe_code");
                if !in_sys && lifts && !(words.contains(&"mod") && words.contains(&"sys")) {
                    found.push(format!("{at}: only `mod sys` may allow unsafe code"));
                }
                previous = line.trim_start();
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn files_are_short_and_say_what_they_own() {
    let mut found = Vec::new();
    for folder in FOLDERS {
        for (path, text) in sources(folder) {
            let lines = text.lines().count();
            if lines > FILE_LINES_MAX {
                found.push(format!("{} has {lines} lines", path.display()));
            }
            if !text.trim_start().starts_with("//!") {
                found.push(format!("{} has no header", path.display()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_oci_spec_is_named_in_the_bundle_only() {
    let mut places = Vec::new();
    for folder in ["runtime/src", "rootfs/src", "shim/src", "api/src"] {
        for (path, text) in sources(folder) {
            let imports = text.lines().map(code).filter(|l| !l.trim_start().starts_with('#'));
            let body: String = imports.collect::<Vec<_>>().join("\n");
            if body.contains("oci_spec") && identifiers(&body).any(|w| w == "Spec") {
                places.push(path);
            }
        }
    }
    assert!(!places.is_empty(), "no file reads a bundle");
    places.retain(|path| !path.to_string_lossy().contains("/runtime/src/bundle/"));
    assert!(places.is_empty(), "oci_spec::runtime::Spec is named in {places:?}");
}

/// The words of an identifier: `BoxSpec` and `box_spec` both have `box`, `busybox` has not.
fn words(identifier: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    for c in identifier.chars() {
        if c == '_' || c.is_ascii_uppercase() {
            words.push(std::mem::take(&mut word));
        }
        if c != '_' {
            word.push(c.to_ascii_lowercase());
        }
    }
    words.push(word);
    words
}

#[test]
fn the_runtime_never_says_box() {
    assert_eq!(words("BoxSpec")[1], "box");
    let mut found = Vec::new();
    for (path, text) in sources("runtime/src") {
        for (number, line) in text.lines().enumerate() {
            // `Box` alone is Rust's.
            let mut said = identifiers(line).filter(|w| *w != "Box");
            if said.any(|i| words(i).iter().any(|w| w == "box" || w == "boxes")) {
                found.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn each_crate_leaves_out_what_it_must_not_do() {
    let absent = [
        ("api/src", &["clone3", "unshare", "setns", "fork", "pivot_root", "cgroup_procs"][..]),
        ("api/net/src", &["clone3", "unshare", "setns", "fork", "pivot_root", "cgroup_procs"][..]),
        ("api/cli/src", &["clone3", "unshare", "setns", "fork", "pivot_root", "cgroup_procs"][..]),
        ("rootfs/src", &["clone3", "unshare", "setns", "pivot_root"][..]),
    ];
    for (folder, forbidden) in absent {
        for (path, text) in sources(folder) {
            for (number, line) in text.lines().map(code).enumerate() {
                // Links and sockets of boxes are made in network namespaces, by threads that were made for it; and the host
                // is tried out in new ones.
                let may =
                    |word: &str| ["setns", "unshare"].contains(&word) && path.ends_with("api/net/src/namespace.rs");
                // A box may be forked; a process not. The call comes from one of these.
                let is_call = |word: &str| word != "fork" || line.contains("libc") || line.contains("unistd");
                let found = identifiers(line).find(|w| forbidden.contains(w) && !may(w) && is_call(w));
                assert!(found.is_none(), "{}:{}: {line}", path.display(), number + 1);
            }
        }
    }
    for (path, text) in sources("api/src") {
        for file in ["cgroup.procs", "cgroup.freeze", "cgroup.kill", "/sys/fs/cgroup"] {
            assert!(!text.lines().map(code).any(|l| l.contains(file)), "{} touches {file}", path.display());
        }
    }
}
