//! OCI mounts: option words become attributes, propagation and file system options.

use std::path::{Path, PathBuf};

use crate::{
    Error, Result, Step,
    plan::{Mount, MountAttributes, MountSource, Propagation},
    sys::mount as sys_mount,
};

pub(super) fn from_oci(list: &[oci_spec::runtime::Mount], bundle: &Path) -> Result<Vec<Mount>> {
    list.iter().map(|mount| one(mount, bundle)).collect()
}

fn one(mount: &oci_spec::runtime::Mount, bundle: &Path) -> Result<Mount> {
    let destination = mount.destination();
    let target = if destination.is_absolute() { destination.clone() } else { Path::new("/").join(destination) };
    let subject = format!("mount {}", target.display());
    if target.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(Error::invalid(Step::Mounts, subject, "the destination holds `..`"));
    }
    let words = mount.options().clone().unwrap_or_default();
    let options = Options::read(&words, &subject)?;
    let fstype = mount.typ().clone().unwrap_or_default();
    let source = if options.bind || fstype == "bind" {
        let path =
            mount.source().clone().ok_or_else(|| Error::invalid(Step::Mounts, &subject, "a bind needs a source"))?;
        MountSource::Bind { path: absolute(path, bundle), recursive: options.recursive_bind }
    } else if fstype == "cgroup" || fstype == "cgroup2" {
        MountSource::Cgroup2
    } else if fstype.is_empty() || fstype == "none" {
        return Err(Error::invalid(Step::Mounts, subject, "neither a file system type nor a bind"));
    } else {
        let source = mount.source().as_ref().map(|s| s.to_string_lossy().into_owned());
        MountSource::Filesystem { fstype, source, options: options.data }
    };
    Ok(Mount { target, source, attributes: options.attributes, propagation: options.propagation })
}

fn absolute(path: PathBuf, bundle: &Path) -> PathBuf {
    if path.is_absolute() { path } else { bundle.join(path) }
}

/// What a mount option does.
#[derive(Clone, Copy)]
enum Effect {
    Bind {
        recursive: bool,
    },
    /// Changes an attribute. With `r` before the word it changes the mounts below as well; a word that takes an attribute
    /// away then clears these bits of mount_setattr(2).
    Attribute {
        change: fn(&mut MountAttributes),
        clears: u64,
    },
    Propagation(Propagation),
    /// A flag of the file system, which takes it as one of its options. A bind keeps the flags of its source.
    FileSystem,
    /// The kernel's default, or a word for mount(8) itself.
    None,
    Refused {
        instead: &'static str,
    },
}

const fn attribute(change: fn(&mut MountAttributes)) -> Effect {
    Effect::Attribute { change, clears: 0 }
}

const fn clearing(change: fn(&mut MountAttributes), clears: u64) -> Effect {
    Effect::Attribute { change, clears }
}

