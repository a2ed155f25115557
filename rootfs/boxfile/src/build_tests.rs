//! Builds with a store in memory.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;

use super::*;
use crate::plan::{Base, Inputs, Options, plan};
use crate::stages::Boxfile;
use crate::tree::tests::Mem;

/// The archive of a layer: its paths, in order.
type Layer = (usize, Vec<u8>);

/// A store in memory, in which a command makes a file with its own text.
#[derive(Default)]
struct Fake {
    kept: HashMap<Key, Layer>,
    made: usize,
    events: Vec<Event>,
    ran: Vec<String>,
    stop: bool,
}

struct Flat(Vec<(PathBuf, Node, Vec<u8>)>);

impl Tree for Flat {
    fn node(&self, path: &Path) -> io::Result<Option<Node>> {
        let dir = || Node { kind: Kind::Dir, mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() };
        let known = self.0.iter().rev().find(|(known, ..)| known == path).map(|(_, node, _)| node.clone());
        Ok(known.or_else(|| self.0.iter().any(|(known, ..)| known.starts_with(path)).then(dir)))
    }
    fn names(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let below = self.0.iter().filter_map(|(known, ..)| known.strip_prefix(path).ok()?.iter().next());
        let names: BTreeSet<OsString> = below.map(OsString::from).collect();
        Ok(names.into_iter().collect())
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + '_>> {
        let known = self.0.iter().rev().find(|(known, ..)| known == path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(known.2.as_slice()))
    }
}

impl Fake {
    fn layer(&mut self, bytes: Vec<u8>) -> Layer {
        self.made += 1;
        (self.made, bytes)
    }
}

impl Executor for Fake {
    type Layer = Layer;

    fn cached(&mut self, key: Key) -> Result<Option<Layer>, String> {
        Ok(self.kept.get(&key).cloned())
    }
    fn keep(&mut self, key: Key, layer: &Layer) -> Result<(), String> {
        self.kept.insert(key, layer.clone());
        Ok(())
    }
    fn image_layers(&mut self, _: &str) -> Result<Vec<Layer>, String> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        let text = b"web:x:33:34::/:\n";
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_data(&mut header, "etc/passwd", text.as_slice()).expect("an entry");
        Ok(vec![(0, builder.into_inner().expect("an archive"))])
    }
    fn diff_id(&self, layer: &Layer) -> String {
        format!("sha256:{}", layer.0)
    }
    fn tree(&mut self, layers: &[Layer]) -> Result<Box<dyn Tree>, String> {
        let mut files = Vec::new();
        for (_, bytes) in layers {
            for entry in tar::Archive::new(bytes.as_slice()).entries().expect("entries") {
                let mut entry = entry.expect("an entry");
                let path = Path::new("/").join(entry.path().expect("a path"));
                let mut content = Vec::new();
                entry.read_to_end(&mut content).expect("content");
                let kind = match entry.header().entry_type() {
                    tar::EntryType::Directory => Kind::Dir,
                    tar::EntryType::Symlink => {
                        Kind::Symlink(entry.link_name().expect("a name").expect("a link").into())
                    }
                    _ => Kind::File(content.len() as u64),
                };
                let header = entry.header();
                let (uid, gid) = (header.uid().expect("uid") as u32, header.gid().expect("gid") as u32);
                let mode = header.mode().expect("mode");
                files.push((path, Node { kind, mode, uid, gid, mtime: 0, xattrs: Vec::new() }, content));
            }
        }
        Ok(Box::new(Flat(files)))
    }
    fn run(&mut self, _: &[Layer], run: &Run, _: &[Vec<Layer>]) -> Result<Layer, RunFailed> {
        let text = run.args.join(" ");
        self.ran.push(text.clone());
        if text.ends_with("false") {
            return Err(RunFailed { what: "ended with exit code 1".into(), instead: None, output: "oh no\n".into() });
        }
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_data(&mut header, "ran", text.as_bytes()).expect("an entry");
        Ok(self.layer(builder.into_inner().expect("an archive")))
    }
    fn pack(&mut self, _: &[Layer], archive: LayerSource<'_>) -> Result<Layer, String> {
        let mut bytes = Vec::new();
        archive.write(&mut bytes).map_err(|error| error.to_string())?;
        Ok(self.layer(bytes))
    }
    fn fetched(&mut self, _: &Fetched) -> io::Result<File> {
        let mut file = tempfile::tempfile()?;
        file.write_all(b"abc")?;
        Ok(file)
    }
    fn spool(&mut self) -> io::Result<File> {
        tempfile::tempfile()
    }
    fn event(&mut self, event: Event) -> Result<(), String> {
        self.events.push(event);
        if self.stop { Err("the client has gone".to_owned()) } else { Ok(()) }
    }
}

