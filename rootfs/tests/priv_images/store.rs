//! Images in the store: archives and layouts, names, shared layers, removal, and what a crash leaves.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use icebox_rootfs::ErrorKind;
use icebox_rootfs::images::{ArchiveKind, Expected, Image, Images};
use icebox_rootfs::oci::Reference;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::tars::{Tar, gzip};
use crate::{chain, store};

fn sha(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

fn reference(text: &str) -> Reference {
    text.parse().expect("a reference")
}

fn config(layers: &[Vec<u8>], note: &str) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", sha(layer))).collect();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": {"Env": ["PATH=/bin", "NOTE=a=b", "=x", "odd"], "Labels": {"note": note}, "Healthcheck": {"Test": ["NONE"]}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    serde_json::to_vec(&config).expect("JSON")
}

fn layer(name: &str) -> Vec<u8> {
    Tar::new().dir("etc").file(&format!("etc/{name}"), name.as_bytes()).end()
}

fn put(dir: &Path, bytes: &[u8]) -> Value {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a directory");
    fs::write(blobs.join(sha(bytes)), bytes).expect("a blob");
    json!({"digest": format!("sha256:{}", sha(bytes)), "size": bytes.len()})
}

fn typed(mut descriptor: Value, media_type: &str) -> Value {
    descriptor["mediaType"] = media_type.into();
    descriptor
}

/// Writes an OCI layout with one image of these layers; returns the entry for its index.
fn image_in(dir: &Path, layers: &[Vec<u8>], note: &str) -> Value {
    let config = typed(put(dir, &config(layers, note)), "application/vnd.oci.image.config.v1+json");
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| typed(put(dir, &gzip(layer)), "application/vnd.docker.image.rootfs.diff.tar.gzip"))
        .collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": layers,
    });
    let manifest = serde_json::to_vec(&manifest).expect("JSON");
    typed(put(dir, &manifest), "application/vnd.oci.image.manifest.v1+json")
}

fn layout(dir: &Path, entries: &[Value]) {
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("written");
    let index = json!({"schemaVersion": 2, "manifests": entries});
    fs::write(dir.join("index.json"), index.to_string()).expect("written");
}

fn named(mut entry: Value, name: &str) -> Value {
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    entry
}

fn for_platform(mut entry: Value, os: &str, architecture: &str) -> Value {
    entry["platform"] = json!({"os": os, "architecture": architecture});
    entry
}

fn stored_layers(images: &Images) -> usize {
    let entries = fs::read_dir(images.dir().join("layers")).expect("a directory");
    entries.filter(|entry| !entry.as_ref().expect("an entry").file_name().to_string_lossy().starts_with('.')).count()
}

/// An image of these layers, entered by the library.
fn enter(images: &Images, layers: &[Vec<u8>], note: &str, names: &[&str]) -> Image {
    let mut import = images.begin(note, None).expect("an import");
    for layer in layers {
        if !import.stored_layer(&format!("sha256:{}", sha(layer)), None).expect("asked") {
            import.layer(layer.as_slice(), &Expected::default()).expect("a layer");
        }
    }
    let names: Vec<Reference> = names.iter().map(|name| reference(name)).collect();
    import.commit(&config(layers, note), &names).expect("an image")
}

