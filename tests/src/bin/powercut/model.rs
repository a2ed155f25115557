//! What the host has heard, folded into what must be true now.
//!
//! An operation that was begun and not answered may have happened or not: both are allowed, nothing else is.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// The content of a file, short enough for a line of report: `tag`, repeated to `bytes` bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Text {
    pub(crate) tag: String,
    pub(crate) bytes: usize,
}

impl Text {
    /// The content itself.
    pub(crate) fn whole(&self) -> String {
        self.tag.chars().cycle().take(self.bytes).collect()
    }
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Op {
    /// A box is made. Its id is known when it is answered.
    Create { name: String, id: Option<String> },
    /// A box is deleted.
    Delete { id: String },
    /// A box whose deletion was begun and not answered was found to exist: from now on it must.
    Keep { id: String },
    /// A file is written through the API, or removed if there is no text.
    Put { id: String, path: String, text: Option<Text> },
    /// A file is renamed through the API.
    Rename { id: String, from: String, to: String },
    /// A label is added.
    Label { id: String, label: String },
    /// A command that ends with this code; `token` is part of its record.
    Run { id: String, token: String, code: i64 },
    /// A program in the box has written record `number` and flushed it.
    Record { id: String, number: u64 },
    /// The bill of a box was shown.
    Bill { id: String, cpu_usec: u64 },
    /// A snapshot of a box that records in this way, after `record` was flushed. Its id is known when it is ready.
    Snapshot { name: String, style: String, record: Option<u64>, id: Option<String> },
    /// A snapshot is deleted.
    DropSnapshot { id: String },
    /// An image is imported or built. Its only layer has a file with this text.
    Image { name: String, text: Text },
    /// An image is removed.
    DropImage { name: String },
    /// The pool has this size.
    Pool { gib: u64 },
}

/// What is known of one snapshot.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotFacts {
    pub(crate) style: String,
    /// Its box had flushed this record before.
    pub(crate) record: Option<u64>,
    pub(crate) deletion: Deletion,
}

/// What is known of one image.
#[derive(Debug, Clone)]
pub(crate) struct ImageFacts {
    pub(crate) text: Text,
    /// Whether it must be there, must not, or may (`None`).
    pub(crate) present: Option<bool>,
}

/// How far the deletion of a box or of a snapshot had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deletion {
    No,
    Begun,
    Done,
}

/// What is known of one box.
#[derive(Debug, Clone)]
pub(crate) struct BoxFacts {
    pub(crate) name: String,
    pub(crate) deletion: Deletion,
    /// What each file may hold. One entry if the last operation was answered.
    pub(crate) files: BTreeMap<String, Vec<Option<Text>>>,
    /// Labels, and whether they were answered.
    pub(crate) labels: BTreeMap<String, bool>,
    /// Exit codes of commands, and whether they were answered.
    pub(crate) runs: BTreeMap<String, (i64, bool)>,
    /// The last record.
    pub(crate) record: Option<u64>,
    /// The largest bill that was shown.
    pub(crate) billed_usec: u64,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) boxes: BTreeMap<String, BoxFacts>,
    /// Names of boxes whose creation was begun and not answered.
    pub(crate) unanswered_names: BTreeSet<String>,
    pub(crate) snapshots: BTreeMap<String, SnapshotFacts>,
    /// Snapshots that were begun and are not known to be ready, by their names.
    pub(crate) unanswered_snapshots: BTreeMap<String, Op>,
    pub(crate) images: BTreeMap<String, ImageFacts>,
    /// The size of the pool, at least.
    pub(crate) pool_gib: u64,
}

impl Known {
    /// Folds the lines that the host has kept.
    pub(crate) fn from_lines(text: &str) -> Result<Self, String> {
        let mut known = Self::default();
        for line in text.lines() {
            let (word, json) = line.split_once(' ').ok_or_else(|| format!("{line:?} has no operation"))?;
            let op: Op = serde_json::from_str(json).map_err(|error| format!("{line:?}: {error}"))?;
            match word {
                "@try" => known.begin(op),
                "@ack" => known.end(op),
                _ => return Err(format!("{line:?} is neither @try nor @ack")),
            }
        }
        Ok(known)
    }

