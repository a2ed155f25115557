//! The shapes that strict clients require, as literal JSON.

use serde_json::json;

use super::*;
use crate::domain;

fn described() -> BoxData {
    BoxData {
        id: "right-flamingo-14486".into(),
        name: None,
        status: BoxStatus::Idle,
        size: BoxSize::Small,
        runtime: None,
        labels: vec!["a:b".into()],
        enabled_skills: Vec::new(),
        keep_alive: false,
        network_policy: domain::NetworkPolicy::deny_all().into(),
        customer_id: "c".into(),
        created_at: 1_700_000_000,
        updated_at: 1_700_000_001,
        last_activity_at: 1_700_000_002,
        total_cpu_ns: 5,
        total_compute_cost_usd: 0.0,
        agent: None,
        model: None,
        ephemeral: false,
        expires_at: None,
        idle_seconds: 3600,
        kept: None,
    }
}

#[test]
fn a_box_has_whole_second_times_and_leaves_out_what_is_unset() {
    let expected = json!({
        "id": "right-flamingo-14486", "status": "idle", "size": "small", "labels": ["a:b"], "enabled_skills": [],
        "keep_alive": false, "network_policy": {"mode": "deny-all"}, "customer_id": "c",
        "created_at": 1_700_000_000, "updated_at": 1_700_000_001, "last_activity_at": 1_700_000_002,
        "total_cpu_ns": 5, "total_compute_cost_usd": 0.0, "ephemeral": false, "idle_seconds": 3600,
    });
    assert_eq!(serde_json::to_value(described()).expect("json"), expected);
}

#[test]
fn a_box_without_an_agent_reports_none() {
    // Clients let their users start an agent as soon as `agent` or `model` is present.
    let text = serde_json::to_string(&described()).expect("json");
    assert!(!text.contains("agent") && !text.contains("model"), "{text}");
}

#[test]
fn a_run_has_every_required_field_and_no_null() {
    let run = BoxRunData {
        id: "r".into(),
        box_id: "b".into(),
        customer_id: "c".into(),
        kind: RunType::Shell,
        status: RunState::Completed,
        prompt: "sh -c echo hi".into(),
        input_tokens: 0,
        output_tokens: 0,
        cpu_ns: 1,
        cost_usd: 0.0,
        compute_cost_usd: 0.0,
        duration_ms: 2.0,
        created_at: 3,
        completed_at: None,
    };
    let expected = json!({
        "id": "r", "box_id": "b", "customer_id": "c", "type": "shell", "status": "completed", "prompt": "sh -c echo hi",
        "input_tokens": 0, "output_tokens": 0, "cpu_ns": 1, "cost_usd": 0.0, "compute_cost_usd": 0.0, "duration_ms": 2.0,
        "created_at": 3,
    });
    assert_eq!(serde_json::to_value(run).expect("json"), expected);
}

#[test]
fn a_log_entry_is_that_of_the_clients() {
    let entry =
        LogEntry { timestamp: 1_700_000_000, level: LogLevel::Warn, source: LogSource::System, message: "m".into() };
    let expected = json!({"timestamp": 1_700_000_000, "level": "warn", "source": "system", "message": "m"});
    assert_eq!(serde_json::to_value(entry).expect("json"), expected);
}

#[test]
fn files_are_those_of_the_clients() {
    let entry = FileEntry { name: "n".into(), path: "/p/n".into(), size: 1, is_dir: false, mod_time: "t".into() };
    let expected = json!({"name": "n", "path": "/p/n", "size": 1, "is_dir": false, "mod_time": "t"});
    assert_eq!(serde_json::to_value(entry).expect("json"), expected);
    let stat = FileStat { kind: FileKind::Symlink, size: 1, mod_time: "t".into(), inode: 2, version: "v".into() };
    let expected = json!({"type": "symlink", "size": 1, "mod_time": "t", "inode": 2, "version": "v"});
    assert_eq!(serde_json::to_value(stat).expect("json"), expected);
}

#[test]
fn startup_is_never_null() {
    let json = serde_json::to_value(Startup { init_command: Some(String::new()) }).expect("json");
    assert_eq!(json, json!({"init_command": ""}));
}
