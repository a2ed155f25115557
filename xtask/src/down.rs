//! `cargo xtask down`: puts the boxes to sleep and stops `iceboxd`.
//!
//! Boxes do not depend on the daemon, so ending it alone would leave them awake without a daemon to put them to sleep.

use std::path::Path;

use clap::Args;

use crate::daemon::Settings;
use crate::error::Result;
use crate::icebox::{Icebox, Listed};
use crate::places::Places;
use crate::{run, say};

/// Options of `down`.
#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    settings: Settings,
    /// Delete all boxes with their disks first
    #[arg(long)]
    purge: bool,
}

/// Freezes (or deletes) the boxes, then ends the daemon.
pub(crate) fn down(args: &DownArgs) -> Result<()> {
    run::require_root("down")?;
    let settings = &args.settings;
    if !settings.is_running()? {
        say::fact("no iceboxd that `cargo xtask up` started is running");
        return Ok(());
    }
    let bin = Places::find()?.bin();
    let left = settle_boxes(&bin, settings, args.purge)?;
    settings.stop()?;
    if left == 0 {
        settings.remove_netns()?;
    }
    if left > 0 {
        say::fact(&format!("{left} boxes are asleep with their memory and disks; `cargo xtask up` serves them again"));
        say::fact("to delete them: cargo xtask up --no-demo && cargo xtask down --purge");
    }
    Ok(())
}

/// Returns how many boxes stay.
fn settle_boxes(bin: &Path, settings: &Settings, purge: bool) -> Result<usize> {
    let icebox = Icebox::new(bin, settings);
    let boxes = icebox.boxes()?;
    let ids: Vec<&str> = boxes.iter().filter(|one| purge || is_awake(one)).map(|one| one.id.as_str()).collect();
    let verb: &[&str] = if purge { &["rm", "--force"] } else { &["freeze"] };
    if !ids.is_empty() {
        icebox.show(&[verb, &ids].concat())?;
    }
    Ok(if purge { 0 } else { boxes.len() })
}

/// Whether the box could use CPU: it is neither asleep nor without processes.
fn is_awake(one: &Listed) -> bool {
    matches!(one.status.as_str(), "idle" | "running")
}
