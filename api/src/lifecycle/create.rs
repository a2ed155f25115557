//! Creating a box: the request is checked, `boxes` makes the box, and it is provisioned.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Lifecycle;
use super::agent::AgentRequest;
use super::provision::TRUST_ENV;
use crate::boxes::{Entry, NewBox, Origin, Restorable, Secret, check_policy, policy_in_force, to_the_end};
use crate::config::check_idle_seconds;
use crate::db::Account;
use crate::domain::{BoxSettings, BoxSize, NetworkPolicy, VolumeRequest, check_volumes};
use crate::error::Error;
use crate::ids::{self, ENV_VARS_MAX};
use crate::refusal::Refusal;
use icebox_net::headers::{HeaderRules, Wanted};

/// Longest life of an ephemeral box, and the default: 3 days.
const TTL_SECONDS_MAX: u64 = 259_200;
/// Longest init command.
const INIT_COMMAND_BYTES_MAX: usize = 64 * 1024;
/// Longest name of a runtime: a reference with a digest fits.
const RUNTIME_BYTES_MAX: usize = 512;
/// Longest token or key.
const SECRET_BYTES_MAX: usize = 4096;
/// Longest name or address for git.
const GIT_IDENTITY_BYTES_MAX: usize = 256;

/// A request for a new box, not checked yet; absent fields have their default.
#[derive(Debug, Clone, Default)]
pub struct BoxRequest {
    /// A name, unique in the account.
    pub name: Option<String>,
    /// Labels.
    pub labels: Vec<String>,
    /// Size class.
    pub size: Option<BoxSize>,
    /// Size of the disk, if it is not that of the class.
    pub disk_gib: Option<u32>,
    /// Never put it to sleep.
    pub keep_alive: bool,
    /// A shell command that runs in the background at each start.
    pub init_command: Option<String>,
    /// What it stands on: a name of `[runtimes]` in the configuration, an image of this host, or `node` or `python`, which are
    /// in the base image.
    pub runtime: Option<String>,
    /// Environment of every command.
    pub env: BTreeMap<String, String>,
    /// Author name for git.
    pub git_user_name: Option<String>,
    /// Author address for git.
    pub git_user_email: Option<String>,
    /// Connections it may make.
    pub network_policy: Option<NetworkPolicy>,
    /// Headers that are added to its outgoing requests.
    pub headers: Option<Wanted>,
    /// Delete it automatically after `ttl_seconds`.
    pub ephemeral: bool,
    /// Life of an ephemeral box.
    pub ttl_seconds: Option<u64>,
    /// Seconds without work until it sleeps.
    pub idle_seconds: Option<u64>,
    /// An agent.
    pub agent: AgentRequest,
    /// Token for git's servers.
    pub github_token: Option<Secret>,
    /// Key of the agent's provider.
    pub agent_api_key: Option<Secret>,
    /// Volumes beside its disk.
    pub volumes: Vec<VolumeRequest>,
}

/// Settings of a new box that come from its account, from this host, and from the box of which it is a copy.
#[derive(Debug, Default)]
struct Defaults {
    env: BTreeMap<String, String>,
    headers: Option<HeaderRules>,
    has_network: bool,
    copied: Option<BoxSettings>,
}

impl Lifecycle {
    /// Creates a box. On return the box is on disk, accepts work, and is provisioned. The creation finishes even if the
    /// client disconnects.
    pub async fn create(&self, account: &Account, request: BoxRequest) -> Result<Arc<Entry>, Refusal> {
        let wanted = self.wanted(account, request, None).await?;
        let lifecycle = self.clone();
        to_the_end(async move {
            let entry = lifecycle.boxes.create(wanted).await?;
            lifecycle.provision(&entry).await;
            Ok(entry)
        })
        .await
    }

    /// Refuses what [`Lifecycle::create`] would refuse of this request, for callers with work to do before it.
    pub async fn check(&self, account: &Account, request: BoxRequest) -> Result<(), Refusal> {
        self.wanted(account, request, None).await.map(drop)
    }

    /// The request, checked and filled in; `copied` are the settings of the box of which it is a copy.
    pub(super) async fn wanted(
        &self,
        account: &Account,
        request: BoxRequest,
        copied: Option<BoxSettings>,
    ) -> Result<NewBox, Refusal> {
        let defaults = self.defaults(account, copied).await?;
        let wanted = checked(request, account, defaults)?;
        self.boxes.check_policy_possible(&policy_in_force(&wanted.settings))?;
        Ok(wanted)
    }