    /// A box by its name, unless it is deleted or may be.
    pub(crate) fn named(&self, name: &str) -> Option<&str> {
        let mut found = self.boxes.iter().filter(|(_, facts)| facts.name == name && facts.deletion == Deletion::No);
        found.next().map(|(id, _)| id.as_str())
    }

    fn image_is(&mut self, name: String, text: Option<Text>, present: Option<bool>) {
        if let Some(text) = text {
            self.images.insert(name, ImageFacts { text, present });
        } else if let Some(facts) = self.images.get_mut(&name) {
            facts.present = present;
        }
    }

    fn of(&mut self, id: &str) -> Option<&mut BoxFacts> {
        self.boxes.get_mut(id)
    }

    fn begin(&mut self, op: Op) {
        match op {
            Op::Create { name, .. } => {
                self.unanswered_names.insert(name);
            }
            Op::Delete { id } => {
                self.of(&id).into_iter().for_each(|facts| facts.deletion = Deletion::Begun);
            }
            Op::Put { id, path, text } => {
                self.of(&id).into_iter().for_each(|facts| facts.may_hold(path.clone(), [text.clone()]));
            }
            Op::Rename { id, from, to } => {
                if let Some(facts) = self.of(&id) {
                    let moved = facts.files.get(&from).cloned().unwrap_or_default();
                    facts.may_hold(to, moved);
                    facts.may_hold(from, [None]);
                }
            }
            Op::Label { id, label } => {
                self.of(&id).into_iter().for_each(|facts| {
                    facts.labels.entry(label.clone()).or_insert(false);
                });
            }
            Op::Run { id, token, code } => {
                self.of(&id).into_iter().for_each(|facts| {
                    facts.runs.insert(token.clone(), (code, false));
                });
            }
            Op::Snapshot { ref name, .. } => {
                self.unanswered_snapshots.insert(name.clone(), op);
            }
            Op::DropSnapshot { id } => {
                self.snapshots.get_mut(&id).into_iter().for_each(|facts| facts.deletion = Deletion::Begun);
            }
            Op::Image { name, text } => self.image_is(name, Some(text), None),
            Op::DropImage { name } => self.image_is(name, None, None),
            Op::Keep { .. } | Op::Record { .. } | Op::Bill { .. } | Op::Pool { .. } => {}
        }
    }

    fn end(&mut self, op: Op) {
        match op {
            Op::Create { name, id } => {
                self.unanswered_names.remove(&name);
                if let Some(id) = id {
                    self.boxes.insert(id, BoxFacts::new(name));
                }
            }
            Op::Delete { id } => self.of(&id).into_iter().for_each(|facts| facts.deletion = Deletion::Done),
            Op::Keep { id } => self.of(&id).into_iter().for_each(|facts| facts.deletion = Deletion::No),
            Op::Put { id, path, text } => {
                self.of(&id).into_iter().for_each(|facts| {
                    facts.files.insert(path.clone(), vec![text.clone()]);
                });
            }
            Op::Rename { id, from, to } => {
                if let Some(facts) = self.of(&id) {
                    let mut moved = facts.files.insert(from, vec![None]).unwrap_or_default();
                    moved.retain(Option::is_some);
                    facts.files.insert(to, moved);
                }
            }
            Op::Label { id, label } => {
                self.of(&id).into_iter().for_each(|facts| {
                    facts.labels.insert(label.clone(), true);
                });
            }
            Op::Run { id, token, code } => {
                self.of(&id).into_iter().for_each(|facts| {
                    facts.runs.insert(token.clone(), (code, true));
                });
            }
            Op::Snapshot { name, style, record, id } => {
                self.unanswered_snapshots.remove(&name);
                if let Some(id) = id {
                    self.snapshots.insert(id, SnapshotFacts { style, record, deletion: Deletion::No });
                }
            }
            Op::DropSnapshot { id } => {
                self.snapshots.get_mut(&id).into_iter().for_each(|facts| facts.deletion = Deletion::Done);
            }
            Op::Image { name, text } => self.image_is(name, Some(text), Some(true)),
            Op::DropImage { name } => self.image_is(name, None, Some(false)),
            Op::Pool { gib } => self.pool_gib = self.pool_gib.max(gib),
            Op::Record { id, number } => self.of(&id).into_iter().for_each(|facts| facts.record = Some(number)),
            Op::Bill { id, cpu_usec } => {
                self.of(&id).into_iter().for_each(|facts| facts.billed_usec = facts.billed_usec.max(cpu_usec));
            }
        }
    }
}

