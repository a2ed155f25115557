//! Boxes as archives: what is in one, that other programs can read it, and that it becomes the same box again.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use icebox_tests::{Api, Daemon, Reply, TestBox, pool};
use serde_json::{Value, json};

fn export(made: &TestBox, to: &Path) {
    let request = made.api.build("GET", &format!("/v1/boxes/{}/export", made.id));
    let mut answer = request.send().expect("the export");
    assert_eq!(answer.status(), 200);
    let length = answer.content_length().expect("a length");
    let written = answer.copy_to(&mut File::create(to).expect("a file")).expect("the archive");
    assert_eq!(written, length, "the length that was announced is not that of the archive");
}

fn import(api: &Api, query: &str, archive: Vec<u8>) -> Reply {
    api.send("import", api.build("POST", &format!("/v1/boxes/import{query}")).body(archive))
}

fn box_of(api: &Api, reply: &Reply) -> TestBox {
    TestBox { api: api.clone(), id: reply.ok()["id"].as_str().expect("an id").to_owned() }
}

/// Unfinished work beside the disks, and loop devices that are attached to it.
fn leftovers(daemon: &Daemon) -> Vec<String> {
    let snapshots = pool::volumes_of(daemon.pid(), &daemon.data_dir()).with_file_name("snapshots");
    let entries = fs::read_dir(snapshots).expect("the copies");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

/// Everything that is known of the files that the test has made.
const LISTING: &str = "cd /srv; sudo find . -printf '%p %y %m %U %G %s %T@ %n %l\\n' | sort; \
                       sudo sh -c 'cat plain link; stat -c %b sparse; dd if=sparse bs=4096 skip=300000 status=none | sha256sum'; \
                       sudo python3 -c 'import os; print(os.listxattr(\"plain\"), os.getxattr(\"plain\", \"user.note\"))'; \
                       ls /etc/hostname /etc/motd /usr/share/doc/bash 2>&1 || true";

const MAKE: &str = "sudo sh -c 'cd /srv; echo text > plain; chown 1234:2345 plain; chmod 4711 plain; ln plain link; \
                    ln -s nowhere/else symbolic; mkfifo pipe; mkdir -p -m 1777 dir/deep; echo x > dir/deep/ü; \
                    touch -d @86400.5 dir/deep/ü; \
                    dd if=/dev/urandom of=sparse bs=4096 count=3 seek=300000 status=none; truncate -s 1180M sparse; \
                    python3 -c \"import os; os.setxattr(\\\"plain\\\", \\\"user.note\\\", b\\\"kept\\\")\"; \
                    rm -f /etc/motd; rm -rf /usr/share/doc/bash; mkdir /usr/share/doc/bash; touch /usr/share/doc/bash/own'";

#[test]
fn an_archive_becomes_the_same_box_and_other_programs_read_it() {
    let daemon = Daemon::start();
    let api = daemon.api();
    let made = api.create(&json!({
        "name": "origin", "env_vars": { "GREETING": "hello" }, "labels": ["l"], "size": "medium", "idle_seconds": 77,
        "network_policy": { "mode": "deny-all" }, "github_token": "very-secret-token",
    }));
    made.out(MAKE);
    let before = made.out(LISTING);
    // A running box, of one moment: the counter goes on.
    made.out("i=0; (while :; do i=$((i+1)); echo $i > n.new; mv n.new n; done) > /dev/null 2>&1 & until [ -s n ]; do :; done");
    let dir = tempfile::tempdir().expect("a directory");
    let archive = dir.path().join("box.tar");
    export(&made, &archive);
    assert!(fs::metadata(&archive).expect("the archive").len() < 100 << 20, "holes are written out");

    // Readable without Icebox.
    let tar = |args: &[&str]| {
        let output = Command::new("tar").args(args).arg("-f").arg(&archive).output().expect("tar");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let facts: Value = serde_json::from_slice(&tar(&["-xO", "box.json"])).expect("JSON");
    assert_eq!((&facts["format"], &facts["box"]["id"]), (&json!("icebox-box"), &json!(made.id)));
    assert_eq!(facts["settings"]["env"]["GREETING"], "hello");
    assert!(facts["image"]["id"].is_string());
    assert!(!facts.to_string().contains("very-secret-token"), "a secret is in the archive");
    let names = String::from_utf8(tar(&["-t"])).expect("UTF-8");
    for name in ["changes/srv/plain", "changes/srv/link", "changes/srv/sparse", "changes/etc/.wh.motd"] {
        assert!(names.lines().any(|line| line == name), "{name} is not in {names}");
    }
    let status = Command::new("tar").arg("-xSf").arg(&archive).arg("-C").arg(dir.path()).arg("changes/srv").status();
    assert!(status.expect("tar").success());
    let sparse = fs::metadata(dir.path().join("changes/srv/sparse")).expect("the sparse file");
    assert_eq!(sparse.len(), 1180 << 20);

    // Of a box that sleeps it is the same, and wakes nothing.
    made.pause();
    let asleep = dir.path().join("asleep.tar");
    export(&made, &asleep);
    assert_eq!(made.status(), "paused");

    let content = fs::read(&archive).expect("the archive");
    let copy = box_of(&api, &import(&api, "?name=copy", content.clone()));
    assert_eq!(copy.out(LISTING), before);
    assert!(copy.out("cat n").parse::<u64>().is_ok());
    assert_eq!(copy.out("hostname; echo $GREETING"), format!("{}\nhello", copy.id));
    let data = copy.data();
    assert_eq!(
        (&data["name"], &data["size"], &data["labels"], &data["idle_seconds"]),
        (&json!("copy"), &json!("medium"), &json!(["l"]), &json!(77))
    );
    assert_eq!(api.get(&format!("/v1/boxes/{}/net", copy.id)).ok()["policy"]["mode"], "deny-all");
    let image = |made: &TestBox| api.get(&format!("/v1/boxes/{}", made.id)).ok()["image"].clone();
    assert_eq!(image(&copy), image(&made));
    copy.write("/workspace/home/own", "x");
    assert_eq!(made.out("ls own 2>/dev/null || echo none"), "none");

    // By the command line, compressed, for another account.
    let exported = daemon.icebox(&["export", "origin", "-"]).output().expect("icebox");
    assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    let packed = dir.path().join("box.tar");
    fs::write(&packed, &exported.stdout).expect("write");
    assert!(Command::new("gzip").arg(&packed).status().expect("gzip").success());
    let imported =
        daemon.icebox(&["import", dir.path().join("box.tar.gz").to_str().expect("UTF-8"), "--name", "third"]);
    let imported = { imported }.output().expect("icebox");
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    let third = TestBox { api: api.clone(), id: String::from_utf8_lossy(&imported.stdout).trim().to_owned() };
    assert_eq!(third.out(LISTING), before);
    let stranger = daemon.other_account();
    stranger.get(&format!("/v1/boxes/{}/export", made.id)).error(404);
    assert_eq!(leftovers(&daemon), [""; 0]);
}

/// One entry of a tar archive.
fn entry(name: &str, kind: u8, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    let old = header.as_old_mut();
    old.name[..name.len()].copy_from_slice(name.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[test]
fn a_hostile_or_broken_archive_leaves_nothing() {
    let daemon = Daemon::start();
    let api = daemon.api();
    let made = api.create_default();
    let image = api.get(&format!("/v1/boxes/{}", made.id)).ok()["image"].clone();
    let facts = |change: &dyn Fn(&mut Value)| {
        let mut facts = json!({ "format": "icebox-box", "version": 1, "image": { "id": image }, "settings": {} });
        change(&mut facts);
        entry("box.json", b'0', "", facts.to_string().as_bytes())
    };
    let good = facts(&|_| ());
    let end = vec![0; 1024];
    let with = |entries: &[Vec<u8>]| [vec![good.clone()], entries.to_vec(), vec![end.clone()]].concat().concat();
    let file = |name: &str| entry(name, b'0', "", b"evil");
    let cases: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        ("nothing", Vec::new(), 400, "no archive of a box"),
        ("another archive", [file("etc/passwd"), end.clone()].concat(), 400, "no archive of a box"),
        ("no tar", vec![b'x'; 4096], 400, ""),
        ("upwards", with(&[file("changes/../../evil")]), 400, "upwards"),
        ("beside", with(&[file("work/evil")]), 400, "neither"),
        ("absolute", with(&[file("/evil")]), 400, "neither"),
        ("a link out", with(&[entry("changes/l", b'1', "box.json", b"")]), 400, "out of changes"),
        (
            "through a link",
            with(&[entry("changes/l", b'2', "/etc", b""), file("changes/l/evil")]),
            400,
            "symbolic link",
        ),
        ("the whole image hidden", with(&[entry("changes/.wh..wh..opq", b'0', "", b"")]), 400, "whole image"),
        ("cut off", with(&[file("changes/a")])[..1500].to_vec(), 400, "truncated"),
        ("another form", facts(&|f| f["format"] = json!("x")), 400, "not that of a box"),
        ("a later version", facts(&|f| f["version"] = json!(2)), 400, "later"),
        ("no such size", facts(&|f| f["settings"]["size"] = json!("giant")), 400, "cannot be read"),
        ("too large a disk", facts(&|f| f["settings"]["disk_gib"] = json!(5000)), 400, "1 to 1024"),
        ("a bad label", facts(&|f| f["settings"]["labels"] = json!(["ä"])), 400, "label"),
        ("a bad policy", facts(&|f| f["settings"]["network_policy"] = json!({ "mode": "x" })), 400, "network_policy"),
        ("another image", facts(&|f| f["image"]["id"] = json!("sha256:00")), 409, "icebox image export sha256:00"),
        ("another base", facts(&|f| f["image"]["id"] = json!("etch-12345678")), 409, "iceboxd image"),
        ("a path as an image", facts(&|f| f["image"]["id"] = json!("../../etc")), 409, "not on this host"),
    ];
    for (what, archive, status, word) in cases {
        let text = import(&api, "", archive).error(status);
        assert!(text.contains(word), "{what}: {text}");
    }
    import(&api, "?name=../x", with(&[])).error(400);
    import(&api, "?nam=x", with(&[])).error(400);
    assert_eq!(api.list().len(), 1, "a box was made");
    assert_eq!(leftovers(&daemon), [""; 0]);
    // A device node is left out, and said so; all else of the archive is there.
    let odd = with(&[entry("changes/", b'5', "", b""), entry("changes/null", b'3', "", b""), file("changes/kept")]);
    let odd = box_of(&api, &import(&api, "", odd));
    assert_eq!(odd.out("cat /kept; ls /null 2>/dev/null || echo none"), "evilnone");
    let logs = odd.get("/logs").ok().to_string();
    assert!(logs.contains("a device node is left out"), "{logs}");
}
