//! Pulls from registries that mean well, on networks that do not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use icebox_registry::Event;
use serde_json::json;

use crate::World;
use crate::hub::{DOCKER_LIST, DOCKER_MANIFEST, Hub, INDEX, architectures, config, layer, sha};
use crate::server::{Reply, Server};

#[test]
fn priv_the_image_of_this_platform_comes_and_what_is_here_does_not_come_again() {
    let (here, other) = architectures();
    let (base, first, second) = (layer("base", 300_000), layer("first", 10), layer("second", 10));
    let mut hub = Hub::new("team/app");
    let mut docker = hub.manifest(&[base.clone(), first.clone()], &config(&[base.clone(), first.clone()], here));
    docker["mediaType"] = DOCKER_MANIFEST.into();
    let mut ours = hub.document("x", DOCKER_MANIFEST, &docker);
    ours["platform"] = json!({"os": "linux", "architecture": here});
    let foreign = layer("foreign", 10);
    let foreign = hub.manifest(std::slice::from_ref(&foreign), &config(std::slice::from_ref(&foreign), other));
    let mut foreign = hub.document("y", DOCKER_MANIFEST, &foreign);
    foreign["platform"] = json!({"os": "linux", "architecture": other});
    hub.document(
        "1",
        DOCKER_LIST,
        &json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [foreign, ours]}),
    );
    // A layer twice, and an index of OCI without a type of its own.
    let mut two = hub.image("z", &[base.clone(), second.clone(), base.clone()]);
    two["platform"] = json!({"os": "linux", "architecture": here});
    hub.document("2", INDEX, &json!({"schemaVersion": 2, "manifests": [two]}));
    let server = Server::start(hub.answers());

    let world = World::new();
    let name = format!("{}/team/app:1", server.host());
    let image = world.pulled(&name);
    assert_eq!(image.diff_ids, [sha(&base), sha(&first)]);
    assert_eq!(image.names, std::slice::from_ref(&name));
    assert_eq!(image.env().expect("variables")[1], ("FROM".to_owned(), "registry".to_owned()));
    assert_eq!(world.images.find(&name).expect("found").id, image.id);
    let blob = image.blobs[0].clone().expect("facts");
    assert_eq!(blob.repository, Some(format!("{}/team/app", server.host())));
    let root = world.images.layer_dirs(&image).expect("layers");
    assert_eq!(std::fs::metadata(root[1].join("base")).expect("a file").len(), 300_000);
    let moved: Vec<u64> = (world.events.lock().expect("no panic").iter())
        .filter_map(|event| match event {
            Event::Transfer(progress) if progress.layer == 1 => Some(progress.done),
            _ => None,
        })
        .collect();
    assert_eq!((moved.first(), moved.last()), (Some(&0), Some(&(base.len() as u64))), "{moved:?}");

    let again = world.pulled(&name);
    assert_eq!(again.id, image.id);
    let second = world.pulled(&format!("{}/team/app:2", server.host()));
    assert_eq!(second.diff_ids.len(), 3);
    for (bytes, times) in [(&base, 1), (&first, 1), (&layer("second", 10), 1), (&layer("foreign", 10), 0)] {
        assert_eq!(server.count("GET", &sha(bytes)), times);
    }
    // By its digest it is the same.
    let digest = server
        .requests()
        .iter()
        .find_map(|request| request.path().rsplit_once("manifests/sha256:").map(|at| at.1.to_owned()));
    let pinned = world.pulled(&format!("{}/team/app@sha256:{}", server.host(), digest.expect("asked by digest")));
    assert_eq!(pinned.id, image.id);
}

