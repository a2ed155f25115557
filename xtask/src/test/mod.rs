//! `cargo xtask test`: every tier, and one line at the end that says how it went.
//!
//! Tiers: `unit` needs nothing; `privileged` (tests whose name has `priv_`) needs root, loop devices and cgroups;
//! `boxes` (the crate icebox-tests) drives the built binaries and the public clients; `vm` runs the tests of the last
//! two again in a guest, and those that only a guest can run. A test that would be skipped counts, and fails the run:
//! nothing here may be ignored quietly.

mod failures;
mod guest;
mod junit;
mod runner;
mod suites;
mod tally;
mod times;
mod worlds;

use std::path::Path;

use clap::{Args, ValueEnum};

use self::failures::Failures;
use self::runner::{Outcome, Runner, Selection};
use self::tally::Tally;
use self::times::Times;
use crate::error::{Cause, Error, Result};
use crate::places::{self, Places};
use crate::{build, deps, run, say};

/// Options of `test`.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// One tier only
    #[arg(long, value_enum)]
    tier: Option<Tier>,
    /// Only the tests of these packages (repeatable)
    #[arg(long = "package", short, value_name = "PACKAGE")]
    packages: Vec<String>,
    /// Only tests whose name contains this
    filter: Option<String>,
}

/// A group of tests with the same needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    /// Needs no privileges
    Unit,
    /// Needs root: mounts, loop devices, cgroups, namespaces
    Privileged,
    /// Needs the binaries and the base image: whole boxes over HTTP, and icerun
    Boxes,
    /// Privileged and boxes again, in a guest with pure cgroup v2
    Vm,
}

/// The crate with the tests of whole boxes.
const BOXES_PACKAGE: &str = "icebox-tests";
const TIERS: [Tier; 4] = [Tier::Unit, Tier::Privileged, Tier::Boxes, Tier::Vm];

/// Runs the tiers; fails if anything failed, was skipped, or if there was nothing to run.
pub(crate) fn test(args: &TestArgs) -> Result<()> {
    let places = Places::find()?;
    let mut tiers: Vec<Tier> = args.tier.map_or_else(|| TIERS.to_vec(), |tier| vec![tier]);
    tiers.retain(|tier| tier.has_any_of(&args.packages));
    let (failures, times) = (Failures::default(), Times::default());
    times.part("packages, programs, base image, clients", || prepare(&places, &tiers))?;
    let runner = Runner::choose(&places)?;
    let mut total = Tally::default();
    let mut broken = Vec::new();
    let ran = tiers.into_iter().try_for_each(|tier| {
        say::heading(&format!("Tests: {}", tier.name()));
        let selection = Selection { packages: &args.packages, filter: args.filter.as_deref() };
        let outcome = times.part(&format!("tier {}, its build in it", tier.name()), || match tier {
            Tier::Vm => guest::run(&places, &selection, &failures, &times),
            _ => runner.run(tier, &selection, &failures, &times),
        });
        let Outcome { tally, success } = outcome?;
        total += tally;
        // A runner may fail without a failed test: a test binary that does not compile, or one that crashed.
        if !success && tally.failed == 0 {
            broken.push(tier.name());
            total.failed += 1;
        }
        Ok(())
    });
    eprint!("{}{}", times.report(), failures.report());
    ran.and_then(|()| conclude(total, &broken))
}

fn conclude(total: Tally, broken: &[&str]) -> Result<()> {
    let nothing = total.passed + total.failed == 0;
    eprintln!();
    if !broken.is_empty() {
        eprintln!("the runner failed in: {}", broken.join(", "));
    }
    if nothing {
        eprintln!("there is no such test");
    }
    if total.skipped > 0 {
        eprintln!("tests were skipped; none may be");
    }
    println!("{total}");
    if total.failed == 0 && total.skipped == 0 && !nothing {
        Ok(())
    } else {
        Err(Error::new("run", "the tests", Cause::Tests))
    }
}

/// Installs and builds what the tiers need.
fn prepare(places: &Places, tiers: &[Tier]) -> Result<()> {
    deps::ensure(&[deps::BUILD, deps::RUN])?;
    if tiers.iter().any(|tier| *tier != Tier::Unit) {
        run::require_root("test")?;
        deps::ensure(&[deps::TEST])?;
    }
    if tiers.contains(&Tier::Boxes) || tiers.contains(&Tier::Vm) {
        build::build_with_image(places, build::Wanted::All)?;
    }
    if tiers.contains(&Tier::Boxes) || tiers.contains(&Tier::Vm) {
        say::heading("Public clients");
        deps::sdk_clients(places)?;
        say::fact("npm and PyPI clients are installed");
    }
    Ok(())
}

impl Tier {
    fn name(self) -> &'static str {
        match self {
            Tier::Unit => "unit",
            Tier::Privileged => "privileged",
            Tier::Boxes => "boxes",
            Tier::Vm => "vm",
        }
    }

    /// Whether the tier has tests of one of these packages (none named: all are).
    fn has_any_of(self, packages: &[String]) -> bool {
        packages.is_empty()
            || self == Tier::Vm
            || packages.iter().any(|package| (package == BOXES_PACKAGE) == (self == Tier::Boxes))
    }

    /// Environment that the tier's tests read.
    fn environment(self, places: &Places) -> Vec<(&'static str, std::path::PathBuf)> {
        if self != Tier::Boxes {
            return Vec::new();
        }
        vec![
            ("ICEBOX_BIN_DIR", places.bin()),
            ("ICEBOX_IMAGE_DIR", places::image_dir()),
            ("ICEBOX_SDK_DIR", places.sdk()),
            ("ICEBOX_TEST_DIR", test_dir(&places.target)),
        ]
    }
}

/// Where tests keep files: on the disk of the build, since volumes need a real file system.
fn test_dir(target: &Path) -> std::path::PathBuf {
    target.join("tmp")
}
