//! Ready boxes: one that a creation takes is like any new one, and none is left, lost or counted.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use icebox_tests::net::World;
use icebox_tests::{Api, Daemon, PATIENCE, TestBox, machine, pool, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const SITE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const TWO: &str = "[[ready]]\ncount = 2\n";

/// A number in the daemon's metrics.
fn metric(api: &Api, name: &str) -> u64 {
    let text = api.get("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in\n{text}"));
    line.trim().parse().expect("a number")
}

fn taken(api: &Api) -> u64 {
    metric(api, "icebox_ready_boxes_taken_total")
}

fn wait_ready(api: &Api, count: u64) {
    wait_until(PATIENCE, "boxes to be ready", || {
        metric(api, "icebox_ready_boxes{runtime=\"base\",size=\"small\"}") == count
    });
}

/// The ids of all boxes that have a cgroup.
fn with_cgroup(daemon: &Daemon) -> BTreeSet<String> {
    let root = daemon.cgroups().unified.join(daemon.cgroup_root());
    let Ok(entries) = std::fs::read_dir(root) else { return BTreeSet::new() };
    let dirs = entries.flatten().filter(|entry| entry.path().is_dir());
    dirs.map(|entry| entry.file_name().into_string().expect("UTF-8")).collect()
}

fn ids(api: &Api) -> BTreeSet<String> {
    api.list().iter().map(|data| data["id"].as_str().expect("an id").to_owned()).collect()
}

#[test]
fn a_taken_box_is_like_a_new_one_and_an_unclaimed_one_is_nobodys() {
    let world = World::new();
    let daemon = world.daemon_with("boxes_per_account_max = 2\n", TWO);
    let api = daemon.api();
    wait_ready(&api, 2);
    // Not listed, not billed, not in the events' counts; frozen, and using nothing.
    let held = with_cgroup(&daemon);
    assert_eq!(held.len(), 2);
    assert!(ids(&api).is_empty());
    assert_eq!(api.get("/v1/usage").ok()["boxes"], json!([]));
    for id in &held {
        let group = format!("{}/{id}", daemon.cgroup_root());
        assert_eq!(daemon.cgroups().event(&group, "frozen"), Some(1), "{id}");
        api.get(&format!("/v2/box/{id}")).error(404);
        api.post(&format!("/v2/box/{id}/exec"), &json!({ "command": ["true"] })).error(404);
    }

    // The first is closed, the second open: what was made in advance knew neither.
    let options = json!({ "name": "first", "labels": ["a:b"], "env_vars": { "X": "y" },
        "network_policy": { "mode": "deny-all" }, "git_user_name": "A", "git_user_email": "a@b.c" });
    let first = api.create(&options);
    assert!(held.contains(&first.id), "{} is not of {held:?}", first.id);
    let second = api.create_default();
    assert!(held.contains(&second.id), "{} is not of {held:?}", second.id);
    assert_eq!((ids(&api), taken(&api)), (held.clone(), 2));
    assert_eq!(first.data()["network_policy"], json!({ "mode": "deny-all" }));
    assert_eq!(first.out("echo $X; git config user.name"), "y\nA");
    let reached = |made: &TestBox| made.sh(&format!("curl -s -m 10 -o /dev/null http://{SITE}/")).code == 0;
    assert!(!reached(&first) && reached(&second));
    // Names, addresses and counters are its own.
    let facts = "hostname; cat /etc/machine-id | wc -c; hostname -I; grep nameserver /etc/resolv.conf; id -u; pwd";
    let (one, two) = (first.out(facts), second.out(facts));
    let (one, two): (Vec<&str>, Vec<&str>) = (one.lines().collect(), two.lines().collect());
    assert_eq!((one[0], two[0]), (first.id.as_str(), second.id.as_str()));
    assert_ne!((one[2], one[3]), (two[2], two[3]));
    assert_eq!((one[1], one[4], one[5]), (two[1], two[4], two[5]));
    assert!(first.billed_usec() > 0);
    let log = first.get("/logs").ok().to_string();
    assert!(log.contains("created") && !log.contains("woken") && !log.contains("paused"), "{log}");
    // The account is full; what was taken in vain is given back.
    wait_ready(&api, 2);
    api.post("/v2/box", &json!({})).error(429);
    wait_ready(&api, 2);
    // A box that needs something else is made as ever.
    second.delete();
    let before = taken(&api);
    let medium = api.create(&json!({ "size": "medium" }));
    assert_eq!((medium.out("echo made"), taken(&api)), ("made".to_owned(), before));
    medium.delete();
    api.post("/v1/volumes", &json!({ "name": "data", "size_gib": 1 })).ok();
    let with_volume = api.create(&json!({ "volumes": [{ "name": "data", "path": "/data" }] }));
    assert_eq!(
        (with_volume.out("stat -f -c %T /data; stat -c %u /data"), taken(&api)),
        ("ext2/ext3\n1000".to_owned(), before)
    );
    assert!(with_volume.out("cat /proc/self/mountinfo").contains(" /data "), "the volume is not mounted");
    with_volume.delete();

    // It sleeps, wakes and starts again as any box.
    first.out("echo kept > file");
    first.pause();
    assert_eq!(first.out("cat file"), "kept");
    api.post_empty(&format!("/v1/boxes/{}/restart", first.id)).ok();
    assert_eq!(first.out("cat file; hostname"), format!("kept\n{}", first.id));
    first.delete();
}

