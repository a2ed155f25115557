//! The difference between a box and another box or a snapshot, as paths.
//!
//! The files are compared by what is known of them without reading them: kind, mode, owner, size, time of the last
//! modification, target of a link. Each side lists its own files: a snapshot is restored into a helper box for it, which may
//! reach nothing and is deleted afterwards. So the bytes of a tenant are mounted by the launch of a box only, and a list that
//! a tenant has tampered with deceives only that tenant.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{BoxRequest, Lifecycle};
use crate::boxes::{Entry, WorkKind, to_the_end};
use crate::db::Account;
use crate::domain::NetworkPolicy;
use crate::refusal::Refusal;
use crate::runs::{Command, collect};

/// Most changes in an answer.
const CHANGES_MAX: usize = 10_000;
/// Life of a helper box, should the daemon end before it is deleted.
const HELPER_SECONDS: u64 = 600;
const SNAPSHOT_PREFIX: &str = "snap_";
/// Kind, mode, owner, group, size, time, target, path; each entry ends with NUL, so no name can look like two.
const FORMAT: &str = r"%y %m %U %G %s %T@ %l\001%p\0";
/// Files that Icebox makes for each box.
const OURS: [&[u8]; 4] = [b"/etc/hosts", b"/etc/hostname", b"/etc/resolv.conf", b"/etc/machine-id"];

/// What has happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It is another file, or has other content, owner or mode.
    Changed,
}

/// The difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diff {
    /// Path and change, by path.
    pub changes: Vec<(Vec<u8>, Change)>,
    /// There are more changes than are shown.
    pub truncated: bool,
}

type Listing = BTreeMap<Vec<u8>, Vec<u8>>;

impl Lifecycle {
    /// What has changed in a box since a snapshot, or compared with another box of the account.
    pub async fn diff(&self, account: &Account, entry: &Arc<Entry>, base: &str) -> Result<Diff, Refusal> {
        let (lifecycle, account, entry, base) = (self.clone(), account.clone(), Arc::clone(entry), base.to_owned());
        to_the_end(async move {
            let before = if base.starts_with(SNAPSHOT_PREFIX) {
                lifecycle.list_snapshot(&account, &base).await?
            } else {
                lifecycle.list_files(&lifecycle.boxes.find(&account.id, &base)?).await?
            };
            Ok(compare(&before, &lifecycle.list_files(&entry).await?))
        })
        .await
    }

    async fn list_snapshot(&self, account: &Account, id: &str) -> Result<Listing, Refusal> {
        let closed = NetworkPolicy::deny_all();
        let request = BoxRequest {
            ephemeral: true,
            ttl_seconds: Some(HELPER_SECONDS),
            network_policy: Some(closed),
            ..BoxRequest::default()
        };
        let helper = self.restore(account, id, request).await?;
        let listed = self.list_files(&helper).await;
        if let Err(refusal) = self.boxes.delete(&helper).await {
            tracing::error!(box_id = helper.id, reason = refusal.chain(), "a helper box stays until its end");
        }
        listed
    }

    async fn list_files(&self, entry: &Arc<Entry>) -> Result<Listing, Refusal> {
        let awake = self.ensure_awake(entry, WorkKind::Request).await?;
        let argv = ["sudo", "-n", "find", "/", "-xdev", "-printf", FORMAT].map(str::to_owned).to_vec();
        let command = Command { hidden: true, ..Command::exec(argv, Some("/"))? };
        let outcome = collect(&self.runs, &awake, &command).await?.await;
        if outcome.finished.lost {
            return Err(Refusal::Unavailable("the box stopped during the request; try again".into()));
        }
        if outcome.truncated {
            return Err(Refusal::TooLarge("the box has too many files to be compared".into()));
        }
        // `find` fails for files that go away meanwhile, and lists the others.
        let listing = parse(&outcome.stdout);
        if listing.is_empty() {
            let text = String::from_utf8_lossy(&outcome.stderr).trim().to_owned();
            return Err(Refusal::Conflict(format!("the files of the box cannot be listed: {text}")));
        }
        Ok(listing)
    }
}

fn parse(output: &[u8]) -> Listing {
    let entries = output.split(|byte| *byte == 0).filter_map(|entry| {
        // The target of a link may have the separator, a path may too: the first `\x01/` after the facts ends them.
        let at = entry.windows(2).position(|pair| pair == b"\x01/")?;
        let (facts, path) = (&entry[..at], &entry[at + 1..]);
        (!OURS.contains(&path)).then(|| (path.to_vec(), facts_of(facts)))
    });
    entries.collect()
}

/// Size and time of a directory only tell what its entries tell anyway.
fn facts_of(facts: &[u8]) -> Vec<u8> {
    if facts.first() == Some(&b'd') {
        return facts.split(|byte| *byte == b' ').take(4).collect::<Vec<_>>().join(&b' ');
    }
    facts.to_vec()
}

fn compare(before: &Listing, after: &Listing) -> Diff {
    let mut changes: Vec<(Vec<u8>, Change)> = Vec::new();
    for (path, facts) in after {
        match before.get(path) {
            None => changes.push((path.clone(), Change::Added)),
            Some(old) if old != facts => changes.push((path.clone(), Change::Changed)),
            Some(_) => {}
        }
    }
    let removed = before.keys().filter(|path| !after.contains_key(*path));
    changes.extend(removed.map(|path| (path.clone(), Change::Removed)));
    changes.sort_by(|a, b| a.0.cmp(&b.0));
    let truncated = changes.len() > CHANGES_MAX;
    changes.truncate(CHANGES_MAX);
    Diff { changes, truncated }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(text: &str) -> Listing {
        parse(text.as_bytes())
    }

    #[test]
    fn every_kind_of_change_is_found_and_directories_change_with_their_entries_only() {
        let before = listing(
            "d 755 0 0 4096 1.0 \x01/\0f 644 1 1 5 1.0 \x01/a\0f 644 1 1 5 1.0 \x01/b\0l 777 0 0 1 1.0 x\x01/l\0\
             d 755 0 0 10 1.0 \x01/dir\0f 644 0 0 9 1.0 \x01/etc/hosts\0",
        );
        let after = listing(
            "d 755 0 0 9999 2.0 \x01/\0f 644 1 1 5 2.0 \x01/a\0l 777 0 0 1 1.0 y\x01/l\0d 700 0 0 10 1.0 \x01/dir\0\
             f 600 0 0 0 3.0 \x01/new\nline\0f 644 0 0 9 2.0 \x01/etc/hosts\0",
        );
        let found = compare(&before, &after);
        let expected = [
            ("/a", Change::Changed),
            ("/b", Change::Removed),
            ("/dir", Change::Changed),
            ("/l", Change::Changed),
            ("/new\nline", Change::Added),
        ];
        assert_eq!(found.changes, expected.map(|(path, change)| (path.as_bytes().to_vec(), change)));
        assert!(!found.truncated && compare(&before, &before).changes.is_empty());
    }
}
