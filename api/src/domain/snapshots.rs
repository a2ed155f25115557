//! Snapshots: copies of the disk of a box at one point in time, with its settings.

/// Status of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SnapshotStatus {
    /// The copy is being made.
    Creating,
    /// Boxes can be made from it.
    Ready,
    /// It could not be made, or is lost.
    Error,
    /// Deleted; its record stays for the bill.
    Deleted,
}

impl SnapshotStatus {
    /// Its name on disk and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Error => "error",
            Self::Deleted => "deleted",
        }
    }

    /// The status with this name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        [Self::Creating, Self::Ready, Self::Error, Self::Deleted].into_iter().find(|status| status.as_str() == name)
    }
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Id.
    pub id: String,
    /// The account it belongs to.
    pub account_id: String,
    /// The box it was taken of, which may be gone.
    pub box_id: String,
    /// The name given by its owner.
    pub name: String,
    /// The reason why it was taken: `manual` or `scheduled`.
    pub kind: String,
    /// Status.
    pub status: SnapshotStatus,
    /// Unix milliseconds.
    pub created_ms: i64,
    /// Unix milliseconds of its deletion.
    pub deleted_ms: Option<i64>,
    /// Bytes that it occupies; 0 until it is ready.
    pub size_bytes: u64,
    /// Id of the base image of the box.
    pub image: Option<String>,
    /// The settings of the box, as JSON.
    pub settings: String,
    /// Digest of its content, once it is ready.
    pub digest: Option<String>,
    /// Signature of [`Snapshot::signed_text`], once it is ready.
    pub signature: Option<Vec<u8>>,
    /// The key of the agent's provider, sealed.
    pub agent_key: Option<Vec<u8>>,
    /// Reason why it cannot be used.
    pub error: Option<String>,
}

impl Snapshot {
    /// All that a box made from it depends on.
    #[must_use]
    pub fn signed_text(&self) -> Vec<u8> {
        let facts = (
            (&self.id, &self.account_id, &self.box_id, &self.name, &self.kind),
            (self.created_ms, self.size_bytes, &self.image, &self.settings, &self.digest, &self.agent_key),
        );
        // Strings and integers can always be written as JSON.
        serde_json::to_vec(&facts).unwrap_or_default()
    }

    /// Byte-milliseconds of storage until `now_ms`.
    #[must_use]
    pub fn byte_ms(&self, now_ms: i64) -> u128 {
        let kept_ms = self.deleted_ms.unwrap_or(now_ms) - self.created_ms;
        u128::from(self.size_bytes) * u128::try_from(kept_ms).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        Snapshot {
            id: "snap_1".into(),
            account_id: "a".into(),
            box_id: "b".into(),
            name: "n".into(),
            kind: "manual".into(),
            status: SnapshotStatus::Ready,
            created_ms: 1000,
            deleted_ms: None,
            size_bytes: 10,
            image: None,
            settings: "{}".into(),
            digest: Some("d".into()),
            signature: None,
            agent_key: None,
            error: None,
        }
    }

    #[test]
    fn every_fact_is_signed() {
        let one = snapshot();
        let others = [
            Snapshot { account_id: "b".into(), ..one.clone() },
            Snapshot { settings: "{\"size\":\"large\"}".into(), ..one.clone() },
            Snapshot { digest: Some("e".into()), ..one.clone() },
            Snapshot { image: Some("other".into()), ..one.clone() },
            Snapshot { name: "nn".into(), kind: "manua".into(), ..one.clone() },
        ];
        for other in others {
            assert_ne!(one.signed_text(), other.signed_text(), "{other:?}");
        }
    }

    #[test]
    fn storage_is_counted_until_the_deletion() {
        assert_eq!(snapshot().byte_ms(1500), 5000);
        assert_eq!(Snapshot { deleted_ms: Some(1100), ..snapshot() }.byte_ms(9999), 1000);
        assert_eq!(snapshot().byte_ms(1), 0);
    }
}