#[test]
fn priv_a_layout_gives_its_images_and_shares_their_layers() {
    let (dir, images) = store();
    let source = dir.path().join("My.Layout");
    fs::create_dir(&source).expect("a directory");
    let (base, one, two) = (layer("base"), layer("one"), layer("two"));
    let first = image_in(&source, &[base.clone(), one], "first");
    let second = image_in(&source, &[base, two], "second");
    layout(&source, &[named(first, "1"), named(second, "registry.example.com/app:2")]);
    let found = images.import_dir(&source, None, None).expect("imported");
    assert_eq!(found.len(), 2);
    assert_eq!(stored_layers(&images), 3);
    let listed = images.list().expect("a list");
    assert_eq!(listed.len(), 2);
    let first = images.find("localhost/my:1").expect("by its tag");
    assert_eq!(images.find(&first.id[7..19]).expect("by its digits").id, first.id);
    assert_eq!(images.find(&first.id).expect("by its id").names, ["localhost/my:1"]);
    assert_eq!(images.find("registry.example.com/app:2").expect("by its name").id, found[1].id);
    let env = first.env().expect("variables");
    assert_eq!(env, [("PATH".to_owned(), "/bin".to_owned()), ("NOTE".to_owned(), "a=b".to_owned())]);
    let dirs = images.layer_dirs(&first).expect("layers");
    assert!(dirs[0].join("etc/one").is_file() && dirs[1].join("etc/base").is_file(), "{dirs:?}");

    // Again: nothing is unpacked, and the images are the same.
    let again = images.import_dir(&source, None, None).expect("imported");
    assert_eq!((stored_layers(&images), &again[0].id), (3, &first.id));
    for (text, kind) in
        [("nothing", ErrorKind::NotFound), ("A B", ErrorKind::InvalidInput), ("../x", ErrorKind::InvalidInput)]
    {
        assert_eq!(images.find(text).expect_err(text).kind(), kind, "{text}");
    }
}

#[test]
fn priv_archives_of_both_kinds_are_read() {
    let (dir, images) = store();
    let source = dir.path().join("layout");
    fs::create_dir(&source).expect("a directory");
    let entry = image_in(&source, &[layer("a")], "archived");
    layout(&source, &[named(entry, "v1")]);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all(".", &source).expect("an archive");
    let oci = builder.into_inner().expect("an archive");

    let base = layer("a");
    let config = config(std::slice::from_ref(&base), "archived");
    let manifest = json!([{"Config": format!("{}.json", sha(&config)), "RepoTags": ["app:1", "app:latest"],
        "Layers": [format!("{}/layer.tar", sha(b"x"))]}]);
    let docker = Tar::new()
        .file(&format!("{}.json", sha(&config)), &config)
        .dir(&sha(b"y"))
        .file(&format!("{}/layer.tar", &sha(b"y")[..64]), &base)
        .dir(&sha(b"x"))
        .symlink(&format!("{}/layer.tar", sha(b"x")), &format!("../{}/layer.tar", sha(b"y")))
        .file("manifest.json", &serde_json::to_vec(&manifest).expect("JSON"))
        .end();
    let open = |bytes: &[u8]| {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        file
    };
    for (archive, names) in [
        (oci.clone(), vec!["localhost/some:v1"]),
        (gzip(&oci), vec!["localhost/some:v1"]),
        (docker.clone(), vec!["docker.io/library/app:1", "docker.io/library/app:latest"]),
        (gzip(&docker), vec!["docker.io/library/app:1", "docker.io/library/app:latest"]),
    ] {
        let found = images.import_archive(open(&archive), "some.tar", ArchiveKind::Any, None, None).expect("imported");
        assert_eq!(found[0].id, format!("sha256:{}", sha(&config)));
        assert_eq!(found[0].names, names);
    }
    // A root file system, whatever it is compressed with; and one that has a file of an archive's name.
    let rootfs = Tar::new().dir("./").dir("./bin").file("./manifest.json", b"[]").end();
    for archive in [rootfs.clone(), gzip(&rootfs)] {
        let name = reference("mine");
        let found =
            images.import_archive(open(&archive), "r.tgz", ArchiveKind::Any, Some(&name), None).expect("imported");
        assert_eq!((found.len(), &found[0].names), (1, &vec!["docker.io/library/mine:latest".to_owned()]));
        let refused = images.import_archive(open(&archive), "r.tgz", ArchiveKind::Images, None, None);
        assert!(chain(&refused.expect_err("no images")).contains("neither an OCI layout nor an archive"));
    }
    let empty = images.import_archive(open(&Tar::new().end()), "e.tar", ArchiveKind::Any, None, None);
    assert!(chain(&empty.expect_err("nothing")).contains("it is empty"));
}

