//! `cargo xtask bench`: measures Icebox on this machine, side by side with the runtimes that Debian installs.
//!
//! Owns the measuring, the tables and `target/bench/<name>.json`. Absolute numbers drift from machine to machine and from
//! hour to hour; so every comparison is interleaved (A B C A B C …) within one run, and the ratio is what counts. What
//! is not measured here: throughput inside a container (a shared kernel has nothing to add to it).

mod boxes;
mod builds;
mod bundle;
mod context;
mod cpu;
mod fleet;
mod http;
mod images;
mod net;
mod netns;
mod oci;
mod peers;
mod scale;
mod seccomp_names;
mod server;
mod stats;
mod storage;
mod view;

use std::path::{Path, PathBuf};

use crate::error::{Error, Result, While};
use crate::places::{Places, image_dir};
use crate::{build, deps, run as program};
use context::{Context, make_dir, shown};
use stats::Report;

/// Options of `cargo xtask bench`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct BenchArgs {
    /// Which benchmarks: run, run-userns, verbs, exec, create, ready, fleet, scale, net, storage, builds, images. All if none is named.
    names: Vec<String>,
    /// Measured rounds of each benchmark (each has its own sensible number otherwise).
    #[arg(long, value_name = "N")]
    n: Option<usize>,
    /// Boxes of the benchmark fleet.
    #[arg(long, value_name = "N", default_value_t = FLEET_BOXES)]
    boxes: usize,
    /// Directory of the built binaries (default: build them now, optimised).
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Directory of the base image (default: ICEBOX_IMAGE_DIR, or where `cargo xtask up` keeps it).
    #[arg(long, value_name = "DIR")]
    image_dir: Option<PathBuf>,
}

/// Boxes that the fleet benchmark makes, with eight clients.
const FLEET_BOXES: usize = 500;
type Benchmark = fn(&Context) -> Result<Vec<Report>>;

/// Name, what it does, the function.
const BENCHMARKS: [(&str, Benchmark); 12] = [
    ("run", peers::run),
    ("run-userns", peers::run_userns),
    ("verbs", oci::verbs),
    ("exec", boxes::exec),
    ("create", boxes::create),
    ("ready", boxes::ready),
    ("fleet", fleet::fleet),
    ("scale", scale::scale),
    ("net", net::net),
    ("storage", storage::storage),
    ("builds", builds::builds),
    ("images", images::images),
];

/// Runs the benchmarks that were asked for, prints their tables and writes their figures.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    for name in &args.names {
        if !BENCHMARKS.iter().any(|b| b.0 == name) {
            let known = BENCHMARKS.map(|b| b.0).join(", ");
            return Err(Error::refused("choose", name.as_str(), format!("no such benchmark; there are {known}")));
        }
    }
    program::require_root("bench")?;
    let places = Places::find()?;
    deps::ensure(&[deps::BUILD, deps::IMAGE, deps::RUN, deps::BENCH])?;
    let bin_dir = match &args.bin_dir {
        Some(dir) => dir.clone(),
        None if args.image_dir.is_some() => build::build(&places)?,
        None => build::build_with_image(&places, build::Wanted::All)?,
    };
    let results = places.target.join("bench");
    let scratch = results.join(format!("scratch-{}", std::process::id()));
    make_dir(&scratch)?;
    let context = Context {
        bin_dir,
        image_dir: args.image_dir.clone().unwrap_or_else(image_dir),
        scratch,
        rounds: args.n,
        boxes: args.boxes.max(1),
    };
    let result = run_all(args, &context, &results);
    let _ = std::fs::remove_dir_all(&context.scratch);
    result
}

fn run_all(args: &BenchArgs, context: &Context, results: &Path) -> Result<()> {
    println!("{}", stats::machine());
    for (name, benchmark) in BENCHMARKS {
        if !args.names.is_empty() && !args.names.iter().any(|n| n == name) {
            continue;
        }
        eprintln!("measuring {name} …");
        let reports = benchmark(context)?;
        for report in &reports {
            println!("{report}");
        }
        let path = results.join(format!("{name}.json"));
        let text = stats::to_json(name, &reports).to_string();
        std::fs::write(&path, text).or_fail("write", shown(&path))?;
        println!("figures: {}\n", path.display());
    }
    Ok(())
}
