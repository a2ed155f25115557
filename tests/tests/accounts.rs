//! Two accounts on one server: neither finds what belongs to the other, by any route.

use icebox_tests::daemon::OTHER_KEY;
use icebox_tests::{Api, Daemon};
use serde_json::json;

/// Adds a second account while the daemon is down.
fn add_account(daemon: &mut Daemon) -> Api {
    daemon.stop();
    daemon.other_account();
    daemon.start_again();
    daemon.api().with_key(Some(OTHER_KEY))
}

#[test]
fn boxes_of_another_account_do_not_exist() {
    let mut daemon = Daemon::start();
    let other = add_account(&mut daemon);
    let mine = daemon.api().create(&json!({ "name": "shared-name", "labels": ["l"] }));
    mine.write("secret.txt", "of the first account");
    let id = mine.id.as_str();
    for path in [
        "",
        "/status",
        "/logs",
        "/runs",
        "/startup",
        "/files/list",
        "/files/read?path=/workspace/home/secret.txt",
        "/files/stat?path=/",
    ] {
        let reply = other.get(&format!("/v2/box/{id}{path}"));
        reply.error(404);
        // The same answer as for a box that never was: its existence is not told.
        let absent = other.get(&format!("/v2/box/never-was-1{path}")).error(404);
        assert_eq!(reply.error_text().replace(id, "X"), absent.replace("never-was-1", "X"), "{path}");
    }
    other.get("/v2/box/shared-name").error(404);
    for tail in ["/pause", "/resume"] {
        other.post_empty(&mine.path(tail)).error(404);
    }
    other.post(&mine.path("/exec"), &json!({ "command": ["true"] })).error(404);
    other.post(&mine.path("/exec-stream"), &json!({ "command": ["true"] })).error(404);
    other.post(&mine.path("/code"), &json!({ "code": "1", "language": "js" })).error(404);
    other.post(&mine.path("/files/write"), &json!({ "path": "/workspace/home/x", "content": "x" })).error(404);
    other
        .post(&mine.path("/files/remove"), &json!({ "path": "/workspace/home/secret.txt", "recursive": false }))
        .error(404);
    other.post(&mine.path("/config/labels"), &json!({ "label": "mine" })).error(404);
    other.delete(&mine.path("")).error(404);
    let run = mine.runs().first().and_then(|r| r["id"].as_str().map(str::to_owned)).unwrap_or_else(|| "x".to_owned());
    assert_eq!(other.post_empty(&mine.path(&format!("/runs/{run}/cancel"))).status, 404);
    let bulk = other.call("DELETE", "/v2/box", Some(&json!({ "ids": [id] })));
    assert!(bulk.status < 500, "{}", bulk.text());
    for tail in ["usage", "why", "top"] {
        other.get(&format!("/v1/boxes/{id}/{tail}")).error(404);
    }
    other.call("PUT", &format!("/v1/boxes/{id}/idle"), Some(&json!({ "idle_seconds": 1 }))).error(404);
    assert!(other.list().is_empty());
    assert_eq!(other.get("/v1/usage").ok()["boxes"].as_array().map(Vec::len), Some(0));
    assert_eq!(mine.read("/workspace/home/secret.txt"), "of the first account");
    assert_eq!(mine.data()["labels"], json!(["l"]));
    mine.delete();
}

#[test]
fn names_settings_and_bills_are_per_account() {
    let mut daemon = Daemon::start();
    let other = add_account(&mut daemon);
    let mine = daemon.api().create(&json!({ "name": "same" }));
    let theirs = other.create(&json!({ "name": "same" }));
    assert_ne!(mine.id, theirs.id);
    assert_eq!(daemon.api().get("/v2/box/same").ok()["id"], mine.id.as_str());
    assert_eq!(other.get("/v2/box/same").ok()["id"], theirs.id.as_str());
    daemon.api().call("PUT", "/v2/box/settings/env/TOKEN", Some(&json!({ "value": "secret-of-one" }))).ok();
    assert_eq!(other.get("/v2/box/settings/env").ok()["env_vars"], json!({}));
    let masked = daemon.api().get("/v2/box/settings/env").ok();
    assert!(masked["env_vars"]["TOKEN"].is_string() && !masked.to_string().contains("secret-of-one"), "{masked}");
    assert_eq!(daemon.api().create_default().out("echo $TOKEN"), "secret-of-one");
    assert_eq!(other.create_default().out("echo \"<$TOKEN>\""), "<>");
    for account in [&daemon.api(), &other] {
        let usage = account.get("/v1/usage").ok();
        let ids: Vec<&str> =
            usage["boxes"].as_array().expect("boxes").iter().filter_map(|b| b["id"].as_str()).collect();
        assert_eq!(ids.len(), 2, "{usage}");
    }
    for made in other.list() {
        other.delete(&format!("/v2/box/{}", made["id"].as_str().expect("id"))).ok();
    }
}
