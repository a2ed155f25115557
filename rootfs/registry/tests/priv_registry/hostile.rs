//! Registries that mean harm: each is refused with a reason, after few requests, and leaves nothing.

use std::time::Duration;

use serde_json::{Value, json};

use crate::World;
use crate::hub::{Hub, INDEX, MANIFEST, architectures, config, layer, sha};
use crate::server::{Reply, Request, Server};

/// Most requests that one refused pull may cost.
const REQUESTS_MAX: usize = 16;

/// An image, and its one layer.
fn image() -> (Hub, Vec<u8>) {
    let content = layer("x", 200_000);
    let mut hub = Hub::new("a");
    hub.image("1", std::slice::from_ref(&content));
    (hub, content)
}

fn refused(answers: impl Fn(&Request) -> Reply + Send + Sync + 'static, why: &str) {
    refused_in(World::new(), answers, why);
}

fn refused_in(world: World, answers: impl Fn(&Request) -> Reply + Send + Sync + 'static, why: &str) {
    let server = Server::start(answers);
    let text = world.refused(&format!("{}/a:1", server.host()));
    assert!(text.contains(why), "expected '{why}': {text}");
    let asked = server.requests().len();
    assert!((1..=REQUESTS_MAX).contains(&asked), "{asked} requests: {why}");
}

/// The answer to the manifest is this; everything else is as it should be.
fn manifest_is(reply: impl Fn() -> Reply + Send + Sync + 'static, why: &str) {
    let (hub, _) = image();
    refused(
        move |request| if hub.what(request).starts_with("manifests/") { reply() } else { hub.answer(request) },
        why,
    );
}

/// The answer to the layer is this.
fn blob_is(reply: impl Fn(Vec<u8>) -> Reply + Send + Sync + 'static, why: &str) {
    let (hub, content) = image();
    let blob = format!("blobs/{}", sha(&content));
    refused(move |request| if hub.what(request) == blob { reply(content.clone()) } else { hub.answer(request) }, why);
}

/// A manifest that says this of the image.
fn document_is(change: impl Fn(&mut Hub) -> Value, why: &str) {
    let (mut hub, _) = image();
    let document = change(&mut hub);
    hub.document("1", MANIFEST, &document);
    refused(hub.answers(), why);
}

#[test]
fn priv_documents_have_bounds() {
    let large = |length| Reply { length: Some(length), ..Reply::new(200, "{") }.with("Content-Type", MANIFEST);
    manifest_is(move || large(100 << 20), "a document of more than 4194304 bytes");
    manifest_is(move || large(1 << 60), "a document of more than 4194304 bytes");
    manifest_is(move || large(u64::MAX), "its answer is no HTTP");
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 16, " ".repeat(1 << 16));
    let head = "HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n";
    manifest_is(move || Reply::endless(head, chunk.as_str()), "a document of more than 4194304 bytes");
    manifest_is(|| Reply::endless("HTTP/1.1 200 X\r\n", "X-More: y\r\n"), "its answer is no HTTP");
    manifest_is(|| Reply::endless("HTTP/1.1 200 X\r\nX-Long: ", "y".repeat(1 << 16)), "its answer is no HTTP");
    manifest_is(|| Reply::endless("", "no HTTP at all\r\n"), "its answer is no HTTP");
    // An error has bounds too; its text is shown, and stays on its line.
    let error = r#"{"errors":[{"code":"X","message":"one\ntwo\u001b[31m"}]}"#;
    manifest_is(move || Reply::new(400, error), "answers 400: X one two [31m");
    manifest_is(|| Reply { length: Some(1 << 40), ..Reply::new(400, "{") }, "answers 400");
    manifest_is(|| Reply::new(204, ""), "answers 204, which is not expected");
    manifest_is(|| Reply::new(503, "").with("Retry-After", "100000"), "wants to be asked again in 100000 s");
}