/// The mount options of OCI config.md, "Linux mount options", without the recursive forms of attributes. Every other
/// word belongs to the file system.
const WORDS: [(&str, Effect); 45] = [
    ("bind", Effect::Bind { recursive: false }),
    ("rbind", Effect::Bind { recursive: true }),
    ("ro", attribute(|a| a.readonly = true)),
    ("rw", clearing(|a| a.readonly = false, sys_mount::MOUNT_ATTR_RDONLY)),
    ("nosuid", attribute(|a| a.nosuid = true)),
    ("suid", clearing(|a| a.nosuid = false, sys_mount::MOUNT_ATTR_NOSUID)),
    ("nodev", attribute(|a| a.nodev = true)),
    ("dev", clearing(|a| a.nodev = false, sys_mount::MOUNT_ATTR_NODEV)),
    ("noexec", attribute(|a| a.noexec = true)),
    ("exec", clearing(|a| a.noexec = false, sys_mount::MOUNT_ATTR_NOEXEC)),
    ("nosymfollow", attribute(|a| a.nosymfollow = true)),
    ("symfollow", clearing(|a| a.nosymfollow = false, sys_mount::MOUNT_ATTR_NOSYMFOLLOW)),
    ("noatime", attribute(|a| a.noatime = true)),
    ("atime", clearing(|a| a.noatime = false, sys_mount::MOUNT_ATTR_ATIME)),
    ("strictatime", attribute(|a| a.strictatime = true)),
    ("nostrictatime", clearing(|a| a.strictatime = false, sys_mount::MOUNT_ATTR_ATIME)),
    ("relatime", clearing(|a| (a.noatime, a.strictatime) = (false, false), sys_mount::MOUNT_ATTR_ATIME)),
    // The kernel updates access times in the way of relatime unless it is told another way.
    ("norelatime", attribute(|_| ())),
    ("nodiratime", attribute(|a| a.nodiratime = true)),
    ("diratime", clearing(|a| a.nodiratime = false, sys_mount::MOUNT_ATTR_NODIRATIME)),
    ("private", Effect::Propagation(Propagation::Private(false))),
    ("rprivate", Effect::Propagation(Propagation::Private(true))),
    ("slave", Effect::Propagation(Propagation::Slave(false))),
    ("rslave", Effect::Propagation(Propagation::Slave(true))),
    ("shared", Effect::Propagation(Propagation::Shared(false))),
    ("rshared", Effect::Propagation(Propagation::Shared(true))),
    ("unbindable", Effect::Propagation(Propagation::Unbindable(false))),
    ("runbindable", Effect::Propagation(Propagation::Unbindable(true))),
    ("sync", Effect::FileSystem),
    ("dirsync", Effect::FileSystem),
    ("lazytime", Effect::FileSystem),
    ("mand", Effect::FileSystem),
    ("iversion", Effect::FileSystem),
    ("async", Effect::None),
    ("nolazytime", Effect::None),
    ("nomand", Effect::None),
    ("noiversion", Effect::None),
    ("defaults", Effect::None),
    // How much the kernel logs about the mount.
    ("silent", Effect::None),
    ("loud", Effect::None),
    ("", Effect::None),
    ("remount", Effect::Refused { instead: "list the mount once, with its final options" }),
    ("idmap", Effect::Refused { instead: NO_ID_MAP }),
    ("ridmap", Effect::Refused { instead: NO_ID_MAP }),
    (
        "tmpcopyup",
        Effect::Refused { instead: "remove it, and copy the directory into the tmpfs before the program starts" },
    ),
];

const NO_ID_MAP: &str = "remove it, and give the files the ids of the container";

/// The effect of a word, and true if it is a recursive form.
fn effect(word: &str) -> Option<(Effect, bool)> {
    let find = |word: &str| WORDS.iter().find(|(name, _)| *name == word).map(|(_, effect)| *effect);
    if let Some(effect) = find(word) {
        return Some((effect, false));
    }
    match find(word.strip_prefix('r')?)? {
        effect @ Effect::Attribute { .. } => Some((effect, true)),
        _ => None,
    }
}

/// Every option that is carried out, sorted.
pub(super) fn options() -> Vec<String> {
    let mut list = Vec::new();
    for (word, effect) in WORDS.iter().filter(|(word, _)| !word.is_empty()) {
        match effect {
            Effect::Refused { .. } => {}
            Effect::Attribute { .. } => list.extend([(*word).to_owned(), format!("r{word}")]),
            _ => list.push((*word).to_owned()),
        }
    }
    list.sort();
    list
}

#[derive(Default)]
struct Options {
    bind: bool,
    recursive_bind: bool,
    attributes: MountAttributes,
    propagation: Option<Propagation>,
    data: Vec<(String, Option<String>)>,
}

impl Options {
    fn read(words: &[String], subject: &str) -> Result<Self> {
        let mut options = Self::default();
        for word in words {
            options.add(word, subject)?;
        }
        Ok(options)
    }

    fn add(&mut self, word: &str, subject: &str) -> Result<()> {
        match effect(word) {
            Some((Effect::Bind { recursive }, _)) => (self.bind, self.recursive_bind) = (true, recursive),
            Some((Effect::Attribute { change, clears }, recursive)) => {
                change(&mut self.attributes);
                if recursive {
                    self.attributes.recursive = true;
                    self.attributes.cleared |= clears;
                }
            }
            Some((Effect::Propagation(propagation), _)) => self.propagation = Some(propagation),
            Some((Effect::FileSystem, _)) | None => self.data.push(split(word)),
            Some((Effect::None, _)) => {}
            Some((Effect::Refused { instead }, _)) => {
                let cause = format!("the option {word} is not supported; {instead}");
                return Err(Error::unsupported(Step::Mounts, subject, cause));
            }
        }
        Ok(())
    }
}

fn split(word: &str) -> (String, Option<String>) {
    match word.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (word.to_owned(), None),
    }
}

#[cfg(test)]
mod tests;