/// What `docker save` writes since Docker 25: an OCI layout, and beside it the lists of old, whose paths lead to the same blobs.
/// The archive is written here, after `image/tarexport/save.go` of moby; no Docker engine runs where the tests do.
#[test]
fn priv_the_archive_of_a_docker_of_today_is_one_image() {
    let (_dir, images) = store();
    let layers = [layer("a"), layer("b")];
    let config = config(&layers, "saved");
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", sha(bytes));
    let described = |media: &str, bytes: &[u8]| json!({"mediaType": media, "digest": format!("sha256:{}", sha(bytes)), "size": bytes.len()});
    let layer_type = "application/vnd.oci.image.layer.v1.tar";
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers.iter().map(|layer| described(layer_type, layer)).collect::<Vec<_>>(),
    }))
    .expect("JSON");
    let mut entry = described("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] =
        json!({"io.containerd.image.name": "docker.io/library/app:1", "org.opencontainers.image.ref.name": "1"});
    let index =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]});
    let sources: serde_json::Map<String, Value> =
        layers.iter().map(|layer| (format!("sha256:{}", sha(layer)), described(layer_type, layer))).collect();
    let list = json!([{
        "Config": blob(&config), "RepoTags": ["app:1"], "Layers": layers.iter().map(|layer| blob(layer)).collect::<Vec<_>>(),
        "LayerSources": sources,
    }]);
    let of_old = br#"{"id":"x","created":"1970-01-01T00:00:00Z"}"#;
    let repositories = json!({"app": {"1": sha(&layers[1])}});
    let json = |value: &Value| serde_json::to_vec(value).expect("JSON");
    let archive = Tar::new()
        .dir("blobs/")
        .dir("blobs/sha256/")
        .file(&blob(&layers[0]), &layers[0])
        .file(&blob(&layers[1]), &layers[1])
        .file(&blob(&config), &config)
        .file(&blob(of_old), of_old)
        .file(&blob(&manifest), &manifest)
        .file("index.json", &json(&index))
        .file("manifest.json", &json(&list))
        .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("repositories", &json(&repositories))
        .end();
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&archive).expect("written");
    let found = images.import_archive(file, "saved.tar", ArchiveKind::Any, None, None).expect("imported");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].id, format!("sha256:{}", sha(&config)));
    assert_eq!(found[0].names, ["docker.io/library/app:1"]);
    assert_eq!(found[0].diff_ids.len(), 2);
}

#[test]
fn priv_broken_layouts_leave_nothing() {
    let (dir, images) = store();
    let mut number = 0;
    let mut refused = |change: &dyn Fn(&Path, Value) -> Vec<Value>, why: &str| {
        number += 1;
        let source = dir.path().join(format!("layout-{number}"));
        fs::create_dir(&source).expect("a directory");
        let entry = image_in(&source, &[layer("a"), layer("b")], "broken");
        let entries = change(&source, entry);
        layout(&source, &entries);
        let error = images.import_dir(&source, None, None).expect_err(why);
        let text = chain(&error);
        assert!(text.contains(why) && text.contains("layout-"), "{text}");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
    };
    let blob = |dir: &Path, name: &str| dir.join("blobs/sha256").join(name);
    let blob_of = |layers: &[Vec<u8>]| sha(&gzip(&layers[0]));
    refused(&|_, _| Vec::new(), "names no image");
    refused(
        &|dir, entry| {
            fs::remove_file(blob(dir, &blob_of(&[layer("b")]))).expect("removed");
            vec![entry]
        },
        "it has no file blobs/sha256/",
    );
    refused(
        &|dir, entry| {
            fs::write(blob(dir, &blob_of(&[layer("b")])), gzip(&layer("c"))).expect("written");
            vec![entry]
        },
        "the blob is sha256:",
    );
    refused(
        &|dir, entry| {
            let config = config(&[layer("a"), layer("b")], "broken");
            fs::write(blob(dir, &sha(&config)), "{}").expect("written");
            vec![entry]
        },
        "is not what it claims",
    );
    refused(&|_, entry| vec![for_platform(entry, "linux", "s390x")], "it has linux/s390x, and this machine is linux/");
    refused(
        &|_, entry| vec![for_platform(entry.clone(), "linux", "s390x"), for_platform(entry, "windows", "amd64")],
        "it has linux/s390x, windows/amd64",
    );
    refused(&|_, entry| vec![named(entry, "B A D")], "a tag has 1 to 128");
    refused(
        &|dir, _| {
            let chart = json!({"schemaVersion": 2, "config": typed(put(dir, b"{}"), "application/vnd.cncf.helm.config.v1+json"), "layers": []});
            vec![typed(put(dir, chart.to_string().as_bytes()), "application/vnd.oci.image.manifest.v1+json")]
        },
        "no image of a root file system",
    );
    refused(
        &|dir, mut entry| {
            for _ in 0..4 {
                let index = json!({"schemaVersion": 2, "manifests": [entry]});
                entry = typed(put(dir, index.to_string().as_bytes()), "application/vnd.oci.image.index.v1+json");
            }
            vec![entry]
        },
        "nested more than 3 deep",
    );
    assert!(images.list().expect("a list").is_empty());
    assert_eq!(images.prune(false).expect("pruned").layers, 0);
    assert_eq!(stored_layers(&images), 0);
}

