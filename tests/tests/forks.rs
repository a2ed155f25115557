//! Forks: boxes from one moment of another, the difference between them, and the way back.

use icebox_tests::{Daemon, PATIENCE, TestBox, wait_until};
use serde_json::{Value, json};

fn fork(made: &TestBox, count: usize) -> Vec<TestBox> {
    let answer = made.api.post(&format!("/v1/boxes/{}/fork", made.id), &json!({ "count": count })).ok();
    let boxes = answer["boxes"].as_array().expect("a list");
    let of = |one: &Value| TestBox { api: made.api.clone(), id: one["id"].as_str().expect("an id").to_owned() };
    boxes.iter().map(of).collect()
}

fn diff(made: &TestBox, base: &str) -> Vec<(String, String)> {
    let answer = made.api.get(&format!("/v1/boxes/{}/diff/{base}", made.id)).ok();
    let text = |one: &Value, key: &str| one[key].as_str().expect("a text").to_owned();
    let changes = answer["changes"].as_array().expect("a list").iter();
    changes.map(|one| (text(one, "change"), text(one, "path"))).collect()
}

fn pair(change: &str, path: &str) -> (String, String) {
    (change.to_owned(), path.to_owned())
}

#[test]
fn forks_are_of_one_moment_and_the_winner_takes_the_place_of_its_origin() {
    let daemon = Daemon::start();
    let api = daemon.api();
    let origin = api.create(&json!({ "name": "origin", "env_vars": { "A": "1" }, "labels": ["l"] }));
    origin.out("i=0; (while :; do i=$((i+1)); echo $i > n.new; mv n.new n; done) > /dev/null 2>&1 & until [ -s n ]; do :; done");
    let forks = fork(&origin, 3);
    let numbers: Vec<String> = forks.iter().map(|fork| fork.out("cat n")).collect();
    assert!(numbers.iter().all(|number| number == &numbers[0]), "{numbers:?}");
    for made in &forks {
        assert_eq!(made.out("hostname; echo $A"), format!("{}\n1", made.id));
        assert_eq!(made.data()["labels"], json!(["l"]));
        assert!(made.data().get("name").is_none_or(Value::is_null));
    }
    assert_eq!(origin.status(), "idle", "the origin goes on");
    forks[1].out("echo winner > result; sudo touch /opt/installed");
    let address = |made: &TestBox| api.get(&format!("/v1/boxes/{}/net", made.id)).ok()["address"].clone();
    let before = address(&origin);
    let answer = api.post_empty(&format!("/v1/boxes/{}/promote", forks[1].id)).ok();
    assert_eq!((&answer["id"], &answer["name"]), (&json!(origin.id), &json!("origin")));
    assert_eq!(
        origin.out("cat result; ls /opt; cat n; hostname"),
        format!("winner\ninstalled\n{}\n{}", numbers[0], origin.id)
    );
    assert_eq!(address(&origin), before);
    api.get(&forks[1].path("")).error(404);
    // A box that is no fork, and a fork whose origin is gone.
    api.post_empty(&format!("/v1/boxes/{}/promote", origin.id)).error(409);
    origin.delete();
    api.post_empty(&format!("/v1/boxes/{}/promote", forks[0].id)).error(409);
    for count in [0, 33] {
        api.post(&format!("/v1/boxes/{}/fork", forks[0].id), &json!({ "count": count })).error(400);
    }
    let stranger = daemon.other_account();
    stranger.post(&format!("/v1/boxes/{}/fork", forks[0].id), &json!({})).error(404);
    stranger.post_empty(&format!("/v1/boxes/{}/promote", forks[0].id)).error(404);
}

