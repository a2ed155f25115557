//! `cargo xtask test`: every tier, and one line at the end that says how it went.
//!
//! Tiers: `unit` needs nothing; `privileged` (tests whose name has `priv_`) needs root, loop devices and cgroups;
//! `boxes` (the crate icebox-tests) drives the built binaries and the public clients; `vm` runs the tests of the last
//! two again in a guest, and those that only a guest can run; `bare` installs the packages of each task on a Debian 12
//! that has nothing else. A test that would be skipped counts, and fails the run: nothing here may be ignored quietly.

mod failures;
mod guest;
mod junit;
mod runner;
mod suites;
mod tally;
mod tier;
mod times;
mod worlds;

use clap::Args;

use self::failures::Failures;
use self::runner::{Outcome, Runner, Selection};
use self::tally::Tally;
use self::tier::Tier;
use self::times::Times;
use crate::error::{Cause, Error, Result};
use crate::places::Places;
use crate::{bare, build, deps, run, say};

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

const TIERS: [Tier; 5] = [Tier::Unit, Tier::Privileged, Tier::Boxes, Tier::Vm, Tier::Bare];

/// Runs the tiers; fails if anything failed, was skipped, or if there was nothing to run.
pub(crate) fn test(args: &TestArgs) -> Result<()> {
    let places = Places::find()?;
    let mut tiers: Vec<Tier> = args.tier.map_or_else(|| TIERS.to_vec(), |tier| vec![tier]);
    tiers.retain(|tier| tier.has_any_of(&args.packages));
    if args.filter.is_some() {
        // It has no tests that a name could choose.
        tiers.retain(|tier| *tier != Tier::Bare);
    }
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
            Tier::Bare => packages_of_tasks(&failures),
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

/// Each group of packages is one test.
fn packages_of_tasks(failures: &Failures) -> Result<Outcome> {
    let mut tally = Tally::default();
    for (group, result) in bare::check_groups()? {
        match result {
            Ok(()) => tally.passed += 1,
            Err(error) => {
                tally.failed += 1;
                let text = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
                let text: Vec<String> = text.map(ToString::to_string).collect();
                failures
                    .add(format!("the packages of {group} on a bare Debian 12"), failures::excerpt(&text.join("\n")));
            }
        }
    }
    Ok(Outcome { success: tally.failed == 0, tally })
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