impl BoxFacts {
    fn new(name: String) -> Self {
        Self {
            name,
            deletion: Deletion::No,
            files: BTreeMap::new(),
            labels: BTreeMap::new(),
            runs: BTreeMap::new(),
            record: None,
            billed_usec: 0,
        }
    }

    fn may_hold(&mut self, path: String, texts: impl IntoIterator<Item = Option<Text>>) {
        // A path without a record holds nothing.
        self.files.entry(path).or_insert_with(|| vec![None]).extend(texts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fold(lines: &[&str]) -> Known {
        Known::from_lines(&lines.join("\n")).expect("good lines")
    }

    const MADE: &str = r#"@ack {"op":"create","name":"n","id":"b"}"#;
    const PUT: &str = r#"{"op":"put","id":"b","path":"/p","text":{"tag":"ab","bytes":3}}"#;

    #[test]
    fn what_is_begun_may_be_and_what_is_answered_must_be() {
        let begun = fold(&[MADE, &format!("@try {PUT}")]);
        let text = Text { tag: "ab".into(), bytes: 3 };
        assert_eq!(text.whole(), "aba");
        assert_eq!(begun.boxes["b"].files["/p"], [None, Some(text.clone())]);
        let done = fold(&[MADE, &format!("@try {PUT}"), &format!("@ack {PUT}")]);
        assert_eq!(done.boxes["b"].files["/p"], [Some(text)]);
    }

    #[test]
    fn a_rename_takes_the_content_along() {
        let rename = r#"{"op":"rename","id":"b","from":"/p","to":"/q"}"#;
        let lines = [MADE, &format!("@ack {PUT}"), &format!("@try {rename}"), &format!("@ack {rename}")];
        let text = Some(Text { tag: "ab".into(), bytes: 3 });
        let begun = fold(&lines[..3]);
        assert_eq!(begun.boxes["b"].files["/p"], [text.clone(), None]);
        assert_eq!(begun.boxes["b"].files["/q"], [None, text.clone()]);
        let done = fold(&lines);
        assert_eq!((&done.boxes["b"].files["/p"], &done.boxes["b"].files["/q"]), (&vec![None], &vec![text]));
    }

    #[test]
    fn snapshots_and_images_must_be_may_be_and_must_not_be() {
        let snapshot = |id: &str| format!(r#"{{"op":"snapshot","name":"s","style":"append","record":7,"id":{id}}}"#);
        let begun = fold(&[&format!("@try {}", snapshot("null"))]);
        assert!(begun.unanswered_snapshots.contains_key("s") && begun.snapshots.is_empty());
        let (ready, drop) = (format!("@ack {}", snapshot(r#""i""#)), r#"{"op":"drop_snapshot","id":"i"}"#);
        let known = fold(&[&ready, &format!("@try {drop}")]);
        assert_eq!((known.snapshots["i"].record, known.snapshots["i"].deletion), (Some(7), Deletion::Begun));
        assert!(known.unanswered_snapshots.is_empty());
        let (image, gone) =
            (r#"{"op":"image","name":"m","text":{"tag":"a","bytes":1}}"#, r#"{"op":"drop_image","name":"m"}"#);
        let lines = [format!("@try {image}"), format!("@ack {image}"), format!("@try {gone}"), format!("@ack {gone}")];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let seen: Vec<_> = (1..=4).map(|count| fold(&lines[..count]).images["m"].present).collect();
        assert_eq!(seen, [None, Some(true), None, Some(false)]);
    }

    #[test]
    fn boxes_come_and_go() {
        assert!(fold(&[r#"@try {"op":"create","name":"n","id":null}"#]).unanswered_names.contains("n"));
        assert_eq!(fold(&[MADE]).named("n"), Some("b"));
        let gone = fold(&[MADE, r#"@try {"op":"delete","id":"b"}"#]);
        assert_eq!((gone.named("n"), gone.boxes["b"].deletion), (None, Deletion::Begun));
        assert!(Known::from_lines("@ack nonsense").is_err());
    }
}
