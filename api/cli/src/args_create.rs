//! Options of the verbs that make a box: plain data, without behaviour beyond parsing single values.

use clap::ValueEnum;

use super::args_volume::{VolumeOption, parse_volume};
use super::human::parse_duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Size {
    /// 2 cores, 4 GB memory, 5 GB disk
    Small,
    /// 4 cores, 8 GB memory, 10 GB disk
    Medium,
    /// 8 cores, 16 GB memory, 20 GB disk
    Large,
}

impl Size {
    /// The word on the wire.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Medium => "medium",
            Self::Large => "large",
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// A name of your choice, usable wherever an id is
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// What it stands on: an image of `icebox image ls`, or a runtime that the operator has named
    #[arg(long, value_name = "IMAGE", visible_alias = "runtime")]
    pub(crate) image: Option<String>,
    /// How big
    #[arg(long, value_enum)]
    pub(crate) size: Option<Size>,
    /// A label, to find it again with `ls --label` (repeatable)
    #[arg(long = "label", value_name = "LABEL")]
    pub(crate) labels: Vec<String>,
    /// An environment variable of every command; a bare NAME is taken from here (repeatable)
    #[arg(long = "env", short = 'e', value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub(crate) env: Vec<(String, String)>,
    /// Freeze after this long without work: 90, 30s, 10m, 1h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "keep_alive")]
    pub(crate) idle: Option<u64>,
    /// Never freeze it
    #[arg(long)]
    pub(crate) keep_alive: bool,
    /// A shell command that runs in the background at every start
    #[arg(long, value_name = "COMMAND")]
    pub(crate) init_command: Option<String>,
    /// Delete it by itself after --ttl
    #[arg(long)]
    pub(crate) ephemeral: bool,
    /// Life of an ephemeral box: 90, 30s, 10m, 1h, at most 3d
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "ephemeral")]
    pub(crate) ttl: Option<u64>,
    /// A volume beside its disk: NAME:/path, or NAME:/path:ro to read it only (repeatable)
    #[arg(long = "volume", value_name = "NAME:PATH", value_parser = parse_volume)]
    pub(crate) volumes: Vec<VolumeOption>,
    /// What it may reach; lists alone mean `custom`
    #[arg(long, value_enum, value_name = "MODE")]
    pub(crate) policy: Option<PolicyMode>,
    #[command(flatten)]
    pub(crate) lists: PolicyLists,
}

/// What a box may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PolicyMode {
    /// Everything but what is closed to every box
    AllowAll,
    /// Nothing
    DenyAll,
    /// What the lists say
    Custom,
}

impl PolicyMode {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::AllowAll => "allow-all",
            Self::DenyAll => "deny-all",
            Self::Custom => "custom",
        }
    }
}

#[derive(Debug, Default, clap::Args)]
pub(crate) struct PolicyLists {
    /// A name that may be reached, or *.SUFFIX for all below one (repeatable)
    #[arg(long = "allow-domain", value_name = "DOMAIN")]
    pub(crate) allow_domains: Vec<String>,
    /// A network that may be reached (repeatable)
    #[arg(long = "allow-cidr", value_name = "NETWORK")]
    pub(crate) allow_cidrs: Vec<String>,
    /// A network that is closed; it wins over every --allow-… option (repeatable)
    #[arg(long = "deny-cidr", value_name = "NETWORK")]
    pub(crate) deny_cidrs: Vec<String>,
}

/// `NAME=VALUE`, or `NAME` with the value that it has here.
pub(crate) fn parse_variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => (text, std::env::var(text).map_err(|_| format!("`{text}` is not set here; write {text}=VALUE"))?),
    };
    if name.is_empty() || name.contains('\0') || value.contains('\0') {
        return Err("write NAME=VALUE".to_owned());
    }
    Ok((name.to_owned(), value))
}
