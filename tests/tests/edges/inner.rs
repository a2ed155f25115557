//! The edges inside the crates: which module of `icebox-api` may name which, and that no files need each other in a circle.

use std::collections::{BTreeMap, BTreeSet};

use super::imports::Crate;
use super::{sources, workspace};

/// Crates whose files must not need each other in a circle.
const CRATES: [&str; 8] = ["runtime", "rootfs", "rootfs/registry", "shim", "api", "api/net", "api/cli", "xtask"];

/// The modules of `icebox-api`, from the top down, and those that each may name. A request goes down this list:
/// `http → lifecycle → runs → boxes → db, ledger → events → domain`. What is not drawn is forbidden.
const LAYERS: [(&str, &[&str]); 16] = [
    (
        "daemon",
        &[
            "boxes",
            "builds",
            "config",
            "db",
            "error",
            "events",
            "http",
            "images",
            "lifecycle",
            "metrics",
            "public_urls",
            "runs",
        ],
    ),
    (
        "http",
        &[
            "boxes",
            "builds",
            "clock",
            "config",
            "db",
            "domain",
            "error",
            "events",
            "files",
            "ids",
            "images",
            "ledger",
            "lifecycle",
            "metrics",
            "public_urls",
            "refusal",
            "runs",
        ],
    ),
    ("public_urls", &["boxes", "clock", "config", "db", "error", "lifecycle", "metrics", "refusal"]),
    ("builds", &["boxes", "clock", "config", "db", "domain", "error", "lifecycle", "refusal", "runs"]),
    ("lifecycle", &["boxes", "config", "db", "domain", "error", "events", "ids", "refusal", "runs"]),
    ("files", &["boxes", "refusal", "runs"]),
    ("images", &["boxes", "config", "error", "refusal"]),
    ("runs", &["boxes", "clock", "config", "db", "domain", "error", "events", "ids", "refusal", "text"]),
    ("boxes", &["clock", "config", "db", "domain", "error", "events", "ids", "ledger", "metrics", "refusal"]),
    ("metrics", &["events"]),
    ("config", &["error"]),
    ("db", &["clock", "domain", "error", "events", "ids", "ledger", "text"]),
    ("events", &["clock", "domain"]),
    ("ledger", &["clock"]),
    ("refusal", &["error"]),
    ("domain", &[]),
];

fn read(folder: &str) -> Crate {
    let src = format!("{folder}/src");
    let root = workspace().join(&src);
    let below = |path: &std::path::Path| path.strip_prefix(&root).expect("below src").display().to_string();
    Crate::read(&sources(&src).iter().map(|(path, text)| (below(path), text.clone())).collect())
}

/// What is named although the table has no such edge, and edges of the table that no source has.
fn differences(read: &Crate, allowed: &[(&str, &[&str])]) -> Vec<String> {
    let drawn: BTreeSet<(&str, &str)> =
        allowed.iter().flat_map(|(from, to)| to.iter().map(move |to| (*from, *to))).collect();
    let found = read.layers();
    let forbidden = found.difference(&drawn).map(|(from, to)| format!("{from} names {to}, which is not drawn"));
    let unused = drawn.difference(&found).filter(|(from, to)| read.has(from) && read.has(to));
    let unused = unused.map(|(from, to)| format!("{from} → {to} is drawn, and no source has it"));
    forbidden.chain(unused).collect()
}

#[test]
fn modules_of_the_api_name_each_other_only_as_drawn() {
    let found = differences(&read("api"), &LAYERS);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn no_files_need_each_other_in_a_circle() {
    let mut found = Vec::new();
    for folder in CRATES.iter().filter(|folder| workspace().join(folder).is_dir()) {
        let read = read(folder);
        let needs = read.needs();
        for circle in read.circles() {
            let within = |file: &&str| circle.contains(file);
            for file in &circle {
                let to: Vec<&str> = needs[file].iter().copied().filter(within).collect();
                found.push(format!("{folder}: {file} → {}", to.join(", ")));
            }
        }
    }
    assert!(
        found.is_empty(),
        "break these circles (a type that both need goes to a file of its own):\n{}",
        found.join("\n")
    );
}

/// A crate that is not there: `high` names `low`, by each way in which a file can name another.
fn made_up(low: &str) -> Crate {
    let files = [
        ("lib.rs", "pub mod high; pub mod low;"),
        ("high/mod.rs", "mod part; pub use part::Part; fn f() -> crate::low::Low { crate::low::Low }"),
        (
            "high/part.rs",
            "use crate::low; pub struct Part; impl Part { fn f(&self) -> low::Low { low::deep::g(); low::Low } }",
        ),
        ("low/mod.rs", low),
        ("low/deep.rs", "pub fn g() {}"),
    ];
    Crate::read(&files.map(|(file, text)| (file.to_owned(), text.to_owned())).into_iter().collect::<BTreeMap<_, _>>())
}

#[test]
fn a_forbidden_import_is_found_however_it_is_written() {
    let allowed: [(&str, &[&str]); 1] = [("high", &["low"])];
    let good = "pub mod deep; pub struct Low; #[cfg(test)] mod tests { use crate::high::Part; }";
    assert_eq!(differences(&made_up(good), &allowed), Vec::<String>::new());
    assert!(made_up(good).circles().is_empty(), "{:?}", made_up(good).circles());
    for bad in [
        "use crate::high::Part;",
        "use super::high::{Part as P};",
        "fn f() { let _ = crate::high::Part; }",
        "fn f(_: &super::high::Part) {}",
        "fn f() { println!(\"{}\", size_of::<crate::high::Part>()); }",
        "fn f() { use crate::high; high::Part; }",
        "use crate::{high as above}; fn f() { above::Part; }",
    ] {
        let read = made_up(&format!("{good} {bad}"));
        assert_eq!(differences(&read, &allowed), ["low names high, which is not drawn"], "{bad}");
        assert_eq!(read.circles(), [["high/part.rs", "low/mod.rs"]], "{bad}");
    }
    assert_eq!(differences(&made_up(good), &[("high", &["low"]), ("low", &["high"])]).len(), 1, "an edge too many");
}