struct World;

impl Inputs for World {
    fn image(&mut self, reference: &str) -> Result<Base, String> {
        let config = ImageConfig {
            rootfs: crate::RootFs { diff_ids: vec!["sha256:0".into()], ..Default::default() },
            ..Default::default()
        };
        Ok(Base { id: reference.to_owned(), config })
    }
    fn fetch(&mut self, _: &str, _: Option<&str>) -> Result<Fetched, String> {
        Ok(Fetched { digest: "sha256:00".to_owned(), size: 3, mtime: 7 })
    }
}

fn built(fake: &mut Fake, text: &str, context: &dyn Tree, cache: bool) -> Result<Built<Layer>, Failed> {
    let boxfile = Boxfile::read("Boxfile", text).expect("a Boxfile");
    let plan = plan(&boxfile, context, &mut World, &Options::default()).expect("a plan");
    build(&plan, context, fake, Time { created: "2026-01-01T00:00:00Z", seconds: 5 }, cache)
}

/// Paths, modes, owners and contents of the last layer.
fn listed(layer: &Layer) -> Vec<String> {
    let line = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.expect("an entry");
        let mut text = String::new();
        entry.read_to_string(&mut text).expect("content");
        let link = entry.link_name().expect("a name").map(|name| format!(">{}", name.display())).unwrap_or_default();
        let header = entry.header();
        let (mode, uid, gid) = (header.mode().expect("mode"), header.uid().expect("uid"), header.gid().expect("gid"));
        format!("{}{link} {mode:o} {uid}:{gid} {text}", entry.path().expect("a path").display())
    };
    tar::Archive::new(layer.1.as_slice()).entries().expect("entries").map(line).collect()
}

#[test]
fn a_second_build_takes_everything_from_the_cache() {
    let text =
        "FROM base AS a\nRUN one\nENV X=1\nCOPY f /f\nFROM scratch\nCOPY --from=a /ran /f /out/\nCMD [\"/out/ran\"]";
    let context = Mem::of(&["f=file"]);
    let mut fake = Fake::default();
    let first = built(&mut fake, text, &context, true).expect("built");
    assert_eq!(fake.ran, ["/bin/sh -c one"]);
    assert_eq!(listed(&first.layers[0]), ["out/ 755 0:0 ", "out/f 644 0:0 file", "out/ran 644 0:0 /bin/sh -c one"]);
    assert_eq!(first.config.rootfs.diff_ids, ["sha256:3"]);
    let history: Vec<(Option<&str>, bool)> =
        first.config.history.iter().map(|item| (item.created_by.as_deref(), item.empty_layer)).collect();
    assert_eq!(history, [(Some("COPY /ran /f /out/"), false), (Some("CMD [\"/out/ran\"]"), true)]);
    fake.events.clear();
    let second = built(&mut fake, text, &context, true).expect("built");
    assert_eq!(second.config, first.config);
    assert_eq!(fake.events.iter().filter(|event| matches!(event, Event::Cached(_))).count(), 3);
    assert!(!fake.events.iter().any(|event| matches!(event, Event::Done(_))));
    // Another file: what reads it and what follows is made again, what is before it is not.
    built(&mut fake, text, &Mem::of(&["f=other"]), true).expect("built");
    assert_eq!(fake.ran.len(), 1);
    built(&mut fake, text, &context, false).expect("built without the cache");
    assert_eq!(fake.ran.len(), 2);
}

#[test]
fn a_failure_names_its_line_and_shows_the_output() {
    let mut fake = Fake::default();
    let failed = built(&mut fake, "FROM base\n\nRUN false\nRUN never", &Mem::of(&[]), true).expect_err("it fails");
    assert_eq!(failed.error.to_string(), "Boxfile:3: 'RUN false' ended with exit code 1");
    assert_eq!((failed.output.as_str(), fake.ran.len()), ("oh no\n", 1));
    assert!(fake.kept.is_empty());
    for (text, wanted) in [
        ("FROM base\nCOPY --chown=none f /f", "Boxfile:2: 'none' is not in /etc/passwd"),
        ("FROM base\nCOPY f g /f", "Boxfile:2: there are several sources"),
        ("FROM base\nCOPY * /f", "Boxfile:2: there are several sources"),
        ("FROM base AS a\nFROM scratch\nCOPY --from=a /none /f", "Boxfile:3: '/none' is not in the image"),
        ("FROM base\nCOPY f /etc/passwd/x", "Boxfile:2: /etc/passwd is not a directory"),
    ] {
        let failed = built(&mut fake, text, &Mem::of(&["f=1", "g=2"]), true).expect_err(text);
        assert!(failed.error.to_string().starts_with(wanted), "{}", failed.error);
    }
    fake.stop = true;
    let failed = built(&mut fake, "FROM base\nRUN x", &Mem::of(&[]), true).expect_err("stopped");
    assert!(failed.error.what.contains("client has gone") && !fake.ran.contains(&"/bin/sh -c x".to_owned()));
}

fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, text) in entries {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o640);
        header.set_uid(7);
        header.set_gid(8);
        let content = if kind.is_file() { text.as_bytes() } else { b"" };
        if !kind.is_file() && !kind.is_dir() {
            header.set_link_name_literal(text).expect("a link");
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).expect("an entry");
    }
    builder.into_inner().expect("an archive")
}

/// One file in a directory.
struct One(Vec<u8>);

impl Tree for One {
    fn node(&self, path: &Path) -> io::Result<Option<Node>> {
        let kind = match path.to_str() {
            Some("/") => Kind::Dir,
            Some("/f") => Kind::File(self.0.len() as u64),
            _ => return Ok(None),
        };
        Ok(Some(Node { kind, mode: 0o644, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() }))
    }
    fn names(&self, _: &Path) -> io::Result<Vec<OsString>> {
        Ok(vec!["f".into()])
    }
    fn open(&self, _: &Path) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(self.0.as_slice()))
    }
}

#[test]
fn add_unpacks_archives_and_copies_everything_else() {
    use std::io::Write as _;
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let plain = archive(&[
        ("./", Directory, ""),
        ("./d/", Directory, ""),
        ("d/f", Regular, "text"),
        ("hard", Link, "d/f"),
        ("soft", Symlink, "d/../x"),
        ("soft2", Symlink, "d"),
        ("soft2/in", Regular, "in d"),
    ]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).expect("packed");
    let gzip = gzip.finish().expect("packed");
    let mut no_archive = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    no_archive.write_all(b"just text").expect("packed");
    let no_archive = no_archive.finish().expect("packed");
    let unpacked = vec![
        "x/ 640 7:8 ",
        "x/d/ 640 7:8 ",
        "x/d/f 640 7:8 text",
        "x/d/in 640 7:8 in d",
        "x/soft>d/../x 777 7:8 ",
        "x/soft2>d 777 7:8 ",
        "x/hard>x/d/f 640 7:8 ",
    ];
    for (bytes, keyword, wanted) in [
        (plain.clone(), "ADD", Some(unpacked.clone())),
        (gzip, "ADD", Some(unpacked)),
        (plain, "COPY", None),
        (no_archive, "ADD", None),
        (b"text".to_vec(), "ADD", None),
    ] {
        let context = One(bytes);
        let made =
            built(&mut Fake::default(), &format!("FROM scratch\n{keyword} f /x/"), &context, true).expect("built");
        match wanted {
            Some(wanted) => assert_eq!(listed(&made.layers[0]), wanted),
            None => {
                let mut archive = tar::Archive::new(made.layers[0].1.as_slice());
                let names: Vec<_> = archive
                    .entries()
                    .expect("entries")
                    .map(|e| e.expect("one").path().expect("a path").into_owned())
                    .collect();
                assert_eq!(names, [PathBuf::from("x/"), PathBuf::from("x/f")]);
            }
        }
    }
    for (bytes, wanted) in [
        (archive(&[("../out", Regular, "x")]), "../out"),
        (archive(&[("hard", Link, "none")]), "not before it"),
        (b"BZh9".to_vec(), "bzip2"),
        (archive(&[(".wh.x", Regular, "x")]), ".wh."),
        (archive(&[("up", Symlink, "../../.."), ("up/etc/x", Regular, "x")]), ""),
    ] {
        match built(&mut Fake::default(), "FROM scratch\nADD f /x/", &One(bytes), true) {
            Err(failed) => assert!(!wanted.is_empty() && failed.error.what.contains(wanted), "{}", failed.error),
            // A link that leads out of the destination leads to the root of the image at most.
            Ok(made) => assert!(wanted.is_empty() && listed(&made.layers[0]).contains(&"etc/x 640 7:8 x".to_owned())),
        }
    }
}

#[test]
fn directories_and_urls_become_layers() {
    let context = Mem::of(&["f=1"]);
    let text = "FROM base\nUSER web\nWORKDIR /w/x\nWORKDIR /w\nADD --chmod=755 http://h.example/name /u/";
    let made = built(&mut Fake::default(), text, &context, true).expect("built");
    // The second WORKDIR exists and makes no layer.
    assert_eq!(made.layers.len(), 3);
    assert_eq!(listed(&made.layers[1]), ["w/ 755 33:34 ", "w/x/ 755 33:34 "]);
    assert_eq!(listed(&made.layers[2]), ["u/ 755 0:0 ", "u/name 755 0:0 abc"]);
}