#[test]
fn priv_a_broken_transfer_goes_on_where_it_broke() {
    let content = layer("large", 3_000_000);
    let mut hub = Hub::new("a");
    hub.image("1", std::slice::from_ref(&content));
    for ignores_ranges in [false, true] {
        let (hub, broken, blob) = (hub.clone(), AtomicUsize::new(0), format!("blobs/{}", sha(&content)));
        let length = content.len() as u64;
        let server = Server::start(move |request| {
            let mut reply = hub.answer(request);
            if hub.what(request) != blob {
                return reply;
            }
            let whole = (request.header("range").is_none() || ignores_ranges).then(|| hub.content[&blob].1.clone());
            if let Some(whole) = whole {
                reply = Reply::new(200, whole);
            }
            let number = broken.fetch_add(1, Ordering::SeqCst);
            if number < 3 {
                let announced = reply.body.len() as u64;
                reply.body.truncate(700_000 * if ignores_ranges { number + 1 } else { 1 });
                reply.length = Some(announced);
            }
            reply
        });
        let world = World::new();
        world.pulled(&format!("{}/a:1", server.host()));
        let ranges: Vec<Option<String>> = server
            .requests()
            .iter()
            .filter(|request| request.path().ends_with(&sha(&content)))
            .map(|request| request.header("range").map(str::to_owned))
            .collect();
        assert_eq!(ranges.len(), 4, "{ranges:?}");
        assert_eq!(ranges[0], None);
        // What is here is not asked for again, and each attempt has brought something.
        let from = |range: &Option<String>| -> u64 {
            range
                .as_deref()
                .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
                .expect("a range")
        };
        let starts: Vec<u64> = ranges[1..].iter().map(from).collect();
        assert!(starts[0] > 0 && starts.is_sorted() && starts[2] > starts[0] && starts[2] <= length, "{starts:?}");
    }
}

#[test]
fn priv_a_registry_that_is_busy_is_asked_again() {
    let mut hub = Hub::new("a");
    hub.image("1", &[layer("x", 10)]);
    let number = AtomicUsize::new(0);
    let server = Server::start(move |request| match number.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(429, "").with("Retry-After", "0"),
        1 => Reply::new(503, ""),
        // The connection ends within the document.
        2 => Reply { length: Some(1000), ..Reply::new(200, "{") },
        _ => hub.answer(request),
    });
    World::new().pulled(&format!("{}/a:1", server.host()));
    assert_eq!(server.count("GET", "manifests/1"), 4);
}

#[test]
fn priv_mirrors_are_asked_in_turn_and_replace_each_other() {
    let content = layer("x", 100_000);
    let mut hub = Hub::new("team/app");
    hub.image("1", std::slice::from_ref(&content));
    let origin = Server::start(hub.clone().answers());
    let empty = Server::start(Hub::new("nothing").answers());
    // This one has the manifest, and something else in place of the layer.
    let mut spoilt = hub.clone();
    spoilt.repository = "cache/team/app".to_owned();
    spoilt.content.get_mut(&format!("blobs/{}", sha(&content))).expect("the layer").1[600] ^= 1;
    let spoilt = Server::start(spoilt.answers());
    let refusing = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
        listener.local_addr().expect("an address").to_string()
    };
    let places = [refusing, empty.host(), format!("{}/cache", spoilt.host())];
    let world = World::new().mirrors(&origin.host(), &places);
    let name = format!("{}/team/app:1", origin.host());
    let image = world.pulled(&name);
    assert_eq!((image.diff_ids, image.names), (vec![sha(&content)], vec![name]));
    assert_eq!(empty.count("GET", "manifests/1"), 1);
    assert_eq!((spoilt.count("GET", "manifests/1"), origin.count("GET", "manifests/1")), (1, 0));
    assert_eq!((spoilt.count("GET", &sha(&content)), origin.count("GET", &sha(&content))), (1, 1));

    // No place has it: the registry's own word is told.
    let world = World::new().mirrors(&origin.host(), &[empty.host()]);
    let text = world.refused(&format!("{}/team/app:none", origin.host()));
    assert!(text.contains(&format!("{} answers 404: NAME_UNKNOWN it is not here", origin.host())), "{text}");
}

#[test]
fn priv_layers_come_side_by_side_but_not_all_at_once() {
    let layers: Vec<Vec<u8>> = (0..8).map(|number| layer(&format!("file-{number}"), 1000)).collect();
    let mut hub = Hub::new("a");
    hub.image("1", &layers);
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, seen) = (Arc::clone(&now), Arc::clone(&most));
    let gate = std::sync::Barrier::new(3);
    let blobs = layers.iter().map(|layer| format!("blobs/{}", sha(layer))).collect::<Vec<_>>();
    let answered = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        if blobs.iter().any(|blob| blob == hub.what(request)) {
            seen.fetch_max(counted.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            // The first three are answered together: they are asked for before one of them has come.
            if answered.fetch_add(1, Ordering::SeqCst) < 3 {
                gate.wait();
            }
            counted.fetch_sub(1, Ordering::SeqCst);
        }
        hub.answer(request)
    });
    World::new().pulled(&format!("{}/a:1", server.host()));
    assert_eq!(most.load(Ordering::SeqCst), 3);
}
