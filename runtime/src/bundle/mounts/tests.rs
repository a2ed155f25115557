//! Mount options: what each word does, and the list that `features` prints.

use super::{Effect, Options, WORDS, options, sys_mount};
use crate::{
    Kind,
    plan::{MountAttributes, Propagation},
};

fn read(list: &[&str]) -> Options {
    let words: Vec<String> = list.iter().map(|w| (*w).to_owned()).collect();
    Options::read(&words, "x").unwrap()
}

#[test]
fn words_go_where_they_belong() {
    let options = read(&["nosuid", "strictatime", "mode=755", "ro", "rslave", "newinstance"]);
    assert!(options.attributes.nosuid && options.attributes.strictatime && options.attributes.readonly);
    assert_eq!(options.propagation, Some(Propagation::Slave(true)));
    assert_eq!(options.data, vec![("mode".into(), Some("755".into())), ("newinstance".into(), None)]);
}

#[test]
fn the_last_word_wins_and_r_words_are_recursive() {
    let options = read(&["ro", "rw", "rbind", "rro"]);
    assert!(options.attributes.readonly && options.attributes.recursive && options.recursive_bind);
    let options = read(&["ro", "rw", "noatime", "relatime"]);
    assert_eq!(options.attributes, MountAttributes::default());
}

#[test]
fn recursive_words_that_take_away_clear_the_attribute_below() {
    let words = ["rrw", "rsuid", "rdev", "rexec", "rsymfollow", "rdiratime", "rrelatime"];
    let all = sys_mount::MOUNT_ATTR_RDONLY
        | sys_mount::MOUNT_ATTR_NOSUID
        | sys_mount::MOUNT_ATTR_NODEV
        | sys_mount::MOUNT_ATTR_NOEXEC
        | sys_mount::MOUNT_ATTR_NOSYMFOLLOW
        | sys_mount::MOUNT_ATTR_NODIRATIME
        | sys_mount::MOUNT_ATTR_ATIME;
    let expected = MountAttributes { recursive: true, cleared: all, ..MountAttributes::default() };
    assert_eq!(read(&words).attributes, expected);
    assert!(read(&words).data.is_empty());
}

#[test]
fn every_listed_option_is_taken_and_every_other_word_of_the_table_is_refused() {
    let listed = options();
    for word in &listed {
        let options = read(&[word]);
        let file_system = WORDS.iter().any(|(name, effect)| name == word && matches!(effect, Effect::FileSystem));
        assert_eq!(options.data.is_empty(), !file_system, "{word}");
    }
    for (word, _) in WORDS.iter().filter(|(word, _)| !word.is_empty() && !listed.contains(&(*word).to_owned())) {
        let error = Options::read(&[(*word).to_owned()], "mount /x").err().unwrap_or_else(|| panic!("{word}"));
        assert_eq!(error.kind, Kind::Unsupported);
        assert!(error.cause.contains(word), "{error}");
    }
}

/// The words of the table in config.md of the specification, 1.3.
#[test]
fn every_option_of_the_specification_is_in_the_table() {
    let specification = "async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime nodev \
        nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime rbind \
        rdev rdiratime relatime remount rexec rnoatime rnodiratime rnoexec rnorelatime rnostrictatime rnosuid \
        rnosymfollow ro rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw shared \
        silent slave strictatime suid symfollow sync tmpcopyup unbindable idmap ridmap";
    for word in specification.split_whitespace() {
        assert!(super::effect(word).is_some(), "{word}");
    }
}
