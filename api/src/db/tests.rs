//! Records and the ledger on a real file.

use super::*;
use crate::domain::{BoxRecord, BoxSettings, BoxSize, BoxState, Incarnation, Reservation, RunState};
use crate::events::{Event, Fact, Sink};
use crate::ledger::{Generation, Sample, fold};

/// An entry with this text.
fn system(box_id: &str, text: &str) -> LogRow {
    let warning = Fact::Warning { text: text.to_owned() };
    LogRow::of(&Event::now(box_id, "a", warning)).remove(0)
}

struct Fixture {
    db: Db,
    account: String,
    dir: tempfile::TempDir,
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let connection = Db::connect(dir.path()).expect("a database");
    ensure_first_account(&connection, None).expect("an account");
    let db = Db::open(dir.path()).expect("a database");
    let account = db.account_id("default").await.expect("a look-up").expect("an account");
    Fixture { db, account, dir }
}

fn record(id: &str, account: &str, name: Option<&str>) -> BoxRecord {
    BoxRecord {
        id: id.into(),
        account_id: account.into(),
        name: name.map(str::to_owned),
        state: BoxState::Ready,
        settings: BoxSettings { size: BoxSize::Medium, labels: vec!["l".into()], ..BoxSettings::default() },
        image: Some("bookworm-1".into()),
        uid_base: 524_288,
        incarnation: Some(Incarnation { pid: 7, start_time_ticks: 8, boot_id: "boot".into(), cgroup_inode: 9 }),
        created_ms: 1,
        updated_ms: 2,
        address: None,
        expires_ms: Some(3),
    }
}

fn sample(id: &str, sequence: u64, cpu_usec: u64, wall_ms: i64, storage_bytes: Option<u64>) -> StoredSample {
    let generation = Generation { boot_id: "boot".into(), cgroup_inode: 9 };
    let boottime_ms = u64::try_from(wall_ms).unwrap_or(0);
    let sample = Sample { generation, sequence, wall_ms, boottime_ms, cpu_usec, storage_bytes };
    StoredSample { box_id: id.into(), sample, reason: "test" }
}

fn run(id: &str, number: u64, state: RunState) -> RunRow {
    RunRow {
        box_id: id.into(),
        number,
        id: format!("run-{number}"),
        state,
        prompt: "true".into(),
        started_ms: 1,
        ended_ms: None,
        exit_code: None,
        cpu_ns: 0,
        memory_peak_bytes: None,
        oom_kills: 0,
        output: None,
        error_message: None,
    }
}

#[tokio::test]
async fn a_box_record_comes_back_as_it_was() {
    let Fixture { db, account, dir } = fixture().await;
    let made = record("b", &account, Some("name"));
    db.insert_box(&made, Vec::new(), sample("b", 0, 5, 0, Some(1)), vec![system("b", "created")])
        .await
        .expect("inserted");
    db.close().await;
    let again = Db::open(dir.path()).expect("a database");
    let boxes = again.boxes().await.expect("read");
    assert_eq!(boxes.len(), 1);
    assert_eq!(boxes[0].0, made);
    assert_eq!(again.logs("b", 0, None).await.expect("logs")[0].message, "created");
    assert_eq!(again.samples_of("b").await.expect("samples"), [sample("b", 0, 5, 0, Some(1)).sample]);
}

#[tokio::test]
async fn a_damaged_record_is_told_and_the_others_are_read() {
    let Fixture { db, account, .. } = fixture().await;
    for id in ["good", "bad"] {
        db.insert_box(&record(id, &account, None), Vec::new(), sample(id, 0, 0, 0, None), Vec::new())
            .await
            .expect("inserted");
    }
    db.write("damage", |c| c.execute("UPDATE boxes SET settings = '{' WHERE id = 'bad'", [])).await.expect("damaged");
    let mut damaged: Vec<(String, bool)> =
        db.boxes().await.expect("read").into_iter().map(|(record, damage)| (record.id, damage.is_some())).collect();
    damaged.sort();
    assert_eq!(damaged, [("bad".to_owned(), true), ("good".to_owned(), false)]);
}

