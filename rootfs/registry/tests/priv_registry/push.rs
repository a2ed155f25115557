//! Pushes.

use std::sync::atomic::{AtomicUsize, Ordering};

use icebox_registry::{Cause, Pushed, Result};
use icebox_rootfs::images::Image;
use serde_json::{Value, json};

use crate::hub::{Hub, layer, sha};
use crate::server::{Reply, Request, Server};
use crate::{World, run, told};

/// A store with one image.
fn world() -> (World, Image) {
    let mut hub = Hub::new("a");
    hub.image("1", &[layer("x", 500_000), layer("y", 10)]);
    let server = Server::start(hub.answers());
    let world = World::new();
    let image = world.pulled(&format!("{}/a:1", server.host()));
    (world, image)
}

fn push(world: &World, image: &Image, name: &str) -> Result<Pushed> {
    let name = name.parse().expect("a name");
    run(world.registries().push(&world.images, image, &name, world.report()))
}

/// A registry that takes what it is sent; `odd` may answer in its place.
fn taking(odd: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Server {
    let there = std::sync::Mutex::new(std::collections::BTreeSet::new());
    Server::start(move |request| {
        if let Some(reply) = odd(request) {
            return reply;
        }
        let digest = request.target.split_once("digest=").map(|at| at.1.replace("%3A", ":"));
        match (request.method.as_str(), digest) {
            ("HEAD", _) => {
                let known =
                    there.lock().expect("no panic").contains(request.path().rsplit('/').next().unwrap_or_default());
                Reply::new(if known { 200 } else { 404 }, "")
            }
            ("POST", _) => Reply::new(202, "").with("Location", "/somewhere/upload-1?state=x%2By"),
            ("PUT", Some(digest)) => {
                assert!(request.target.starts_with("/somewhere/upload-1?state=x%2By&digest="), "{}", request.target);
                assert_eq!(sha(&request.body), digest);
                there.lock().expect("no panic").insert(digest);
                Reply::new(201, "")
            }
            ("PUT", None) => Reply::new(201, "").with("Docker-Content-Digest", sha(&request.body)),
            _ => Reply::new(405, ""),
        }
    })
}

#[test]
fn priv_a_push_sends_what_is_missing_and_the_manifest_last() {
    let (world, image) = world();
    let failures = AtomicUsize::new(0);
    let server = taking(move |request| {
        // The first upload fails when its bytes are there; so does the first manifest.
        let fails = request.method == "PUT" && failures.fetch_add(1, Ordering::SeqCst).is_multiple_of(4);
        fails.then(|| Reply::new(503, ""))
    });
    let name = format!("{}/team/app:2", server.host());
    let pushed = push(&world, &image, &name).unwrap_or_else(|error| panic!("{}", told(&error)));
    let requests = server.requests();
    let last = requests.last().expect("requests");
    assert_eq!((last.method.as_str(), last.path()), ("PUT", "/v2/team/app/manifests/2"));
    assert_eq!(pushed, Pushed { digest: sha(&last.body), changed: false });
    let manifest: Value = serde_json::from_slice(&last.body).expect("JSON");
    assert_eq!(manifest["config"]["digest"], image.id);
    assert_eq!(manifest["layers"].as_array().map(Vec::len), Some(2));
    assert!(server.count("POST", "/uploads/") > 3, "no upload was tried again");

    let before = server.count("POST", "/uploads/");
    push(&world, &image, &name).unwrap_or_else(|error| panic!("{}", told(&error)));
    assert_eq!(server.count("POST", "/uploads/"), before, "what is there is sent again");
}

#[test]
fn priv_a_push_goes_nowhere_else() {
    let (world, image) = world();
    let refused = |server: &Server, why: &str| {
        let world = world_with_password(&world, server);
        let Err(error) = push(world, &image, &format!("{}/a:1", server.host())) else { panic!("{why}: it is pushed") };
        assert!(told(&error).contains(why), "expected '{why}': {}", told(&error));
        assert!(server.requests().len() < 40);
        assert_eq!(server.count("PUT", "/manifests/1"), 0, "a manifest without its blobs");
    };
    for (place, why) in [
        ("https://169.254.169.254/x", "whose address is link-local or reserved"),
        ("file:///x", "neither https nor http"),
        ("http://10.0.0.1/x", "would be asked without TLS"),
    ] {
        let server =
            taking(move |request| (request.method == "POST").then(|| Reply::new(202, "").with("Location", place)));
        refused(&server, why);
    }
    let server = taking(|request| (request.method == "POST").then(|| Reply::new(202, "")));
    refused(&server, "does not say where");
    let server = taking(|request| (request.method == "PUT").then(|| Reply::new(500, "")));
    refused(&server, "answers 500");
    let server =
        taking(|request| (request.method == "POST").then(|| Reply::new(403, r#"{"errors":[{"code":"DENIED"}]}"#)));
    refused(&server, "answers 403: DENIED");

    // An upload on another host gets the bytes and not the password.
    let store = Server::start(|_| Reply::new(201, ""));
    let place = format!("http://{}/x", store.host());
    let server = taking(move |request| {
        if request.header("authorization").is_none() {
            return Some(Reply::new(401, "").with("WWW-Authenticate", r#"Basic realm="x""#));
        }
        (request.method == "POST").then(|| Reply::new(202, "").with("Location", place.clone()))
    });
    push(world_with_password(&world, &server), &image, &format!("{}/a:1", server.host()))
        .unwrap_or_else(|error| panic!("{}", told(&error)));
    let got = store.requests();
    assert_eq!(got.len(), 3);
    assert!(got.iter().all(|request| request.header("authorization").is_none()), "{got:?}");

    // What has no tag has no place.
    let Err(error) = push(&world, &image, &format!("127.0.0.1:1/a@{}", sha(b""))) else { panic!("it is pushed") };
    assert!(matches!(error.cause(), Cause::Refused(text) if text.contains("a name with a tag")), "{}", told(&error));
}

fn world_with_password<'w>(world: &'w World, server: &Server) -> &'w World {
    let auth = json!({"auths": {server.host(): {"username": "me", "password": "secret"}}}).to_string();
    std::fs::write(world.auth_file(), auth).expect("written");
    world
}
