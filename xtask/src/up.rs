//! `cargo xtask up`: from a fresh machine to a box that sleeps and wakes.

use clap::Args;

use crate::daemon::{HostSide, Settings};
use crate::error::Result;
use crate::icebox::Icebox;
use crate::places::Places;
use crate::{build, demo, deps, run, say};

/// Options of `up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    settings: Settings,
    /// Start iceboxd, but show nothing
    #[arg(long)]
    no_demo: bool,
    /// Connect boxes through this machine's own network: iceboxd makes links, an nftables table `icebox`, and turns on
    /// forwarding for the uplink. Without, boxes have a network of their own that leads nowhere
    #[arg(long, conflicts_with = "netns")]
    host_network: bool,
    /// Connect boxes through this network namespace: a path, or a name of `ip netns`
    #[arg(long, value_name = "PATH|NAME")]
    netns: Option<String>,
}

impl UpArgs {
    fn host_side(&self) -> HostSide {
        match &self.netns {
            Some(name) => HostSide::Named(name.clone()),
            None if self.host_network => HostSide::Own,
            None => HostSide::Apart,
        }
    }
}

/// Installs, builds, prepares, starts, shows.
pub(crate) fn up(args: &UpArgs) -> Result<()> {
    run::require_root("up")?;
    let places = Places::find()?;
    say::heading("Debian packages");
    deps::ensure(&[deps::BUILD, deps::IMAGE, deps::RUN])?;
    say::fact("everything needed is installed");
    let bin = build::build_with_image(&places, build::Wanted::OfBoxes)?;
    say::heading("iceboxd");
    args.settings.start(&bin, &args.host_side())?;
    if !args.no_demo {
        demo::show(&Icebox::new(&bin, &args.settings), &places.target.join("icebox/demo"))?;
    }
    if args.host_side() == HostSide::Apart {
        say::heading("Network");
        say::fact("boxes have no way out yet: nothing of this machine's network was changed");
        say::fact("to connect them through it: cargo xtask up --host-network");
    }
    say_how_to_go_on(&places, &args.settings);
    Ok(())
}

fn say_how_to_go_on(places: &Places, settings: &Settings) {
    let is_default = settings.run_dir == std::path::Path::new("/run/icebox");
    let run_dir = if is_default { String::new() } else { format!(" --run-dir {}", settings.run_dir.display()) };
    say::heading("How to go on");
    say::fact(&format!("export PATH=\"$PATH:{}\"", places.bin().display()));
    say::fact(&format!("icebox{run_dir} exec hello                     a shell in the box"));
    say::fact(&format!("icebox{run_dir} --help                         everything else"));
    say::fact(&format!("eval \"$(icebox{run_dir} env)\"                  point clients at this server, then:"));
    say::fact("  npm install @upstash/box                import { Box } from \"@upstash/box\"; await Box.create()");
    say::fact("  pip install upstash-box                 from upstash_box import Box; Box.create()");
    say::fact("  curl -H \"X-Box-Api-Key: $UPSTASH_BOX_API_KEY\" $UPSTASH_BOX_BASE_URL/v2/box");
    say::fact(&format!("log: {}", settings.log_path().display()));
    say::fact(&format!("stop: cargo xtask down{run_dir}     (boxes keep their disks; --purge deletes them)"));
}
