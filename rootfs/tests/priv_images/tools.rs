//! Images that other tools make, and the trees that they make of them: umoci, skopeo, buildah and podman.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use icebox_rootfs::images::{ArchiveKind, Image, Images};
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};

use crate::store;
use crate::tree::describe;

/// podman and buildah share one storage.
static CONTAINERS: Mutex<()> = Mutex::new(());

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Two states of a root file system: the second removes, replaces and adds.
fn first(root: &Path) {
    for dir in ["bin", "etc/deep/er", "usr/share/gone", "var/opaque", "tmp"] {
        fs::create_dir_all(root.join(dir)).expect("a directory");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox");
    symlink("busybox", root.join("bin/sh")).expect("a link");
    fs::hard_link(root.join("bin/busybox"), root.join("bin/twin")).expect("a link");
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("a file");
    fs::write(root.join("etc/deep/er/file"), "first").expect("a file");
    fs::write(root.join("usr/share/gone/file"), "first").expect("a file");
    fs::write(root.join("var/opaque/old"), "first").expect("a file");
    fs::write(root.join("etc/becomes-a-directory"), "first").expect("a file");
    fs::write(root.join("etc/owned"), "x").expect("a file");
    std::os::unix::fs::chown(root.join("etc/owned"), Some(33), Some(4)).expect("owned");
    fs::set_permissions(root.join("etc/owned"), fs::Permissions::from_mode(0o4750)).expect("a mode");
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("a mode");
    let set = |path: &str, name: &std::ffi::CStr, value: &[u8]| {
        rustix::fs::setxattr(root.join(path), name, value, rustix::fs::XattrFlags::empty()).expect("an attribute");
    };
    set("etc/owned", c"user.note", b"of a file");
    set("bin/busybox", c"security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    nix::unistd::mkfifo(&root.join("var/pipe"), nix::sys::stat::Mode::from_bits_truncate(0o600)).expect("a pipe");
}

fn second(root: &Path) {
    fs::remove_dir_all(root.join("usr/share/gone")).expect("removed");
    fs::remove_file(root.join("etc/deep/er/file")).expect("removed");
    fs::remove_dir_all(root.join("var/opaque")).expect("removed");
    fs::create_dir(root.join("var/opaque")).expect("a directory");
    fs::write(root.join("var/opaque/new"), "second").expect("a file");
    fs::remove_file(root.join("etc/becomes-a-directory")).expect("removed");
    fs::create_dir(root.join("etc/becomes-a-directory")).expect("a directory");
    fs::write(root.join("etc/becomes-a-directory/x"), "second").expect("a file");
    fs::write(root.join("etc").join("name-\u{e4}-that-is-long".repeat(6)), "second").expect("a file");
}

/// The image as overlayfs shows its layers, in a mount namespace of its own.
fn merged(images: &Images, image: &Image, at: &Path) -> BTreeMap<String, String> {
    let layers = images.layer_dirs(image).expect("layers");
    let at = at.to_owned();
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).expect("a mount namespace");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
        fs::create_dir_all(&at).expect("a directory");
        if let [only] = layers.as_slice() {
            return describe(only);
        }
        let lower = layers.iter().map(|layer| layer.display().to_string()).collect::<Vec<_>>().join(":");
        mount(Some("overlay"), &at, Some("overlay"), MsFlags::MS_RDONLY, Some(format!("lowerdir={lower}").as_str()))
            .expect("an overlay");
        let tree = describe(&at);
        umount(&at).expect("unmounted");
        tree
    })
    .join()
    .expect("the thread that mounts")
}

/// Makes an image of two layers by umoci: an OCI layout at `dir`, with the tag `two`.
fn umoci_image(dir: &Path, scratch: &Path) {
    let umoci = || Command::new("umoci");
    let image = |tag: &str| format!("{}:{tag}", dir.display());
    run(umoci().arg("init").arg("--layout").arg(dir));
    run(umoci().arg("new").arg("--image").arg(image("two")));
    run(umoci().args(["config", "--config.env", "FROM=umoci", "--image"]).arg(image("two")));
    let bundle = scratch.join("bundle");
    for state in [first, second] {
        let _ = fs::remove_dir_all(&bundle);
        run(umoci().arg("unpack").arg("--image").arg(image("two")).arg(&bundle));
        state(&bundle.join("rootfs"));
        run(umoci().arg("repack").arg("--image").arg(image("two")).arg(&bundle));
    }
}

fn import(images: &Images, archive: &Path) -> Image {
    let name = archive.display().to_string();
    let file = File::open(archive).expect("the archive");
    let found = images.import_archive(file, &name, ArchiveKind::Images, None, None);
    found.unwrap_or_else(|error| panic!("{}", crate::chain(&error))).remove(0)
}

