//! File operations as the box's user, on hostile paths. Needs root.

mod common;

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use common::{Init, PATIENCE, eventually, exists};
use icebox_shim::handle::{EntryKind, FileReader};
use icebox_shim::{Error, ErrorKind};

async fn content(mut reader: FileReader) -> Result<Vec<u8>, Error> {
    let mut all = Vec::new();
    while let Some(piece) = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap()? {
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

async fn read(init: &Init, path: &str) -> Result<Vec<u8>, Error> {
    content(init.handle.file_read(path, None).await?).await
}

async fn write(init: &Init, path: &str, bytes: &[u8]) -> Result<(), Error> {
    let mut writer = init.handle.file_write(path).await?;
    writer.write(bytes).await?;
    writer.finish().await
}

fn kind<T>(result: Result<T, Error>) -> ErrorKind {
    match result {
        Ok(_) => panic!("it went well"),
        Err(e) => e.kind(),
    }
}

/// Makes something as the box's user would.
fn give(path: &str) {
    std::os::unix::fs::lchown(path, Some(1000), Some(1000)).unwrap();
}

#[tokio::test]
async fn priv_write_then_read() {
    let init = Init::start();
    let bytes: Vec<u8> = (0..3_000_017_u32).map(|n| n.to_le_bytes()[0]).collect();
    let path = init.path("a/b/c.bin");
    write(&init, &path, &bytes).await.unwrap();
    assert!(read(&init, &path).await.unwrap() == bytes);
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (1000, 1000, 0o644));
    let parent = std::fs::metadata(init.path("a/b")).unwrap();
    assert_eq!((parent.uid(), parent.mode() & 0o7777), (1000, 0o755));
    let reader = init.handle.file_read(&path, Some((1_000_000, 100))).await.unwrap();
    assert_eq!(reader.size, bytes.len() as u64);
    assert_eq!(content(reader).await.unwrap(), bytes[1_000_000..1_000_100]);
    for (offset, length, expected) in [(3_000_010, 100, 7), (4_000_000, 5, 0), (0, 0, 0), (5, u64::MAX, 3_000_012)] {
        let reader = init.handle.file_read(&path, Some((offset, length))).await.unwrap();
        assert_eq!(content(reader).await.unwrap().len(), expected, "{offset}+{length}");
    }
    assert_eq!(std::fs::read_dir(init.path("a/b")).unwrap().count(), 1, "nothing beside the file");
}

#[tokio::test]
async fn priv_overwriting_keeps_the_mode_and_is_whole_or_nothing() {
    let init = Init::start();
    let path = init.path("script");
    write(&init, &path, b"one").await.unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o4755)).unwrap();
    let mut writer = init.handle.file_write(&path).await.unwrap();
    writer.write(b"tw").await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"one");
    drop(writer);
    eventually("the unfinished file is gone", || std::fs::read_dir(init.work()).unwrap().count() == 1).await;
    assert_eq!(std::fs::read(&path).unwrap(), b"one");
    write(&init, &path, b"two").await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"two");
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o755, "mode kept, without set-id");
}

