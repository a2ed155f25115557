//! Routes without boxes: authentication, routing, and the shape of refusals.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::Value;

use super::*;
use crate::boxes::{Boxes, Parts, UidRanges};
use crate::builds::Builds;
use crate::config::Config;
use crate::db::{Db, NewKey, create_account, ensure_first_account};
use crate::events::Events;
use crate::http::AppParts;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::public_urls::Urls;
use crate::runs::Runs;

/// The 84 endpoints that the public clients call, in both spellings where there are two.
const ENDPOINTS: [(&str, &str); 84] = [
    ("POST", "/v2/box"),
    ("GET", "/v2/box"),
    ("DELETE", "/v2/box"),
    ("POST", "/v2/box/from-snapshot"),
    ("DELETE", "/v2/box/snapshots"),
    ("GET", "/v2/box/settings/env"),
    ("PUT", "/v2/box/settings/env"),
    ("PUT", "/v2/box/settings/env/KEY"),
    ("DELETE", "/v2/box/settings/env/KEY"),
    ("GET", "/v2/box/b"),
    ("DELETE", "/v2/box/b"),
    ("GET", "/v2/box/b/status"),
    ("POST", "/v2/box/b/pause"),
    ("POST", "/v2/box/b/resume"),
    ("GET", "/v2/box/b/startup"),
    ("PUT", "/v2/box/b/startup"),
    ("DELETE", "/v2/box/b/startup"),
    ("GET", "/v2/box/b/logs"),
    ("GET", "/v2/box/b/runs"),
    ("POST", "/v2/box/b/runs/r/cancel"),
    ("PUT", "/v2/box/b/config/model"),
    ("PUT", "/v2/box/b/config/custom-runner"),
    ("PUT", "/v2/box/b/config/network-policy"),
    ("POST", "/v2/box/b/config/skills"),
    ("DELETE", "/v2/box/b/config/skills/owner/repo/skill"),
    ("POST", "/v2/box/b/config/labels"),
    ("DELETE", "/v2/box/b/config/labels/a%3Ab"),
    ("PUT", "/v2/box/b/git-config"),
    ("PUT", "/v2/box/b/config/git"),
    ("POST", "/v2/box/b/exec"),
    ("POST", "/v2/box/b/code"),
    ("POST", "/v2/box/b/exec-stream"),
    ("POST", "/v2/box/b/code-stream"),
    ("GET", "/v2/box/b/exec-session"),
    ("POST", "/v2/box/b/run"),
    ("POST", "/v2/box/b/run/stream"),
    ("GET", "/v2/box/b/files/read"),
    ("POST", "/v2/box/b/files/write"),
    ("GET", "/v2/box/b/files/list"),
    ("POST", "/v2/box/b/files/upload"),
    ("GET", "/v2/box/b/files/download"),
    ("GET", "/v2/box/b/files/stat"),
    ("POST", "/v2/box/b/files/mkdir"),
    ("POST", "/v2/box/b/files/rename"),
    ("POST", "/v2/box/b/files/remove"),
    ("POST", "/v2/box/b/git/clone"),
    ("GET", "/v2/box/b/git/diff"),
    ("GET", "/v2/box/b/git/status"),
    ("POST", "/v2/box/b/git/commit"),
    ("POST", "/v2/box/b/git/push"),
    ("POST", "/v2/box/b/git/create-pr"),
    ("POST", "/v2/box/b/git/create-issue"),
    ("POST", "/v2/box/b/git/exec"),
    ("POST", "/v2/box/b/git/checkout"),
    ("POST", "/v2/box/b/snapshots"),
    ("GET", "/v2/box/b/snapshots"),
    ("DELETE", "/v2/box/b/snapshots/s"),
    ("POST", "/v2/box/b/schedules"),
    ("GET", "/v2/box/b/schedules"),
    ("GET", "/v2/box/b/schedules/s"),
    ("PATCH", "/v2/box/b/schedules/s"),
    ("POST", "/v2/box/b/schedules/s/pause"),
    ("POST", "/v2/box/b/schedules/s/resume"),
    ("DELETE", "/v2/box/b/schedules/s"),
    ("POST", "/v2/box/b/preview"),
    ("GET", "/v2/box/b/preview"),
    ("DELETE", "/v2/box/b/preview/80"),
    ("POST", "/v2/box/b/browser/tabs"),
    ("GET", "/v2/box/b/browser/tabs"),
    ("DELETE", "/v2/box/b/browser/tabs/t"),
    ("POST", "/v2/box/b/browser/goto"),
    ("GET", "/v2/box/b/browser/content"),
    ("GET", "/v2/box/b/browser/screenshot"),
    ("POST", "/v2/box/b/browser/extract"),
    ("POST", "/v2/box/b/browser/observe"),
    ("POST", "/v2/box/b/browser/act"),
    ("POST", "/v2/box/b/browser/connect"),
    ("POST", "/v2/box/b/browser/screencast"),
    ("POST", "/v2/box/b/browser/recordings"),
    ("GET", "/v2/box/b/browser/recordings"),
    ("POST", "/v2/box/b/browser/recordings/stop"),
    ("GET", "/v2/box/b/browser/recordings/r"),
    ("GET", "/v2/box/b/browser/recordings/r/download"),
    ("GET", "/v2/box/b/browser/recordings/r/playlist"),
];