    /// Creates a box from a snapshot, like [`Lifecycle::create`]. What the request leaves out comes from the snapshot: size,
    /// environment, agent, network policy, git's identity; not the init command, the headers, the tokens, or the volumes.
    pub async fn restore(&self, account: &Account, id: &str, request: BoxRequest) -> Result<Arc<Entry>, Refusal> {
        let found = self.boxes.find_snapshot(&account.id, id).await?;
        let copied: BoxSettings = serde_json::from_str(&found.settings)
            .map_err(|cause| Error::new("read the settings of", &found.id, cause))?;
        let has_git = request.git_user_name.is_some() || request.git_user_email.is_some();
        // The request is checked before the content is read, which may take a while.
        let mut wanted = self.wanted(account, request, Some(copied)).await?;
        let (lifecycle, account, id) = (self.clone(), account.id.clone(), id.to_owned());
        to_the_end(async move {
            let Restorable { record, agent_key, content } = lifecycle.boxes.open_snapshot(&account, &id).await?;
            wanted.agent_api_key = wanted.agent_api_key.or(agent_key);
            wanted.origin = Some(Origin { content, image: record.image });
            let entry = lifecycle.boxes.create(wanted).await?;
            lifecycle.provision_copy(&entry, has_git).await;
            Ok(entry)
        })
        .await
    }

    async fn defaults(&self, account: &Account, copied: Option<BoxSettings>) -> Result<Defaults, Refusal> {
        let given = self.db.account_defaults(&account.id).await?;
        Ok(Defaults {
            env: given.env.clone(),
            headers: self.boxes.open_account_headers(&account.id, given.sealed_headers.as_deref())?,
            has_network: self.boxes.has_network(),
            copied,
        })
    }
}