#[test]
fn priv_silence_ends() {
    let mut world = World::new();
    world.timing.answer = Duration::from_millis(500);
    refused_in(
        world,
        |_| Reply { hangs: true, length: Some(10), ..Reply::new(200, "{") },
        "a document does not come in time",
    );
    // Half of a layer, and silence; then the same for each range.
    let (hub, content) = image();
    let blob = format!("blobs/{}", sha(&content));
    let mut world = World::new();
    world.timing.stall = Duration::from_millis(500);
    refused_in(
        world,
        move |request| match (hub.what(request) == blob, request.header("range")) {
            (false, _) => hub.answer(request),
            (true, None) => {
                Reply { length: Some(content.len() as u64), hangs: true, ..Reply::new(200, &content[..1000]) }
            }
            (true, Some(_)) => {
                let left = content.len() as u64 - 1000;
                Reply { length: Some(left), hangs: true, ..Reply::new(206, "") }.with("Content-Range", "bytes 1000-")
            }
        },
        "nothing more comes",
    );
}

#[test]
fn priv_manifests_are_what_they_claim() {
    let (hub, _) = image();
    let other = sha(b"other");
    let stated = other.clone();
    manifest_is(
        move || Reply::new(200, r#"{"schemaVersion":2}"#).with("Docker-Content-Digest", stated.clone()),
        "the manifest is not the one that was asked for",
    );
    // By digest.
    let server = Server::start(move |request| match hub.what(request).starts_with("manifests/") {
        true => Reply::new(200, hub.content["manifests/1"].1.clone()).with("Content-Type", MANIFEST),
        false => hub.answer(request),
    });
    let text = World::new().refused(&format!("{}/a@{other}", server.host()));
    assert!(text.contains("the manifest is not the one that was asked for"), "{text}");
    // Through an index.
    let (mut hub, _) = image();
    let mut entry = hub.document("x", MANIFEST, &json!({"schemaVersion": 2}));
    entry["platform"] = json!({"os": "linux", "architecture": architectures().0});
    let path = format!("manifests/{}", entry["digest"].as_str().expect("a digest"));
    hub.document("1", INDEX, &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}));
    let honest = hub.content["manifests/x"].1.clone();
    hub.content.insert(path, (MANIFEST.to_owned(), [honest.as_slice(), b" "].concat()));
    let claimed = hub.clone();
    refused(
        move |request| {
            let mut reply = claimed.answer(request);
            reply.headers.retain(|(name, _)| *name != "Docker-Content-Digest");
            reply
        },
        "is not what it claims",
    );
    document_is(|hub| hub.manifest(&[layer("y", 1)], &config(&[layer("z", 1)], architectures().0)), "but it should be");
}

#[test]
fn priv_manifests_have_one_meaning() {
    document_is(|_| json!({"schemaVersion": 1, "fsLayers": [], "history": []}), "schema 1");
    document_is(|_| json!({"schemaVersion": 2, "layers": [], "manifests": []}), "an index as well");
    document_is(
        |_| json!({"schemaVersion": 2, "mediaType": "application/vnd.cncf.helm.config.v1+json", "layers": []}),
        "no image",
    );
    document_is(|_| json!([1]), "malformed");
    document_is(
        |hub| {
            let mut manifest = hub.manifest(&[], &config(&[], architectures().0));
            manifest["config"]["mediaType"] = "application/vnd.example".into();
            manifest
        },
        "no image of a root file system",
    );
    document_is(
        |hub| {
            let layers = vec![layer("y", 1); 101];
            hub.manifest(&layers, &config(&layers, architectures().0))
        },
        "it has 101 layers",
    );
    for size in [u64::MAX, 1 << 60] {
        document_is(
            move |hub| {
                let layers = [layer("y", 1), layer("z", 1)];
                let mut manifest = hub.manifest(&layers, &config(&layers, architectures().0));
                manifest["layers"][0]["size"] = size.into();
                manifest
            },
            "bytes",
        );
    }
    document_is(
        |hub| {
            let mut manifest = hub.manifest(&[], &config(&[], architectures().0));
            manifest["config"]["size"] = (1_u64 << 40).into();
            manifest
        },
        "its configuration has 1099511627776 bytes",
    );
    document_is(
        |hub| hub.manifest(&[], &config(&[layer("y", 1)], architectures().0)),
        "lists 1 layers, but its manifest 0",
    );
    document_is(|hub| hub.manifest(&[], &config(&[], architectures().1)), "and this machine is");
    document_is(|hub| hub.manifest(&[], &json!("x")), "its configuration is malformed");
    // Indexes without end: each names the next.
    let mut hub = Hub::new("a");
    let mut inner = hub.document("x", INDEX, &json!({"schemaVersion": 2, "manifests": []}));
    for tag in ["y", "y", "y", "y", "1"] {
        inner = hub.document(tag, INDEX, &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [inner]}));
    }
    refused(hub.answers(), "nested more than 3 deep");
    let mut hub = Hub::new("a");
    hub.document("1", INDEX, &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        {"mediaType": MANIFEST, "digest": sha(b""), "size": 0, "platform": {"os": "linux", "architecture": "riscv64"}},
    ]}));
    refused(hub.answers(), "it has linux/riscv64");
}

