//! Verbs about the daemon and its host: info, doctor.

use reqwest::Method;
use serde::Deserialize;

use super::client::{Client, Patience, read};
use super::error::Error;
use super::human;
use super::output::Output;
use super::table::Table;

#[derive(Debug, Deserialize)]
struct Info {
    version: String,
    backing: String,
    reason: Option<String>,
    ready: Vec<Ready>,
}

#[derive(Debug, Deserialize)]
struct Ready {
    runtime: Option<String>,
    size: String,
    wanted: u32,
    ready: u32,
}

#[derive(Debug, Deserialize)]
struct Found {
    orphans: Vec<Orphan>,
}

#[derive(Debug, Deserialize)]
struct Repaired {
    removed: Vec<Orphan>,
    failed: Vec<Orphan>,
}

#[derive(Debug, Deserialize)]
struct Orphan {
    kind: String,
    name: String,
    bytes: Option<u64>,
    error: Option<String>,
}

/// Shows what the daemon is and has.
pub(crate) async fn info(client: &Client, output: &Output) -> Result<(), Error> {
    let answer = client.get(&["v1", "info"], &[]).await?;
    if output.is_json() {
        return output.json(&answer);
    }
    let info: Info = read(answer)?;
    output.line(&format!("iceboxd {}", human::plain(&info.version)))?;
    let copies = info.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
    output.line(&human::plain(&format!("disks lie on: {}{copies}", info.backing)))?;
    if info.ready.is_empty() {
        return output.line("no boxes are kept ready");
    }
    let mut table = Table::new(&["READY BOXES", "SIZE", ">NOW", ">KEPT"]);
    for one in info.ready {
        let runtime = one.runtime.unwrap_or_else(|| "base image".to_owned());
        table.row([human::plain(&runtime), one.size, one.ready.to_string(), one.wanted.to_string()]);
    }
    output.table(&table)
}

/// Shows what has no owner; removes it with `repair`. Returns the exit code: 1 if something is there or stays.
pub(crate) async fn doctor(client: &Client, output: &Output, repair: bool) -> Result<u8, Error> {
    if repair {
        return treat(client, output).await;
    }
    let answer = client.get(&["v1", "doctor"], &[]).await?;
    let found: Found = read(answer.clone())?;
    let code = u8::from(!found.orphans.is_empty());
    if output.is_json() {
        return output.json(&answer).map(|()| code);
    }
    if found.orphans.is_empty() {
        return output.line("nothing is left without an owner").map(|()| code);
    }
    output.table(&table(&found.orphans))?;
    output.remark("`icebox doctor --repair` removes all of it");
    Ok(code)
}

async fn treat(client: &Client, output: &Output) -> Result<u8, Error> {
    let request = client.request(Method::POST, &["v1", "doctor", "repair"], Patience::Work);
    let answer = client.json(request).await?;
    let done: Repaired = read(answer.clone())?;
    let code = u8::from(!done.failed.is_empty());
    if output.is_json() {
        return output.json(&answer).map(|()| code);
    }
    if done.removed.is_empty() && done.failed.is_empty() {
        return output.line("nothing is left without an owner").map(|()| code);
    }
    output.table(&table(&done.removed))?;
    for orphan in done.failed {
        let why = orphan.error.unwrap_or_default();
        output.remark(&human::plain(&format!("the {} {} stays: {why}", orphan.kind, orphan.name)));
    }
    Ok(code)
}

fn table(orphans: &[Orphan]) -> Table {
    let mut table = Table::new(&["KIND", "NAME", ">BYTES"]);
    for orphan in orphans {
        let bytes = orphan.bytes.map(human::bytes).unwrap_or_default();
        table.row([human::plain(&orphan.kind), human::plain(&orphan.name), bytes]);
    }
    table
}
