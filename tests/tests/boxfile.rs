//! Builds from Boxfiles: steps in boxes, the cache, failures, cancellation, and the end of the daemon.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use icebox_rootfs::images::Images;
use icebox_tests::boxfile::{build, built, context, no_box_is_left, read};
use icebox_tests::{Daemon, wait_until};

/// An image with a shell, and what is copied, made and removed in two stages.
const TEN_STEPS: &str = r#"
FROM scratch AS base
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN mkdir -p /etc /tmp && printf 'root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n' > /etc/passwd && chmod 1777 /tmp

FROM base AS maker
ARG GREETING=hello
WORKDIR /src
COPY --chown=web src ./
RUN echo "$GREETING" > greeting && rm /bin/vi
RUN --mount=type=cache,target=/cache,id=c echo x > /cache/x && ls /cache > listing
USER web
RUN id -u > /tmp/uid && pwd > /tmp/pwd
RUN <<EOF
set -e
test -e greeting
echo "from a here-document" > /tmp/doc
EOF

FROM base
ENV NAME=value
COPY --from=maker /tmp/uid /tmp/pwd /tmp/doc /out/
COPY --from=maker /src /out/src
COPY <<EOF /out/inline
$NAME
EOF
RUN --network=none ip link | grep -c ': lo' > /out/links
LABEL a=b
CMD ["/bin/sh"]
"#;

#[test]
fn a_build_of_two_stages_is_made_once_and_then_taken_from_the_cache() {
    let daemon = Daemon::start().with_own_images();
    let context = context(&daemon, "ten", TEN_STEPS);
    let (id, said) = built(&daemon, &context, &["-t", "ten:1"]);
    assert_eq!(said.matches(" DONE ").count(), 13, "{said}");
    assert!(said.contains("#1 [base 1/3] COPY busybox /bin/busybox\n"), "{said}");
    let images = Images::open(&daemon.images()).expect("the store");
    let image = images.find("ten:1").expect("the image");
    assert_eq!(image.id, id);
    for (path, wanted) in [
        ("out/uid", "33\n"),
        ("out/pwd", "/src\n"),
        ("out/doc", "from a here-document\n"),
        ("out/inline", "value\n"),
        ("out/src/greeting", "hello\n"),
        ("out/src/file", "content"),
        ("out/src/listing", "x\n"),
        ("out/links", "1\n"),
    ] {
        assert_eq!(read(&images, &image, path), wanted, "{path}");
    }
    let config: serde_json::Value = serde_json::from_str(&image.config).expect("JSON");
    assert_eq!(config["config"]["Cmd"], serde_json::json!(["/bin/sh"]));
    assert_eq!(config["config"]["Labels"]["a"], "b");
    let history = config["history"].as_array().expect("a history");
    let layers = history.iter().filter(|item| item["empty_layer"] != true).count();
    assert_eq!(layers, image.diff_ids.len());

    let (again, said) = built(&daemon, &context, &["-t", "ten:2"]);
    assert_eq!((said.matches(" CACHED\n").count(), said.matches(" DONE ").count()), (13, 0), "{said}");
    let layers = |id: &str| images.find(id).expect("the image").diff_ids;
    assert_eq!(layers(&again), layers(&id));

    // A file that a step reads: that step and what follows is made again, what is before it and beside it is not.
    fs::write(context.join("src/file"), "other").expect("a file");
    fs::write(context.join("left-out"), "other").expect("a file");
    let (_, said) = built(&daemon, &context, &[]);
    assert!(said.contains("#5 [maker 2/8] WORKDIR /src\n#5 CACHED\n"), "{said}");
    assert!(said.contains("COPY --chown=web src ./\n#6 DONE"), "{said}");
    let (_, said) = built(&daemon, &context, &["--build-arg", "GREETING=hi", "--target", "maker"]);
    assert!(said.contains("#6 CACHED") && said.contains("#7 DONE"), "{said}");
    no_box_is_left(&daemon);
}

#[test]
fn a_step_that_fails_says_where_and_leaves_nothing() {
    let daemon = Daemon::start().with_own_images();
    let base = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";
    for (name, more, wanted) in [
        (
            "exit",
            "RUN echo to stdout && echo to stderr >&2 && exit 7",
            vec!["Boxfile:4: ", "ended with exit code 7", " to stderr\n"],
        ),
        ("missing", "RUN [\"/none\"]", vec!["Boxfile:4: ", "exit code 127", "/none: command not found"]),
        ("user", "USER nobody-here\nRUN true", vec!["Boxfile:5: ", "nobody-here"]),
        ("syntax", "RUN --mount=type=ssh true", vec!["Boxfile:4: ", "type=ssh is not supported", "attach_headers"]),
        ("copy", "COPY none /x", vec!["Boxfile:4: ", "'none' is not in the context"]),
        ("from", "FROM localhost/nothing", vec!["Boxfile:4: ", "there is no such image here"]),
        ("url", "ADD http://user:word@a.test/x /x", vec!["Boxfile:4: ", "a user name or a password"]),
    ] {
        let context = context(&daemon, name, &format!("{base}{more}\n"));
        let (output, said) = build(&daemon, &context, &[]);
        assert!(!output.status.success(), "{name}");
        for wanted in wanted {
            assert!(said.contains(wanted), "{name}: {wanted:?} is not in\n{said}");
        }
    }
    let context = context(&daemon, "slow", &format!("{base}RUN sleep 1000\n"));
    let (_, said) = build(&daemon, &context, &["--timeout", "1"]);
    assert!(said.contains("Boxfile:4: 'RUN sleep 1000' timed out after 1 s"), "{said}");
    no_box_is_left(&daemon);
}

#[test]
fn a_build_ends_with_its_client_and_with_the_daemon() {
    let mut daemon = Daemon::start().with_own_images();
    let boxfile = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sleep\", \"1000\"]\n";
    let context = context(&daemon, "endless", boxfile);
    let context = context.to_str().expect("UTF-8");
    let start = |daemon: &Daemon| {
        let mut command = daemon.icebox_as_operator(&["image", "build", context]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a client");
        wait_until(Duration::from_secs(60), "a box of the build", || {
            let boxes = daemon.api().list();
            boxes.iter().any(|made| made["status"] == "running")
        });
        child
    };
    let mut client = start(&daemon);
    client.kill().expect("the client is killed");
    client.wait().expect("the client has ended");
    no_box_is_left(&daemon);

    let mut client = start(&daemon);
    daemon.kill9();
    client.wait().expect("the client has ended");
    daemon.start_again();
    no_box_is_left(&daemon);
}