#[test]
fn a_difference_is_told_as_paths() {
    let daemon = Daemon::start();
    let api = daemon.api();
    let made = api.create_default();
    made.out("mkdir d; echo 1 > kept; echo 1 > changed; echo 1 > d/gone; ln -s a link");
    let taken = made.post("/snapshots", &json!({ "name": "s" })).ok();
    let id = taken["id"].as_str().expect("an id").to_owned();
    wait_until(PATIENCE, "the snapshot", || made.get("/snapshots").ok()["snapshots"][0]["status"] == "ready");
    let twin = fork(&made, 1).remove(0);
    assert_eq!(diff(&made, &id), []);
    made.out("echo 22 > changed; rm d/gone; ln -sfn b link; sudo sh -c 'echo x > /opt/new; chmod 700 /srv'");
    let expected = [
        pair("added", "/opt/new"),
        pair("changed", "/srv"),
        pair("changed", "/workspace/home/changed"),
        pair("removed", "/workspace/home/d/gone"),
        pair("changed", "/workspace/home/link"),
    ];
    assert_eq!(diff(&made, &id), expected);
    assert_eq!(diff(&made, &twin.id), expected);
    assert_eq!(api.list().len(), 2, "a helper box is left");
    api.get(&format!("/v1/boxes/{}/diff/snap_nothing", made.id)).error(404);
    daemon.other_account().get(&format!("/v1/boxes/{}/diff/{id}", made.id)).error(404);
}

#[test]
fn a_kill_during_a_promotion_leaves_one_disk_or_the_other() {
    let mut daemon = Daemon::start();
    let made = daemon.api().create(&json!({ "name": "origin" }));
    made.out("echo old > which; sync");
    for round in 0..6 {
        let api = daemon.api();
        let origin = TestBox { api: api.clone(), id: made.id.clone() };
        origin.out("echo old > which");
        let winner = fork(&origin, 1).remove(0);
        winner.out("echo new > which");
        let init = daemon.init_pid(&origin);
        std::thread::scope(|scope| {
            let request = api.build("POST", &format!("/v1/boxes/{}/promote", winner.id));
            let asked = scope.spawn(move || drop(request.send()));
            if round > 0 {
                // The processes of the origin end right before its disk is replaced.
                wait_until(PATIENCE, "the origin to be stopped", || {
                    !std::path::Path::new(&format!("/proc/{init}")).exists()
                });
                // Each round goes a little further.
                (0..round * 20_000).for_each(|_| std::hint::spin_loop());
            }
            daemon.kill9();
            asked.join().expect("the request");
        });
        daemon.start_again();
        let api = daemon.api();
        let origin = TestBox { api: api.clone(), id: made.id.clone() };
        let which = origin.out("cat which");
        assert!(which == "old" || which == "new", "{which:?}");
        println!("round {round}: {which}");
        for other in api.list().iter().filter(|other| other["id"] != made.id.as_str()) {
            api.delete(&format!("/v2/box/{}", other["id"].as_str().expect("an id"))).ok();
        }
    }
}

#[test]
fn several_tries_stand_side_by_side_and_the_first_success_is_promoted() {
    let daemon = Daemon::start();
    let api = daemon.api();
    let made = api.create(&json!({ "name": "origin" }));
    let script = "hostname > mine; echo done; exit 0";
    let output =
        daemon.icebox(&["--json", "try", "origin", "-n", "3", "--promote-first-success", "--", "sh", "-c", script]);
    let output = { output }.output().expect("icebox");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tries: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let tries = tries.as_array().expect("a list");
    assert_eq!(tries.len(), 3);
    for one in tries {
        assert_eq!((&one["exit_code"], &one["output"]), (&json!(0), &json!("done\n")), "{one}");
        assert!(one["cpu_ns"].as_u64() > Some(0));
        assert_eq!(one["changes"], json!([{ "path": "/workspace/home/mine", "change": "added" }]));
    }
    assert_eq!(tries.iter().filter(|one| one["promoted"] == true).count(), 1);
    assert_ne!(made.out("cat mine"), made.id);
    assert_eq!(api.list().len(), 1, "forks are left");
    // Without a success nothing is promoted.
    let status =
        daemon.icebox(&["try", "origin", "--promote-first-success", "--", "sh", "-c", "rm mine; exit 3"]).status();
    assert_eq!(status.expect("icebox").code(), Some(1));
    assert!(!made.out("cat mine").is_empty());
    assert_eq!(api.list().len(), 1, "forks are left");
}
