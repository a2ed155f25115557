//! The identity of a process, from the box's own passwd and group files, which are untrusted.
//!
//! Invariants: only regular files of bounded size are read, never through a final symbolic link, never blocking
//! (CVE-2024-9676: a passwd that is a FIFO or endless); ids are checked u32s, and the "unchanged" id -1 is refused.
//! Leaves out: NSS. Nothing is ever loaded from the box.

use std::fs::File;
use std::io::Read;

use icebox_runtime::process::User;
use rustix::fs::{Mode, OFlags};

use crate::error::{Error, ErrorKind, ExecFailure};

/// The box's user, when the box's files do not say otherwise.
pub(crate) const BOX_USER: &str = "boxuser";
const BOX_USER_ID: u32 = 1000;
const BOX_USER_HOME: &str = "/workspace/home";
const SHELL: &str = "/bin/sh";
const BOX_USER_SHELL: &str = "/bin/bash";

/// Larger account files are refused.
const ACCOUNT_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Most of them are shorter than this.
const ACCOUNT_FILE_BYTES_USUAL: usize = 4096;
/// Most groups of a user; the kernel's own limit is 65536.
const GROUPS_MAX: usize = 256;

/// The ids and the login facts of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
    pub(crate) shell: String,
}

impl Identity {
    /// Its ids.
    pub(crate) fn user(&self) -> User<'_> {
        User { uid: self.uid, gid: self.gid, groups: &self.groups }
    }
}

/// The texts of the account files.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads /etc/passwd and /etc/group as they are now; what cannot be read is empty.
    pub(crate) fn read() -> Self {
        Self {
            passwd: read_account_file("/etc/passwd").unwrap_or_default(),
            group: read_account_file("/etc/group").unwrap_or_default(),
        }
    }

    /// The identity for `name`, `uid` or `uid:gid`; the box's user if nothing is asked.
    pub(crate) fn resolve(&self, user: Option<&str>) -> Result<Identity, Error> {
        let Some(user) = user else {
            return Ok(self.named(BOX_USER).unwrap_or_else(|| self.box_user()));
        };
        if let Some((uid, gid)) = user.split_once(':') {
            let (uid, gid) = (numeric(uid, user)?, numeric(gid, user)?);
            let mut identity = self.numbered(uid);
            identity.gid = gid;
            identity.groups = vec![gid];
            return Ok(identity);
        }
        if user.bytes().all(|b| b.is_ascii_digit()) {
            return Ok(self.numbered(numeric(user, user)?));
        }
        if user == BOX_USER {
            return Ok(self.named(BOX_USER).unwrap_or_else(|| self.box_user()));
        }
        let unknown = || Error::new(ErrorKind::NotFound, "look up user", user).in_exec(ExecFailure::User);
        self.named(user).ok_or_else(unknown)
    }

    /// The id of a group by name or number.
    pub(crate) fn group(&self, group: &str) -> Result<u32, Error> {
        if group.bytes().all(|b| b.is_ascii_digit()) {
            return numeric(group, group);
        }
        let id_of = |line: &str| {
            let mut fields = line.split(':');
            (fields.next() == Some(group)).then(|| fields.nth(1).and_then(parse_id)).flatten()
        };
        let unknown = || Error::new(ErrorKind::NotFound, "look up group", group).in_exec(ExecFailure::Group);
        self.group.lines().find_map(id_of).ok_or_else(unknown)
    }

    fn named(&self, name: &str) -> Option<Identity> {
        self.entries().find(|entry| entry.name == name)
    }

    fn numbered(&self, uid: u32) -> Identity {
        self.entries().find(|entry| entry.uid == uid).unwrap_or_else(|| match uid {
            BOX_USER_ID => self.box_user(),
            0 => plain("root", 0, "/root", BOX_USER_SHELL),
            _ => plain(&uid.to_string(), uid, "/", SHELL),
        })
    }

    fn box_user(&self) -> Identity {
        let mut identity = plain(BOX_USER, BOX_USER_ID, BOX_USER_HOME, BOX_USER_SHELL);
        identity.groups = self.groups_of(BOX_USER, BOX_USER_ID);
        identity
    }

    fn entries(&self) -> impl Iterator<Item = Identity> {
        self.passwd.lines().filter_map(|line| self.entry(line))
    }

    fn entry(&self, line: &str) -> Option<Identity> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = parse_id(fields.nth(1)?)?;
        let gid = parse_id(fields.next()?)?;
        let home = fields.nth(1).filter(|home| home.starts_with('/'));
        let shell = fields.next().filter(|shell| shell.starts_with('/'));
        let usable = |text: &str| !text.contains('\0');
        if !usable(line) {
            return None;
        }
        Some(Identity {
            name: name.to_owned(),
            uid,
            gid,
            groups: self.groups_of(name, gid),
            home: home.unwrap_or("/").to_owned(),
            shell: shell.unwrap_or(SHELL).to_owned(),
        })
    }

    fn groups_of(&self, name: &str, primary: u32) -> Vec<u32> {
        let mut groups = vec![primary];
        for line in self.group.lines() {
            let mut fields = line.split(':');
            let Some(gid) = fields.nth(2).and_then(parse_id) else {
                continue;
            };
            let members = fields.next().unwrap_or_default();
            if members.split(',').any(|member| member == name) && !groups.contains(&gid) && groups.len() < GROUPS_MAX {
                groups.push(gid);
            }
        }
        groups
    }
}