#[tokio::test]
async fn priv_writing_follows_a_final_link() {
    let init = Init::start();
    let (link, target) = (init.path("link"), init.path("target"));
    symlink("target", &link).unwrap();
    write(&init, &link, b"through").await.unwrap();
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(std::fs::read(&target).unwrap(), b"through");
    symlink("y", init.path("x")).unwrap();
    symlink("x", init.path("y")).unwrap();
    assert_eq!(kind(write(&init, &init.path("x"), b"").await), ErrorKind::InvalidInput);
    assert_eq!(kind(read(&init, &init.path("x")).await), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn priv_only_the_users_rights_count() {
    let init = Init::start();
    let secret = init.dir.path().join("secret");
    std::fs::write(&secret, "root's").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let path = secret.to_str().unwrap();
    assert_eq!(kind(read(&init, path).await), ErrorKind::PermissionDenied);
    assert_eq!(kind(write(&init, path, b"x").await), ErrorKind::PermissionDenied);
    assert_eq!(kind(init.handle.file_remove(path, true).await), ErrorKind::PermissionDenied);
    symlink(path, init.path("link")).unwrap();
    assert_eq!(kind(read(&init, &init.path("link")).await), ErrorKind::PermissionDenied);
    // Its own directory, but root's read-only file in it.
    std::fs::write(init.path("theirs"), "root's").unwrap();
    assert_eq!(kind(write(&init, &init.path("theirs"), b"x").await), ErrorKind::PermissionDenied);
    assert_eq!(std::fs::read(&secret).unwrap(), b"root's");
}

#[tokio::test]
async fn priv_a_directory_that_its_owner_cannot_open_can_be_changed() {
    // The user cannot flush it, which must not turn a completed change into an error.
    let init = Init::start();
    let drop_box = init.path("drop");
    std::fs::create_dir(&drop_box).unwrap();
    give(&drop_box);
    std::fs::set_permissions(&drop_box, std::fs::Permissions::from_mode(0o300)).unwrap();
    let at = |name: &str| format!("{drop_box}/{name}");
    write(&init, &at("a"), b"one").await.unwrap();
    init.handle.file_rename(&at("a"), &at("b")).await.unwrap();
    init.handle.file_mkdir(&at("c"), false).await.unwrap();
    init.handle.file_mkdir(&at("d/e"), true).await.unwrap();
    assert_eq!(read(&init, &at("b")).await.unwrap(), b"one");
    for name in ["b", "c", "d"] {
        init.handle.file_remove(&at(name), true).await.unwrap();
    }
    assert_eq!(std::fs::read_dir(&drop_box).unwrap().count(), 0);
}

#[tokio::test]
async fn priv_special_files_are_refused_and_never_waited_for() {
    let init = Init::start();
    let fifo = init.path("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o666.into(), 0).unwrap();
    give(&fifo);
    let _socket = std::os::unix::net::UnixListener::bind(init.path("socket")).unwrap();
    symlink("/dev/zero", init.path("zero")).unwrap();
    for name in ["fifo", "zero", "socket"] {
        let path = init.path(name);
        assert_eq!(kind(read(&init, &path).await), ErrorKind::InvalidInput, "{name}");
        let refused = kind(write(&init, &path, b"x").await);
        assert!(matches!(refused, ErrorKind::InvalidInput | ErrorKind::PermissionDenied), "{name}");
    }
    assert_eq!(init.handle.file_stat(&fifo, false).await.unwrap().kind, EntryKind::Other);
    for magic in ["/proc/self/fd/3", "/proc/self/exe", "/proc/self/cwd/etc/passwd"] {
        assert!(read(&init, magic).await.is_err(), "{magic}");
    }
    assert_eq!(kind(read(&init, "/").await), ErrorKind::IsADirectory);
    assert!(!read(&init, "/proc/self/status").await.unwrap().is_empty());
    // The announced size is exact, also where stat says 0 (procfs) or a page (sysfs).
    for file in ["/proc/self/status", "/proc/version", "/sys/kernel/notes", "/sys/kernel/uevent_seqnum"] {
        let reader = init.handle.file_read(file, None).await.unwrap();
        let size = reader.size;
        assert_eq!(content(reader).await.unwrap().len() as u64, size, "{file}");
        assert!(size > 0, "{file}");
    }
    let range = init.handle.file_read("/proc/version", Some((6, 7))).await.unwrap();
    assert_eq!(content(range).await.unwrap(), b"version");
}

#[tokio::test]
async fn priv_paths_must_be_absolute_names() {
    let init = Init::start();
    for bad in ["", "a", "../a", "a\0b", "/a\0b"] {
        assert_eq!(kind(read(&init, bad).await), ErrorKind::InvalidInput, "{bad:?}");
        assert_eq!(kind(write(&init, bad, b"").await), ErrorKind::InvalidInput, "{bad:?}");
        assert_eq!(kind(init.handle.file_list(bad).await), ErrorKind::InvalidInput);
    }
    for bad in ["/", "/..", "/tmp/.", "///"] {
        assert_eq!(kind(init.handle.file_remove(bad, true).await), ErrorKind::InvalidInput, "{bad}");
    }
    let long = format!("{}/{}", init.path("d"), "x".repeat(300));
    assert_eq!(kind(write(&init, &long, b"").await), ErrorKind::InvalidInput);
    assert_eq!(kind(write(&init, &format!("/{}", "a/".repeat(4000)), b"").await), ErrorKind::InvalidInput);
    assert_eq!(kind(read(&init, &init.path("none")).await), ErrorKind::NotFound);
    std::fs::write(init.path("file"), "").unwrap();
    assert_eq!(kind(read(&init, &init.path("file/below")).await), ErrorKind::NotADirectory);
    assert_eq!(kind(write(&init, &init.path("file/below"), b"").await), ErrorKind::NotADirectory);
    assert_eq!(kind(write(&init, &init.path(""), b"").await), ErrorKind::IsADirectory);
    // Not normalised, as clients send them.
    write(&init, &init.path("./d/../d//e"), b"ok").await.unwrap();
    assert_eq!(std::fs::read(init.path("d/e")).unwrap(), b"ok");
}

#[tokio::test]
async fn priv_listing_is_sorted_and_shows_links_as_links() {
    let init = Init::start();
    for name in ["b", "a", ".hidden", "ü"] {
        std::fs::write(init.path(name), name).unwrap();
    }
    std::fs::create_dir(init.path("dir")).unwrap();
    symlink("dir", init.path("link")).unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"bad\xff\nname");
    std::fs::write(init.work().join(odd), "").unwrap();
    let entries = init.handle.file_list(&init.path("")).await.unwrap();
    let names: Vec<&str> = entries.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names, [".hidden", "a", "b", "bad\u{efff}\nname", "dir", "link", "ü"]);
    let by_name = |name: &str| entries.iter().find(|e| e.name == name).unwrap();
    // The names in the list are accepted as paths.
    std::os::unix::fs::chown(init.work().join(odd), Some(1000), Some(1000)).unwrap();
    let odd = by_name("bad\u{efff}\nname").path.clone();
    write(&init, &odd, b"odd").await.unwrap();
    assert_eq!(read(&init, &odd).await.unwrap(), b"odd");
    init.handle.file_rename(&odd, &format!("{odd}\u{ef80}")).await.unwrap();
    init.handle.file_remove(&format!("{odd}\u{ef80}"), false).await.unwrap();
    assert!(by_name("dir").is_dir && !by_name("link").is_dir);
    assert_eq!((by_name("ü").size, by_name("a").path.as_str()), (2, init.path("a").as_str()));
    assert!(by_name("a").modified.0 > 1_500_000_000);
    let one = init.handle.file_list(&init.path("b")).await.unwrap();
    assert_eq!((one.len(), one[0].name.as_str(), &one[0].path), (1, "b", &init.path("b")));
    assert!(init.handle.file_list(&init.path("link")).await.unwrap().is_empty());
    assert_eq!(kind(init.handle.file_list(&init.path("none")).await), ErrorKind::NotFound);
}

#[tokio::test]
async fn priv_a_long_listing_comes_whole() {
    let init = Init::start();
    let name = |n: u32| format!("{n:06}{}", "\u{1}".repeat(240));
    for n in 0..3000 {
        std::fs::write(init.path(&name(n)), "").unwrap();
    }
    let entries = init.handle.file_list(&init.path("")).await.unwrap();
    assert_eq!(entries.len(), 3000);
    assert!(entries.iter().zip(0..).all(|(entry, n)| entry.name == name(n)));
}

#[tokio::test]
async fn priv_stat_mkdir_rename() {
    let init = Init::start();
    let handle = &init.handle;
    let (dir, deep) = (init.path("dir"), init.path("x/y/z"));
    handle.file_mkdir(&dir, false).await.unwrap();
    assert_eq!(kind(handle.file_mkdir(&dir, false).await), ErrorKind::AlreadyExists);
    handle.file_mkdir(&dir, true).await.unwrap();
    assert_eq!(kind(handle.file_mkdir(&deep, false).await), ErrorKind::NotFound);
    handle.file_mkdir(&deep, true).await.unwrap();
    let file = init.path("file");
    write(&init, &file, b"12345").await.unwrap();
    assert_eq!(kind(handle.file_mkdir(&file, true).await), ErrorKind::AlreadyExists);
    symlink("file", init.path("link")).unwrap();
    let own = handle.file_stat(&init.path("link"), false).await.unwrap();
    let target = handle.file_stat(&init.path("link"), true).await.unwrap();
    assert_eq!((own.kind, target.kind, target.size, target.mode), (EntryKind::Symlink, EntryKind::File, 5, 0o644));
    assert_eq!(target.inode, std::fs::metadata(&file).unwrap().ino());
    handle.file_rename(&file, &init.path("dir/moved")).await.unwrap();
    assert_eq!(std::fs::read(init.path("dir/moved")).unwrap(), b"12345");
    for bad in ["/", "/..", &format!("{dir}/.."), &format!("{dir}/.")] {
        assert_eq!(kind(handle.file_rename(bad, &file).await), ErrorKind::InvalidInput, "{bad}");
        assert_eq!(kind(handle.file_rename(&dir, bad).await), ErrorKind::InvalidInput, "{bad}");
    }
    assert_eq!(kind(handle.file_rename(&file, &dir).await), ErrorKind::NotFound);
    assert_eq!(kind(handle.file_rename(&init.path("x"), &dir).await), ErrorKind::NotEmpty);
    assert_eq!(kind(handle.file_stat(&init.path("link"), true).await), ErrorKind::NotFound);
}

#[tokio::test]
async fn priv_remove() {
    let init = Init::start();
    let handle = &init.handle;
    let file = init.path("file");
    write(&init, &file, b"").await.unwrap();
    handle.file_remove(&file, false).await.unwrap();
    assert_eq!(kind(handle.file_remove(&file, true).await), ErrorKind::NotFound);
    write(&init, &init.path("keep/file"), b"kept").await.unwrap();
    write(&init, &init.path("tree/a/b/c"), b"").await.unwrap();
    symlink(init.path("keep"), init.path("tree/a/link")).unwrap();
    symlink("/", init.path("tree/root")).unwrap();
    for n in 0..3000 {
        std::fs::create_dir(init.path(&format!("tree/d{n}"))).unwrap();
        give(&init.path(&format!("tree/d{n}")));
    }
    assert_eq!(kind(handle.file_remove(&init.path("tree"), false).await), ErrorKind::IsADirectory);
    handle.file_remove(&init.path("tree/"), true).await.unwrap();
    assert!(!exists(init.path("tree")));
    assert_eq!(std::fs::read(init.path("keep/file")).unwrap(), b"kept");
    symlink(init.path("keep"), init.path("link")).unwrap();
    handle.file_remove(&init.path("link"), true).await.unwrap();
    assert!(exists(init.path("keep/file")) && !exists(init.path("link")));
}

#[tokio::test]
async fn priv_a_tree_of_any_depth_goes() {
    let init = Init::start();
    // Far beyond any path length; only single steps can make it.
    let script = "import os\nos.mkdir('deep'); os.chdir('deep')\nfor i in range(2500):\n os.mkdir('d'); open('f','w').close(); os.chdir('d')\n";
    let script = format!("cd {} && python3 -c \"{script}\"", init.path(""));
    assert_eq!(init.run(&script).await.code(), 0);
    init.handle.file_remove(&init.path("deep"), true).await.unwrap();
    assert_eq!(std::fs::read_dir(init.work()).unwrap().count(), 0);
}

#[tokio::test]
async fn priv_a_link_exchanged_under_the_work_leads_nowhere() {
    let init = Init::start();
    let canary = init.dir.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    std::fs::write(canary.join("file"), "alive").unwrap();
    for path in [canary.clone(), canary.join("file")] {
        give(path.to_str().unwrap());
    }
    let script = format!(
        "cd {}; ln -s {} l; while [ ! -e stop ]; do mkdir -p t/a; touch t/a/f; mv t/a t/b; mv l t/a; mv t/a l; rm -rf t/b; done",
        init.path(""),
        canary.display()
    );
    let swapper = init.handle.exec(init.shell(&script)).await.unwrap();
    for _ in 0..150 {
        // Any answer will do.
        let _ = init.handle.file_remove(&init.path("t"), true).await;
        let _ = init.handle.file_remove(&init.path("t/a"), true).await;
    }
    std::fs::write(init.path("stop"), "").unwrap();
    common::collect(swapper).await;
    assert_eq!(std::fs::read(canary.join("file")).unwrap(), b"alive");
}

#[tokio::test]
async fn priv_file_work_leaves_no_process_and_no_memory() {
    let init = Init::start();
    let path = init.path("f");
    write(&init, &path, &[7; 100]).await.unwrap();
    let before = init.resident_kib();
    for _ in 0..500 {
        assert_eq!(read(&init, &path).await.unwrap().len(), 100);
    }
    eventually("all workers are reaped", || init.children().is_empty()).await;
    assert!(init.resident_kib() < before + 256);
    // Readers that stop reading hold only their worker.
    write(&init, &path, &vec![7; 8_000_000]).await.unwrap();
    let mut stuck = Vec::new();
    let refused = loop {
        match init.handle.file_read(&path, None).await {
            Ok(reader) => stuck.push(reader),
            Err(e) => break e,
        }
    };
    assert_eq!((refused.kind(), stuck.len()), (ErrorKind::Limit, 64));
    assert_eq!(init.run("echo ok").await.text(), "ok\n");
    drop(stuck);
    eventually("all workers are reaped", || init.children().is_empty()).await;
}

#[tokio::test]
async fn priv_a_file_that_shrinks_while_it_is_read_is_an_error() {
    let init = Init::start();
    let path = init.path("f");
    write(&init, &path, &vec![7; 8_000_000]).await.unwrap();
    let reader = init.handle.file_read(&path, None).await.unwrap();
    // The reader has not taken it: most of the file is not read yet.
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10).unwrap();
    let error = content(reader).await.unwrap_err();
    assert!(error.report().contains("became shorter"), "{}", error.report());
}
