//! Runtimes.

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use crate::boxes::KnownRuntime;
use crate::builds::Stage;

/// A runtime of this host.
#[derive(Debug, Serialize, ToSchema)]
pub struct RuntimeFacts {
    /// The name that boxes ask for.
    pub name: String,
    /// What a box that asks for it now gets.
    pub state: RuntimeState,
    /// The name of its image.
    pub image: String,
    /// The id of its image, if it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Bytes of all files in the layers of its image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Megabytes that a build of it fetches, about; absent if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fetches_mb: Option<u32>,
    /// Megabytes that its layers take beside the base image, about; absent if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stores_mb: Option<u32>,
    /// The step of its build, while it is being built; or why it cannot be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Seconds since its build began, while it is being built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// The Boxfile that the operator has configured; for the operator only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boxfile: Option<String>,
}

/// What a box that asks for a runtime gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeState {
    /// Its image.
    Ready,
    /// Its image, which a build now would make differently: the Boxfile or the base image has changed.
    Outdated,
    /// The base image, since its own image is not built.
    Base,
    /// Its image, after a build of it.
    BuiltOnCreate,
    /// Its image, after the build that goes on.
    Building,
    /// A refusal.
    Missing,
}

impl RuntimeFacts {
    /// The facts, with the build that a box has asked for.
    #[must_use]
    pub fn of(known: KnownRuntime, stage: Option<(Stage, Duration)>, operator: bool) -> Self {
        let state = match (&known.image, &stage) {
            (Some(_), _) if known.is_outdated() => RuntimeState::Outdated,
            (Some(_), _) => RuntimeState::Ready,
            (None, Some((Stage::Waiting | Stage::Step(_), _))) => RuntimeState::Building,
            (None, _) if known.in_base => RuntimeState::Base,
            (None, _) if known.on_create && known.error.is_none() => RuntimeState::BuiltOnCreate,
            (None, _) => RuntimeState::Missing,
        };
        let (text, seconds) = match stage {
            Some((stage @ (Stage::Waiting | Stage::Step(_)), since)) => {
                (Some(stage.to_string()), Some(since.as_secs()))
            }
            Some((Stage::Failed(why), _)) if known.image.is_none() => (Some(why), None),
            _ => (known.error, None),
        };
        let megabytes = known.recipe.and_then(|recipe| recipe.megabytes);
        Self {
            name: known.name,
            state,
            image: known.image_name,
            size_bytes: known.image.as_ref().map(|image| image.size_bytes),
            id: known.image.map(|image| image.id),
            fetches_mb: megabytes.map(|(fetched, _)| fetched),
            stores_mb: megabytes.map(|(_, stored)| stored),
            text,
            seconds,
            boxfile: known.path.filter(|_| operator).map(|path| path.display().to_string()),
        }
    }
}
