//! Boxfiles mean what they mean elsewhere: each one of a table is built by Icebox and by buildah, and the trees and the
//! configurations are the same.
//!
//! The table is in `cases/*.txt`; [`cases`] has its form. A Boxfile that buildah cannot read has an equivalent for it, and
//! what buildah does otherwise is in the table with the reason. Times are not compared.

mod cases;
mod peer;
mod tree;
mod world;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use icebox_rootfs::images::Images;
use icebox_tests::Daemon;
use serde_json::Value;

use cases::Case;
use peer::Buildah;
use tree::Shown;

/// Fewest Boxfiles of the table.
const CASES_MIN: usize = 60;

/// The base image of all others.
const BASE: &str =
    "FROM scratch\nADD base.tar /\nENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n";

/// An image as it is compared.
struct Built {
    tree: BTreeMap<String, Shown>,
    config: BTreeMap<String, Value>,
}

#[test]
fn boxfiles_mean_what_they_mean_to_buildah() {
    let cases = cases::all();
    assert!(cases.len() >= CASES_MIN, "the table has {} Boxfiles only", cases.len());
    let daemon = Daemon::start().with_own_images();
    let home = daemon.data_dir().parent().expect("the home of the daemon").join("conformance");
    let world = world::make(&home);
    let buildah = Buildah::new(&home, daemon.run_dir());
    let (ours, theirs) = std::thread::scope(|scope| {
        let theirs = scope.spawn(|| by_buildah(&buildah, &world, &cases));
        (by_icebox(&daemon, &world, &cases), theirs.join().expect("buildah's images"))
    });
    let mut faults = Vec::new();
    for case in &cases {
        match (&ours[&case.name], &theirs[&case.name]) {
            (Ok(ours), Ok(theirs)) => faults.extend(compare(case, ours, theirs)),
            (ours, theirs) => {
                let failures = [("Icebox", ours.as_ref().err()), ("buildah", theirs.as_ref().err())];
                let failures = failures.into_iter().filter_map(|(by, why)| Some((by, why?)));
                faults.extend(failures.map(|(by, why)| format!("{}: {by} fails: {why}", case.name)));
            }
        }
    }
    assert!(faults.is_empty(), "{} of {} Boxfiles\n{}", faults.len(), cases.len(), faults.join("\n"));
}

fn by_icebox(daemon: &Daemon, world: &world::World, cases: &[Case]) -> BTreeMap<String, Result<Built, String>> {
    let build = |file: &PathBuf, context: &PathBuf, tag: &str, more: &[String]| {
        let mut args = vec!["image", "build", "-t", tag, "-f", file.to_str().expect("UTF-8")];
        args.extend(more.iter().map(String::as_str));
        args.push(context.to_str().expect("UTF-8"));
        let output = daemon.icebox_as_operator(&args).output().expect("icebox image build ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    };
    build(&world.base_file(BASE), &world.base, "localhost/base", &[]).expect("the base image");
    let images = Images::open(&daemon.images()).expect("the store");
    let one = |case: &Case| {
        let tag = format!("localhost/case-{}", case.name.replace('_', "-"));
        build(&world.file(&case.name, &case.text, &case.ignore), &world.context, &tag, &case.options)?;
        let image = images.find(&tag).map_err(|error| error.to_string())?;
        let dirs = images.layer_dirs(&image).map_err(|error| error.to_string())?;
        let config: Value = serde_json::from_str(&image.config).map_err(|error| error.to_string())?;
        Ok(Built { tree: tree::of_layers(&dirs, &world.nothing), config: tree::config(&config) })
    };
    cases.iter().map(|case| (case.name.clone(), one(case))).collect()
}

fn by_buildah(buildah: &Buildah, world: &world::World, cases: &[Case]) -> BTreeMap<String, Result<Built, String>> {
    buildah.build(&world.base_file(BASE), &world.base, "localhost/base", &[]).expect("the base image");
    let one = |case: &Case| {
        let tag = format!("localhost/case-{}", case.name.replace('_', "-"));
        let text = case.for_buildah.as_ref().unwrap_or(&case.text);
        let file = world.file(&format!("{}.buildah", case.name), text, &case.ignore);
        let mut options = case.options.clone();
        if !case.ignore.is_empty() {
            options.push(format!("--ignorefile={}.dockerignore", file.display()));
        }
        buildah.build(&file, &world.context, &tag, &options)?;
        let (root, config) = buildah.look_into(&tag, tree::of_dir)?;
        Ok(Built { tree: root, config: tree::config(&config) })
    };
    cases.iter().map(|case| (case.name.clone(), one(case))).collect()
}

/// What differs and is not in the table, and what is in the table and does not differ.
fn compare(case: &Case, ours: &Built, theirs: &Built) -> Vec<String> {
    let mut faults = Vec::new();
    let mut known = case.differs.clone();
    let absent = || "absent".to_owned();
    let mut see = |what: &str, ours: Option<String>, theirs: Option<String>| {
        let expected = known.remove(what);
        let shown = ours.clone().unwrap_or_else(absent);
        match expected {
            None if ours == theirs => {}
            None => faults.push(format!("{}: {what}: {shown}, buildah: {}", case.name, theirs.unwrap_or_else(absent))),
            Some(_) if ours == theirs => faults.push(format!("{}: {what} does not differ any more", case.name)),
            Some(wanted) if shown.starts_with(&wanted) => {}
            Some(wanted) => faults.push(format!("{}: {what} is {shown}, not {wanted}", case.name)),
        }
    };
    let paths = ours.tree.keys().chain(theirs.tree.keys()).collect::<std::collections::BTreeSet<_>>();
    for path in paths {
        let shown = |built: &Built| built.tree.get(path).map(Shown::to_string);
        see(path, shown(ours), shown(theirs));
    }
    let keys = ours.config.keys().chain(theirs.config.keys()).collect::<std::collections::BTreeSet<_>>();
    for key in keys {
        let shown = |built: &Built| built.config.get(key).map(Value::to_string);
        see(key, shown(ours), shown(theirs));
    }
    faults.extend(known.keys().map(|what| format!("{}: {what} does not differ any more", case.name)));
    faults
}

#[test]
fn the_table_can_be_read() {
    let cases = cases::all();
    let names: std::collections::BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "a name is there twice");
    assert!(cases.iter().all(|case| case.text.to_ascii_uppercase().contains("FROM ")));
    assert!(fs::exists("/usr/bin/busybox").is_ok_and(|there| there), "busybox-static is installed");
}
