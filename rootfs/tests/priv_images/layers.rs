//! What a layer becomes: overlayfs's whiteouts, attributes, and the same tree that other archivers make.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use icebox_rootfs::images::{Expected, Images, LayerFacts};
use icebox_rootfs::pack::{Form, pack};

use crate::store;
use crate::tars::{Head, Tar, gzip, zstd};
use crate::tree::describe;

/// Unpacks one layer and describes it. The root itself is left out.
fn unpack(images: &Images, archive: &[u8]) -> (LayerFacts, BTreeMap<String, String>) {
    let mut import = images.begin("test", None).expect("an import");
    let facts = import.layer(archive, &Expected::default()).expect("a layer");
    let mut tree = describe(&import.temp_dir().join("1/diff"));
    tree.remove("");
    (facts, tree)
}

fn kinds(tree: &BTreeMap<String, String>) -> Vec<(&str, &str)> {
    tree.iter().map(|(path, line)| (path.as_str(), line.split(' ').next().unwrap_or_default())).collect()
}

const OPAQUE: &str = r#""trusted.overlay.opaque": "y""#;

#[test]
fn priv_whiteouts_become_those_of_overlayfs() {
    let (_dir, images) = store();
    let (facts, tree) = unpack(
        &images,
        &Tar::new()
            .dir("a")
            .file("a/.wh.gone", b"")
            .dir("b")
            .file("b/.wh..wh..opq", b"")
            .file("b/new", b"x")
            // What this layer has itself stays, before the whiteout and after it.
            .file("kept", b"x")
            .file(".wh.kept", b"")
            .file(".wh.back", b"")
            .file("back", b"x")
            .file(".wh.dir", b"")
            .dir("dir")
            .dir("old")
            .file("old/x", b"")
            .file(".wh.old", b"")
            .end(),
    );
    assert_eq!(
        kinds(&tree),
        [
            ("a", "dir"),
            ("a/gone", "char"),
            ("b", "dir"),
            ("b/new", "file"),
            ("back", "file"),
            ("dir", "dir"),
            ("kept", "file"),
            ("old", "dir"),
            ("old/x", "file"),
        ]
    );
    let opaque: Vec<&str> =
        tree.iter().filter(|(_, line)| line.contains(OPAQUE)).map(|(path, _)| path.as_str()).collect();
    assert_eq!(opaque, ["b", "dir", "old"]);
    assert!(tree["a/gone"].starts_with("char 0 "), "{}", tree["a/gone"]);
    assert!(!facts.opaque_root && facts.exact);
    let (facts, _) = unpack(&images, &Tar::new().file(".wh..wh..opq", b"").end());
    assert!(facts.opaque_root);
}

