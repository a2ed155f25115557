//! The recording of the guest's disk, as `xtask/src/powercut/recording.rs` writes it, and where it is looked at.
//!
//! A look is at a flush: the disk has the writes before it, which is what a cut just before the next flush is sure to
//! leave. All that was told until that next flush must be there then.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

/// One entry of a recording.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A write whose bytes are at this place of the data.
    Write {
        offset: u64,
        length: u64,
        place: u64,
    },
    /// A write of zeros.
    Zeros {
        offset: u64,
        length: u64,
    },
    Flush,
    /// A line that the guest has told.
    Said(String),
}

/// A whole recording.
#[derive(Debug)]
pub(crate) struct Recording {
    pub(crate) events: Vec<Event>,
    data: File,
}

/// A look at the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Look {
    /// The entry of the flush up to which the disk has been written.
    pub(crate) at: usize,
    /// What was told before this entry must be there: the next flush. If it is a later one, the look is at a disk that has
    /// ignored the flushes between.
    pub(crate) until: usize,
    pub(crate) forgets: bool,
}

impl Recording {
    pub(crate) fn open(dir: &Path) -> Self {
        let text = fs::read_to_string(dir.join("events")).expect("read the events");
        let data = File::open(dir.join("data")).expect("open the data");
        Self { events: parse(&text).unwrap_or_else(|line| panic!("no event: {line}")), data }
    }

    /// Does to the disk what these entries say.
    pub(crate) fn apply(&self, entries: std::ops::Range<usize>, disk: &File) {
        for event in &self.events[entries] {
            match *event {
                Event::Write { offset, length, place } => {
                    let mut bytes = vec![0; usize::try_from(length).expect("a length")];
                    self.data.read_exact_at(&mut bytes, place).expect("read the data");
                    disk.write_all_at(&bytes, offset).expect("write the disk");
                }
                Event::Zeros { offset, length } => {
                    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    fallocate(disk, hole, offset, length).expect("write zeros to the disk");
                }
                Event::Flush | Event::Said(_) => {}
            }
        }
    }
}

/// The entries; an error is the line that is none.
fn parse(text: &str) -> Result<Vec<Event>, String> {
    let mut place = 0;
    let entry = |line: &str| {
        let pair = |rest: &str| {
            let (offset, length) = rest.split_once(' ')?;
            Some((offset.parse().ok()?, length.parse().ok()?))
        };
        match line.split_once(' ').unwrap_or((line, "")) {
            ("write", rest) => pair(rest).map(|(offset, length): (u64, u64)| {
                let event = Event::Write { offset, length, place };
                place += length;
                event
            }),
            ("zeros", rest) => pair(rest).map(|(offset, length)| Event::Zeros { offset, length }),
            ("flush", "") => Some(Event::Flush),
            ("said", line) => Some(Event::Said(line.to_owned())),
            _ => None,
        }
        .ok_or_else(|| line.to_owned())
    };
    text.lines().map(entry).collect()
}

/// The flushes that had something to flush. The others leave the disk as it is.
fn flushes(events: &[Event]) -> Vec<usize> {
    let mut is_dirty = false;
    let mut found = Vec::new();
    for (entry, event) in events.iter().enumerate() {
        match event {
            Event::Write { .. } | Event::Zeros { .. } => is_dirty = true,
            Event::Flush if std::mem::take(&mut is_dirty) => found.push(entry),
            Event::Flush | Event::Said(_) => {}
        }
    }
    found
}

/// So many of these, as even as possible.
fn sampled(all: &[usize], count: usize) -> Vec<usize> {
    if all.len() <= count {
        return all.to_vec();
    }
    (0..count).map(|number| all[number * all.len() / count]).collect()
}

/// At most `count` looks: the last flush before each acknowledgement, as far as they are not more, and others between.
pub(crate) fn boundaries(events: &[Event], count: usize) -> Vec<Look> {
    let flushes = flushes(events);
    let near: BTreeSet<usize> = acknowledged(events, "@ack ").filter_map(|entry| before(&flushes, entry)).collect();
    let near: Vec<usize> = near.into_iter().collect();
    let mut chosen: BTreeSet<usize> = sampled(&near, count).into_iter().collect();
    let others: Vec<usize> = flushes.into_iter().filter(|flush| !chosen.contains(flush)).collect();
    let room = count - chosen.len();
    chosen.extend(sampled(&others, room));
    chosen.into_iter().map(|at| Look { at, until: next(events, at), forgets: false }).collect()
}

/// Looks at a disk that has ignored all flushes between two acknowledgements, of which the second is a record's that has
/// just begun to be written: it cannot be there.
pub(crate) fn forgetful(events: &[Event]) -> Vec<Look> {
    let flushes = flushes(events);
    let all: Vec<usize> = acknowledged(events, "@ack ").collect();
    let records: BTreeSet<usize> = acknowledged(events, "@ack {\"op\":\"record\"").collect();
    let pairs = all.windows(2).filter(|pair| !records.contains(&pair[0]) && records.contains(&pair[1]));
    let ignored = |pair: &&[usize]| before(&flushes, pair[0]) != before(&flushes, pair[1]);
    let look =
        |pair: &[usize]| Some(Look { at: before(&flushes, pair[0])?, until: next(events, pair[1]), forgets: true });
    pairs.filter(ignored).filter_map(look).collect()
}