#[test]
fn priv_a_layer_stays_as_long_as_something_needs_it() {
    let (_dir, images) = store();
    let (base, one, two) = (layer("base"), layer("one"), layer("two"));
    let first = enter(&images, &[base.clone(), one], "first", &["first:1", "first:2"]);
    let second = enter(&images, &[base.clone(), two], "second", &["second"]);
    assert_eq!(stored_layers(&images), 3);

    let removed = images.remove("first:1").expect("a name");
    assert_eq!((removed.untagged.len(), removed.images.len(), removed.layers), (1, 0, 0));
    let removed = images.remove("first:2").expect("the image");
    assert_eq!((removed.images, removed.layers), (vec![first.id.clone()], 1));
    assert_eq!(stored_layers(&images), 2);

    // A name moves on; the image that lost it goes with the next prune.
    let third = enter(&images, std::slice::from_ref(&base), "third", &["second"]);
    assert_eq!(images.find("second").expect("by name").id, third.id);
    // An import that is under way counts on the other layer of the image that goes.
    let mut import = images.begin("late", None).expect("an import");
    assert!(import.stored_layer(&second.diff_ids[1], None).expect("asked"));
    let pruned = images.prune(false).expect("pruned");
    assert_eq!((pruned.images, pruned.layers), (vec![second.id], 0));
    drop(import);
    assert_eq!(images.prune(false).expect("pruned").layers, 1);
    assert_eq!(stored_layers(&images), 1);
    assert_eq!(images.prune(true).expect("pruned").images, [third.id]);
    assert_eq!((stored_layers(&images), images.list().expect("a list").len()), (0, 0));
}

#[test]
fn priv_an_image_in_use_is_not_removed() {
    let (dir, images) = store();
    let image = enter(&images, &[layer("a")], "used", &["used"]);
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    fs::create_dir_all(&one).expect("a directory");
    fs::create_dir_all(&two).expect("a directory");
    images.pin(&one, &image.id).expect("pinned");
    images.pin(&two, &image.id).expect("pinned");
    images.pin(&two, &image.id).expect("pinned again");
    for text in ["used", &image.id] {
        let error = images.remove(text).expect_err("in use");
        assert_eq!(error.kind(), ErrorKind::InUse);
        assert!(chain(&error).contains("/one"), "{}", chain(&error));
    }
    assert_eq!(images.prune(true).expect("pruned").images.len(), 0);
    images.set_pins(&one, &BTreeSet::new()).expect("unpinned");
    assert_eq!(images.remove("used").expect_err("in use").kind(), ErrorKind::InUse);
    // A data directory that is gone has no boxes.
    let three = dir.path().join("three");
    images.pin(&three, &image.id).expect("pinned");
    let gone = format!("sha256:{}", "0".repeat(64));
    images.set_pins(&two, &[gone.clone()].into()).expect("unpinned");
    assert_eq!(images.pin(&two, &gone).expect_err("no image").kind(), ErrorKind::NotFound);
    assert_eq!(images.remove("used").expect("removed").images, [image.id]);
}

