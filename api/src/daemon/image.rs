//! `iceboxd image`: builds the base image.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

use icebox_rootfs::image::{self, Phase, Progress};
use icebox_shim::launch::Tools;

use crate::config::Config;
use crate::error::Error;

pub(super) fn run(config: &Config) -> Result<ExitCode, Error> {
    let dir = config.image_dir();
    let subject = dir.display().to_string();
    let found = image::find(&dir).map_err(|cause| Error::new("find the base image in", &subject, cause))?;
    let base = match found {
        Some(base) => {
            eprintln!("the base image is there already: {}", base.dir.display());
            base
        }
        None => {
            let mut shown = Shown::new();
            let built = image::build(&dir, &mut |progress| shown.show(&progress));
            shown.end();
            built.map_err(|cause| Error::new("build the base image in", &subject, cause))?
        }
    };
    // The layer with our own tools belongs to this build of Icebox; it cannot be made without the init.
    let tools = Tools::beside_current_exe().map_err(|cause| Error::new("find the init", "", cause))?;
    if tools.init.exists() {
        image::tools_layer(&dir, &tools.init)
            .map_err(|cause| Error::new("make the tools layer in", &subject, cause))?;
    }
    println!("{}", base.rootfs.display());
    Ok(ExitCode::SUCCESS)
}

/// Progress on standard error: one line that changes on a terminal, one line per phase elsewhere.
struct Shown {
    terminal: bool,
    phase: Option<Phase>,
    began: Instant,
}

impl Shown {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), phase: None, began: Instant::now() }
    }

    fn show(&mut self, progress: &Progress) {
        let fresh = self.phase != Some(progress.phase);
        self.phase = Some(progress.phase);
        if !self.terminal && !fresh {
            return;
        }
        let what = progress.phase;
        let count = match progress.total {
            Some(total) => format!(" {}/{total}", progress.done),
            None if progress.done > 0 => format!(" {}", progress.done),
            None => String::new(),
        };
        let seconds = self.began.elapsed().as_secs();
        // A failed write to standard error cannot be reported.
        let _ = if self.terminal {
            let detail: String = progress.detail.chars().take(40).collect();
            write!(std::io::stderr(), "\r\x1b[K[{seconds:>3} s] {what}{count} {detail}")
        } else {
            writeln!(std::io::stderr(), "[{seconds:>3} s] {what}{count}")
        };
    }

    fn end(&self) {
        if self.terminal {
            eprintln!();
        }
        eprintln!("done in {} s", self.began.elapsed().as_secs());
    }
}