#[test]
fn priv_entries_keep_their_attributes() {
    let (_dir, images) = store();
    // cap_net_bind_service=ep, version 2.
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let archive = Tar::new()
        .head(Head::new(b'5', b"./").mode(0o1777).owner(3, 4))
        .head(Head::new(b'5', b"d").mode(0o2750).owner(5, 6))
        .pax(&[
            ("SCHILY.xattr.security.capability", capability.as_slice()),
            ("SCHILY.xattr.user.note", b"a\0b"),
            ("mtime", b"1600000000.123456789"),
        ])
        .head(Head::new(b'0', b"d/f").mode(0o4755).owner(1000, 1001))
        .pax(&[("SCHILY.xattr.user.dir", b"x"), ("mtime", b"-1.5")])
        .head(Head::new(b'5', b"e").mode(0o700))
        .head(Head::new(b'2', b"l").link(b"../../x").owner(7, 8))
        .file("e/implied/f", b"x")
        .end();
    let mut import = images.begin("test", None).expect("an import");
    let facts = import.layer(archive.as_slice(), &Expected::default()).expect("a layer");
    let tree = describe(&import.temp_dir().join("1/diff"));
    assert_eq!(tree[""], "dir 1777 3:4 1700000000.000000000 {}");
    assert_eq!(tree["d"], "dir 2750 5:6 1700000000.000000000 {}");
    assert!(tree["d/f"].contains(" 4755 1000:1001 1600000000.123456789 "), "{}", tree["d/f"]);
    assert!(
        tree["d/f"].contains("security.capability") && tree["d/f"].contains(r#""user.note": "a\\x00b""#),
        "{}",
        tree["d/f"]
    );
    assert_eq!(tree["e"], r#"dir 700 0:0 -2.500000000 {"user.dir": "x"}"#);
    assert_eq!(tree["l"], "link to ../../x 777 7:8 1700000000.000000000 {}");
    assert_eq!(facts.implied, ["e/implied"]);
    assert!(facts.warnings.is_empty(), "{:?}", facts.warnings);
}

/// A tree with what archivers differ about.
fn odd_tree(root: &Path) {
    fs::create_dir_all(root.join("dir/sub")).expect("directories");
    let long = format!("dir/{}", "long-name-".repeat(15));
    fs::create_dir(root.join(&long)).expect("a directory");
    fs::write(root.join(&long).join("x".repeat(200)), "deep").expect("a file");
    fs::write(root.join("dir/umlaut-ä"), "x").expect("a file");
    fs::write(root.join("plain"), vec![7; 100_000]).expect("a file");
    fs::hard_link(root.join("plain"), root.join("dir/hard")).expect("a link");
    symlink("l".repeat(180), root.join("dir/soft")).expect("a link");
    symlink("plain", root.join("zlink")).expect("a link");
    fs::hard_link(root.join("zlink"), root.join("zlink2")).expect("a link to a link");
    nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o640)).expect("a pipe");
    fs::write(root.join("dir/set"), "x").expect("a file");
    std::os::unix::fs::chown(root.join("dir/set"), Some(1000), Some(50)).expect("owned");
    fs::set_permissions(root.join("dir/set"), fs::Permissions::from_mode(0o6711)).expect("a mode");
    fs::set_permissions(root.join("dir/sub"), fs::Permissions::from_mode(0o1777)).expect("a mode");
    let holes = fs::File::create(root.join("holes")).expect("a file");
    for at in [0_u64, 256 << 10, 264 << 10, 768 << 10] {
        std::os::unix::fs::FileExt::write_all_at(&holes, &[9; 4096], at).expect("written");
    }
    // More segments than fit into a header.
    for number in 0..40_u64 {
        std::os::unix::fs::FileExt::write_all_at(&holes, &[1; 4096], (1 << 20) + number * 16384).expect("written");
    }
    holes.set_len(2 << 20).expect("a size");
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().expect("started");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn priv_archives_of_gnu_tar_become_the_trees_that_it_makes() {
    let (dir, images) = store();
    let root = dir.path().join("tree");
    odd_tree(&root);
    for (number, options) in [
        &["--format=gnu"][..],
        &["--format=pax"],
        &["--format=oldgnu", "--sparse"],
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
    ]
    .into_iter()
    .enumerate()
    {
        let archive = run(Command::new("tar").args(options).arg("-C").arg(&root).args(["-cf", "-", "."]));
        let theirs = dir.path().join(format!("theirs-{number}"));
        fs::create_dir(&theirs).expect("a directory");
        let file = dir.path().join("archive.tar");
        fs::write(&file, &archive).expect("written");
        run(Command::new("tar").arg("-C").arg(&theirs).args(["--numeric-owner", "-xpf"]).arg(&file));
        let mut expected = describe(&theirs);
        let (facts, tree) = unpack(&images, &archive);
        expected.remove("");
        assert_eq!(tree, expected, "{options:?}");
        assert!(facts.exact && facts.implied.is_empty() && facts.warnings.is_empty(), "{facts:?}");
        // Holes stay holes.
        if options.contains(&"--sparse") {
            let mut import = images.begin("holes", None).expect("an import");
            import.layer(archive.as_slice(), &Expected::default()).expect("a layer");
            let facts = fs::metadata(import.temp_dir().join("1/diff/holes")).expect("a file");
            assert!(facts.blocks() * 512 < 1 << 20, "{} blocks", facts.blocks());
        }
    }
}

#[test]
fn priv_an_archive_is_made_again_byte_for_byte() {
    let (dir, images) = store();
    let root = dir.path().join("tree");
    odd_tree(&root);
    let archives = [
        run(Command::new("tar").args(["--format=gnu", "-S", "-C"]).arg(&root).args(["-cf", "-", "."])),
        run(Command::new("tar").args(["--format=pax", "-C"]).arg(&root).args(["-cf", "-", "."])),
        Tar::new().pax_of(b'g', &[("comment", b"x")]).file("empty", b"").file("f", b"abc").dir(".wh..wh.x").unended(),
        Tar::new()
            .file("a/.wh.b", b"")
            .head(Head::new(b'4', b"dev").device(8, 0))
            .file("z", b"z")
            .bytes(&[0; 5120])
            .end(),
    ];
    for archive in archives {
        for form in [archive.clone(), gzip(&archive), zstd(&archive)] {
            let image = images.import_rootfs(form.as_slice(), "test", None, None).expect("an image");
            let mut parcel = images.parcel(&image, &mut |_, _| ()).expect("a parcel");
            assert!(!parcel.changed);
            let mut made = Vec::new();
            flate2::read::GzDecoder::new(&mut parcel.layers[0]).read_to_end(&mut made).expect("an archive");
            assert!(made == archive, "the archive differs");
        }
    }
    // An entry that comes twice has its first content nowhere any more.
    let twice = Tar::new().file("f", b"first").file("f", b"second").end();
    let image = images.import_rootfs(twice.as_slice(), "test", None, None).expect("an image");
    let parcel = images.parcel(&image, &mut |_, _| ()).expect("a parcel");
    assert!(parcel.changed);
    let config: serde_json::Value = serde_json::from_slice(&parcel.config_bytes).expect("JSON");
    assert_ne!(config["rootfs"]["diff_ids"][0], image.diff_ids[0]);
}

#[test]
fn priv_a_packed_tree_is_the_tree() {
    let (dir, images) = store();
    let root = dir.path().join("tree");
    odd_tree(&root);
    rustix::fs::setxattr(root.join("plain"), c"user.note", b"x", rustix::fs::XattrFlags::empty())
        .expect("an attribute");
    let mut archive = Vec::new();
    pack(&root, Form::Plain, &mut archive).expect("packed");
    let mut again = Vec::new();
    pack(&root, Form::Plain, &mut again).expect("packed");
    assert!(archive == again, "a tree gives the same bytes each time");
    let (_, tree) = unpack(&images, &archive);
    let mut expected = describe(&root);
    expected.remove("");
    assert_eq!(tree, expected);
    // GNU tar reads the same from it.
    let (file, theirs) = (dir.path().join("archive.tar"), dir.path().join("theirs"));
    fs::write(&file, &archive).expect("written");
    fs::create_dir(&theirs).expect("a directory");
    run(Command::new("tar").arg("-C").arg(&theirs).args(["--numeric-owner", "--xattrs", "-xpf"]).arg(&file));
    let mut theirs = describe(&theirs);
    theirs.remove("");
    assert_eq!(theirs, expected);
}

#[test]
fn priv_a_layer_of_overlayfs_travels_with_its_whiteouts() {
    let (_dir, images) = store();
    let archive =
        Tar::new().dir("a").file("a/.wh.gone", b"").dir("b").file("b/.wh..wh..opq", b"").file("b/new", b"x").end();
    let mut import = images.begin("test", None).expect("an import");
    import.layer(archive.as_slice(), &Expected::default()).expect("a layer");
    let upper: PathBuf = import.temp_dir().join("1/diff");
    let mut packed = Vec::new();
    pack(&upper, Form::Overlay, &mut packed).expect("packed");
    let expected = describe(&upper);
    drop(import);
    let (_, tree) = unpack(&images, &packed);
    let without_time = |tree: &BTreeMap<String, String>| {
        let plain = tree.iter().filter(|(path, _)| !path.is_empty());
        plain
            .map(|(path, line)| (path.clone(), line.split(" 0:0 ").next().unwrap_or_default().to_owned()))
            .collect::<Vec<_>>()
    };
    assert_eq!(without_time(&tree), without_time(&expected));
    assert!(tree["b"].contains(OPAQUE));
}
