//! Runtimes that are built because a box asks for one.
//!
//! Owns: which runtimes are being built now, and how the last attempts went. One build of a runtime serves all who wait for
//! it, and goes on when they have gone. Builds queue like any other.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::record::Record;
use crate::domain::runtimes::Recipe;
use crate::error::{Cause, Error};
use crate::refusal::Refusal;

/// How long a creation waits. Clients on node give up after 300 seconds without an answer, and would not learn why.
const WAIT_MAX: Duration = Duration::from_secs(280);
/// How long a failure is repeated to those who ask again: a client in a loop must not make the host build in a loop.
const FAILURE_STAYS: Duration = Duration::from_secs(60);
/// Lines of a failed command that are repeated.
const LINES_MAX: usize = 5;

/// The builds of runtimes, by their names.
#[derive(Debug, Clone, Default)]
pub(super) struct OnDemand(Arc<Mutex<HashMap<String, Job>>>);

#[derive(Debug)]
struct Job {
    progress: watch::Receiver<Stage>,
    recipe: Recipe,
    began: Instant,
}

/// How far a build is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Another build goes on.
    Waiting,
    /// This step, for people.
    Step(String),
    /// The image is there.
    Built,
    /// Why it is not.
    Failed(String),
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => f.write_str("waits for another build"),
            Self::Step(text) | Self::Failed(text) => f.write_str(text),
            Self::Built => f.write_str("built"),
        }
    }
}

impl OnDemand {
    /// The build to wait for, and where to tell of it if it is a new one.
    fn join(&self, recipe: &Recipe) -> (watch::Receiver<Stage>, Option<watch::Sender<Stage>>) {
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(job) = jobs.get(&recipe.name) {
            let stays = match &*job.progress.borrow() {
                Stage::Waiting | Stage::Step(_) => job.progress.has_changed().is_ok(),
                // Another Boxfile may do better at once.
                Stage::Failed(_) => job.recipe == *recipe && job.began.elapsed() < FAILURE_STAYS,
                Stage::Built => false,
            };
            if stays {
                return (job.progress.clone(), None);
            }
        }
        let (sender, progress) = watch::channel(Stage::Waiting);
        let job = Job { progress: progress.clone(), recipe: recipe.clone(), began: Instant::now() };
        jobs.insert(recipe.name.clone(), job);
        (progress, Some(sender))
    }

    /// The failure counts from its end.
    fn failed(&self, name: &str) {
        if let Some(job) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(name) {
            job.began = Instant::now();
        }
    }

    /// How far the build of a runtime is, and for how long; none if there was none.
    pub(super) fn stage(&self, runtime: &str) -> Option<(Stage, Duration)> {
        let jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.get(runtime).map(|job| (job.progress.borrow().clone(), job.began.elapsed()))
    }

    /// Waits for the image of a runtime; `start` begins the build if none goes on, and gives its records.
    pub(super) async fn have_built(
        &self,
        recipe: &Recipe,
        start: impl FnOnce() -> Result<mpsc::Receiver<Record>, Error>,
    ) -> Result<(), Refusal> {
        let (mut progress, fresh) = self.join(recipe);
        if let Some(tell) = fresh {
            let records = start()?;
            let cost = recipe.cost().unwrap_or_default();
            tracing::info!(runtime = recipe.name, cost, "a box asks for a runtime, which is built first");
            let (name, jobs) = (recipe.name.clone(), self.clone());
            tokio::spawn(async move {
                follow(&name, records, &tell).await;
                if matches!(&*tell.borrow(), Stage::Failed(_)) {
                    jobs.failed(&name);
                }
            });
        }
        let ended = |stage: &Stage| matches!(stage, Stage::Built | Stage::Failed(_));
        let name = &recipe.name;
        let waited = tokio::time::timeout(WAIT_MAX, progress.wait_for(ended)).await;
        let waited = waited.map(|seen| seen.map(|stage| stage.clone()));
        match waited {
            Ok(Ok(Stage::Failed(why))) => {
                Err(Refusal::Unavailable(format!("the runtime '{name}' could not be built: {why}")))
            }
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::new("build the runtime", name, Cause::WorkerEnded).into()),
            Err(_) => {
                let stage = progress.borrow().clone();
                Err(Refusal::Unavailable(format!(
                    "the runtime '{name}' is still being built ({stage}); the build goes on, so ask again"
                )))
            }
        }
    }
}