struct Server {
    api: Api,
    data_dir: tempfile::TempDir,
}

impl Server {
    fn new() -> Self {
        let data_dir = tempfile::tempdir().expect("a temporary directory");
        let config =
            Config { data_dir: data_dir.path().into(), run_dir: data_dir.path().join("run"), ..Config::default() };
        let connection = Db::connect(data_dir.path()).expect("a database");
        ensure_first_account(&connection, Some("box_good".into())).expect("an account");
        let ranges = UidRanges::open(&data_dir.path().join("uids"), data_dir.path(), Vec::new()).expect("a registry");
        let config = std::sync::Arc::new(config);
        let db = Db::open(data_dir.path()).expect("a database");
        let metrics = std::sync::Arc::new(Metrics::default());
        let events = Events::new(8, Vec::new());
        let boxes = Boxes::new(Parts {
            config: std::sync::Arc::clone(&config),
            db: db.clone(),
            store: std::sync::Arc::new(icebox_rootfs::Store::open(data_dir.path()).expect("a store")),
            tools: icebox_shim::launch::Tools { init: "/nowhere".into(), launch: "/nowhere".into() },
            proc_files: icebox_shim::procfiles::Keeper::without_watch(),
            ranges: std::sync::Arc::new(ranges),
            metrics: std::sync::Arc::clone(&metrics),
            events: events.clone(),
            network: None,
            key: std::sync::Arc::new(
                icebox_net::secret::SealingKey::load_or_create(&data_dir.path().join("key")).expect("a key"),
            ),
        });
        let runs = Runs::new(&config, boxes.clone(), db.clone(), events.clone());
        let lifecycle = Lifecycle::new(boxes.clone(), runs.clone(), db.clone(), events.clone());
        let builds = Builds::new(&config, boxes.clone(), lifecycle.clone(), runs.clone());
        let urls = Urls::new(
            config.public_urls.clone(),
            boxes.clone(),
            lifecycle.clone(),
            db.clone(),
            std::sync::Arc::clone(&metrics),
        );
        let parts = AppParts {
            images: crate::images::Images::new(boxes.clone(), &config),
            lifecycle,
            boxes,
            builds,
            runs,
            urls,
            db,
            config,
            metrics,
            events,
        };
        Self { api: api(App::new(parts)), data_dir }
    }

    async fn ask(&self, method: &str, path: &str, key: Option<&str>, body: &str) -> (StatusCode, Value) {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(key) = key {
            request = request.header("X-Box-Api-Key", key);
        }
        let request = request.body(Body::from(body.to_owned())).expect("a request");
        let response = self.api.answer(request).await;
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.expect("a body");
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }
}

fn text(body: &Value) -> &str {
    body["error"].as_str().unwrap_or_else(|| panic!("{body} is no error"))
}

#[tokio::test]
async fn every_endpoint_of_the_clients_is_routed_and_wants_a_key() {
    let server = Server::new();
    // An unknown key waits for the next read of the accounts, so all endpoints are asked side by side.
    let asked = ENDPOINTS.into_iter().map(async |(method, path)| {
        for key in [None, Some("box_bad"), Some("")] {
            let (status, body) = server.ask(method, path, key, "").await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path} {key:?}: {body}");
            assert!(text(&body).contains("API key"));
        }
    });
    futures::future::join_all(asked).await;
}

