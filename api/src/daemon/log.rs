//! The daemon's own log: to standard error, filtered by `ICEBOX_LOG` (default `info`).

use tracing_subscriber::EnvFilter;

/// Starts logging. Once per process.
pub(super) fn start(json: bool) {
    let filter = EnvFilter::try_from_env("ICEBOX_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let logging = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    if json {
        logging.json().init();
    } else {
        // No colours in files and journals.
        logging.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
    }
}
