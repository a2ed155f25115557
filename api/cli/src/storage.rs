//! Verbs on disks: resize, df.

use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::args_storage::StorageVerb;
use super::client::{Client, Patience, read};
use super::error::Error;
use super::human;
use super::output::Output;
use super::table::Table;

#[derive(Debug, Deserialize)]
struct Resized {
    disk_gib: u32,
    waits_because: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Storage {
    backing: String,
    reason: Option<String>,
    all: Taken,
    disk: Space,
    pool: Option<Space>,
    devices: Option<Devices>,
    boxes: Vec<Disk>,
}

#[derive(Debug, Deserialize)]
struct Devices {
    disks: usize,
    free: usize,
    wiping: usize,
    refused: Vec<Refused>,
}

#[derive(Debug, Deserialize)]
struct Refused {
    path: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
struct Space {
    total_bytes: u64,
    free_bytes: u64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Taken {
    promised_bytes: u64,
    allocated_bytes: u64,
    shared_bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Disk {
    id: String,
    #[serde(flatten)]
    taken: Taken,
}

/// Carries the verb out.
pub(crate) async fn storage(client: &Client, output: &Output, verb: StorageVerb) -> Result<(), Error> {
    match verb {
        StorageVerb::Resize { name, disk_gib } => resize(client, output, &name, disk_gib).await,
        StorageVerb::Df => df(client, output).await,
    }
}

async fn resize(client: &Client, output: &Output, name: &str, disk_gib: u32) -> Result<(), Error> {
    let id = client.find(name).await?.id;
    let request = client.request(Method::POST, &["v1", "boxes", &id, "resize"], Patience::Work);
    let answer = client.json(request.json(&json!({ "disk_gib": disk_gib }))).await?;
    if output.is_json() {
        return output.json(&answer);
    }
    let done: Resized = read(answer)?;
    output.line(&format!("{id}  {} GiB", done.disk_gib))?;
    if let Some(reason) = done.waits_because {
        output.remark(&format!("the box sees it after `icebox restart {id}`: {reason}"));
    }
    Ok(())
}

async fn df(client: &Client, output: &Output) -> Result<(), Error> {
    let answer = client.get(&["v1", "storage"], &[]).await?;
    if output.is_json() {
        return output.json(&answer);
    }
    let storage: Storage = read(answer)?;
    let mut table = Table::new(&["BOX", ">PROMISED", ">ALLOCATED", ">SHARED"]);
    let mut row = |name: String, taken: Taken| {
        let Taken { promised_bytes, allocated_bytes, shared_bytes } = taken;
        let [promised, allocated, shared] = [promised_bytes, allocated_bytes, shared_bytes].map(human::bytes);
        table.row([name, promised, allocated, shared]);
    };
    storage.boxes.into_iter().for_each(|disk| row(disk.id, disk.taken));
    row("all of this host".to_owned(), storage.all);
    output.table(&table)?;
    let space = |name: &str, space: &Space| {
        format!("{name}: {} free of {}", human::bytes(space.free_bytes), human::bytes(space.total_bytes))
    };
    output.line(&space("disk", &storage.disk))?;
    if let Some(devices) = storage.devices {
        let Devices { disks, free, wiping, refused } = devices;
        output.line(&format!("block devices: {disks} with disks, {free} free, {wiping} being wiped"))?;
        for Refused { path, reason } in refused {
            output.line(&human::plain(&format!("not used: {path}: {reason}")))?;
        }
    }
    match (&storage.pool, storage.reason) {
        (Some(pool), _) => output.line(&space("pool", pool)),
        (None, Some(reason)) => output.line(&human::plain(&format!("no pool, disks are copies: {reason}"))),
        (None, None) => output.line(&format!("no pool is needed ({})", storage.backing)),
    }
}