#[tokio::test]
async fn names_are_unique_among_boxes_that_exist() {
    let Fixture { db, account, .. } = fixture().await;
    let insert = |id: &'static str| {
        let (db, record) = (db.clone(), record(id, &account, Some("n")));
        async move { db.insert_box(&record, Vec::new(), sample(id, 0, 0, 0, None), Vec::new()).await }
    };
    insert("one").await.expect("the first");
    assert!(insert("two").await.is_err());
    db.begin_delete("one", Vec::new()).await.expect("deleting");
    insert("two").await.expect("the name is free");
}

#[tokio::test]
async fn a_deleted_box_stays_on_the_bill_only() {
    let Fixture { db, account, .. } = fixture().await;
    db.insert_box(&record("b", &account, None), Vec::new(), sample("b", 0, 0, 0, None), Vec::new())
        .await
        .expect("inserted");
    db.run_started(run("b", 1, RunState::Running));
    db.begin_delete("b", vec![sample("b", 1, 77, 10, None)]).await.expect("deleting");
    assert!(db.boxes().await.expect("read").iter().all(|(record, _)| record.state == BoxState::Deleting));
    db.finish_delete("b", 524_288).await.expect("deleted");
    assert!(db.boxes().await.expect("read").is_empty());
    assert!(db.runs_of("b", 10).await.expect("runs").is_empty());
    let ledger = db.samples_of_deleted(&account).await.expect("ledger");
    assert_eq!(fold(&ledger["b"], None).cpu_usec, 77);
    assert_eq!(db.uid_bases_at_rest().await.expect("rest").len(), 1);
}

#[tokio::test]
async fn a_sample_counts_once_however_often_it_is_delivered() {
    let Fixture { db, account, .. } = fixture().await;
    db.insert_box(&record("b", &account, None), Vec::new(), sample("b", 0, 1, 0, None), Vec::new())
        .await
        .expect("inserted");
    for _ in 0..3 {
        db.append_samples(vec![sample("b", 1, 10, 1, None), sample("b", 2, 30, 2, None)]);
    }
    db.settle().await.expect("settled");
    let samples = db.samples_of("b").await.expect("samples");
    assert_eq!((samples.len(), fold(&samples, None).cpu_usec), (3, 30));
}

#[tokio::test]
async fn an_exit_is_recorded_once_and_the_first_stands() {
    let Fixture { db, account, .. } = fixture().await;
    db.insert_box(&record("b", &account, None), Vec::new(), sample("b", 0, 0, 0, None), Vec::new())
        .await
        .expect("inserted");
    db.run_started(run("b", 1, RunState::Running));
    for exit_code in [3, 99] {
        let ended = RunRow { exit_code: Some(exit_code), ended_ms: Some(9), ..run("b", 1, RunState::Failed) };
        let logs = vec![system("b", "ended")];
        db.run_finished(FinishedRun { run: ended, sample: None, logs, hidden: false }, Commit::Soon, |ok| assert!(ok));
    }
    db.settle().await.expect("settled");
    let runs = db.runs_of("b", 10).await.expect("runs");
    assert_eq!((runs.len(), runs[0].exit_code), (1, Some(3)));
    assert_eq!(db.logs("b", 0, None).await.expect("logs").len(), 1);
    assert_eq!(db.last_run_numbers().await.expect("numbers"), [("b".to_owned(), 1)]);
    assert!(db.runs_in_flight("b").await.expect("in flight").is_empty());
}

#[tokio::test]
async fn thinning_the_ledger_leaves_the_bill_alone() {
    let Fixture { db, account, .. } = fixture().await;
    db.insert_box(&record("b", &account, None), Vec::new(), sample("b", 0, 1, 0, None), Vec::new())
        .await
        .expect("inserted");
    let hour_ms = 3_600_000;
    let many: Vec<StoredSample> = (1..2000_u64)
        .map(|n| {
            let at = i64::try_from(n).expect("small") * hour_ms / 100;
            sample("b", n, n * 10, at, n.is_multiple_of(500).then_some(n))
        })
        .collect();
    db.append_samples(many);
    db.settle().await.expect("settled");
    let before = db.samples_of("b").await.expect("samples");
    assert!(db.thin_samples(100 * 24 * hour_ms).await.expect("thinned") > 1900);
    let after = db.samples_of("b").await.expect("samples");
    assert_eq!(fold(&after, None), fold(&before, None));
}

