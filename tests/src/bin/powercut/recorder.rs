//! The program in the boxes that writes numbered records, flushes each, and only then prints its number; and the one
//! that reads them back.
//!
//! Three ways to make a record durable, as programs really do it: append and fsync; append through a descriptor with
//! `O_DSYNC`; a new file, fsync, rename, fsync of the directory. A record has its number and a checksum. What a cut
//! leaves of a record that was not acknowledged is truncated when writing goes on.

/// How records are made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Append,
    Dsync,
    Rename,
}

impl Style {
    pub(crate) const ALL: [Self; 3] = [Self::Append, Self::Dsync, Self::Rename];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Dsync => "dsync",
            Self::Rename => "rename",
        }
    }

    /// The name of the box that records in this way.
    pub(crate) fn box_name(self) -> String {
        format!("records-{}", self.name())
    }

    /// The way in which the records of a box were made, also of one that was restored from a snapshot of it.
    pub(crate) fn of_box(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|style| style.box_name() == name || name.starts_with(&style.restored_prefix()))
    }

    /// Names of boxes from snapshots begin so.
    pub(crate) fn restored_prefix(self) -> String {
        format!("restored-{}-", self.name())
    }
}

/// Common to both: a record, and all records that are whole and in order. `log` keeps its last thousand or so; of files
/// there are always `SLOTS`.
const COMMON: &str = r#"
import os, sys, zlib
HOME, LOG, SLOTS = '/workspace/home/records', '/workspace/home/records/log', 32
def record(n):
    body = '%d %s' % (n, ('%d.' % n) * (n * 7 % 50))
    return '%s %08x\n' % (body, zlib.crc32(body.encode()))
def number(line):
    n = line.split(' ', 1)[0]
    return int(n) if n.isdigit() and line == record(int(n)) else None
def read_log():
    try: text = open(LOG, newline='').read()
    except FileNotFoundError: return [], ''
    whole, rest = [], text
    while '\n' in rest:
        line, after = rest.split('\n', 1)
        n = number(line + '\n')
        if n is None or (whole and n != whole[-1] + 1): break
        whole.append(n); rest = after
    return whole, rest
def read_slots():
    found = {}
    for slot in range(SLOTS):
        try: text = open('%s/%d' % (HOME, slot), newline='').read()
        except FileNotFoundError: continue
        n = number(text)
        found[slot] = n if n is not None and n % SLOTS == slot else 'torn'
    return found
def sync_dir(path):
    fd = os.open(path, os.O_RDONLY); os.fsync(fd); os.close(fd)
"#;

const WRITE: &str = r#"
style = sys.argv[1]
os.makedirs(HOME, exist_ok=True); sync_dir('/workspace/home')
def replace(path, text):
    fd = os.open(path + '.new', os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, text.encode()); os.fsync(fd); os.close(fd)
    os.rename(path + '.new', path); sync_dir(HOME)
def say(n): sys.stdout.write('%d\n' % n); sys.stdout.flush()
if style == 'rename':
    n = max([-1] + [m for m in read_slots().values() if m != 'torn']) + 1
    while True: replace('%s/%d' % (HOME, n % SLOTS), record(n)); say(n); n += 1
whole, rest = read_log()
if rest or len(whole) > 4000 or not whole: replace(LOG, ''.join(record(n) for n in whole[-1000:]))
n = whole[-1] + 1 if whole else 0
fd = os.open(LOG, os.O_WRONLY | os.O_APPEND | (os.O_DSYNC if style == 'dsync' else 0))
while True:
    os.write(fd, record(n).encode())
    if style == 'append': os.fsync(fd)
    say(n); n += 1
"#;

const READ: &str = r#"
style, acknowledged = sys.argv[1], int(sys.argv[2])
if style == 'rename':
    found = read_slots()
    last = max([-1] + [n for n in found.values() if n != 'torn'])
    wrong = [(s, n) for s, n in found.items() if n == 'torn']
    first = max(0, last - SLOTS + 1)
    wrong += [(n % SLOTS, found.get(n % SLOTS)) for n in range(first, last + 1) if found.get(n % SLOTS) != n]
    print(last, 'ok' if not wrong else 'slots with a wrong record: %r' % wrong)
else:
    whole, rest = read_log()
    last = whole[-1] if whole else -1
    print(last, 'ok' if last >= acknowledged else 'after record %d comes %r' % (last, rest[:200]))
"#;

/// The command that writes.
pub(crate) fn write_command(style: Style) -> Vec<String> {
    vec!["python3".into(), "-c".into(), format!("{COMMON}{WRITE}"), style.name().into()]
}

/// The command that reads back: it prints the number of the last good record, and `ok` or what is wrong.
pub(crate) fn read_command(style: Style, acknowledged: Option<u64>) -> Vec<String> {
    let acknowledged = acknowledged.map_or_else(|| "-1".to_owned(), |number| number.to_string());
    vec!["python3".into(), "-c".into(), format!("{COMMON}{READ}"), style.name().into(), acknowledged]
}