#[test]
fn priv_blobs_are_what_they_claim_and_no_more() {
    blob_is(|content| Reply::new(200, [content.as_slice(), b"x"].concat()), "announces");
    blob_is(|content| Reply::new(200, &content[1..]), "announces");
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 16, "x".repeat(1 << 16));
    let head = "HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n";
    blob_is(move |_| Reply::endless(head, chunk.as_str()), "sends more than the");
    blob_is(
        |mut content| {
            content[600] ^= 1;
            Reply::new(200, content)
        },
        "is not what it claims: it is sha256:",
    );
    blob_is(|_| Reply::new(404, ""), "answers 404");
    // Another range than the one asked for.
    let (hub, content) = image();
    let blob = format!("blobs/{}", sha(&content));
    refused(
        move |request| match (hub.what(request) == blob, request.header("range")) {
            (false, _) => hub.answer(request),
            (true, None) => Reply { length: Some(content.len() as u64), ..Reply::new(200, &content[..1000]) },
            (true, Some(_)) => Reply::new(206, &content[5000..]).with("Content-Range", "bytes 5000-"),
        },
        "answers with another range",
    );
    // The configuration.
    let (hub, _) = image();
    let layer_path = format!("blobs/{}", sha(&image().1));
    refused(
        move |request| match hub.what(request).starts_with("blobs/") && hub.what(request) != layer_path {
            true => Reply::new(200, "{}"),
            false => hub.answer(request),
        },
        "is not what it claims",
    );
}

#[test]
fn priv_a_registry_leads_nowhere_else() {
    let to = |place: &'static str| move |_: Vec<u8>| Reply::new(302, "").with("Location", place);
    blob_is(to("/v2/a/blobs/again"), "answers 404");
    blob_is(to("https://169.254.169.254/latest/meta-data"), "whose address is link-local or reserved");
    blob_is(to("https://[fe80::1]/"), "whose address is link-local or reserved");
    blob_is(to("https://0.0.0.0/"), "whose address is link-local or reserved");
    blob_is(to("http://93.184.216.34/"), "would be asked without TLS");
    blob_is(to("file:///etc/passwd"), "it is neither https nor http");
    blob_is(to("https://me:secret@127.0.0.1/"), "it has credentials in it");
    blob_is(|_| Reply::new(302, ""), "answers 302 without a place");
    refused(|request| Reply::new(302, "").with("Location", request.target.clone()), "redirects more than 5 times");
    for (realm, why) in [
        ("https://169.254.169.254/token", "whose address is link-local or reserved"),
        ("http://10.0.0.1/token", "would be asked without TLS"),
        ("file:///etc/passwd", "it is neither https nor http"),
    ] {
        let challenge = format!(r#"Bearer realm="{realm}""#);
        refused(move |_| Reply::new(401, "").with("WWW-Authenticate", challenge.clone()), why);
    }
    refused(|_| Reply::new(401, "").with("WWW-Authenticate", "Negotiate"), "in a way that is not known here");
    refused(|_| Reply::new(401, ""), "in a way that is not known here");
    let with_token = |token: fn() -> Reply, why: &str| {
        refused(
            move |request| match request.path() {
                "/token" => token(),
                _ => Reply::new(401, "").with("WWW-Authenticate", r#"Bearer realm="/token""#),
            },
            why,
        );
    };
    with_token(|| Reply::new(200, " ".repeat(1 << 20)), "a document of more than 65536 bytes");
    with_token(|| Reply::new(200, r#"{"token": "a\nb"}"#), "answers without a token");
    with_token(|| Reply::new(200, "{}"), "answers without a token");
    with_token(|| Reply::new(200, "<html>"), "answers without a token");
    with_token(|| Reply::new(302, "").with("Location", "/token"), "redirects more than 5 times");
}
