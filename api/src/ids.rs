//! Identifiers and names: generation and validation.
//!
//! Invariants: a box id is a DNS label (it becomes a host name, a file name and a cgroup name), is generated here and
//! never taken from a client; every id or name that arrives is checked before it is used for a look-up.

use rand::Rng;
use rand::seq::IndexedRandom;

/// Longest id or name that is looked up.
pub const NAME_BYTES_MAX: usize = 63;
/// Longest label.
pub const LABEL_CHARS_MAX: usize = 20;
/// Labels of one box.
pub const LABELS_MAX: usize = 5;
/// Longest name of an environment variable.
pub const ENV_NAME_BYTES_MAX: usize = 256;
/// Longest value of an environment variable: below the kernel's limit for one string (128 KiB).
pub const ENV_VALUE_BYTES_MAX: usize = 96 * 1024;
/// Environment variables of one box or account.
pub const ENV_VARS_MAX: usize = 256;

/// Variables that decide which code a program loads or runs; the owner of a box may not set them.
pub const ENV_BLOCKED: [&str; 5] = ["PATH", "HOME", "LD_PRELOAD", "LD_LIBRARY_PATH", "NODE_OPTIONS"];

/// Longest name of a snapshot.
pub const SNAPSHOT_NAME_BYTES_MAX: usize = 256;
/// Random letters of the id of a snapshot or a volume: 80 bits.
const ID_LETTERS: usize = 16;
const ID_ALPHABET: &[u8; 32] = b"abcdefghijkmnopqrstuvwxyz2345678";

/// Names that would hide a route of the same level.
const RESERVED: [&str; 10] = [
    "from-snapshot",
    "snapshots",
    "settings",
    "logs",
    "apikey",
    "apikeys",
    "agent-credentials",
    "github",
    "schedules",
    "usage",
];

const ADJECTIVES: [&str; 64] = [
    "able", "amber", "bold", "brave", "brisk", "calm", "clear", "clever", "cool", "cosy", "crisp", "deep", "eager",
    "early", "easy", "even", "fair", "fast", "fine", "firm", "fresh", "gentle", "glad", "good", "grand", "green",
    "happy", "hardy", "icy", "just", "keen", "kind", "late", "light", "lively", "lucky", "mellow", "mild", "neat",
    "new", "nice", "noble", "plain", "polar", "prime", "proud", "quick", "quiet", "rapid", "ready", "right", "sharp",
    "silent", "smart", "snowy", "solid", "steady", "still", "sunny", "swift", "true", "warm", "white", "wise",
];

const NOUNS: [&str; 64] = [
    "albatross",
    "alder",
    "auk",
    "badger",
    "beaver",
    "birch",
    "bison",
    "cedar",
    "crane",
    "curlew",
    "dolphin",
    "dove",
    "eagle",
    "egret",
    "elk",
    "falcon",
    "fern",
    "finch",
    "fir",
    "flamingo",
    "fox",
    "gannet",
    "glacier",
    "goose",
    "gull",
    "hare",
    "hawk",
    "hazel",
    "heron",
    "ibex",
    "kestrel",
    "lark",
    "larch",
    "lemming",
    "lynx",
    "maple",
    "marten",
    "moose",
    "narwhal",
    "orca",
    "osprey",
    "otter",
    "owl",
    "penguin",
    "petrel",
    "pine",
    "plover",
    "puffin",
    "raven",
    "reindeer",
    "robin",
    "rowan",
    "sable",
    "salmon",
    "seal",
    "skua",
    "sparrow",
    "spruce",
    "swan",
    "tern",
    "walrus",
    "whale",
    "willow",
    "wren",
];

/// A new box id: two words and a number.
#[must_use]
pub fn new_box_id() -> String {
    let mut random = rand::rng();
    let adjective = ADJECTIVES.choose(&mut random).copied().unwrap_or("icy");
    let noun = NOUNS.choose(&mut random).copied().unwrap_or("fox");
    format!("{adjective}-{noun}-{}", random.random_range(10_000..100_000_u32))
}

/// A new snapshot id.
#[must_use]
pub fn new_snapshot_id() -> String {
    format!("snap_{}", random_letters())
}

/// A new id of an undo point.
#[must_use]
pub fn new_undo_id() -> String {
    format!("undo_{}", random_letters())
}

fn random_letters() -> String {
    let mut random = rand::rng();
    (0..ID_LETTERS).map(|_| char::from(ID_ALPHABET[random.random_range(0..32)])).collect()
}

/// A new volume id.
#[must_use]
pub fn new_volume_id() -> String {
    format!("vol-{}", random_letters())
}

/// Checks a name that a client wants to give a volume; the error describes the problem.
pub fn check_volume_name(name: &str) -> Result<(), String> {
    if is_id_or_name(name) {
        return Ok(());
    }
    Err(format!(
        "the name of a volume must be 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' or '.', and begin with a letter or digit"
    ))
}

/// Checks a name that a client wants to give a snapshot; the error describes the problem.
pub fn check_snapshot_name(name: &str) -> Result<(), String> {
    if name.trim().is_empty() || name.len() > SNAPSHOT_NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(format!(
            "the name of a snapshot must have 1 to {SNAPSHOT_NAME_BYTES_MAX} bytes, without control characters"
        ));
    }
    Ok(())
}

/// True if `text` may be looked up as a box id or name. Other texts cannot exist, so the answer is "unknown box".
#[must_use]
pub fn is_id_or_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= NAME_BYTES_MAX
        && bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Checks a name that a client wants to give a box; the error describes the problem.
