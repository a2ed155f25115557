//! What a client asks of a build, what it is told, and what the build is made with.

use std::collections::BTreeMap;
use std::time::Duration;

use icebox_rootfs::oci::Reference;
use tokio::runtime::Handle;

use crate::boxes::Boxes;
use crate::db::Account;
use crate::domain::runtimes::{self, Recipe};
use crate::domain::{BoxSize, NetworkPolicy};
use crate::lifecycle::Lifecycle;
use crate::runs::Runs;

/// Longest time of one command.
pub const STEP_LIMIT_MAX: Duration = Duration::from_secs(24 * 3600);
/// Time of one command if the client says nothing.
pub const STEP_LIMIT_DEFAULT: Duration = Duration::from_secs(3600);

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct Order {
    /// The account that owns the boxes of the build.
    pub account: Account,
    /// The name of the Boxfile.
    pub file: Option<String>,
    /// The name of the image.
    pub tag: Option<Reference>,
    /// The stage.
    pub target: Option<String>,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// False if results of earlier builds are not taken.
    pub cache: bool,
    /// The connections that commands may make.
    pub network_policy: NetworkPolicy,
    /// The size of the boxes.
    pub size: BoxSize,
    /// Longest time of one command.
    pub step_limit: Duration,
    /// Labels that the image gets beside those of its Boxfile.
    pub labels: BTreeMap<String, String>,
    /// What the client is told before the first step.
    pub notes: Vec<String>,
    /// True if commands reach the network through the daemon's own, by a forward proxy.
    pub host_proxy: bool,
}

impl Order {
    /// A build of the last stage, without a name.
    #[must_use]
    pub fn new(account: Account, network_policy: NetworkPolicy, host_proxy: bool) -> Self {
        Self {
            account,
            file: None,
            tag: None,
            target: None,
            args: BTreeMap::new(),
            cache: true,
            network_policy,
            size: BoxSize::default(),
            step_limit: STEP_LIMIT_DEFAULT,
            labels: BTreeMap::new(),
            notes: Vec::new(),
            host_proxy,
        }
    }

    /// A build of a runtime, by the name that boxes find it by.
    #[must_use]
    pub fn of_runtime(recipe: &Recipe, account: Account, network_policy: NetworkPolicy, host_proxy: bool) -> Self {
        Self {
            file: Some(recipe.name.clone()),
            tag: runtimes::image_name(&recipe.name).parse().ok(),
            labels: BTreeMap::from([(runtimes::LABEL.to_owned(), recipe.digest())]),
            notes: recipe.cost().into_iter().collect(),
            ..Self::new(account, network_policy, host_proxy)
        }
    }
}

/// What a build is made with.
#[derive(Debug, Clone)]
pub(super) struct Means {
    pub(super) boxes: Boxes,
    pub(super) lifecycle: Lifecycle,
    pub(super) runs: Runs,
    pub(super) runtime: Handle,
}