fn plain(name: &str, id: u32, home: &str, shell: &str) -> Identity {
    Identity {
        name: name.to_owned(),
        uid: id,
        gid: id,
        groups: vec![id],
        home: home.to_owned(),
        shell: shell.to_owned(),
    }
}

/// Digits only: no sign, no blank, no empty text; and not (uid_t)-1, which setresuid reads as "keep" (CVE-2026-30892
/// was a user string that fell back to 0).
fn parse_id(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|id| *id != u32::MAX)
}

fn numeric(text: &str, whole: &str) -> Result<u32, Error> {
    parse_id(text).ok_or_else(|| Error::new(ErrorKind::InvalidInput, "read user", whole))
}

fn read_account_file(path: &str) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags | OFlags::NOCTTY, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&fd).ok()?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return None;
    }
    // With room for most such files: an empty buffer would be read into from 32 bytes upwards.
    let mut bytes = Vec::with_capacity(ACCOUNT_FILE_BYTES_USUAL);
    let limited = File::from(fd).take(ACCOUNT_FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    if limited.is_err() || bytes.len() as u64 > ACCOUNT_FILE_BYTES_MAX {
        return None;
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/bash\n\
                     broken line\n\
                     evil:x:4294967295:0::/:/bin/sh\n\
                     minus:x:-1:0::/:/bin/sh\n\
                     nohome:x:7:7:::\n\
                     boxuser:x:1000:1001:,,,:/workspace/home:/bin/zsh\n"
                .to_owned(),
            group: "root:x:0:\nsudo:x:27:boxuser,other\nusers:x:100:other\nboxuser:x:1001:boxuser\n".to_owned(),
        }
    }

    #[test]
    fn the_default_is_the_boxes_user_from_its_own_files() {
        let identity = accounts().resolve(None).unwrap();
        assert_eq!((identity.uid, identity.gid), (1000, 1001));
        assert_eq!(identity.groups, [1001, 27]);
        assert_eq!(identity.shell, "/bin/zsh");
    }

    #[test]
    fn without_files_the_boxes_user_is_still_known() {
        for user in [None, Some("boxuser"), Some("1000")] {
            let identity = Accounts::default().resolve(user).unwrap();
            assert_eq!((identity.uid, identity.gid), (1000, 1000), "{user:?}");
            assert_eq!(identity.home, BOX_USER_HOME);
        }
        assert_eq!(Accounts::default().resolve(Some("0")).unwrap().name, "root");
    }

    #[test]
    fn user_strings_are_read_strictly() {
        let accounts = accounts();
        let pair = accounts.resolve(Some("1000:5")).unwrap();
        assert_eq!((pair.uid, pair.gid, pair.groups), (1000, 5, vec![5]));
        assert_eq!(accounts.resolve(Some("5")).unwrap().gid, 5);
        for bad in [
            "",
            "1:",
            ":1",
            ":",
            "-1",
            "+1",
            " 1",
            "1 ",
            "4294967295",
            "4294967296",
            "1:2:3",
            "0x1",
            "1:-1",
            "evil",
            "minus",
            "no-such-user",
        ] {
            assert!(accounts.resolve(Some(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn groups_are_found_by_name_and_number() {
        assert_eq!(accounts().group("users").unwrap(), 100);
        assert_eq!(accounts().group("7").unwrap(), 7);
        assert!(accounts().group("none").is_err() && accounts().group("").is_err());
    }

    #[test]
    fn a_home_that_is_no_path_is_the_root() {
        let identity = accounts().resolve(Some("nohome")).unwrap();
        assert_eq!((identity.home.as_str(), identity.shell.as_str()), ("/", SHELL));
    }

    proptest! {
        #[test]
        fn no_text_becomes_a_wrong_uid(text in "[-+0-9: a-z]{0,14}") {
            if let Ok(identity) = accounts().resolve(Some(&text)) {
                let uid_text = text.split(':').next().unwrap_or_default();
                match uid_text.parse::<u32>() {
                    Ok(uid) => prop_assert_eq!(identity.uid, uid),
                    Err(_) => prop_assert_eq!(identity.name, text),
                }
            }
        }

        #[test]
        fn hostile_account_files_never_panic(passwd in ".{0,300}", group in ".{0,300}") {
            let accounts = Accounts { passwd, group };
            let _ = accounts.resolve(None);
            let _ = accounts.resolve(Some("root"));
            let _ = accounts.resolve(Some("7"));
        }
    }
}
