//! Forks: boxes that start with the disk of another box as it is now, and the way back, by which a fork's disk takes the
//! place of its origin's.

use std::sync::Arc;

use icebox_rootfs::{Check, Replacement};
use tokio::task::JoinSet;

use super::Lifecycle;
use crate::boxes::{Entry, NewBox, Origin, to_the_end};
use crate::db::Account;
use crate::domain::BoxSettings;
use crate::error::{Cause, Error};
use crate::events::StopCause;
use crate::refusal::Refusal;
use crate::runs;

/// Most forks of one request.
const FORKS_MAX: usize = 32;

impl Lifecycle {
    /// Makes boxes that start with the disk of this one, all from one moment, with its settings, headers and secrets, but
    /// without its volumes. All are made, or none.
    pub async fn fork(&self, account: &Account, entry: &Arc<Entry>, count: usize) -> Result<Vec<Arc<Entry>>, Refusal> {
        if !(1..=FORKS_MAX).contains(&count) {
            return Err(Refusal::Invalid(format!("count must be 1 to {FORKS_MAX}")));
        }
        let (lifecycle, entry, account_idle) = (self.clone(), Arc::clone(entry), account.idle_seconds);
        to_the_end(async move {
            let (copy, secrets) = lifecycle.boxes.copy_disk(&entry).await?;
            let content = copy.content().map_err(|cause| Error::new("open the copy of", &entry.id, cause))?;
            let wanted = NewBox {
                root: None,
                account_id: entry.account_id.clone(),
                name: None,
                settings: BoxSettings {
                    keep: None,
                    undo: None,
                    forked_from: Some(entry.id.clone()),
                    volumes: Vec::new(),
                    ..entry.settings()
                },
                ttl_seconds: entry.seconds_left(),
                account_idle,
                headers: entry.view().headers,
                github_token: secrets.github_token,
                agent_api_key: secrets.agent_api_key,
                origin: Some(Origin { content, image: entry.view().image }),
                volumes: Vec::new(),
            };
            lifecycle.make_forks(wanted, count).await
        })
        .await
    }

    async fn make_forks(&self, wanted: NewBox, count: usize) -> Result<Vec<Arc<Entry>>, Refusal> {
        let mut making = JoinSet::new();
        for _ in 0..count {
            let (lifecycle, wanted) = (self.clone(), wanted.clone());
            making.spawn(async move {
                let fork = lifecycle.boxes.create(wanted).await?;
                lifecycle.provision_copy(&fork, false).await;
                Ok::<_, Refusal>(fork)
            });
        }
        let (mut forks, mut failed) = (Vec::new(), None);
        while let Some(made) = making.join_next().await {
            match made {
                Ok(Ok(fork)) => forks.push(fork),
                Ok(Err(refusal)) => failed = Some(refusal),
                Err(_) => failed = Some(Refusal::Failed(Error::new("make the forks", "", Cause::WorkerEnded))),
            }
        }
        let Some(refusal) = failed else {
            forks.sort_by_key(|fork| (fork.created_ms, fork.id.clone()));
            return Ok(forks);
        };
        for fork in forks {
            if let Err(more) = self.boxes.delete(&fork).await {
                tracing::error!(box_id = fork.id, reason = more.chain(), "a fork of a failed request stays");
            }
        }
        Err(refusal)
    }

    /// Puts the disk of a fork, as it is now, in the place of its origin's, and deletes the fork. The origin's processes
    /// end, and it starts again; it keeps its id, name, addresses and settings. What its disk had is gone.
    pub async fn promote(&self, fork: &Arc<Entry>) -> Result<Arc<Entry>, Refusal> {
        let gone = || Refusal::Conflict("the box is no fork, or the box that it was forked from is gone".into());
        let origin = fork.settings().forked_from.ok_or_else(gone)?;
        let origin = self.boxes.find(&fork.account_id, &origin).map_err(|_| gone())?;
        let (lifecycle, fork) = (self.clone(), Arc::clone(fork));
        to_the_end(async move {
            let (copy, _) = lifecycle.boxes.copy_disk(&fork).await?;
            // Flushed while the origin runs on; from here on only a rename is left to do.
            let copy = lifecycle.boxes.prepare_replacement(&origin, copy).await?;
            lifecycle.start_on(&origin, copy).await?;
            // They are of the disk that is gone.
            lifecycle.boxes.forget_points(&origin).await;
            tracing::info!(box_id = origin.id, fork = fork.id, "a fork has been promoted");
            lifecycle.boxes.delete(&fork).await?;
            Ok(origin)
        })
        .await
    }

    /// Ends all processes of a box, puts another disk in the place of its own, and starts it again.
    pub(super) async fn start_on(&self, entry: &Arc<Entry>, disk: Replacement) -> Result<(), Refusal> {
        let _life = entry.lock_life().await;
        entry.usable_view()?;
        self.boxes.clean_up_dead(entry, StopCause::Restart).await;
        runs::fail_orphans(&self.runs, entry).await?;
        self.boxes.replace_disk(entry, disk).await?;
        self.boxes.start_again(entry, Check::IfMarked).await?;
        self.run_init_command(entry).await;
        Ok(())
    }
}