#[test]
fn a_box_of_a_tenant_never_comes_back_and_a_dead_one_is_replaced() {
    let mut daemon = Daemon::start_with(TWO);
    let api = daemon.api();
    let mut seen = BTreeSet::new();
    for _ in 0..4 {
        wait_ready(&api, 2);
        let made = api.create(&json!({}));
        assert!(seen.insert(made.id.clone()), "a box was given twice");
        assert_eq!(made.sh("ls -A /workspace/home/secret").code, 2, "a file of an earlier box");
        made.out("echo mine > secret");
        made.delete();
    }
    wait_ready(&api, 2);
    let held = with_cgroup(&daemon);
    for id in &held {
        let pid = machine::init_pid(daemon.cgroups(), &format!("{}/{id}", daemon.cgroup_root()));
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill an init");
    }
    wait_until(PATIENCE, "the dead to be replaced", || {
        let now = with_cgroup(&daemon);
        now.len() == 2 && now.is_disjoint(&held)
    });
    wait_ready(&api, 2);
    let made = api.create(&json!({}));
    assert_eq!(made.out("echo works"), "works");
    made.delete();
    // A stop leaves none.
    daemon.stop();
    assert!(with_cgroup(&daemon).is_empty());
    let opened = pool::Opened::of(&daemon.data_dir());
    assert_eq!(std::fs::read_dir(opened.volumes()).expect("the volumes").count(), 0);
    let database = rusqlite::Connection::open(daemon.data_dir().join("icebox.db")).expect("the database");
    let rows = |table: &str| -> i64 {
        database.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect("a count")
    };
    // Ranges of tenants rest, those of ready boxes do not.
    assert_eq!((rows("reservations"), rows("uid_rest")), (0, 5));
}

#[test]
fn a_kill_leaves_boxes_that_are_whole_or_none() {
    let mut daemon = Daemon::start_with("[[ready]]\ncount = 4\n");
    let mut promised = BTreeSet::new();
    for round in 0..4_i64 {
        let api = daemon.api();
        wait_ready(&api, 4);
        let mut taken_by = Vec::new();
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let request = api.build("POST", "/v2/box").header("content-type", "application/json");
                        let reply = api.try_send("create", request.body("{}")).ok()?;
                        let data: Value = serde_json::from_slice(&reply.body).ok()?;
                        data["id"].as_str().map(str::to_owned)
                    })
                })
                .collect();
            // At another record each time: none, some, or all are written.
            let database = rusqlite::Connection::open(daemon.data_dir().join("icebox.db")).expect("the database");
            let before = promised.len() as i64;
            let count = || -> i64 {
                let sql = "SELECT count(*) FROM boxes WHERE state = 'ready'";
                database.query_row(sql, [], |row| row.get(0)).expect("a count")
            };
            wait_until(PATIENCE, "records", || count() >= before + round.min(3));
            daemon.kill9();
            taken_by.extend(clients.into_iter().filter_map(|client| client.join().expect("a client")));
        });
        daemon.start_again();
        let api = daemon.api();
        let listed = ids(&api);
        for id in &taken_by {
            assert!(listed.contains(id), "{id} was answered and is gone");
        }
        assert!(promised.is_subset(&listed), "a box is gone");
        for id in &listed {
            assert_eq!(TestBox { api: api.clone(), id: id.clone() }.out("hostname"), *id);
        }
        wait_ready(&api, 4);
        wait_until(PATIENCE, "the remains to be gone", || {
            let found = with_cgroup(&daemon);
            listed.is_subset(&found) && found.len() == listed.len() + 4
        });
        promised = listed;
    }
}
