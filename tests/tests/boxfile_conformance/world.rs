//! What the Boxfiles of the table find: a base image and a context.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Programs of the base image; all are busybox.
const APPLETS: [&str; 27] = [
    "sh", "awk", "cat", "chgrp", "chmod", "chown", "cp", "dd", "echo", "false", "grep", "id", "ip", "ln", "ls",
    "mkdir", "mkfifo", "mv", "printf", "pwd", "rm", "rmdir", "stat", "test", "touch", "true", "truncate",
];

/// The directories of a run of the table.
pub(crate) struct World {
    /// The context of the base image.
    pub(crate) base: PathBuf,
    /// The context of all others.
    pub(crate) context: PathBuf,
    /// An empty directory.
    pub(crate) nothing: PathBuf,
    files: PathBuf,
}

impl World {
    /// The Boxfile of the base image.
    pub(crate) fn base_file(&self, text: &str) -> PathBuf {
        self.file("of-the-base", text, &[])
    }

    /// Writes a Boxfile, and the patterns that belong to it.
    pub(crate) fn file(&self, name: &str, text: &str, ignore: &[String]) -> PathBuf {
        let path = self.files.join(name);
        fs::write(&path, text).expect("a Boxfile");
        if !ignore.is_empty() {
            let patterns = ignore.iter().map(|pattern| format!("{pattern}\n")).collect::<String>();
            fs::write(self.files.join(format!("{name}.dockerignore")), patterns).expect("patterns");
        }
        path
    }
}

/// Makes base and context below `home`.
pub(crate) fn make(home: &Path) -> World {
    let dir = |name: &str| {
        let path = home.join(name);
        fs::create_dir_all(&path).expect("a directory");
        path
    };
    let world = World { base: dir("base"), context: dir("context"), nothing: dir("nothing"), files: dir("files") };
    base(&dir("root"), &world.base.join("base.tar"));
    context(&world.context, &dir("archive"));
    world
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
    fs::write(path, text).expect("a file");
    set_mode(path, mode);
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("a mode");
}

fn pack(root: &Path, archive: &Path, more: &[&str]) {
    let mut command = Command::new("tar");
    command.arg("-C").arg(root).args(["--numeric-owner", "--sort=name"]).args(more);
    let status = command.arg("-cf").arg(archive).arg(".").status().expect("tar is installed");
    assert!(status.success(), "tar ends with {status}");
}

fn base(root: &Path, archive: &Path) {
    for name in ["bin", "dev", "etc", "opt", "proc", "run", "sys", "tmp", "usr/share/doc", "home"] {
        fs::create_dir_all(root.join(name)).expect("a directory");
    }
    set_mode(&root.join("tmp"), 0o1777);
    fs::copy("/usr/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    for name in APPLETS {
        symlink("busybox", root.join("bin").join(name)).expect("a program");
    }
    let users = "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n";
    write(&root.join("etc/passwd"), users, 0o644);
    write(&root.join("etc/group"), "root:x:0:\nweb:x:34:\nstaff:x:50:\n", 0o644);
    write(&root.join("etc/motd"), "welcome\n", 0o644);
    // What a container's own mounts lie over: a builder does not have to make it.
    for name in ["hosts", "hostname", "resolv.conf"] {
        write(&root.join("etc").join(name), "", 0o644);
    }
    symlink("motd", root.join("etc/link")).expect("a link");
    write(&root.join("usr/share/doc/readme"), "read me\n", 0o644);
    write(&root.join("usr/share/owned"), "by web\n", 0o640);
    chown(root.join("usr/share/owned"), Some(33), Some(34)).expect("an owner");
    pack(root, archive, &[]);
}

fn context(root: &Path, unpacked: &Path) {
    write(&root.join("one"), "one\n", 0o644);
    write(&root.join("two"), "two\n", 0o600);
    write(&root.join("with space"), "with space\n", 0o644);
    write(&root.join("dir/in"), "in\n", 0o644);
    write(&root.join("dir/a.log"), "log\n", 0o644);
    write(&root.join("dir/sub/deep"), "deep\n", 0o640);
    write(&root.join("dir/sub/other"), "other\n", 0o644);
    set_mode(&root.join("dir/sub"), 0o750);
    write(&root.join("modes/setuid"), "setuid\n", 0o4755);
    write(&root.join("modes/private"), "private\n", 0o400);
    write(&root.join("modes/program"), "#!/bin/sh\necho program\n", 0o755);
    write(&root.join("modes/sticky/file"), "sticky\n", 0o666);
    set_mode(&root.join("modes/sticky"), 0o1777);
    fs::create_dir_all(root.join("links")).expect("a directory");
    for (name, target) in [("to-file", "../one"), ("to-dir", "../dir"), ("to-nothing", "nothing/there")] {
        symlink(target, root.join("links").join(name)).expect("a link");
    }
    fs::create_dir_all(root.join("empty")).expect("a directory");
    write(&root.join("not-a.tar"), "this is text\n", 0o644);
    write(&unpacked.join("d/file"), "from an archive\n", 0o640);
    write(&unpacked.join("d/tool"), "tool\n", 0o4711);
    fs::create_dir_all(unpacked.join("d/void")).expect("a directory");
    symlink("file", unpacked.join("d/link")).expect("a link");
    set_mode(&unpacked.join("d"), 0o711);
    pack(unpacked, &root.join("plain.tar"), &["--owner=12", "--group=34"]);
    pack(unpacked, &root.join("packed.tar.gz"), &["--gzip", "--owner=12", "--group=34"]);
}