#[tokio::test]
async fn logs_are_paged_and_pruned() {
    let Fixture { db, account, .. } = fixture().await;
    db.insert_box(&record("b", &account, None), Vec::new(), sample("b", 0, 0, 0, None), Vec::new())
        .await
        .expect("inserted");
    for n in 0..10 {
        db.take(&Event::now("b", "a", Fact::Warning { text: n.to_string() }));
    }
    db.settle().await.expect("settled");
    let page: Vec<String> =
        db.logs("b", 2, Some(3)).await.expect("logs").into_iter().map(|entry| entry.message).collect();
    assert_eq!(page, ["2", "3", "4"]);
    let many = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 6000) \
                INSERT INTO logs (box_id, written_ms, level, source, message) SELECT 'b', 0, 'info', 'user', i FROM n";
    db.write("many", move |c| c.execute(many, [])).await.expect("many");
    assert!(db.prune_logs().await.expect("pruned") > 1000);
    assert_eq!(db.logs("b", 0, None).await.expect("logs").len(), 5000);
}

#[tokio::test]
async fn a_reserved_id_is_never_given_twice() {
    let Fixture { db, account, .. } = fixture().await;
    let reservation = |id: &str, uid_base| Reservation { box_id: id.into(), uid_base };
    let made = db.reserve(vec![reservation("a", 1), reservation("a", 2)]).await.expect("reserved");
    assert_eq!(made, [reservation("a", 1)]);
    db.insert_box(&record("a", &account, None), Vec::new(), sample("a", 0, 0, 0, None), Vec::new())
        .await
        .expect("inserted");
    assert!(db.reservations().await.expect("read").is_empty());
    assert!(db.reserve(vec![reservation("a", 3)]).await.expect("an answer").is_empty());
}

#[tokio::test]
async fn cgroup_roots_are_known_until_forgotten() {
    let fixture = fixture().await;
    for path in ["b/icebox.1", "icebox.1", "b/icebox.1"] {
        fixture.db.add_cgroup_root(path).await.expect("added");
    }
    assert_eq!(fixture.db.cgroup_roots().await.expect("read"), ["b/icebox.1", "icebox.1"]);
    fixture.db.forget_cgroup_root("icebox.1").await.expect("forgotten");
    assert_eq!(fixture.db.cgroup_roots().await.expect("read"), ["b/icebox.1"]);
}

#[tokio::test]
async fn public_urls_are_replaced_by_port_and_go_with_their_box() {
    let Fixture { db, account, .. } = fixture().await;
    db.insert_box(&record("b", &account, None), Vec::new(), sample("b", 0, 0, 0, None), Vec::new())
        .await
        .expect("inserted");
    let row = |port, created_ms, secret: Option<[u8; 32]>| PublicUrlRow {
        box_id: "b".into(),
        port,
        created_ms,
        token_sha256: secret,
        password_sha256: None,
    };
    for row in [row(80, 1, None), row(65535, 2, None), row(80, 3, Some([7; 32]))] {
        db.put_public_url(row).await.expect("recorded");
    }
    assert_eq!(db.public_urls().await.expect("read"), [row(80, 3, Some([7; 32])), row(65535, 2, None)]);
    db.delete_public_url("b", 80).await.expect("deleted");
    db.delete_public_url("b", 80).await.expect("nothing to delete");
    assert_eq!(db.public_urls().await.expect("read"), [row(65535, 2, None)]);
    db.begin_delete("b", Vec::new()).await.expect("deleting");
    db.finish_delete("b", 524_288).await.expect("deleted");
    assert!(db.public_urls().await.expect("read").is_empty());
}

#[tokio::test]
async fn only_boxes_without_an_image_get_one() {
    let Fixture { db, account, .. } = fixture().await;
    for (id, image) in [("old", None), ("new", Some("bookworm-2"))] {
        let record = BoxRecord { image: image.map(str::to_owned), ..record(id, &account, None) };
        db.insert_box(&record, Vec::new(), sample(id, 0, 0, 0, None), Vec::new()).await.expect("inserted");
    }
    db.set_missing_images("bookworm-1").await.expect("filled in");
    let mut images: Vec<(String, Option<String>)> =
        db.boxes().await.expect("read").into_iter().map(|(record, _)| (record.id, record.image)).collect();
    images.sort();
    let image = |id: &str, image: &str| (id.to_owned(), Some(image.to_owned()));
    assert_eq!(images, [image("new", "bookworm-2"), image("old", "bookworm-1")]);
}
