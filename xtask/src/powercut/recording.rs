//! What a disk was asked to do and what the guest had told by then, in one order.
//!
//! `events` has a line for each: `write OFFSET LENGTH`, `zeros OFFSET LENGTH`, `flush`, and `said LINE` for an operation
//! that the guest has told of. The bytes of the writes are in `data`, one after another; those of `zeros` are nowhere.
//!
//! The order says no more than it can: a guest flushes before it tells, so a line that is here before a flush was told
//! before it. A line may come to be heard later than it was told, never earlier.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Result, While};

/// The names of the files.
const EVENTS: &str = "events";
const DATA: &str = "data";

/// A recording that goes on. Disk and ear of one guest share it.
#[derive(Debug, Clone)]
pub(super) struct Recording(Arc<Mutex<Files>>);

#[derive(Debug)]
struct Files {
    events: BufWriter<File>,
    data: BufWriter<File>,
    flushes: u64,
    /// Nothing is recorded after the end.
    ended: bool,
}

impl Recording {
    /// Begins a recording in this directory.
    pub(super) fn begin(dir: &Path) -> Result<Recording> {
        let make = |name: &str| {
            let path = dir.join(name);
            File::create(&path).map(BufWriter::new).or_fail("make", path.display().to_string())
        };
        let files = Files { events: make(EVENTS)?, data: make(DATA)?, flushes: 0, ended: false };
        Ok(Recording(Arc::new(Mutex::new(files))))
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut files = self.lock();
        if files.ended {
            return Ok(());
        }
        let length = data.len();
        if data.iter().all(|byte| *byte == 0) {
            return writeln!(files.events, "zeros {offset} {length}");
        }
        writeln!(files.events, "write {offset} {length}")?;
        files.data.write_all(data)
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        let mut files = self.lock();
        if files.ended {
            return Ok(());
        }
        files.flushes += 1;
        writeln!(files.events, "flush")
    }

    /// The guest has told this line.
    pub(super) fn said(&self, line: &str) -> io::Result<()> {
        let mut files = self.lock();
        if files.ended { Ok(()) } else { writeln!(files.events, "said {line}") }
    }

    /// Ends the recording: all of it is in the files. Returns the number of flushes.
    pub(super) fn end(&self) -> Result<u64> {
        let mut files = self.lock();
        files.ended = true;
        files.events.flush().or_fail("write", EVENTS)?;
        files.data.flush().or_fail("write", DATA)?;
        Ok(files.flushes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_recorded_in_its_order_until_the_end() {
        let dir = std::env::temp_dir().join(format!("icebox-recording-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let recording = Recording::begin(&dir).unwrap();
        recording.write(512, b"one").unwrap();
        recording.said("@try {}").unwrap();
        recording.flush().unwrap();
        recording.write(0, &[0; 4096]).unwrap();
        recording.write(4096, b"two").unwrap();
        assert_eq!(recording.end().unwrap(), 1);
        recording.flush().unwrap();
        recording.said("@ack {}").unwrap();
        recording.write(1, b"three").unwrap();
        assert_eq!(recording.end().unwrap(), 1);
        let events = std::fs::read_to_string(dir.join(EVENTS)).unwrap();
        let data = std::fs::read(dir.join(DATA)).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(events, "write 512 3\nsaid @try {}\nflush\nzeros 0 4096\nwrite 4096 3\n");
        assert_eq!(data, b"onetwo");
    }
}
