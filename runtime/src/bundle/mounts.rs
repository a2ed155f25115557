//! OCI mounts: option words become attributes, propagation and file system options.

use std::path::{Path, PathBuf};

use crate::{
    Error, Result, Step,
    plan::{Mount, MountAttributes, MountSource, Propagation},
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
    if mount.uid_mappings().as_ref().is_some_and(|m| !m.is_empty()) {
        return Err(Error::unsupported(Step::Mounts, subject, "idmapped mounts are not supported yet"));
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

#[derive(Default)]
struct Options {
    bind: bool,
    recursive_bind: bool,
    attributes: MountAttributes,
    propagation: Option<Propagation>,
    data: Vec<(String, Option<String>)>,
}

impl Options {
    /// The words of mount(8) that OCI config-linux lists; everything else belongs to the file system.
    fn read(words: &[String], subject: &str) -> Result<Self> {
        let mut options = Self::default();
        for word in words {
            if !options.attribute(word) && !options.propagation_word(word) {
                match word.as_str() {
                    "bind" => options.bind = true,
                    "rbind" => (options.bind, options.recursive_bind) = (true, true),
                    "idmap" | "ridmap" | "tmpcopyup" | "remount" => {
                        return Err(Error::unsupported(
                            Step::Mounts,
                            subject,
                            format!("option {word} is not supported yet"),
                        ));
                    }
                    // Defaults, and marks for mount(8) itself.
                    "defaults" | "relatime" | "norelatime" | "async" | "nomand" | "noiversion" | "nolazytime" | "" => {}
                    other => options.data.push(split(other)),
                }
            }
        }
        Ok(options)
    }

    fn attribute(&mut self, word: &str) -> bool {
        let (word, recursive) = match word.strip_prefix('r') {
            Some(rest) if matches!(rest, "ro" | "rw" | "nosuid" | "nodev" | "noexec" | "noatime" | "nosymfollow") => {
                (rest, true)
            }
            _ => (word, false),
        };
        let attributes = &mut self.attributes;
        let (field, value) = match word {
            "ro" => (&mut attributes.readonly, true),
            "rw" => (&mut attributes.readonly, false),
            "nosuid" => (&mut attributes.nosuid, true),
            "suid" => (&mut attributes.nosuid, false),
            "nodev" => (&mut attributes.nodev, true),
            "dev" => (&mut attributes.nodev, false),
            "noexec" => (&mut attributes.noexec, true),
            "exec" => (&mut attributes.noexec, false),
            "nosymfollow" => (&mut attributes.nosymfollow, true),
            "symfollow" => (&mut attributes.nosymfollow, false),
            "noatime" => (&mut attributes.noatime, true),
            "atime" => (&mut attributes.noatime, false),
            "strictatime" => (&mut attributes.strictatime, true),
            "nostrictatime" => (&mut attributes.strictatime, false),
            "nodiratime" => (&mut attributes.nodiratime, true),
            "diratime" => (&mut attributes.nodiratime, false),
            _ => return false,
        };
        *field = value;
        attributes.recursive |= recursive;
        true
    }

    fn propagation_word(&mut self, word: &str) -> bool {
        self.propagation = Some(match word {
            "private" => Propagation::Private(false),
            "rprivate" => Propagation::Private(true),
            "slave" => Propagation::Slave(false),
            "rslave" => Propagation::Slave(true),
            "shared" => Propagation::Shared(false),
            "rshared" => Propagation::Shared(true),
            "unbindable" => Propagation::Unbindable(false),
            "runbindable" => Propagation::Unbindable(true),
            _ => return false,
        });
        true
    }
}

fn split(word: &str) -> (String, Option<String>) {
    match word.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (word.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::Options;
    use crate::plan::Propagation;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn words_go_where_they_belong() {
        let options =
            Options::read(&words(&["nosuid", "strictatime", "mode=755", "ro", "rslave", "newinstance"]), "x").unwrap();
        assert!(options.attributes.nosuid && options.attributes.strictatime && options.attributes.readonly);
        assert_eq!(options.propagation, Some(Propagation::Slave(true)));
        assert_eq!(options.data, vec![("mode".into(), Some("755".into())), ("newinstance".into(), None)]);
    }

    #[test]
    fn the_last_word_wins_and_r_words_are_recursive() {
        let options = Options::read(&words(&["ro", "rw", "rbind", "rro"]), "x").unwrap();
        assert!(options.attributes.readonly && options.attributes.recursive && options.recursive_bind);
        let options = Options::read(&words(&["ro", "rw"]), "x").unwrap();
        assert!(!options.attributes.readonly && !options.attributes.recursive);
    }

    #[test]
    fn what_is_not_done_is_refused() {
        assert!(Options::read(&words(&["idmap"]), "x").is_err());
    }
}