/// The first flush after an entry, or the end.
fn next(events: &[Event], entry: usize) -> usize {
    flushes(events).into_iter().find(|flush| *flush > entry).unwrap_or(events.len())
}

/// Entries of lines that begin so.
fn acknowledged<'a>(events: &'a [Event], beginning: &'a str) -> impl Iterator<Item = usize> + 'a {
    let said = move |event: &Event| matches!(event, Event::Said(line) if line.starts_with(beginning));
    events.iter().enumerate().filter(move |(_, event)| said(event)).map(|(entry, _)| entry)
}

/// The last flush before an entry.
fn before(flushes: &[usize], entry: usize) -> Option<usize> {
    flushes[..flushes.partition_point(|flush| *flush < entry)].last().copied()
}

/// What was told until the end of this look. Beginnings are told before anything is done, but may be heard later: an
/// operation that begins later may have begun.
pub(crate) fn told(events: &[Event], look: Look) -> String {
    let mut lines = Vec::new();
    for (entry, event) in events.iter().enumerate() {
        if let Event::Said(line) = event
            && (entry < look.until || line.starts_with("@try "))
        {
            lines.push(line.as_str());
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: &str = "write 0 512\nflush\nsaid @try a\nwrite 512 4096\nzeros 8192 4096\nflush\nflush\n\
                          said @ack {\"op\":\"record\",1}\nwrite 0 512\nflush\nsaid @try b\nsaid @ack b\nwrite 0 512\n\
                          flush\n";

    #[test]
    fn entries_are_read_and_others_are_refused() {
        let events = parse(EVENTS).unwrap();
        assert_eq!(events[3], Event::Write { offset: 512, length: 4096, place: 512 });
        assert_eq!(events[8], Event::Write { offset: 0, length: 512, place: 4608 });
        assert_eq!((&events[4], &events[5]), (&Event::Zeros { offset: 8192, length: 4096 }, &Event::Flush));
        for wrong in ["flush 1", "write 1", "write a b", "read 1 2", ""] {
            assert_eq!(parse(&format!("flush\n{wrong}\nflush")), Err(wrong.to_owned()));
        }
    }

    #[test]
    fn looks_are_before_acknowledgements_first_and_told_until_the_next_flush() {
        let events = parse(EVENTS).unwrap();
        let at = |looks: Vec<Look>| looks.into_iter().map(|look| look.at).collect::<Vec<_>>();
        // The flush at entry 6 has nothing to flush.
        assert_eq!(at(boundaries(&events, 2)), [5, 9]);
        assert_eq!(at(boundaries(&events, 1)), [5]);
        assert_eq!(at(boundaries(&events, 3)), [1, 5, 9]);
        assert_eq!(at(boundaries(&events, 99)), [1, 5, 9, 13]);
        let told: Vec<String> = boundaries(&events, 99).into_iter().map(|look| told(&events, look)).collect();
        let record = "@ack {\"op\":\"record\",1}";
        assert_eq!(told[..2], ["@try a\n@try b".to_owned(), format!("@try a\n{record}\n@try b")]);
        assert!(told[2].ends_with("@ack b") && told[3] == told[2]);
    }

    #[test]
    fn a_forgetful_disk_has_what_was_there_before_the_last_acknowledgement() {
        let text = "write 0 1\nflush\nsaid @ack a\nwrite 0 1\nflush\nwrite 0 1\nflush\n\
                    said @ack {\"op\":\"record\",1}\nsaid @ack {\"op\":\"record\",2}\nwrite 0 1\nflush\n";
        let events = parse(text).unwrap();
        assert_eq!(forgetful(&events), [Look { at: 1, until: 10, forgets: true }]);
        assert!(forgetful(&events[..7]).is_empty());
    }

    #[test]
    fn entries_are_done_to_a_disk() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("events"), "write 4096 3\nflush\nzeros 4096 4096\nwrite 1 2\n").unwrap();
        fs::write(dir.path().join("data"), "abcde").unwrap();
        let recording = Recording::open(dir.path());
        let path = dir.path().join("disk");
        fs::write(&path, vec![b'-'; 8192]).unwrap();
        let disk = File::options().write(true).open(&path).unwrap();
        recording.apply(0..2, &disk);
        assert_eq!(fs::read(&path).unwrap()[4095..4100], *b"-abc-");
        recording.apply(2..4, &disk);
        let bytes = fs::read(&path).unwrap();
        assert_eq!((&bytes[..4], &bytes[4095..4097]), (&b"-de-"[..], &b"-\0"[..]));
        assert!(bytes[4096..].iter().all(|byte| *byte == 0) && bytes.len() == 8192);
    }
}