/// One image on all ways: the tree is the one that umoci unpacks, to the attribute.
#[test]
fn priv_an_image_is_the_tree_that_umoci_unpacks_whatever_way_it_comes() {
    let (dir, images) = store();
    let layout = dir.path().join("layout");
    umoci_image(&layout, dir.path());
    let bundle = dir.path().join("unpacked");
    run(Command::new("umoci").arg("unpack").arg("--image").arg(format!("{}:two", layout.display())).arg(&bundle));
    let theirs = describe(&bundle.join("rootfs"));
    assert!(theirs.len() > 12, "{theirs:?}");

    let image = images.import_dir(&layout, None, None).expect("imported").remove(0);
    // Directories that a layer does not list have no time of their own in it.
    let implied: BTreeSet<String> = image
        .diff_ids
        .iter()
        .flat_map(|diff_id| images.layer(diff_id).expect("facts").expect("a layer").implied)
        .collect();
    assert!(implied.contains(""), "{implied:?}");
    let untimed = |tree: &BTreeMap<String, String>| -> BTreeMap<String, String> {
        let line = |path: &String, line: &String| match implied.contains(path) {
            true => line.split(' ').take(3).collect::<Vec<_>>().join(" "),
            false => line.clone(),
        };
        tree.iter().map(|(path, text)| (path.clone(), line(path, text))).collect()
    };
    assert_eq!(untimed(&merged(&images, &image, &dir.path().join("merged"))), untimed(&theirs));
    assert_eq!(image.env().expect("variables").last(), Some(&("FROM".to_owned(), "umoci".to_owned())));

    // skopeo writes the same image in its own forms, and reads what we export.
    let skopeo = |from: &str, to: &str| run(Command::new("skopeo").args(["copy", "--insecure-policy", "-q", from, to]));
    let from = format!("oci:{}:two", layout.display());
    for form in ["oci-archive", "docker-archive"] {
        let archive = dir.path().join(format!("{form}.tar"));
        let tag = if form == "oci-archive" { "skopeo" } else { "skopeo:1" };
        skopeo(&from, &format!("{form}:{}:{tag}", archive.display()));
        let copied = import(&images, &archive);
        assert_eq!(copied.diff_ids, image.diff_ids, "{form}");
    }
    let exported = dir.path().join("exported.tar");
    assert!(images.export(&image, None, File::create(&exported).expect("a file")).expect("exported"));
    let back = dir.path().join("back");
    skopeo(&format!("oci-archive:{}", exported.display()), &format!("oci:{}:back", back.display()));
    let bundle = dir.path().join("back-unpacked");
    run(Command::new("umoci").arg("unpack").arg("--image").arg(format!("{}:back", back.display())).arg(&bundle));
    assert_eq!(describe(&bundle.join("rootfs")), theirs);
}

/// buildah's commit, podman's commit and save: what they write is an image here.
#[test]
fn priv_images_of_buildah_and_podman_are_read() {
    let _one = CONTAINERS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (dir, images) = store();
    let storage = dir.path().join("storage");
    let roots = |command: &mut Command| {
        command.arg("--root").arg(storage.join("root")).arg("--runroot").arg(storage.join("run"));
        command.args(["--storage-driver", "vfs"]);
    };
    let buildah = |args: &[&str]| {
        let mut command = Command::new("buildah");
        roots(&mut command);
        run(command.args(args))
    };
    let container = buildah(&["from", "scratch"]);
    let mounted = buildah(&["mount", &container]);
    first(Path::new(&mounted));
    buildah(&["umount", &container]);
    buildah(&["config", "--env", "FROM=buildah", &container]);
    let layout = dir.path().join("buildah");
    buildah(&["commit", "-q", "--disable-compression=false", &container, &format!("oci:{}:made", layout.display())]);
    let image = images.import_dir(&layout, None, None).expect("imported").remove(0);
    let tree = merged(&images, &image, &dir.path().join("merged"));
    assert!(tree["etc/owned"].contains(" 4750 33:4 "), "{}", tree["etc/owned"]);
    assert!(tree["bin/busybox"].contains("security.capability"), "{}", tree["bin/busybox"]);

    buildah(&["commit", "-q", &container, "made-here:1"]);
    for form in ["docker-archive", "oci-archive"] {
        let archive = dir.path().join(format!("podman-{form}.tar"));
        let mut podman = Command::new("podman");
        roots(&mut podman);
        run(podman.args(["save", "-q", "--format", form, "-o"]).arg(&archive).arg("localhost/made-here:1"));
        let saved = import(&images, &archive);
        assert_eq!(saved.names, ["localhost/made-here:1"], "{form}");
        assert_eq!(merged(&images, &saved, &dir.path().join("merged")), tree, "{form}");
    }

    // A container of podman's, with a file more and one less.
    let podman = |args: &[&str]| {
        let mut command = Command::new("podman");
        roots(&mut command);
        run(command.args(args))
    };
    let container = podman(&["create", "localhost/made-here:1", "/bin/sh"]);
    let mounted = podman(&["mount", &container]);
    fs::write(Path::new(&mounted).join("etc/added"), "by podman").expect("a file");
    fs::remove_file(Path::new(&mounted).join("etc/owned")).expect("removed");
    podman(&["umount", &container]);
    podman(&["commit", "-q", "--change", "ENV FROM=podman", &container, "committed:1"]);
    let archive = dir.path().join("committed.tar");
    podman(&[
        "save",
        "-q",
        "--format",
        "docker-archive",
        "-o",
        archive.to_str().expect("a path"),
        "localhost/committed:1",
    ]);
    let committed = import(&images, &archive);
    assert_eq!(
        (committed.names.as_slice(), committed.diff_ids.len()),
        (["localhost/committed:1".to_owned()].as_slice(), 2)
    );
    assert!(committed.env().expect("variables").contains(&("FROM".to_owned(), "podman".to_owned())));
    let changed = merged(&images, &committed, &dir.path().join("merged"));
    assert!(changed.contains_key("etc/added") && !changed.contains_key("etc/owned"), "{changed:?}");
    assert_eq!(changed["bin/busybox"], tree["bin/busybox"]);
}
