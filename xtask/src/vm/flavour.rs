//! The flavours of guests.

use clap::ValueEnum;

/// What is PID 1 in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Flavour {
    /// A few lines of shell; all controllers are enabled
    Minimal,
    /// systemd
    Systemd,
}

impl Flavour {
    /// Its name, as on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Flavour::Minimal => "minimal",
            Flavour::Systemd => "systemd",
        }
    }
}

impl std::fmt::Display for Flavour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
