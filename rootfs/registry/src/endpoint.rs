//! A repository at one place: the registry itself, or a mirror of it. Requests there are authenticated and sent again after
//! failures that pass.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use icebox_rootfs::oci::Reference;
use rand::Rng as _;
use tokio::sync::OnceCell;
use url::Url;

use crate::answer::Answer;
use crate::challenge::{self, Challenge};
use crate::connect::{Dialer, Leash, place};
use crate::credentials::Credentials;
use crate::error::{Cause, refuse};
use crate::exchange::{Call, Payload, is_passing, same_origin};
use crate::reach::Reach;
use crate::settings::Registries;
use crate::token::{self, Wanted};

/// Attempts of one request.
pub(crate) const ATTEMPTS: u32 = 4;
/// Longest pause that a registry may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// Docker's own registry has another name than its images.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// What a request does in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    Pull,
    Push,
}

/// A repository at one place.
pub(crate) struct Endpoint {
    dialer: Arc<Dialer>,
    credentials: Arc<Credentials>,
    /// The registry as names and credentials have it.
    registry: String,
    /// The repository there, with the path before it.
    repository: String,
    base: OnceCell<Url>,
    reach: Mutex<Option<Reach>>,
    authorizations: Mutex<HashMap<Access, HeaderValue>>,
}

impl Registries {
    /// The places at which a repository may be read: its mirrors in order, then the registry itself.
    pub(crate) fn places(&self, reference: &Reference) -> Vec<Endpoint> {
        let mirrors = self.mirrors.get(reference.registry()).into_iter().flatten();
        let mut places: Vec<Endpoint> = mirrors.map(|mirror| self.at(mirror, reference.repository())).collect();
        places.push(self.at(reference.registry(), reference.repository()));
        places
    }

    /// The registry of this name itself.
    pub(crate) fn origin(&self, reference: &Reference) -> Endpoint {
        self.at(reference.registry(), reference.repository())
    }

    fn at(&self, place: &str, repository: &str) -> Endpoint {
        let (registry, repository) = match place.split_once('/') {
            Some((registry, path)) => (registry, format!("{}/{repository}", path.trim_end_matches('/'))),
            None => (place, repository.to_owned()),
        };
        Endpoint {
            dialer: Arc::clone(&self.dialer),
            credentials: Arc::clone(&self.credentials),
            registry: registry.to_owned(),
            repository,
            base: OnceCell::new(),
            reach: Mutex::default(),
            authorizations: Mutex::default(),
        }
    }
}

impl Endpoint {
    /// The place, for people and for what is stored.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    pub(crate) fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// Sends a request about the repository; `what` follows its path. Answers that pass are not among the results.
    pub(crate) async fn ask(
        &self,
        method: Method,
        what: &str,
        headers: &[(HeaderName, HeaderValue)],
        payload: Payload,
        access: Access,
    ) -> Result<Answer, Cause> {
        let mut attempt = 1;
        loop {
            let url = self.url(what).await;
            let done = match url {
                Ok(url) => self.ask_once(method.clone(), url, headers, payload.clone(), access).await,
                Err(cause) => Err(cause),
            };
            let (cause, asked) = match done {
                Ok(answer) if is_passing(answer.status) => {
                    let asked = retry_after(&answer.headers);
                    (answer.failure(self.dialer.timing.answer).await, asked)
                }
                Ok(answer) => return Ok(answer),
                Err(Cause::Unavailable(why)) => (Cause::Unavailable(why), None),
                Err(other) => return Err(other),
            };
            self.pause(&mut attempt, cause, asked).await?;
        }
    }

    /// Waits before the next attempt; the cause comes back if there is none.
    pub(crate) async fn pause(&self, attempt: &mut u32, cause: Cause, asked: Option<Duration>) -> Result<(), Cause> {
        if *attempt >= ATTEMPTS {
            return Err(cause);
        }
        if let Some(asked) = asked.filter(|asked| *asked > RETRY_AFTER_MAX) {
            return Err(Cause::Unavailable(format!("{cause}; it wants to be asked again in {} s", asked.as_secs())));
        }
        let pause = self.dialer.timing.pause * 2_u32.pow(*attempt - 1);
        // Not at the same time as all others that it has sent away.
        let pause = pause.mul_f64(rand::rng().random_range(1.0..1.5));
        tracing::debug!(place = self.name(), %cause, attempt = *attempt, "a registry is asked again");
        tokio::time::sleep(pause.max(asked.unwrap_or_default())).await;
        *attempt += 1;
        Ok(())
    }