#[test]
fn priv_what_a_crash_leaves_is_swept_and_what_lives_is_not() {
    let (_dir, images) = store();
    let mut living = images.begin("living", None).expect("an import");
    living.layer(layer("a").as_slice(), &Expected::default()).expect("a layer");
    // A maker that is dead holds no lock.
    let dead = images.dir().join("layers/.tmp-import-1-0");
    fs::create_dir_all(dead.join("1/diff")).expect("a directory");
    images.prune(false).expect("pruned");
    assert!(!dead.exists() && living.temp_dir().exists());
    fs::create_dir_all(dead.join("1/diff")).expect("a directory");
    // Files are written in three places: names, manifests, and the pins of an owner.
    let pins = images.dir().join("pins/0123456789abcdef");
    fs::create_dir_all(&pins).expect("a directory");
    let files =
        [images.dir().join(".tmp-file-1-0"), images.dir().join("manifests/.tmp-file-1-1"), pins.join(".tmp-file-1-2")];
    files.iter().for_each(|file| fs::write(file, "half").expect("a file"));
    assert_eq!(images.sweep_unfinished().expect("swept"), 4);
    assert!(!dead.exists() && living.temp_dir().exists() && !files.iter().any(|file| file.exists()));
    // The crash came before the owner was written.
    images.set_pins(Path::new("/"), &BTreeSet::new()).expect("pins");
    assert!(!pins.exists());
    let image = living.commit(&config(&[layer("a")], "living"), &[]).expect("an image");
    assert_eq!(images.list().expect("a list")[0].id, image.id);

    // An import that ends before its commit leaves nothing.
    let mut import = images.begin("dropped", None).expect("an import");
    import.layer(layer("b").as_slice(), &Expected::default()).expect("a layer");
    drop(import);
    assert_eq!(fs::read_dir(images.dir().join("layers")).expect("a directory").count(), 1);

    // A configuration that does not fit its layers.
    let mut import = images.begin("misfit", None).expect("an import");
    import.layer(layer("b").as_slice(), &Expected::default()).expect("a layer");
    let error = import.commit(&config(&[layer("a")], "misfit"), &[]).expect_err("a misfit");
    assert!(chain(&error).contains("its configuration lists the layers"), "{}", chain(&error));
    assert_eq!(stored_layers(&images), 1);
}

#[test]
fn priv_an_exported_image_is_the_same_image() {
    let (dir, images) = store();
    let image = enter(&images, &[layer("a"), layer("b"), layer("a")], "exported", &["exported:1"]);
    let path = dir.path().join("out.tar");
    let kept = images.export(&image, Some(&reference("exported:1")), File::create(&path).expect("a file"));
    assert!(kept.expect("exported"));
    images.remove("exported:1").expect("removed");
    assert_eq!(stored_layers(&images), 0);
    let back = images.import_archive(File::open(&path).expect("a file"), "out.tar", ArchiveKind::Any, None, None);
    let back = back.expect("imported").remove(0);
    assert_eq!((back.id, back.config, back.names), (image.id, image.config, image.names));
    // The layer that comes twice is one directory for overlayfs.
    assert_eq!(images.layer_dirs(&images.find("exported:1").expect("found")).expect("layers").len(), 2);
}

#[test]
fn priv_a_directory_that_a_layer_does_not_list_keeps_its_attributes() {
    use std::os::unix::fs::MetadataExt as _;
    let (_dir, images) = store();
    let base = Tar::new()
        .head(crate::tars::Head::new(b'5', b"./").mode(0o751))
        .dir("bin")
        .head(crate::tars::Head::new(b'0', b"bin/sh").mode(0o755))
        .head(crate::tars::Head::new(b'5', b"srv").mode(0o1777).owner(5, 6))
        .head(crate::tars::Head::new(b'5', b"opt").mode(0o700))
        .end();
    let upper = Tar::new().file("srv/new", b"x").head(crate::tars::Head::new(b'5', b"opt").mode(0o750)).end();
    let image = enter(&images, &[base, upper], "implied", &[]);
    let root = images.root(&image).expect("a root");
    let facts = |path: &str| {
        let found = root.layers.iter().map(|layer| layer.join(path)).find(|path| path.exists()).expect("a directory");
        let facts = fs::metadata(found).expect("facts");
        (facts.mode() & 0o7777, facts.uid(), facts.gid())
    };
    assert_eq!((facts(""), facts("srv"), facts("opt")), ((0o751, 0, 0), (0o1777, 5, 6), (0o750, 0, 0)));
    assert_eq!((root.has_bash, root.layers.len()), (false, 3));
    // Made once.
    assert_eq!(images.root(&image).expect("a root"), root);
}
