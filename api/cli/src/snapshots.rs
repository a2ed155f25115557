//! Verbs on snapshots: create, ls, rm, restore.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use super::args_snapshots::SnapshotVerb;
use super::boxes::{create_body, ready};
use super::client::{Client, Patience, read};
use super::error::Error;
use super::human;
use super::output::Output;
use super::table::Table;
use super::types::{Snapshot, Snapshots};

/// How long a snapshot may take until it is ready: a large disk is read as a whole.
const SNAPSHOT_SECONDS_MAX: u64 = 3600;
const SNAPSHOT_POLL_MILLISECONDS: u64 = 200;

/// `icebox snapshot …`.
pub(crate) async fn snapshot(client: &Client, output: &Output, verb: SnapshotVerb) -> Result<(), Error> {
    match verb {
        SnapshotVerb::Create { name, label } => create(client, output, &name, &label).await,
        SnapshotVerb::Ls { name, quiet } => list(client, output, name.as_deref(), quiet).await,
        SnapshotVerb::Rm { snapshots, all } => remove(client, output, snapshots, all).await,
        SnapshotVerb::Schedule(args) => super::schedule::schedule(client, output, args).await,
        SnapshotVerb::Restore { snapshot, create } => {
            let mut body = create_body(*create);
            body["snapshot_id"] = snapshot.into();
            ready(
                client,
                output,
                client.request(Method::POST, &["v2", "box", "from-snapshot"], Patience::Work).json(&body),
            )
            .await
        }
    }
}

async fn create(client: &Client, output: &Output, name: &str, label: &str) -> Result<(), Error> {
    let began = Instant::now();
    let id = client.find(name).await?.id;
    let route = ["v2", "box", id.as_str(), "snapshots"];
    let request = client.request(Method::POST, &route, Patience::Work).json(&json!({ "name": label }));
    let mut record = client.json(request).await?;
    let mut made: Snapshot = read(record.clone())?;
    while made.status == "creating" {
        if began.elapsed() > Duration::from_secs(SNAPSHOT_SECONDS_MAX) {
            return Err(Error::protocol("take the snapshot", format!("{} is still not ready", made.id)));
        }
        tokio::time::sleep(Duration::from_millis(SNAPSHOT_POLL_MILLISECONDS)).await;
        let listed = client.get(&route, &[]).await?;
        let found = listed["snapshots"].as_array().into_iter().flatten().find(|one| one["id"] == made.id.as_str());
        if let Some(found) = found {
            record = found.clone();
            made = read(record.clone())?;
        }
    }
    if made.status == "error" {
        return Err(Error::protocol("take the snapshot", made.error.unwrap_or_else(|| "it failed".to_owned())));
    }
    if output.is_json() {
        return output.json(&record);
    }
    output.line(&made.id)?;
    output.remark(&format!(
        "{} in {}; `icebox snapshot restore {}` makes a box of it",
        human::bytes(made.size_bytes),
        human::wall(began.elapsed().as_secs_f64() * 1e3),
        made.id
    ));
    Ok(())
}

async fn list(client: &Client, output: &Output, name: Option<&str>, quiet: bool) -> Result<(), Error> {
    let records = match name {
        Some(name) => client.get(&["v2", "box", &client.find(name).await?.id, "snapshots"], &[]).await?,
        None => client.get(&["v2", "box", "snapshots"], &[]).await?,
    };
    if output.is_json() && !quiet {
        return output.json(&records["snapshots"]);
    }
    let Snapshots { snapshots } = read(records)?;
    if quiet {
        return snapshots.iter().try_for_each(|one| output.line(&human::plain(&one.id)));
    }
    if snapshots.is_empty() {
        output.remark("no snapshots yet; `icebox snapshot create BOX` takes one");
    }
    output.table(&table(&snapshots))
}

fn table(snapshots: &[Snapshot]) -> Table {
    let mut table = Table::new(&["ID", "NAME", "BOX", "STATUS", ">SIZE", ">AGE"]);
    for one in snapshots {
        let status = match &one.error {
            Some(error) => format!("{}: {error}", one.status),
            None => one.status.clone(),
        };
        table.row([
            one.id.clone(),
            one.name.clone(),
            one.box_id.clone(),
            status,
            human::bytes(one.size_bytes),
            human::age(one.created_at),
        ]);
    }
    table
}

async fn remove(client: &Client, output: &Output, snapshots: Vec<String>, all: bool) -> Result<(), Error> {
    let request = client.request(Method::DELETE, &["v2", "box", "snapshots"], Patience::Work);
    let request = match all {
        true => request.query(&[("all", "true")]).json(&json!({})),
        false => request.json(&json!({ "ids": snapshots })),
    };
    let answer = client.json(request).await?;
    if output.is_json() {
        return output.json(&answer);
    }
    let deleted = answer.get("deleted").and_then(Value::as_u64).unwrap_or(0);
    output.line(&format!("{deleted} deleted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_says_why_a_snapshot_cannot_be_used() {
        let good = Snapshot {
            id: "snap_a".into(),
            name: "before".into(),
            box_id: "b".into(),
            status: "ready".into(),
            size_bytes: 3 << 20,
            created_at: None,
            error: None,
        };
        let bad = Snapshot { status: "error".into(), size_bytes: 0, error: Some("lost".into()), ..good.clone() };
        assert_eq!(
            table(&[good, bad]).render(),
            "ID      NAME    BOX  STATUS        SIZE  AGE\n\
             snap_a  before  b    ready        3 MiB    -\n\
             snap_a  before  b    error: lost    0 B    -\n"
        );
    }
}