/// Checks a request and fills in the defaults.
fn checked(request: BoxRequest, account: &Account, defaults: Defaults) -> Result<NewBox, Refusal> {
    let Defaults { mut env, headers: general, has_network, copied } = defaults;
    check_runtime(request.runtime.as_deref())?;
    let request = match copied {
        Some(copied) => completed(request, copied, &mut env)?,
        None => request,
    };
    if let Some(name) = &request.name {
        ids::check_name(name).map_err(Refusal::Invalid)?;
    }
    let labels = without_repetitions(request.labels);
    ids::check_labels(&labels).map_err(Refusal::Invalid)?;
    check_env(&request.env)?;
    env.extend(request.env);
    if let Some(seconds) = request.idle_seconds {
        check_idle_seconds(seconds).map_err(Refusal::Invalid)?;
    }
    let own = request.headers.map(|wanted| check_headers(&wanted, has_network)).transpose()?.flatten();
    let headers = match (own, general) {
        (Some(own), Some(general)) => Some(own.over(&general)),
        (own, general) => own.or(general),
    };
    let headers = headers.map(Arc::new);
    if headers.is_some() {
        for (name, value) in TRUST_ENV {
            env.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    check_volumes(&request.volumes).map_err(Refusal::Invalid)?;
    let agent = request.agent.checked()?;
    let settings = BoxSettings {
        size: request.size.unwrap_or_default(),
        disk_gib: request.disk_gib,
        keep_alive: request.keep_alive,
        ephemeral: request.ephemeral,
        runtime: request.runtime,
        init_command: check_init_command(request.init_command)?,
        env,
        labels,
        git_user_name: check_git_identity(request.git_user_name)?,
        git_user_email: check_git_identity(request.git_user_email)?,
        idle_seconds: request.idle_seconds,
        keep: None,
        undo: None,
        forked_from: None,
        agent: agent.harness,
        model: agent.model,
        custom_runner: agent.custom_runner,
        volumes: Vec::new(),
        build: false,
        network_policy: Some(policy_of(request.network_policy, has_network)?),
    };
    let ttl_seconds = if request.ephemeral { Some(check_ttl(request.ttl_seconds)?) } else { None };
    Ok(NewBox {
        account_id: account.id.clone(),
        name: request.name,
        settings,
        ttl_seconds,
        account_idle: account.idle_seconds,
        headers,
        root: None,
        github_token: check_secret("github_token", request.github_token)?,
        agent_api_key: check_secret("agent_api_key", request.agent_api_key)?,
        origin: None,
        volumes: request.volumes,
    })
}

/// Fills in what a request for a copy leaves out. The environment of the copied box wins over the account's, and
/// the request's over both.
fn completed(
    request: BoxRequest,
    copied: BoxSettings,
    env: &mut BTreeMap<String, String>,
) -> Result<BoxRequest, Refusal> {
    if let (Some(wanted), Some(has)) = (&request.runtime, &copied.runtime)
        && wanted != has
    {
        return Err(Refusal::Invalid(format!("a box from this snapshot keeps its runtime '{has}'")));
    }
    env.extend(copied.env);
    let has_agent = request.agent.harness.is_some() || request.agent.model.is_some();
    let copied_agent = AgentRequest { harness: copied.agent, model: copied.model, custom_runner: copied.custom_runner };
    Ok(BoxRequest {
        // A disk that has grown has copies of its size, unless a size class is asked for.
        disk_gib: if request.size.is_none() { copied.disk_gib } else { None },
        size: request.size.or(Some(copied.size)),
        runtime: request.runtime.or(copied.runtime),
        git_user_name: request.git_user_name.or(copied.git_user_name),
        git_user_email: request.git_user_email.or(copied.git_user_email),
        network_policy: request.network_policy.or(copied.network_policy),
        agent: if has_agent { request.agent } else { copied_agent },
        ..request
    })
}

/// A token or key; an empty one counts as none.
fn check_secret(what: &str, value: Option<Secret>) -> Result<Option<Secret>, Refusal> {
    match value.filter(|value| !value.0.is_empty()) {
        Some(value) if value.0.len() > SECRET_BYTES_MAX || value.0.chars().any(char::is_control) => {
            let text = format!("{what} must have at most {SECRET_BYTES_MAX} bytes, without control characters");
            Err(Refusal::Invalid(text))
        }
        other => Ok(other),
    }
}

/// An unknown runtime is refused, never ignored: the client would rely on it.
/// The form only: `boxes` knows the images of this host.
fn check_runtime(runtime: Option<&str>) -> Result<(), Refusal> {
    match runtime {
        Some(name) if name.is_empty() || name.len() > RUNTIME_BYTES_MAX => {
            Err(Refusal::Invalid(format!("runtime must have 1 to {RUNTIME_BYTES_MAX} bytes")))
        }
        _ => Ok(()),
    }
}

/// Checks a whole environment.
pub fn check_env(env: &BTreeMap<String, String>) -> Result<(), Refusal> {
    if env.len() > ENV_VARS_MAX {
        return Err(Refusal::Invalid(format!("at most {ENV_VARS_MAX} environment variables can be set")));
    }
    env.iter().try_for_each(|(name, value)| ids::check_env(name, value)).map_err(Refusal::Invalid)
}

/// The headers to add to requests; none if the list is empty.
pub fn check_headers(wanted: &Wanted, has_network: bool) -> Result<Option<HeaderRules>, Refusal> {
    if !has_network {
        let text = "attach_headers need a network, and boxes of this Icebox have none (`[network] enabled = false`)";
        return Err(Refusal::Invalid(text.into()));
    }
    let rules = HeaderRules::check(wanted).map_err(|wrong| Refusal::Invalid(format!("attach_headers: {wrong}")))?;
    Ok((!rules.is_empty()).then_some(rules))
}

/// The requested policy; by default all connections, if there is a network.
fn policy_of(asked: Option<NetworkPolicy>, has_network: bool) -> Result<NetworkPolicy, Refusal> {
    let Some(asked) = asked else {
        return Ok(if has_network { NetworkPolicy::allow_all() } else { NetworkPolicy::deny_all() });
    };
    check_policy(&asked)?;
    Ok(asked)
}

/// An init command; an empty one counts as none.
pub fn check_init_command(command: Option<String>) -> Result<Option<String>, Refusal> {
    match command {
        Some(command) if command.len() > INIT_COMMAND_BYTES_MAX => {
            Err(Refusal::Invalid(format!("init_command must have at most {INIT_COMMAND_BYTES_MAX} bytes")))
        }
        Some(command) if command.contains('\0') => Err(Refusal::Invalid("init_command must not contain NUL".into())),
        Some(command) if command.trim().is_empty() => Ok(None),
        other => Ok(other),
    }
}

/// A name or address for git; an empty one counts as none.
pub fn check_git_identity(value: Option<String>) -> Result<Option<String>, Refusal> {
    match value {
        Some(value) if value.len() > GIT_IDENTITY_BYTES_MAX || value.chars().any(char::is_control) => {
            Err(Refusal::Invalid(format!(
                "a git name or address must have at most {GIT_IDENTITY_BYTES_MAX} bytes, without control characters"
            )))
        }
        Some(value) if value.trim().is_empty() => Ok(None),
        other => Ok(other),
    }
}

fn check_ttl(ttl: Option<u64>) -> Result<u64, Refusal> {
    match ttl {
        None => Ok(TTL_SECONDS_MAX),
        Some(seconds) if (1..=TTL_SECONDS_MAX).contains(&seconds) => Ok(seconds),
        Some(_) => Err(Refusal::Invalid(format!("ttl must be 1 to {TTL_SECONDS_MAX} seconds"))),
    }
}

fn without_repetitions(labels: Vec<String>) -> Vec<String> {
    let mut unique: Vec<String> = Vec::new();
    for label in labels {
        if !unique.contains(&label) {
            unique.push(label);
        }
    }
    unique
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(request: BoxRequest) -> Result<NewBox, Refusal> {
        let account = Account { id: "a".into(), name: "default".into(), key_sha256: [0; 32], idle_seconds: None };
        let env = BTreeMap::from([("A".to_owned(), "account".to_owned()), ("B".to_owned(), "account".to_owned())]);
        checked(request, &account, Defaults { env, headers: None, has_network: true, copied: None })
    }

    #[test]
    fn an_empty_request_gives_a_plain_box() {
        let plain = check(BoxRequest::default()).expect("a plain box");
        assert_eq!(plain.settings.size, BoxSize::Small);
        assert_eq!((plain.name, plain.ttl_seconds), (None, None));
        assert_eq!(plain.settings.env.len(), 2);
        assert_eq!(plain.settings.network_policy, Some(NetworkPolicy::allow_all()));
    }

    #[test]
    fn the_box_wins_over_the_account() {
        let env = BTreeMap::from([("A".to_owned(), "box".to_owned())]);
        let made = check(BoxRequest { env, ..BoxRequest::default() }).expect("a box");
        assert_eq!((made.settings.env["A"].as_str(), made.settings.env["B"].as_str()), ("box", "account"));
    }

    #[test]
    fn bad_values_are_refused() {
        let plain = BoxRequest::default;
        let text = |text: &str| Some(text.to_owned());
        for request in [
            BoxRequest { name: text("../x"), ..plain() },
            BoxRequest { name: text("snapshots"), ..plain() },
            BoxRequest { labels: vec!["ä".into()], ..plain() },
            BoxRequest { labels: (1..=6).map(|n| n.to_string()).collect(), ..plain() },
            BoxRequest { env: BTreeMap::from([("LD_PRELOAD".to_owned(), "x".to_owned())]), ..plain() },
            BoxRequest { env: BTreeMap::from([("A B".to_owned(), "x".to_owned())]), ..plain() },
            BoxRequest { ephemeral: true, ttl_seconds: Some(0), ..plain() },
            BoxRequest { ephemeral: true, ttl_seconds: Some(TTL_SECONDS_MAX + 1), ..plain() },
            BoxRequest { idle_seconds: Some(0), ..plain() },
            BoxRequest { init_command: Some("x".repeat(INIT_COMMAND_BYTES_MAX + 1)), ..plain() },
            BoxRequest { git_user_name: text("a\nb"), ..plain() },
            BoxRequest { runtime: text(""), ..plain() },
            BoxRequest { runtime: Some("x".repeat(RUNTIME_BYTES_MAX + 1)), ..plain() },
        ] {
            assert!(matches!(check(request.clone()), Err(Refusal::Invalid(_))), "{request:?}");
        }
        let unset = BoxRequest { init_command: text(""), git_user_name: text(" "), ..plain() };
        let unset = check(unset).expect("a box").settings;
        assert_eq!((unset.init_command, unset.git_user_name), (None, None));
    }

    #[test]
    fn ephemeral_boxes_live_three_days_at_most_and_by_default() {
        let ephemeral = |ttl_seconds| BoxRequest { ephemeral: true, ttl_seconds, ..BoxRequest::default() };
        assert_eq!(check(ephemeral(None)).expect("a box").ttl_seconds, Some(TTL_SECONDS_MAX));
        assert_eq!(check(ephemeral(Some(60))).expect("a box").ttl_seconds, Some(60));
    }
}
