//! `icebox cp`: files and folders into a box and out of it.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use icebox_tests::{Daemon, TestBox};

/// A folder with two regular files and one file of each special type. `closed` can't be listed by the box's user.
const ODD: &str = r#"
import os, socket
os.makedirs('odd/sub'); os.chdir('odd')
open('a', 'w').write('first'); open('z', 'w').write('last'); open('sub/run', 'w').write('#!/bin/sh\n')
os.chmod('sub/run', 0o755)
os.mkfifo('pipe'); socket.socket(socket.AF_UNIX).bind('socket')
os.symlink('loop', 'loop'); os.symlink('/nowhere', 'dangling'); os.symlink('..', 'up')
os.symlink('a', 'link'); os.symlink('/dev/zero', 'endless')
os.mkdir('closed'); open('unreadable', 'w').close(); os.chmod('unreadable', 0); os.chmod('closed', 0)
for name in (b'a b', b'%2F#?+&', b'new\nline', b'\xff\xfe', '\uefff'.encode(), b'-n'):
    open(name, 'wb').write(name)
"#;
const LEFT_OUT: [&str; 8] = ["pipe", "socket", "loop", "dangling", "up", "endless", "closed", "unreadable"];

fn copy(daemon: &Daemon, from: &str, to: &str) -> (Output, String) {
    let output = daemon.icebox(&["cp", from, to]).output().expect("icebox cp ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

fn names(directory: &Path) -> Vec<Vec<u8>> {
    let mut all: Vec<_> = fs::read_dir(directory)
        .unwrap_or_else(|e| panic!("{}: {e}", directory.display()))
        .map(|entry| entry.expect("an entry").file_name().as_bytes().to_owned())
        .collect();
    all.sort();
    all
}

fn place(daemon: &Daemon, name: &str) -> PathBuf {
    let place = daemon.run_dir().join(name);
    fs::create_dir_all(&place).expect("a directory of the test");
    place
}

#[test]
fn what_is_neither_file_nor_folder_is_left_out_by_name_and_the_rest_is_copied() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    made.write("/tmp/odd.py", ODD);
    made.out("python3 /tmp/odd.py");
    let here = place(&daemon, "copies");

    let (output, said) = copy(&daemon, &format!("{}:odd", made.id), here.to_str().expect("UTF-8"));
    assert_ne!(output.status.code(), Some(0), "entries were left out: {said}");
    let copied = here.join("odd");
    let ordinary: [&[u8]; 9] =
        [b"%2F#?+&", b"-n", b"a", b"a b", b"link", b"new\nline", b"z", "\u{efff}".as_bytes(), b"\xff\xfe"];
    let mut wanted: Vec<Vec<u8>> = ordinary.iter().map(|name| name.to_vec()).collect();
    wanted.push(b"sub".to_vec());
    // The folder is made before its listing is refused, as cp does.
    wanted.push(b"closed".to_vec());
    wanted.sort();
    assert_eq!(names(&copied), wanted, "{said}");
    for name in LEFT_OUT {
        assert!(said.contains(&format!("left out /workspace/home/odd/{name}:")), "{name}: {said}");
    }
    assert_eq!(said.matches(": left out ").count(), LEFT_OUT.len(), "{said}");
    assert_eq!(fs::read(copied.join("link")).expect("link"), b"first");
    for name in [&b"\xff\xfe"[..], "\u{efff}".as_bytes(), b"new\nline"] {
        assert_eq!(fs::read(copied.join(std::ffi::OsStr::from_bytes(name))).expect("a copy"), name);
    }

    // And back, beside what can't be copied from here either.
    nix::unistd::mkfifo(&copied.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let odd = copied.join(std::ffi::OsStr::from_bytes(b"\xff.sh"));
    fs::write(&odd, "#!/bin/sh\n").expect("a script");
    for script in [&odd, &copied.join("sub/run")] {
        fs::set_permissions(script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    }
    let (output, said) = copy(&daemon, copied.to_str().expect("UTF-8"), &format!("{}:back", made.id));
    assert_ne!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("/odd/pipe:") && said.matches(": left out ").count() == 1, "{said}");
    assert_eq!(made.out("cd back && cat a link z -- -n"), "firstfirstlast-n");
    let same = "import os; all = [n for n in os.listdir(b'back') if os.path.isfile(b'back/' + n)]
for n in sorted(all): print(n, os.access(b'back/' + n, os.X_OK), open(b'back/' + n, 'rb').read() == n)";
    made.write("/tmp/same.py", same);
    let listed = made.out("python3 /tmp/same.py");
    for line in ["b'\\xff.sh' True False", "b'\\xff\\xfe' False True", "b'new\\nline' False True"] {
        assert!(listed.lines().any(|found| found == line), "{line}: {listed}");
    }
    assert_eq!(made.out("test -x back/sub/run && echo yes"), "yes");
}

/// A copy that ends in the middle of several files leaves none of them half-written.
#[test]
fn a_copy_that_fails_leaves_no_part_of_a_file() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    made.out("mkdir many && cd many && for i in $(seq 40); do head -c 300000 /dev/zero > $i; done");
    let here = place(&daemon, "copies");
    // A directory stands where a file has to go, so the rename fails: a local failure ends the copy.
    fs::create_dir_all(here.join("many/20")).expect("a directory in the way");
    let (output, said) = copy(&daemon, &format!("{}:many", made.id), here.to_str().expect("UTF-8"));
    assert_ne!(output.status.code(), Some(0));
    assert!(said.contains("many/20"), "{said}");
    let parts: Vec<_> = names(&here.join("many")).into_iter().filter(|name| name.starts_with(b".icebox-")).collect();
    assert!(parts.is_empty(), "{parts:?}");
}

/// Larger than any buffer between them, both ways.
#[test]
fn more_than_a_hundred_megabytes_stream() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let here = place(&daemon, "copies");
    let hash = |made: &TestBox, path: &str| made.out(&format!("sha256sum < {path}"));
    made.out("head -c 110M /dev/urandom > large");
    let local = here.join("large");
    let (output, said) = copy(&daemon, &format!("{}:large", made.id), local.to_str().expect("UTF-8"));
    assert!(output.status.success(), "{said}");
    assert_eq!(fs::metadata(&local).expect("the copy").len(), 110 << 20);
    let (output, said) = copy(&daemon, local.to_str().expect("UTF-8"), &format!("{}:again", made.id));
    assert!(output.status.success(), "{said}");
    assert_eq!(hash(&made, "large"), hash(&made, "again"));
}