pub fn check_name(name: &str) -> Result<(), String> {
    if !is_id_or_name(name) {
        return Err(format!(
            "name must be 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' or '.', and begin with a letter or digit"
        ));
    }
    if RESERVED.contains(&name) {
        return Err(format!("the name '{name}' is reserved"));
    }
    if looks_like_id(name) {
        return Err(format!("the name '{name}' has the form of a box id"));
    }
    Ok(())
}

/// True if `text` has the form of [`new_box_id`]. Such names are refused; otherwise one box could have another's id as
/// its name.
fn looks_like_id(text: &str) -> bool {
    let mut parts = text.split('-');
    let (Some(adjective), Some(noun), Some(number), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    ADJECTIVES.contains(&adjective)
        && NOUNS.contains(&noun)
        && number.len() == 5
        && number.bytes().all(|digit| digit.is_ascii_digit())
}

/// Checks one label.
pub fn check_label(label: &str) -> Result<(), String> {
    let fits = !label.is_empty()
        && label.len() <= LABEL_CHARS_MAX
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':'));
    if fits {
        Ok(())
    } else {
        Err(format!("a label must be 1 to {LABEL_CHARS_MAX} letters, digits, '.', '_', '-' or ':'"))
    }
}

/// Checks the labels of one box.
pub fn check_labels(labels: &[String]) -> Result<(), String> {
    if labels.len() > LABELS_MAX {
        return Err(format!("a box has at most {LABELS_MAX} labels"));
    }
    labels.iter().try_for_each(|label| check_label(label))
}

/// True if the owner of a box may not set this variable.
#[must_use]
pub fn is_blocked_env(name: &str) -> bool {
    ENV_BLOCKED.contains(&name)
}

/// True if a shell can have a variable of this name (POSIX, "Environment Variables").
#[must_use]
pub fn is_env_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    name.len() <= ENV_NAME_BYTES_MAX
        && name.bytes().next().is_some_and(|first| fits(first) && !first.is_ascii_digit())
        && name.bytes().all(fits)
}

/// Checks one environment variable.
pub fn check_env(name: &str, value: &str) -> Result<(), String> {
    if is_blocked_env(name) {
        return Err(format!("the environment variable {name} cannot be set"));
    }
    if !is_env_name(name) {
        let shown: String = name.chars().take(40).collect();
        return Err(format!(
            "'{shown}' is no name for an environment variable: 1 to {ENV_NAME_BYTES_MAX} letters, digits and '_', not \
             beginning with a digit"
        ));
    }
    if value.len() > ENV_VALUE_BYTES_MAX || value.bytes().any(|byte| byte == 0) {
        return Err(format!("the value of {name} must have at most {ENV_VALUE_BYTES_MAX} bytes, without NUL"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_have_ids_of_their_own() {
        let (one, two) = (new_snapshot_id(), new_snapshot_id());
        assert!(one.starts_with("snap_") && one.len() == 21 && one != two, "{one} {two}");
        assert!(check_snapshot_name("before the upgrade").is_ok());
        for bad in ["", " ", "a\nb", &"x".repeat(SNAPSHOT_NAME_BYTES_MAX + 1)] {
            assert!(check_snapshot_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn made_ids_are_dns_labels_and_are_accepted() {
        for _ in 0..1000 {
            let id = new_box_id();
            assert!(is_id_or_name(&id), "{id}");
            assert!(looks_like_id(&id), "{id}");
            assert!(id.len() <= 63 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
        }
    }

    #[test]
    fn hostile_ids_are_refused() {
        let long = "a".repeat(64);
        let hostile = [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/etc",
            "%2e%2e",
            "a\0b",
            "a b",
            "-rf",
            ".hidden",
            "ä",
            "a\nb",
            "a\\b",
            "a;b",
            "a'b",
            "a\"b",
            "*",
            "a?b",
            "\u{202e}x",
            "_x",
            &long,
        ];
        for id in hostile {
            assert!(!is_id_or_name(id), "{id:?}");
        }
    }

    #[test]
    fn names_hide_no_route_and_no_id() {
        assert!(check_name("my-box.1").is_ok());
        for name in ["from-snapshot", "snapshots", "settings", "right-flamingo-14486", ""] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name("right-flamingo-x").is_ok());
    }

    #[test]
    fn labels_follow_the_rules() {
        assert!(check_label("a:b").is_ok());
        assert!(check_label(&"x".repeat(20)).is_ok());
        for label in ["", "a b", "ü", "a/b", &"x".repeat(21)] {
            assert!(check_label(label).is_err(), "{label:?}");
        }
        let six: Vec<String> = (0..6).map(|n| n.to_string()).collect();
        assert!(check_labels(&six).is_err());
        assert!(check_labels(&six[..5]).is_ok());
    }

    #[test]
    fn env_names_that_steer_the_loader_are_refused() {
        for name in ENV_BLOCKED {
            assert!(check_env(name, "x").is_err());
        }
        for name in ["A=B", "", "A B", "1A", "a-b", "a.b", "ü", "A\0"] {
            let text = check_env(name, "x").expect_err("no name");
            assert!(text.contains(name), "{text}");
        }
        assert!(check_env("_a1", "x").is_ok());
        assert!(check_env("A", "x\0y").is_err());
        assert!(check_env("A", "").is_ok());
    }
}
