//! Turns a fresh Debian tree into ours: the box's user and home, names, git's defaults, no privileges, no leftovers.

use std::io;
use std::path::Path;

use super::Package;
use super::account::{GIT_CONFIG, HOME, HOSTNAME, HOSTS, USER, USER_HOME, USER_ID};
use super::tree::{Owner, Tree};
use crate::error::{At, Cause, Error, Result, Step};

const SHELL: &str = "/bin/bash";

/// Emptied directories: packages and lists that can be fetched again, and traces of the build.
const EMPTIED: [&str; 6] = ["dev", "run", "tmp", "var/cache/apt", "var/lib/apt/lists", "var/log"];
/// Directories that dpkg and apt expect in the emptied ones, parents first.
const KEPT_DIRECTORIES: [&str; 4] =
    ["var/cache/apt/archives", "var/cache/apt/archives/partial", "var/lib/apt/lists/partial", "var/log/apt"];
/// Removed files: the host's identity that debootstrap copied or made, unneeded back-ups, and the mark that forbids
/// `pip install` outside of a virtual environment: a box is one user's computer, as are the images for Python.
const REMOVED: [&str; 10] = [
    "etc/.pwd.lock",
    "etc/passwd-",
    "etc/group-",
    "etc/shadow-",
    "etc/gshadow-",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/lib/dpkg/status-old",
    "var/cache/ldconfig/aux-cache",
    "usr/lib/python3.13/EXTERNALLY-MANAGED",
];

/// Changes the tree at `rootfs`; returns the bytes that its files occupy and its packages.
pub(super) fn finish(rootfs: &Path) -> Result<(u64, Vec<Package>)> {
    let tree = Tree::open(rootfs).at(Step::FinishImage, rootfs)?;
    let at = |result: io::Result<()>, path: &str| result.at(Step::FinishImage, &rootfs.join(path));
    add_user(&tree, rootfs)?;
    at(tree.make_dir("workspace", Owner::root(0o755)), "workspace")?;
    at(tree.make_dir(HOME, Owner { uid: USER_ID, gid: USER_ID, mode: 0o755 }), HOME)?;
    at(tree.link(&format!("/{HOME}"), "work"), "work")?;
    // Where the service whose protocol we speak has the user's home: programs name it.
    at(tree.make_dir("home", Owner::root(0o755)), "home")?;
    at(tree.link(&format!("/{HOME}"), USER_HOME), USER_HOME)?;
    for (path, content) in [
        ("etc/hostname", HOSTNAME),
        ("etc/hosts", HOSTS),
        ("etc/gitconfig", GIT_CONFIG),
        ("etc/resolv.conf", ""),
        ("etc/machine-id", ""),
    ] {
        at(tree.write(path, content.as_bytes(), Owner::root(0o644)), path)?;
    }
    for path in EMPTIED {
        at(tree.empty_dir(path), path)?;
    }
    for path in KEPT_DIRECTORIES {
        at(tree.make_dir(path, Owner::root(0o755)), path)?;
    }
    for path in REMOVED {
        at(tree.remove(path), path)?;
    }
    let walked = tree.drop_privileges().at(Step::FinishImage, rootfs)?;
    let status = tree.read("var/lib/dpkg/status").at(Step::FinishImage, &rootfs.join("var/lib/dpkg/status"))?;
    Ok((walked.size_bytes, packages(&String::from_utf8_lossy(&status))))
}

/// Appends the user to the four account files. The password `*` can never match.
fn add_user(tree: &Tree, rootfs: &Path) -> Result<()> {
    // The group of the shadow files, so that they keep the permissions Debian gives them.
    const SHADOW_GROUP_ID: u32 = 42;
    let shadow = Owner { uid: 0, gid: SHADOW_GROUP_ID, mode: 0o640 };
    let lines = [
        ("etc/passwd", format!("{USER}:x:{USER_ID}:{USER_ID}::/{HOME}:{SHELL}\n"), Owner::root(0o644)),
        ("etc/group", format!("{USER}:x:{USER_ID}:\n"), Owner::root(0o644)),
        ("etc/shadow", format!("{USER}:*:19000:0:99999:7:::\n"), shadow),
        ("etc/gshadow", format!("{USER}:*::\n"), shadow),
    ];
    for (path, line, owner) in lines {
        let host_path = rootfs.join(path);
        let old = tree.read(path).at(Step::FinishImage, &host_path)?;
        let old = String::from_utf8_lossy(&old);
        let new = with_account(&old, &line).map_err(|cause| Error::new(Step::FinishImage, path, cause))?;
        tree.write(path, new.as_bytes(), owner).at(Step::FinishImage, &host_path)?;
    }
    Ok(())
}

/// The account file with the line added. A package that took the user's name or number is an error.
fn with_account(old: &str, line: &str) -> Result<String, Cause> {
    let id = USER_ID.to_string();
    let taken = old.lines().any(|old| {
        let mut fields = old.split(':');
        let name = fields.next();
        // Accounts have their number in the third field; in the shadow files that is a day count, never 1000.
        name == Some(USER) || fields.nth(1) == Some(&id)
    });
    if taken {
        return Err(Cause::Invalid("the name boxuser or the number 1000 is taken already"));
    }
    let mut new = old.to_owned();
    if !new.is_empty() && !new.ends_with('\n') {
        new.push('\n');
    }
    new.push_str(line);
    Ok(new)
}

/// The installed packages in dpkg's database, sorted by name.
fn packages(status: &str) -> Vec<Package> {
    let mut packages: Vec<Package> = status
        .split("\n\n")
        .filter_map(|stanza| {
            let field = |name: &str| {
                stanza.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
            };
            let (name, version, state) = (field("Package:")?, field("Version:")?, field("Status:")?);
            (state == "install ok installed").then_some(Package { name, version })
        })
        .collect();
    packages.sort_by(|left, right| left.name.cmp(&right.name));
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_added_once() {
        let line = "boxuser:x:1000:1000::/workspace/home:/bin/bash\n";
        let new = with_account("root:x:0:0:root:/root:/bin/bash", line).unwrap();
        assert_eq!(new, format!("root:x:0:0:root:/root:/bin/bash\n{line}"));
        assert!(with_account(&new, line).is_err());
        assert!(with_account("other:x:1000:1000::/:/bin/sh\n", line).is_err());
    }

    #[test]
    fn packages_come_from_the_database() {
        let status = "Package: b\nStatus: install ok installed\nVersion: 2-1\nDescription: x\n y\n\n\
                      Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
                      Package: a\nStatus: install ok installed\nVersion: 1:3\n";
        let names: Vec<_> = packages(status).into_iter().map(|package| (package.name, package.version)).collect();
        assert_eq!(names, [("a".to_owned(), "1:3".to_owned()), ("b".to_owned(), "2-1".to_owned())]);
    }
}
