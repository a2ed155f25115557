//! What a RUN mounts: caches that last between builds, and directories in memory.

use std::fs;

use icebox_rootfs::images::Images;
use icebox_tests::Daemon;
use icebox_tests::boxfile::{SHELL, build, built, context, no_box_is_left, read};

/// Builds with all steps made anew; gives the text of `/out`.
fn out(daemon: &Daemon, name: &str, text: &str) -> String {
    let (id, _) = built(daemon, &context(daemon, name, &format!("{SHELL}{text}\n")), &["--no-cache"]);
    let images = Images::open(&daemon.images()).expect("the store");
    read(&images, &images.find(&id).expect("the image"), "out")
}

#[test]
fn a_cache_lasts_between_builds_and_is_no_part_of_the_image() {
    let daemon = Daemon::start().with_own_images();
    let count = "RUN --mount=type=cache,target=/c/deep,id=n echo x >> /c/deep/n && wc -l < /c/deep/n > /out";
    // More often than a cache has layers.
    for round in 1..=8 {
        assert_eq!(out(&daemon, "count", count), format!("{round}\n"));
    }
    // Another target has the same files; what is removed is gone; what the image has there is hidden, not changed.
    let moved = "RUN mkdir -p /other && echo image > /other/own && chmod 711 /other\n\
                 RUN --mount=type=cache,target=/other,id=n wc -l < /other/n > /out && ls /other >> /out && rm /other/n && mkdir /other/d\n\
                 RUN --mount=type=cache,target=/c,id=n ls /c >> /out && cat /other/own >> /out && stat -c %a /other >> /out";
    assert_eq!(out(&daemon, "moved", moved), "8\nn\nd\nimage\n711\n");
    let images = Images::open(&daemon.images()).expect("the store");
    let newest = images.list().expect("images").into_iter().max_by_key(|image| image.stored_unix).expect("an image");
    let dirs = images.layer_dirs(&newest).expect("layers");
    assert!(dirs.iter().all(|dir| !dir.join("other/d").exists() && !dir.join("c/deep/n").exists()));
    // What a command that fails has written is kept: it is often what the next try needs.
    let fails = context(&daemon, "fails", &format!("{SHELL}RUN --mount=type=cache,target=/c echo y > /c/y && false\n"));
    assert!(!build(&daemon, &fails, &[]).0.status.success());
    assert_eq!(out(&daemon, "after", "RUN --mount=type=cache,target=/c cat /c/y > /out"), "y\n");
    // Pruning images prunes caches.
    let pruned = daemon.icebox_as_operator(&["image", "prune"]).output().expect("icebox image prune ends");
    assert!(pruned.status.success(), "{pruned:?}");
    assert_eq!(out(&daemon, "pruned", count), "1\n");
    no_box_is_left(&daemon);
}

#[test]
fn options_of_mounts_mean_what_they_mean_to_buildkit() {
    let daemon = Daemon::start().with_own_images();
    let owned = "RUN --mount=type=cache,target=/c,uid=33,gid=34,mode=2750 stat -c '%a %u:%g' /c > /out";
    assert_eq!(out(&daemon, "owned", owned), "2750 33:34\n");
    // A read-only one gives its files, and nothing that is written to it is kept.
    let filled = "RUN --mount=type=cache,target=/r echo kept > /r/a\n\
                  RUN --mount=type=cache,target=/r,ro cat /r/a > /out; touch /r/b; true\n\
                  RUN --mount=type=cache,target=/r ls /r >> /out";
    assert_eq!(out(&daemon, "read-only", filled), "kept\na\n");
    // A new one begins with a directory of a stage; one that is there stays as it is.
    let seeded = "RUN mkdir -p /seed/d && echo seed > /seed/d/s && chmod 750 /seed\n\
                  FROM 0\n\
                  RUN --mount=type=cache,target=/s,from=seeds,source=/seed cat /s/d/s > /out && stat -c %a /s >> /out && rm -r /s/d\n\
                  RUN --mount=type=cache,target=/s,from=seeds,source=/seed ls -A /s | wc -l >> /out";
    let seeded = format!("{}{}", SHELL, seeded).replacen("FROM scratch", "FROM scratch AS seeds", 1);
    let seeded = seeded.replacen("FROM 0", "FROM seeds", 1);
    let (id, _) = built(&daemon, &context(&daemon, "seeded", &seeded), &[]);
    let images = Images::open(&daemon.images()).expect("the store");
    assert_eq!(read(&images, &images.find(&id).expect("the image"), "out"), "seed\n750\n0\n");
    let memory = "RUN mkdir /t && echo image > /t/own\n\
                  RUN --mount=type=tmpfs,target=/t ls -A /t | wc -l > /out && touch /t/new\n\
                  RUN ls /t >> /out";
    assert_eq!(out(&daemon, "memory", memory), "0\nown\n");
    for (name, text, wanted) in [
        ("twice", "RUN --mount=type=cache,target=/a,id=x --mount=type=cache,target=/b,id=x true", "mounted twice"),
        ("source", "RUN --mount=type=cache,target=/a,source=/b true", "source without from"),
        ("missing", "RUN --mount=type=cache,target=/a,from=localhost/none true", "there is no such image here"),
        ("file", "RUN --mount=type=cache,target=/bin/busybox true", "not a directory in the image"),
    ] {
        let (output, said) = build(&daemon, &context(&daemon, name, &format!("{SHELL}{text}\n")), &[]);
        assert!(!output.status.success() && said.contains("Boxfile:4: ") && said.contains(wanted), "{name}: {said}");
    }
    no_box_is_left(&daemon);
}

#[test]
fn caches_that_are_too_large_are_dropped() {
    let daemon = Daemon::start_with("[build]\ncache_bytes = 3200000\n").with_own_images();
    let write = |name: &str, bytes: usize| {
        let text = format!(
            "{SHELL}RUN --mount=type=cache,target=/c,id={name} ls /c > /out; dd if=/dev/urandom of=/c/f bs={bytes} count=1\n"
        );
        let (id, said) = built(&daemon, &context(&daemon, name, &text), &["--no-cache"]);
        let images = Images::open(&daemon.images()).expect("the store");
        (read(&images, &images.find(&id).expect("the image"), "out"), said)
    };
    let (before, said) = write("one", 1_000_000);
    assert!(before.is_empty() && !said.contains("is dropped"), "{said}");
    assert_eq!(write("two", 1_000_000).0, "");
    assert_eq!(write("one", 1000).0, "f\n", "it is there, and used last now");
    let (_, said) = write("three", 2_000_000);
    assert!(said.contains("the cache 'two'") && !said.contains("the cache 'one'"), "{said}");
    let (_, said) = write("four", 4_000_000);
    assert!(
        !said.contains("the cache 'three'")
            && said.contains("the cache 'four'")
            && said.contains("[build] cache_bytes"),
        "{said}"
    );
    assert_eq!(write("four", 10).0, "", "it was too large by itself");
    let left = fs::read_dir(daemon.data_dir().join("builds/mounts")).expect("the caches").count();
    assert!(left <= 3, "{left} caches are left");
    no_box_is_left(&daemon);
}
