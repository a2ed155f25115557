//! `--chown` and USER: names are those of the image's own `/etc/passwd` and `/etc/group`.

use std::io::{self, Read as _};
use std::path::Path;

use crate::error::Fault;
use crate::tree::{Tree, resolve};

/// Bytes of `/etc/passwd` and `/etc/group` that are read.
const DATABASE_BYTES_MAX: u64 = 4 << 20;

/// A user and a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// The ids of `USER[:GROUP]` in the image with the files `root`.
///
/// # Errors
/// The image has no such user or group. The text is for people.
pub fn owner(root: &dyn Tree, text: &str) -> Result<Owner, String> {
    find(root, text).map_err(|fault| fault.what)
}

/// The user of a command, as `USER` of an image says it: a name, or ids with a colon. A number that the image does not know has
/// the group of root, unlike the owner of a file.
///
/// # Errors
/// The image has no such user or group. The text is for people.
pub fn user(root: &dyn Tree, text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Ok("0".to_owned());
    }
    if text.contains(':') {
        return owner(root, text).map(|Owner { uid, gid }| format!("{uid}:{gid}"));
    }
    let Ok(uid) = text.parse::<u32>() else { return Ok(text.to_owned()) };
    let users = database(root, "/etc/passwd").map_err(|fault| fault.what)?;
    let known = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut known = known.filter(|fields| fields.get(2).is_some_and(|field| field.parse() == Ok(uid)));
    Ok(known.next().map_or_else(|| format!("{uid}:0"), |fields| fields[0].to_owned()))
}

/// The ids of `USER[:GROUP]`. A number that stands alone is user and group.
pub(crate) fn find(root: &dyn Tree, text: &str) -> Result<Owner, Fault> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let mut owner = if user.is_empty() {
        Owner::default()
    } else if let Ok(uid) = user.parse() {
        Owner { uid, gid: uid }
    } else {
        let fields = entry(root, "/etc/passwd", user)?;
        Owner { uid: number(fields.get(2))?, gid: number(fields.get(3))? }
    };
    match group {
        None | Some("") => {}
        Some(group) => {
            owner.gid = match group.parse() {
                Ok(gid) => gid,
                Err(_) => number(entry(root, "/etc/group", group)?.get(2))?,
            };
        }
    }
    Ok(owner)
}

fn number(field: Option<&String>) -> Result<u32, Fault> {
    field.and_then(|text| text.parse().ok()).ok_or_else(|| Fault::new("the image's user database is malformed"))
}

/// The fields of the line of `name`.
fn entry(root: &dyn Tree, file: &str, name: &str) -> Result<Vec<String>, Fault> {
    let text = database(root, file)?;
    let line = text.lines().find(|line| line.split(':').next() == Some(name));
    let missing =
        || Fault::instead(format!("'{name}' is not in {file} of the image"), "use its number, or make it with RUN");
    Ok(line.ok_or_else(missing)?.split(':').map(str::to_owned).collect())
}

/// The text of `/etc/passwd` or `/etc/group`; empty if there is none.
fn database(root: &dyn Tree, file: &str) -> Result<String, Fault> {
    let path = resolve(root, Path::new(file), true)?;
    let mut text = Vec::new();
    match root.open(&path) {
        Ok(file) => drop(file.take(DATABASE_BYTES_MAX).read_to_end(&mut text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::tests::Mem;

    #[test]
    fn names_are_those_of_the_image() {
        let root = Mem::of(&["etc/passwd=root:x:0:0::/:\nweb:x:33:34::/:\n", "etc/group=staff:x:50:\n"]);
        for (text, wanted) in [
            ("root", Some((0, 0))),
            ("web", Some((33, 34))),
            ("web:staff", Some((33, 50))),
            ("7", Some((7, 7))),
            ("7:8", Some((7, 8))),
            ("web:9", Some((33, 9))),
            (":9", Some((0, 9))),
            ("web:", Some((33, 34))),
            ("none", None),
            ("web:none", None),
        ] {
            let wanted = wanted.map(|(uid, gid)| Owner { uid, gid });
            assert_eq!(find(&root, text).ok(), wanted, "{text}");
        }
        assert!(find(&Mem::of(&[]), "root").is_err());
        for (text, wanted) in [
            ("", Some("0")),
            ("web", Some("web")),
            ("33", Some("web")),
            ("0", Some("root")),
            ("7", Some("7:0")),
            ("7:8", Some("7:8")),
            ("web:staff", Some("33:50")),
            ("web:none", None),
        ] {
            assert_eq!(user(&root, text).ok().as_deref(), wanted, "{text}");
        }
        assert_eq!(user(&Mem::of(&[]), "0").as_deref(), Ok("0:0"));
    }
}
