//! What is left on the host without an owner, for its operator.
//!
//! Owns: the list of everything, and the order of its removal. Where it comes from is known by `boxes` and `builds`. Nothing
//! is removed but what a fresh look finds, and nothing that has an owner or that Icebox did not make is found.

use std::path::PathBuf;

use crate::boxes::{Boxes, Left};
use crate::builds::Builds;
use crate::domain::{Orphan, OrphanKind};
use crate::refusal::Refusal;

/// Looks for leftovers and removes them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Doctor {
    boxes: Boxes,
    builds: Builds,
}

/// What became of a leftover.
#[derive(Debug)]
pub struct Treated {
    /// What it is.
    pub orphan: Orphan,
    /// Why it is still there.
    pub failed: Option<Refusal>,
}

#[derive(Debug)]
enum Found {
    OfBoxes(Left),
    OfBuilds(PathBuf, u64),
}

impl Found {
    fn orphan(&self) -> Orphan {
        match self {
            Self::OfBoxes(left) => left.orphan(),
            Self::OfBuilds(path, bytes) => {
                Orphan { kind: OrphanKind::BuildFiles, name: path.display().to_string(), bytes: Some(*bytes) }
            }
        }
    }
}

impl Doctor {
    /// For these boxes and builds.
    #[must_use]
    pub fn new(boxes: Boxes, builds: Builds) -> Self {
        Self { boxes, builds }
    }

    /// What has no owner, in the order in which it is removed. While a build is under way, its leftovers are not told from
    /// its work and left out.
    pub async fn look(&self) -> Result<Vec<Orphan>, Refusal> {
        let rest = self.builds.at_rest();
        Ok(self.find(rest.as_ref()).await?.iter().map(Found::orphan).collect())
    }

    /// Looks, and removes what has no owner.
    pub async fn repair(&self) -> Result<Vec<Treated>, Refusal> {
        // No build begins meanwhile.
        let rest = self.builds.at_rest();
        let mut treated = Vec::new();
        for found in self.find(rest.as_ref()).await? {
            let removed = match &found {
                Found::OfBoxes(left) => self.boxes.remove_left(left).await,
                Found::OfBuilds(path, _) => self.builds.remove_left(path).map_err(Refusal::from),
            };
            let orphan = found.orphan();
            match &removed {
                Ok(()) => tracing::info!(kind = orphan.kind.as_str(), name = orphan.name, "removed a leftover"),
                Err(refusal) => {
                    let reason = refusal.chain();
                    tracing::warn!(kind = orphan.kind.as_str(), name = orphan.name, reason, "a leftover stays");
                }
            }
            treated.push(Treated { orphan, failed: removed.err() });
        }
        Ok(treated)
    }

    /// Says in the log what is there at the start of the daemon.
    pub async fn report(self) {
        match self.look().await {
            Ok(found) => {
                for orphan in found {
                    let (kind, bytes) = (orphan.kind.as_str(), orphan.bytes);
                    // Blocks of uids are of other daemons of the host.
                    if orphan.kind != OrphanKind::UidBlock {
                        tracing::warn!(
                            kind,
                            name = orphan.name,
                            bytes,
                            "a leftover without an owner; see `icebox doctor`"
                        );
                    }
                }
            }
            Err(refusal) => tracing::warn!(reason = refusal.chain(), "cannot look for leftovers"),
        }
    }

    async fn find(&self, rest: Option<&tokio::sync::OwnedSemaphorePermit>) -> Result<Vec<Found>, Refusal> {
        let mut found: Vec<Found> = self.boxes.left(rest.is_some()).await?.into_iter().map(Found::OfBoxes).collect();
        if let Some(rest) = rest {
            found.extend(self.builds.left(rest)?.into_iter().map(|(path, bytes)| Found::OfBuilds(path, bytes)));
        }
        found.sort_by_key(Found::orphan);
        Ok(found)
    }
}
