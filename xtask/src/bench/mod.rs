//! `cargo xtask bench`: measurements here and now, against peers.

use clap::Args;

use crate::error::{Error, Result};
use crate::say;

/// Options of `bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Measure these only; without a name the list is printed
    names: Vec<String>,
}

/// A measurement: its name, and what does it.
type Bench = (&'static str, fn() -> Result<()>);

/// What can be measured.
const BENCHES: [Bench; 0] = [];

/// Runs the measurements asked for.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    if args.names.is_empty() {
        BENCHES.iter().for_each(|(name, _)| say::fact(name));
    }
    for wanted in &args.names {
        let (_, bench) = BENCHES
            .iter()
            .find(|(name, _)| name == wanted)
            .ok_or_else(|| Error::refused("measure", wanted, "there is no such benchmark"))?;
        bench()?;
    }
    Ok(())
}
