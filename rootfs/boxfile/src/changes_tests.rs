//! The rules of COPY, ADD and WORKDIR, as the entries that they make.

use super::*;
use crate::tree::tests::Mem;

fn base() -> Mem {
    Mem::of(&[
        "usr/bin/sh=x@755",
        "bin>usr/bin",
        "tmp/@1777",
        "etc/passwd=root:x:0:0::/:\nweb:x:33:34::/:\n",
        "app/old=1",
        "link>app/old",
    ])
}

fn context() -> Mem {
    Mem::of(&["a.txt=aa", "b.txt=bbb@600", "d/x=1", "d/sub/y=2@755", "d/l>x", "d/skip.md=3", "e/z=4", "run=#!@755"])
}

/// The entries of a layer as lines: path, kind or content, mode.
fn listed(changes: &Changes<'_>) -> Vec<String> {
    let entries = changes.entries().expect("entries");
    let line = |(path, item): &(PathBuf, Item)| {
        let kind = match &item.node.kind {
            Kind::Dir => "/".to_owned(),
            Kind::Symlink(target) => format!(">{}", target.display()),
            Kind::File(size) => format!("={size}"),
            Kind::Other => "?".to_owned(),
        };
        format!("{}{kind} {:o} {}:{}", path.display(), item.node.mode, item.node.uid, item.node.gid)
    };
    entries.iter().map(line).collect()
}

fn copied(patterns: &[&str], dest: &str, rules: &Rules) -> Result<Vec<String>, Fault> {
    let (base, context) = (base(), context());
    let mut changes = Changes::new(&base, 0);
    for pattern in patterns {
        changes.copy((0, &context), pattern, dest, rules)?;
    }
    Ok(listed(&changes))
}

#[test]
fn the_destination_decides_where_a_file_goes() {
    for (patterns, dest, wanted) in [
        (vec!["a.txt"], "/new", vec!["/new=2 644 0:0"]),
        (vec!["a.txt"], "/new/", vec!["/new/ 755 0:0", "/new/a.txt=2 644 0:0"]),
        (vec!["a.txt"], "/x/y", vec!["/x/ 755 0:0", "/x/y=2 644 0:0"]),
        (vec!["a.txt"], "/app", vec!["/app/ 755 0:0", "/app/a.txt=2 644 0:0"]),
        (vec!["a.txt"], "/tmp/", vec!["/tmp/ 1777 0:0", "/tmp/a.txt=2 644 0:0"]),
        (vec!["a.txt"], "/bin/", vec!["/usr/ 755 0:0", "/usr/bin/ 755 0:0", "/usr/bin/a.txt=2 644 0:0"]),
        (vec!["a.txt"], "/link", vec!["/app/ 755 0:0", "/app/old=2 644 0:0"]),
        (vec!["*.txt"], "/n/", vec!["/n/ 755 0:0", "/n/a.txt=2 644 0:0", "/n/b.txt=3 600 0:0"]),
        (
            vec!["d"],
            "/n",
            vec![
                "/n/ 755 0:0",
                "/n/l>x 777 0:0",
                "/n/skip.md=1 644 0:0",
                "/n/sub/ 755 0:0",
                "/n/sub/y=1 755 0:0",
                "/n/x=1 644 0:0",
            ],
        ),
        (vec!["d/sub", "e"], "/n", vec!["/n/ 755 0:0", "/n/y=1 755 0:0", "/n/z=1 644 0:0"]),
        (vec!["d/l"], "/n", vec!["/n=1 644 0:0"]),
    ] {
        assert_eq!(copied(&patterns, dest, &Rules::default()).expect(dest), wanted, "{patterns:?} {dest}");
    }
}

#[test]
fn an_empty_image_has_a_root() {
    let (nothing, context) = (crate::tree::Nothing, context());
    let mut changes = Changes::new(&nothing, 0);
    for (pattern, dest) in [("a.txt", "/"), ("e", "/"), ("run", "/bin/")] {
        changes.copy((0, &context), pattern, dest, &Rules::default()).expect(pattern);
    }
    assert_eq!(listed(&changes), ["/a.txt=2 644 0:0", "/bin/ 755 0:0", "/bin/run=2 755 0:0", "/z=1 644 0:0"]);
}

#[test]
fn owner_mode_and_exclusions_are_applied() {
    let rules = Rules {
        owner: Some(Owner { uid: 1, gid: 2 }),
        chmod: Some(Chmod::read("700").expect("octal")),
        exclude: Ignore::new(&["*.md".to_owned(), "sub".to_owned()]).expect("patterns"),
        parents: false,
    };
    // The destination without a slash is a copy of the directory; one with a slash is needed, not copied.
    let wanted = ["/n/ 700 1:2", "/n/l>x 777 1:2", "/n/x=1 700 1:2"];
    assert_eq!(copied(&["d"], "/n", &rules).expect("copied"), wanted);
    let wanted = ["/n/ 755 1:2", "/n/l>x 777 1:2", "/n/x=1 700 1:2"];
    assert_eq!(copied(&["d"], "/n/", &rules).expect("copied"), wanted);
    let wanted = ["/n/ 755 1:2", "/n/m/ 755 1:2", "/n/m/x=1 700 1:2"];
    assert_eq!(copied(&["d/x"], "/n/m/", &rules).expect("copied"), wanted);
    let none = Rules { exclude: Ignore::new(&["*.txt".to_owned()]).expect("a pattern"), ..Rules::default() };
    assert!(copied(&["*.txt"], "/n/", &none).expect("nothing").is_empty());
}

#[test]
fn parents_are_kept_if_asked_for() {
    let rules = Rules { parents: true, ..Rules::default() };
    let wanted = ["/n/ 755 0:0", "/n/d/ 755 0:0", "/n/d/sub/ 755 0:0", "/n/d/sub/y=1 755 0:0"];
    assert_eq!(copied(&["d/sub/y"], "/n/", &rules).expect("copied"), wanted);
    let wanted = ["/n/ 755 0:0", "/n/sub/ 755 0:0", "/n/sub/y=1 755 0:0"];
    assert_eq!(copied(&["d/./sub/y"], "/n/", &rules).expect("copied"), wanted);
}

#[test]
fn what_an_image_cannot_hold_is_refused() {
    let context = Mem::of(&[".wh.x=1", "d/bin/x=1", "f=1"]);
    let base = base();
    for (pattern, dest, wanted) in [(".wh.x", "/", ".wh."), ("d", "/", "/bin"), ("f", "/app/old/x", "not a directory")]
    {
        let mut changes = Changes::new(&base, 0);
        let fault = changes.copy((0, &context), pattern, dest, &Rules::default()).expect_err(pattern);
        assert!(fault.what.contains(wanted), "{}", fault.what);
    }
    let mut changes = Changes::new(&base, 0);
    changes.add_bytes("/x", "EOF", b"text".to_vec(), &Rules::default()).expect("a file");
    changes.workdir("/app/deep/er", Owner { uid: 33, gid: 34 }).expect("a directory");
    let wanted = ["/app/ 755 0:0", "/app/deep/ 755 33:34", "/app/deep/er/ 755 33:34", "/x=4 644 0:0"];
    assert_eq!(listed(&changes), wanted);
}