/// Reads the records of a build to its end, and tells of it.
async fn follow(name: &str, mut records: mpsc::Receiver<Record>, tell: &watch::Sender<Stage>) {
    let mut last = Stage::Failed("the build has ended without a word".to_owned());
    while let Some(record) = records.recv().await {
        match stage_of(record) {
            Some(Stage::Step(step)) => {
                tracing::info!(runtime = name, step, "building");
                tell.send_replace(Stage::Step(step));
            }
            Some(end) => last = end,
            None => {}
        }
    }
    match &last {
        Stage::Failed(why) => tracing::error!(runtime = name, why, "the runtime could not be built"),
        _ => tracing::info!(runtime = name, "the runtime is built"),
    }
    tell.send_replace(last);
}

/// What a record of a build says of its stage; none if nothing.
fn stage_of(record: Record) -> Option<Stage> {
    match record {
        Record::Step { step, steps, text, .. } => {
            Some(Stage::Step(format!("step {step}/{steps}: {}", first_line(&text))))
        }
        Record::Image { .. } => Some(Stage::Built),
        Record::Error { error, output } => {
            let lines: Vec<&str> = output.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
            let tail = lines[lines.len().saturating_sub(LINES_MAX)..].join("\n");
            // The error of a failed command ends with its output already.
            let why = if tail.is_empty() || error.contains(&tail) { error } else { format!("{error}\n{tail}") };
            Some(Stage::Failed(why))
        }
        Record::Output { .. } | Record::Cached { .. } | Record::Done { .. } | Record::Note(_) => None,
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default().trim_end_matches(['\\', ' '])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(text: &str) -> Recipe {
        Recipe { name: "x".into(), text: text.into(), base: "b".into(), megabytes: None }
    }

    #[test]
    fn a_build_is_joined_until_it_has_ended() {
        let jobs = OnDemand::default();
        let (_, first) = jobs.join(&recipe("a"));
        let first = first.expect("a new build");
        let (joined, none) = jobs.join(&recipe("a"));
        assert!(none.is_none());
        first.send_replace(Stage::Step("1".into()));
        assert_eq!(*joined.borrow(), Stage::Step("1".into()));
        assert!(jobs.join(&recipe("a")).1.is_none());
        first.send_replace(Stage::Built);
        // Its image was removed since.
        assert!(jobs.join(&recipe("a")).1.is_some());
    }

    #[test]
    fn a_failure_is_repeated_for_the_same_boxfile_only() {
        let jobs = OnDemand::default();
        let failed = Stage::Failed("no".into());
        jobs.join(&recipe("a")).1.expect("a new build").send_replace(failed.clone());
        let (joined, none) = jobs.join(&recipe("a"));
        assert!(none.is_none() && *joined.borrow() == failed);
        let (_, next) = jobs.join(&recipe("b"));
        let next = next.expect("another Boxfile is another attempt");
        // One whose task is gone is none to wait for.
        drop(next);
        assert!(jobs.join(&recipe("b")).1.is_some());
    }

    #[test]
    fn records_of_a_build_are_stages() {
        let text = "RUN apt-get update \\\n && x".to_owned();
        let step = Record::Step { number: 2, stage: String::new(), step: 1, steps: 2, text };
        assert_eq!(stage_of(step), Some(Stage::Step("step 1/2: RUN apt-get update".into())));
        assert_eq!(stage_of(Record::Output { number: 2, text: "x".into() }), None);
        let image = Record::Image { id: "i".into(), names: Vec::new(), bytes: 0, ms: 0 };
        assert_eq!(stage_of(image), Some(Stage::Built));
        let output = "1\n2\n3\n4\n5\n\n6\n".to_owned();
        let failed = stage_of(Record::Error { error: "x:3: failed".into(), output });
        assert_eq!(failed, Some(Stage::Failed("x:3: failed\n2\n3\n4\n5\n6".into())));
    }
}
