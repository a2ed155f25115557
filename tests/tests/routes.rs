//! Every endpoint of the contract: it answers, it is closed without the key, it does not know boxes that are not there.

use icebox_tests::{Api, Daemon};
use serde_json::{Value, json};

/// The 84 endpoints of the contract: method, path (`{b}` is `/v2/box/<id>`), a body that a client could send.
fn routes() -> Vec<(&'static str, &'static str, Value)> {
    let none = Value::Null;
    vec![
        ("POST", "/v2/box", json!({})),
        ("GET", "/v2/box?label=x", none.clone()),
        ("DELETE", "/v2/box", json!({ "ids": [] })),
        ("POST", "/v2/box/from-snapshot", json!({ "snapshot_id": "snap_x" })),
        ("DELETE", "/v2/box/snapshots?all=true", json!({})),
        ("GET", "/v2/box/settings/env", none.clone()),
        ("PUT", "/v2/box/settings/env", json!({ "env_vars": { "A": "b" } })),
        ("PUT", "/v2/box/settings/env/NAME", json!({ "value": "x" })),
        ("DELETE", "/v2/box/settings/env/NAME", none.clone()),
        ("GET", "{b}", none.clone()),
        ("GET", "{b}/status", none.clone()),
        ("POST", "{b}/pause", none.clone()),
        ("POST", "{b}/resume", none.clone()),
        ("GET", "{b}/startup", none.clone()),
        ("PUT", "{b}/startup", json!({ "init_command": "true" })),
        ("DELETE", "{b}/startup", none.clone()),
        ("GET", "{b}/logs?offset=0&limit=0", none.clone()),
        ("GET", "{b}/runs", none.clone()),
        ("POST", "{b}/runs/0190f0c8-0000-7000-8000-000000000000/cancel", none.clone()),
        ("PUT", "{b}/config/model", json!({ "model": "anthropic/claude-sonnet-4-5" })),
        ("PUT", "{b}/config/custom-runner", json!({ "custom_runner": { "command": "agent" } })),
        ("PUT", "{b}/config/network-policy", json!({ "mode": "deny-all" })),
        ("POST", "{b}/config/skills", json!({ "skill_id": "owner/repo/skill" })),
        ("DELETE", "{b}/config/skills/owner/repo/skill", none.clone()),
        ("POST", "{b}/config/labels", json!({ "label": "a:b" })),
        ("DELETE", "{b}/config/labels/a%3Ab", none.clone()),
        ("PUT", "{b}/git-config", json!({ "git_user_name": "A" })),
        ("PUT", "{b}/config/git", json!({ "git_user_name": null, "git_user_email": "a@b.c" })),
        ("POST", "{b}/exec", json!({ "command": ["true"] })),
        ("POST", "{b}/code", json!({ "code": "1", "language": "js" })),
        ("POST", "{b}/exec-stream", json!({ "command": ["true"] })),
        ("POST", "{b}/code-stream", json!({ "code": "1", "language": "python" })),
        ("GET", "{b}/exec-session", none.clone()),
        ("POST", "{b}/run", json!({ "prompt": "x", "webhook": { "url": "http://127.0.0.1:1/" } })),
        ("POST", "{b}/run/stream", json!({ "prompt": "x" })),
        ("GET", "{b}/files/read?path=/etc/hostname", none.clone()),
        ("POST", "{b}/files/write", json!({ "path": "/workspace/home/f", "content": "x" })),
        ("GET", "{b}/files/list", none.clone()),
        ("POST", "{b}/files/upload", none.clone()),
        ("GET", "{b}/files/download?folder=/workspace/home/f", none.clone()),
        ("GET", "{b}/files/stat?path=/workspace/home", none.clone()),
        ("POST", "{b}/files/mkdir", json!({ "path": "/workspace/home/d", "parents": true })),
        ("POST", "{b}/files/rename", json!({ "from": "/workspace/home/f", "to": "/workspace/home/g" })),
        ("POST", "{b}/files/remove", json!({ "path": "/workspace/home/g", "recursive": false })),
        ("POST", "{b}/git/clone", json!({ "repo": "owner/repo", "branch": null })),
        ("GET", "{b}/git/diff", none.clone()),
        ("GET", "{b}/git/status", none.clone()),
        ("POST", "{b}/git/commit", json!({ "message": "m", "author_name": null })),
        ("POST", "{b}/git/push", json!({ "branch": null })),
        ("POST", "{b}/git/create-pr", json!({ "title": "t", "body": null, "base": null })),
        ("POST", "{b}/git/create-issue", json!({ "title": "t", "body": null })),
        ("POST", "{b}/git/exec", json!({ "args": ["status"] })),
        ("POST", "{b}/git/checkout", json!({ "branch": "main" })),
        ("POST", "{b}/snapshots", json!({ "name": "s" })),
        ("GET", "{b}/snapshots", none.clone()),
        ("DELETE", "{b}/snapshots/snap_x", none.clone()),
        (
            "POST",
            "{b}/schedules",
            json!({ "type": "exec", "cron": "* * * * *", "command": ["true"], "folder": "/workspace/home" }),
        ),
        ("GET", "{b}/schedules", none.clone()),
        ("GET", "{b}/schedules/sched_x", none.clone()),
        ("PATCH", "{b}/schedules/sched_x", json!({})),
        ("POST", "{b}/schedules/sched_x/pause", none.clone()),
        ("POST", "{b}/schedules/sched_x/resume", none.clone()),
        ("DELETE", "{b}/schedules/sched_x", none.clone()),
        ("POST", "{b}/preview", json!({ "port": 3000 })),
        ("GET", "{b}/preview", none.clone()),
        ("DELETE", "{b}/preview/3000", none.clone()),
        ("POST", "{b}/browser/tabs", json!({ "url": "about:blank" })),
        ("GET", "{b}/browser/tabs", none.clone()),
        ("DELETE", "{b}/browser/tabs/t", none.clone()),
        ("POST", "{b}/browser/goto", json!({ "url": "about:blank", "tab": "t" })),
        ("GET", "{b}/browser/content?tab=t", none.clone()),
        ("GET", "{b}/browser/screenshot?encoding=base64&tab=t", none.clone()),
        ("POST", "{b}/browser/extract", json!({ "instruction": "i", "schema": {}, "tab": "t" })),
        ("POST", "{b}/browser/observe", json!({ "instruction": "i", "tab": "t" })),
        ("POST", "{b}/browser/act", json!({ "instruction": "i", "tab": "t" })),
        ("POST", "{b}/browser/connect", none.clone()),
        ("POST", "{b}/browser/screencast", json!({ "tab": "t" })),
        ("POST", "{b}/browser/recordings", json!({})),
        ("GET", "{b}/browser/recordings?limit=100", none.clone()),
        ("POST", "{b}/browser/recordings/stop", none.clone()),
        ("GET", "{b}/browser/recordings/rec_x", none.clone()),
        ("GET", "{b}/browser/recordings/rec_x/download", none.clone()),
        ("GET", "{b}/browser/recordings/rec_x/playlist", none.clone()),
        ("DELETE", "{b}", none),
    ]
}

