//! Notes that builds keep, each in a file of its own, and what is unfinished.

use std::path::Path;
use std::{fs, io};

/// Files and directories whose names begin so are unfinished.
pub(super) const UNFINISHED: &str = ".tmp-";

/// Writes a note whole or not at all. It is not flushed: a note that a crash has cut counts as none.
pub(super) fn write_note(path: &Path, text: &[u8]) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temp = path.with_file_name(format!("{UNFINISHED}{name}"));
    fs::write(&temp, text)?;
    fs::rename(temp, path)
}

/// Removes what is unfinished in a directory, if there is one.
pub(super) fn sweep_unfinished(dir: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_crash_has_left_is_swept_and_notes_stay() {
        let dir = tempfile::tempdir().unwrap();
        let note = dir.path().join("note.json");
        write_note(&note, b"{}").unwrap();
        fs::write(dir.path().join(".tmp-note.json"), "half").unwrap();
        fs::create_dir_all(dir.path().join(".tmp-a1b2/deep")).unwrap();
        sweep_unfinished(dir.path()).unwrap();
        sweep_unfinished(&dir.path().join("missing")).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [note]);
    }
}
