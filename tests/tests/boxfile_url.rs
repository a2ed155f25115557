//! ADD of a URL: fetched in the network of a box of the build, under its policy.

use std::net::Ipv4Addr;

use icebox_rootfs::images::Images;
use icebox_tests::boxfile::{SHELL, build, built, context, no_box_is_left, read};
use icebox_tests::net::World;
use icebox_tests::net::dns::Answer;
use sha2::{Digest as _, Sha256};

const SITE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);

#[test]
fn files_are_fetched_as_the_policy_of_the_build_says() {
    let world = World::new();
    for name in ["files.test", "other.test"] {
        world.dns.set(name, Answer::of(&[SITE]));
    }
    world.web.put("files.test", "/dir/tool", "a tool");
    let daemon = world.daemon().with_own_images();
    let digest: String = Sha256::digest(b"a tool").iter().map(|byte| format!("{byte:02x}")).collect();
    let text = format!(
        "{SHELL}ADD http://files.test/dir/tool https://files.test/dir/tool /two/\n\
         ADD --chmod=755 https://other.test/redirect?http://files.test/dir/tool /bin/tool\n\
         ADD --checksum=sha256:{digest} http://files.test/dir/tool /checked\n\
         RUN stat -c '%a %u:%g' /bin/tool /checked > /out\n"
    );
    let dir = context(&daemon, "urls", &text);
    let (id, _) = built(&daemon, &dir, &[]);
    let images = Images::open(&daemon.images()).expect("the store");
    let image = images.find(&id).expect("the image");
    for (path, wanted) in
        [("two/tool", "a tool"), ("bin/tool", "a tool"), ("checked", "a tool"), ("out", "755 0:0\n600 0:0\n")]
    {
        assert_eq!(read(&images, &image, path), wanted, "{path}");
    }

    // With a checksum it is fetched once, and again only if the step is made again.
    let checked = format!("{SHELL}ADD --checksum=sha256:{digest} http://files.test/dir/tool /checked\n");
    let checked = context(&daemon, "checked", &checked);
    let visits = || world.web.visits_of("files.test").len();
    let (first, _) = built(&daemon, &checked, &[]);
    let before = visits();
    let layers = |id: &str| images.find(id).expect("the image").diff_ids;
    assert_eq!(layers(&built(&daemon, &checked, &[]).0), layers(&first));
    assert_eq!(visits(), before, "nothing was fetched");
    let _ = built(&daemon, &checked, &["--no-cache"]);
    assert_eq!(visits(), before + 1);

    // Without one, a file that has changed is another step; with one it is an error.
    let plain = context(&daemon, "plain", &format!("{SHELL}ADD http://files.test/dir/tool /tool\n"));
    let _ = built(&daemon, &plain, &[]);
    assert!(built(&daemon, &plain, &[]).1.contains("#3 CACHED"));
    world.web.put("files.test", "/dir/tool", "another tool");
    assert!(built(&daemon, &plain, &[]).1.contains("#3 DONE"));
    let (output, said) = build(&daemon, &checked, &["--no-cache"]);
    assert!(!output.status.success() && said.contains("Boxfile:4: ") && said.contains("the file is sha256:"), "{said}");

    let before = world.web.visits().len();
    let deny = r#"{"mode":"deny-all"}"#;
    let others = r#"{"mode":"custom","allowed_domains":["other.test"]}"#;
    let base = "FROM scratch\n";
    for (name, url, policy, wanted) in [
        ("deny-all", "http://files.test/dir/tool", deny, "files.test"),
        ("not-allowed", "http://files.test/dir/tool", others, "its network policy may not allow the name"),
        ("metadata", "http://169.254.169.254/latest", r#"{"mode":"allow-all"}"#, "169.254.169.254"),
        ("loopback", "http://127.0.0.1:1/", r#"{"mode":"allow-all"}"#, "127.0.0.1"),
    ] {
        let dir = context(&daemon, name, &format!("{base}ADD {url} /x\n"));
        let (output, said) = build(&daemon, &dir, &["--network-policy", policy]);
        assert!(!output.status.success() && said.contains("Boxfile:2: ") && said.contains(wanted), "{name}: {said}");
    }
    assert_eq!(world.web.visits().len(), before, "nothing reached the internet");
    // A redirect is followed under the same policy.
    let dir = context(&daemon, "redirect", &format!("{base}ADD http://other.test/redirect?http://files.test/x /x\n"));
    let (output, said) = build(&daemon, &dir, &["--network-policy", others]);
    assert!(!output.status.success() && said.contains("http://files.test: "), "{said}");
    assert!(world.web.visits_of("files.test").iter().all(|visit| !visit.request.target.ends_with("/x")));

    for (name, text, wanted) in [
        (
            "sum",
            format!("ADD --checksum=sha256:{} http://files.test/dir/tool /x", "0".repeat(64)),
            "the file is sha256:",
        ),
        ("form", "ADD --checksum=md5:00 http://files.test/dir/tool /x".to_owned(), "hexadecimal digits"),
        ("name", "ADD http://nowhere.test/x /x".to_owned(), "nowhere.test"),
        ("copy", "COPY http://files.test/dir/tool /x".to_owned(), "write ADD"),
    ] {
        let (output, said) = build(&daemon, &context(&daemon, name, &format!("{base}{text}\n")), &[]);
        assert!(!output.status.success() && said.contains("Boxfile:2: ") && said.contains(wanted), "{name}: {said}");
    }
    no_box_is_left(&daemon);
}