fn with_id(path: &str, id: &str) -> String {
    path.replace("{b}", &format!("/v2/box/{id}"))
}

fn call(api: &Api, method: &str, path: &str, body: &Value) -> icebox_tests::Reply {
    api.call(method, path, (!body.is_null()).then_some(body))
}

/// The answer to a path that no route has; the text tells it from an unknown thing behind a known route.
fn no_such_route(api: &Api) -> String {
    api.get("/v2/box/some-box-1/no/such/route").error(404)
}

#[test]
fn every_route_of_the_contract_answers() {
    let daemon = Daemon::start();
    let api = daemon.api();
    let made = api.create_default();
    let unknown = no_such_route(&api);
    let all = routes();
    assert_eq!(all.len(), 84);
    for (method, path, body) in all {
        let reply = call(&api, method, &with_id(path, &made.id), &body);
        let name = format!("{method} {path}: {} {}", reply.status, reply.text());
        println!("{name}");
        assert!(reply.status != 405, "{name}");
        if (200..300).contains(&reply.status) {
            let raw = path.contains("/download") || path.contains("-stream");
            assert!(raw || reply.body.is_empty() || serde_json::from_slice::<Value>(&reply.body).is_ok(), "{name}");
        } else {
            let text = reply.error_text();
            assert!(text != unknown && reply.status != 500, "{name}");
            assert!(reply.content_type.starts_with("application/json"), "{name}: {}", reply.content_type);
        }
    }
}

#[test]
fn without_the_key_every_route_is_closed() {
    let daemon = Daemon::start();
    let api = daemon.api();
    let made = api.create_default();
    for key in [None, Some(""), Some("box_wrong"), Some("Bearer x")] {
        let stranger = api.with_key(key);
        // An unknown key waits for the next read of the accounts, so all routes are asked side by side.
        std::thread::scope(|scope| {
            for (method, path, body) in routes() {
                let (stranger, made) = (&stranger, &made);
                scope.spawn(move || {
                    let reply = call(stranger, method, &with_id(path, &made.id), &body);
                    assert_eq!(reply.status, 401, "{key:?} {method} {path}: {}", reply.text());
                    reply.error_text();
                });
            }
        });
        for path in ["/v1/usage", "/metrics/../v1/usage"] {
            assert!([401, 404].contains(&stranger.get(path).status), "{path}");
        }
        stranger.get(&format!("/v1/boxes/{}/usage", made.id)).error(401);
    }
    assert_eq!(api.with_key(None).get("/healthz").status, 200);
    assert_eq!(api.list().len(), 1, "a stranger made or deleted a box");
}

#[test]
fn unknown_boxes_are_404_on_every_route_that_names_one() {
    let daemon = Daemon::start();
    let api = daemon.api();
    for (method, path, body) in routes().into_iter().filter(|r| r.1.starts_with("{b}")) {
        let reply = call(&api, method, &with_id(path, "no-such-box-1"), &body);
        // What is not there yet may say so (501) before it looks for the box; a body that is no form may be 400.
        assert!([404, 501, 400, 415].contains(&reply.status), "{method} {path}: {} {}", reply.status, reply.text());
        reply.error_text();
    }
}
