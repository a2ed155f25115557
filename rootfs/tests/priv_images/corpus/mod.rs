//! Hostile and odd archives: nothing is written outside the layer, and an error names the entry and says why.

mod odd;
mod paths;

use std::fs;
use std::os::unix::fs::symlink;

use icebox_rootfs::ErrorKind;
use icebox_rootfs::images::Expected;
use icebox_rootfs::unpack::Limits;

use crate::tars::{Tar, gzip};
use crate::tree::describe;
use crate::{chain, store};

/// What must become of an archive.
enum Fate {
    /// Refused with an error that has this text.
    Refused(&'static str),
    /// Taken; the layer has exactly these paths below its root.
    Taken(&'static [&'static str]),
    /// Taken; the layer has the path of the canary in it.
    TakenInside,
}
use Fate::{Refused, Taken, TakenInside};

type Case = (&'static str, Vec<u8>, Fate);

/// Bounds that small archives reach.
fn limits() -> Limits {
    Limits {
        bytes: 8 << 20,
        entries: 200,
        depth: 16,
        header_bytes: 8192,
        ratio: 20,
        ratio_from: 1 << 20,
        ..Limits::default()
    }
}

#[test]
fn priv_hostile_archives_write_nothing_outside_and_say_why() {
    let (dir, images) = store();
    let canary = dir.path().join("canary");
    fs::create_dir(&canary).expect("a directory");
    fs::write(canary.join("secret"), "untouched").expect("a file");
    symlink("secret", canary.join("link")).expect("a link");
    // Where "../../canary" leads from a layer that is being unpacked.
    symlink(&canary, dir.path().join("images/canary")).expect("a link");
    symlink(&canary, dir.path().join("images/layers/canary")).expect("a link");
    let outside = canary.to_str().expect("a plain path").to_owned();
    let before = describe(&canary);

    let (mut seen, mut failures) = (0, Vec::new());
    let cases = [
        paths::traversal(&outside),
        paths::links(&outside),
        odd::special(),
        odd::frames(),
        odd::bombs(),
        odd::truncated(),
    ];
    for (name, bytes, fate) in cases.into_iter().flatten() {
        seen += 1;
        let mut import = images.begin(name, None).expect("an import");
        import.set_limits(limits());
        let layer = import.layer(bytes.as_slice(), &Expected::default());
        let mut wrong = |what: String| failures.push(format!("{name}: {what}"));
        match (&layer, &fate) {
            (Err(error), Refused(why)) => {
                let text = chain(error);
                if !text.contains(why) || !text.contains(name) || error.kind() != ErrorKind::InvalidInput {
                    wrong(format!("{text} (and not {why})"));
                }
            }
            (Ok(_), Refused(why)) => wrong(format!("taken (and not {why})")),
            (Err(error), _) => wrong(format!("refused: {}", chain(error))),
            (Ok(_), taken) => {
                let found: Vec<String> = describe(&import.temp_dir().join("1/diff")).into_keys().skip(1).collect();
                match taken {
                    Taken(paths) if found != **paths => wrong(format!("{found:?} (and not {paths:?})")),
                    TakenInside if found.last().is_none_or(|last| *last != outside[1..]) => wrong(format!("{found:?}")),
                    _ => {}
                }
            }
        }
        drop(import);
        assert_eq!(describe(&canary), before, "{name} changed what lies outside");
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(seen >= 100, "only {seen} archives");
    let left: Vec<_> = fs::read_dir(dir.path().join("images/layers")).expect("a directory").collect();
    assert_eq!(left.len(), 1, "only the canary is left: {left:?}");
    assert!(images.list().expect("a list").is_empty());
}

#[test]
fn priv_digests_that_do_not_fit_are_refused() {
    use oci_spec::image::Digest;
    use sha2::Digest as _;
    let (_dir, images) = store();
    let tar = Tar::new().file("a", b"x").end();
    let blob = gzip(&tar);
    let digest =
        |bytes: &[u8]| -> Digest { format!("sha256:{:x}", sha2::Sha256::digest(bytes)).parse().expect("a digest") };
    let layer = |blob_digest: Digest, size: usize, diff_id: Digest| {
        let expected = Expected { blob: Some((blob_digest, size as u64)), diff_id: Some(diff_id.to_string()) };
        let mut import = images.begin("digests", None).expect("an import");
        import.layer(blob.as_slice(), &expected).map_err(|error| chain(&error))
    };
    layer(digest(&blob), blob.len(), digest(&tar)).expect("a good layer");
    for (blob_digest, size, diff_id, why) in [
        (digest(b"x"), blob.len(), digest(&tar), "the blob is sha256:"),
        (digest(&blob), blob.len() + 1, digest(&tar), "the blob is sha256:"),
        (digest(&blob), blob.len() - 1, digest(&tar), "more than the"),
        (digest(&blob), blob.len(), digest(&blob), "the archive is sha256:"),
    ] {
        let refused = layer(blob_digest, size, diff_id).expect_err(why);
        assert!(refused.contains(why), "{refused}");
    }
}