#[tokio::test]
async fn an_unknown_box_is_404_on_every_endpoint_of_a_box() {
    let server = Server::new();
    for (method, path) in ENDPOINTS.into_iter().filter(|(_, path)| path.starts_with("/v2/box/b")) {
        let (status, body) = server.ask(method, path, Some("box_good"), "").await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{method} {path}: {body}");
        assert!(text(&body).contains("box 'b' does not exist"), "{method} {path}: {body}");
    }
}

#[tokio::test]
async fn no_endpoint_is_both_here_and_to_come() {
    let (_, description) = documented();
    for endpoint in &NOT_IMPLEMENTED {
        let here = description.paths.paths.get(endpoint.path).is_some_and(|item| match endpoint.method {
            Method::GET => item.get.is_some(),
            Method::POST => item.post.is_some(),
            Method::PUT => item.put.is_some(),
            Method::DELETE => item.delete.is_some(),
            _ => false,
        });
        assert!(!here, "{} {}", endpoint.method, endpoint.path);
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_have_the_shape_of_errors() {
    let server = Server::new();
    for path in ["/", "/nothing", "/v2", "/v2/box/b/nothing", "/v2/box/b/files", "/v2/box/", "//v2//box//", "/v3/box"] {
        let (status, body) = server.ask("GET", path, Some("box_good"), "").await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(text(&body), "there is nothing at this path");
    }
    let (status, body) = server.ask("PATCH", "/v2/box", Some("box_good"), "").await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(text(&body).contains("method"));
}

#[tokio::test]
async fn doubled_slashes_are_collapsed_without_a_redirect() {
    let server = Server::new();
    for path in ["//v2/box", "/v2//box", "///v2////box", "//v2/box?label=x"] {
        let (status, body) = server.ask("GET", path, Some("box_good"), "").await;
        assert_eq!((status, &body), (StatusCode::OK, &serde_json::json!([])), "{path}");
    }
}

#[tokio::test]
async fn hostile_ids_name_no_box_and_reach_nothing() {
    let server = Server::new();
    let long = "x".repeat(300);
    let hostile =
        ["..", "%2e%2e", "%2e%2e%2f%2e%2e%2fetc", "a%00b", "%ff", "%E2%80%AE", "-rf", "a%20b", "a%2Fb", &long];
    for id in hostile {
        for rest in ["", "/status", "/files/list"] {
            let (status, body) = server.ask("GET", &format!("/v2/box/{id}{rest}"), Some("box_good"), "").await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{id}{rest}: {body}");
            text(&body);
        }
    }
    assert!(!server.data_dir.path().join("run").exists());
}

#[tokio::test]
async fn a_key_that_is_added_while_the_daemon_runs_is_known() {
    let server = Server::new();
    let (status, _) = server.ask("GET", "/v2/box", Some("box_second"), "").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let connection = Db::connect(server.data_dir.path()).expect("a second process");
    create_account(&connection, "second", &NewKey("box_second".into())).expect("an account");
    tokio::time::sleep(std::time::Duration::from_millis(250)).await;
    let (status, body) = server.ask("GET", "/v2/box", Some("box_second"), "").await;
    assert_eq!((status, body), (StatusCode::OK, serde_json::json!([])));
}

#[tokio::test]
async fn bad_bodies_are_explained() {
    let server = Server::new();
    let good = Some("box_good");
    for (method, path, body, status, word) in [
        ("POST", "/v2/box", "{", 400, "not valid JSON"),
        ("POST", "/v2/box", "[]", 400, "JSON object"),
        ("POST", "/v2/box", r#"{"size":"huge"}"#, 400, "huge"),
        ("POST", "/v2/box", r#"{"name":7}"#, 400, "name must be a string"),
        ("POST", "/v2/box", r#"{"env_vars":{"PATH":"/x"}}"#, 400, "PATH"),
        ("POST", "/v2/box", r#"{"network_policy":{"mode":"allow-all"}}"#, 400, "deny-all"),
        ("POST", "/v2/box", r#"{"network_policy":{"mode":"custom","allowed_domains":["a b"]}}"#, 400, "a b"),
        ("POST", "/v2/box", r#"{"browser":true}"#, 501, "browser"),
        ("PUT", "/v2/box/settings/env/C%20D", r#"{"value":"x"}"#, 400, "C D"),
        ("PUT", "/v2/box/settings/env", r#"{"env_vars":{"1A":"x"}}"#, 400, "1A"),
        ("PUT", "/v2/box/settings/env/A", "{}", 400, "value is missing"),
        ("DELETE", "/v2/box", "", 400, "ids"),
        ("DELETE", "/v2/box", r#"{"ids":[]}"#, 400, "ids"),
        ("DELETE", "/v2/box", r#"{"ids":["b"]}"#, 404, "none"),
        ("PUT", "/v2/box/settings/env/HOME", r#"{"value":"x"}"#, 400, "HOME"),
        ("PUT", "/v1/account/idle", r#"{"idle_seconds":0}"#, 400, "idle_seconds"),
    ] {
        let (got, answer) = server.ask(method, path, good, body).await;
        assert_eq!(got.as_u16(), status, "{method} {path} {body}: {answer}");
        assert!(text(&answer).contains(word), "{method} {path} {body}: {answer}");
    }
    let large = format!(r#"{{"name":"{}"}}"#, "x".repeat(reply::JSON_BYTES_MAX));
    let (status, body) = server.ask("POST", "/v2/box", good, &large).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    text(&body);
}

#[tokio::test]
async fn account_variables_come_back_masked() {
    let server = Server::new();
    let good = Some("box_good");
    let body = r#"{"env_vars":{"A":"secret-1","B":"secret-2"}}"#;
    assert_eq!(server.ask("PUT", "/v2/box/settings/env", good, body).await.0, StatusCode::OK);
    assert_eq!(server.ask("PUT", "/v2/box/settings/env/C_D", good, r#"{"value":"secret-3"}"#).await.0, StatusCode::OK);
    assert_eq!(server.ask("DELETE", "/v2/box/settings/env/B", good, "").await.0, StatusCode::OK);
    assert_eq!(server.ask("DELETE", "/v2/box/settings/env/B", good, "").await.0, StatusCode::NOT_FOUND);
    let (_, body) = server.ask("GET", "/v2/box/settings/env", good, "").await;
    assert_eq!(body, serde_json::json!({"env_vars": {"A": "********", "C_D": "********"}}));
}

#[tokio::test]
async fn the_system_endpoints_need_no_account() {
    let server = Server::new();
    let (status, body) = server.ask("GET", "/healthz", None, "").await;
    assert_eq!((status, &body["status"]), (StatusCode::OK, &Value::from("ok")));
    // A request without a peer address does not count as loopback.
    assert_eq!(server.ask("GET", "/metrics", None, "").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(server.ask("GET", "/metrics", Some("box_good"), "").await.0, StatusCode::OK);
    let (status, description) = server.ask("GET", "/openapi.json", None, "").await;
    assert_eq!(status, StatusCode::OK);
    for path in ["/v2/box/{id}/exec", "/v2/box/{id}/files/upload", "/v1/usage"] {
        assert!(description["paths"][path].is_object(), "{path}");
    }
    assert!(description["components"]["schemas"]["BoxData"]["properties"]["expires_at"].is_object());
}

/// The table in docs/api.md and the description from the code name the same endpoints of `/v1`.
#[test]
fn the_document_lists_our_endpoints() {
    let document = include_str!("../../../../docs/api.md");
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `")).filter_map(|line| line.split_once('`'));
    let written: std::collections::BTreeSet<String> =
        rows.map(|(request, _)| request.to_owned()).filter(|request| request.contains(" /v1/")).collect();
    let described = serde_json::to_value(openapi()).expect("json");
    let paths = described["paths"].as_object().expect("paths");
    let ours = paths.iter().filter(|(path, _)| path.starts_with("/v1/")).flat_map(|(path, methods)| {
        methods.as_object().expect("methods").keys().map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    assert_eq!(written, ours.collect());
}

#[tokio::test]
async fn a_bill_without_boxes_is_nothing() {
    let server = Server::new();
    let (status, body) = server.ask("GET", "/v1/usage", Some("box_good"), "").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!((&body["account"], &body["boxes"]), (&Value::from("default"), &serde_json::json!([])));
    assert_eq!(body["totals"]["total_dollars"], 0.0);
    assert_eq!(body["prices"]["dollars_per_core_hour"], 0.1);
}