    /// Sends a request with what the registry wants to see.
    pub(crate) async fn ask_once(
        &self,
        method: Method,
        url: Url,
        headers: &[(HeaderName, HeaderValue)],
        payload: Payload,
        access: Access,
    ) -> Result<Answer, Cause> {
        let base = self.base().await?;
        let ours = same_origin(&url, &base);
        let leash = if ours { Leash::Free } else { Leash::Within(self.reach().unwrap_or(Reach::Public)) };
        let mut asked_before = false;
        loop {
            let authorization = if ours { self.authorization(access) } else { None };
            let call = Call {
                method: method.clone(),
                url: url.clone(),
                headers: headers.to_vec(),
                authorization,
                payload: payload.clone(),
                leash,
            };
            let answer = self.dialer.send(call).await?;
            if ours && answer.reach.is_some() {
                *self.reach.lock().unwrap_or_else(PoisonError::into_inner) = answer.reach;
            }
            // A challenge of another host is not for the registry's credentials.
            if answer.status != StatusCode::UNAUTHORIZED || !ours || !same_origin(&answer.url, &base) {
                return Ok(answer);
            }
            if asked_before {
                let told = answer.failure(self.dialer.timing.answer).await;
                return Err(Cause::Denied(format!("{} does not allow it ({told})", self.name())));
            }
            asked_before = true;
            self.authenticate(&answer, access).await?;
        }
    }

    /// The URL of something of the repository.
    async fn url(&self, what: &str) -> Result<Url, Cause> {
        let base = self.base().await?;
        base.join(&format!("v2/{}/{what}", self.repository))
            .map_err(|cause| Cause::Refused(format!("{}: {cause}", self.name())))
    }

    /// `https://HOST/`, or `http://HOST/` where the operator allows it and the server has no TLS.
    async fn base(&self) -> Result<Url, Cause> {
        let find = || async {
            let host = if self.registry == DOCKER_HUB { DOCKER_HUB_HOST } else { &self.registry };
            let parse = |scheme: &str| {
                Url::parse(&format!("{scheme}://{host}/"))
                    .map_err(|cause| Cause::Refused(format!("{host} is no host of a registry: {cause}")))
            };
            let url = parse("https")?;
            if self.dialer.may_be_plain(&url) && !self.dialer.speaks_tls(&url).await? {
                return parse("http");
            }
            Ok(url)
        };
        self.base.get_or_try_init(find).await.cloned()
    }

    fn reach(&self) -> Option<Reach> {
        *self.reach.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn authorization(&self, access: Access) -> Option<HeaderValue> {
        self.authorizations.lock().unwrap_or_else(PoisonError::into_inner).get(&access).cloned()
    }

    /// Gets what the answer asks for.
    async fn authenticate(&self, answer: &Answer, access: Access) -> Result<(), Cause> {
        let challenges: Vec<Challenge> = answer
            .headers
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenge::parse)
            .collect();
        let credential = self.credentials.get(&self.registry, &self.repository).await;
        let credential = credential.map_err(|error| Cause::Refused(format!("{error}: {}", error.cause())))?;
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, service } => Some((realm, service)),
            Challenge::Basic => None,
        });
        let value = if let Some((realm, service)) = bearer {
            let actions = match access {
                Access::Pull => "pull",
                Access::Push => "pull,push",
            };
            // Not what the registry says: a token is for this repository and nothing else.
            let scope = format!("repository:{}:{actions}", self.repository);
            let wanted = Wanted {
                registry: &answer.url,
                reach: self.reach(),
                realm,
                service: service.as_deref(),
                scope: &scope,
                credential: credential.as_ref(),
            };
            token::get(&self.dialer, &wanted).await?
        } else if challenges.contains(&Challenge::Basic) {
            let Some(value) = credential.as_ref().and_then(|credential| credential.basic()) else {
                return Err(Cause::Denied(format!(
                    "{} wants a user and a password, and there is none for it; put them into the file with credentials, as \
                     `podman login --authfile FILE {}` does",
                    self.registry, self.registry
                )));
            };
            value
        } else {
            refuse!("{} wants credentials in a way that is not known here", place(&answer.url));
        };
        self.authorizations.lock().unwrap_or_else(PoisonError::into_inner).insert(access, value);
        Ok(())
    }
}

/// The pause that a registry asks for. A date counts as the longest.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    Some(value.trim().parse().map_or(RETRY_AFTER_MAX, Duration::from_secs))
}
