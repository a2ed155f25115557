//! `icebox top`: what boxes use at the moment. Reading it wakes none.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt, TryStreamExt};
use serde_json::{Value, json};

use super::args;
use super::client::{Client, read};
use super::error::Error;
use super::human;
use super::output::Output;
use super::table::Table;
use super::types::{BoxData, TopData, Usage};

/// Boxes asked at a time.
const QUESTIONS_MAX: usize = 8;
/// Cursor home, clear to the end of the screen.
const CLEAR_SCREEN: &str = "\x1b[H\x1b[J";

/// One box in one picture.
struct Row {
    data: BoxData,
    disk_bytes: Option<u64>,
    /// None while the box has no processes at all.
    answer: Option<Value>,
    top: TopData,
}

/// CPU counters of the picture before, to tell the share of a core.
type Before = HashMap<String, (Instant, u64)>;

/// `icebox top`.
pub(crate) async fn top(client: &Client, output: &Output, top: args::Top) -> Result<(), Error> {
    let mut before = Before::new();
    loop {
        let rows = take(client, top.name.as_deref()).await?;
        if output.is_json() {
            let document = Value::Array(rows.iter().map(document).collect());
            if top.watch { output.json_line(&document)? } else { output.json(&document)? }
        } else {
            let clear = if top.watch && std::io::stdout().is_terminal() { CLEAR_SCREEN } else { "" };
            let processes = if top.name.is_some() { process_text(&rows) } else { String::new() };
            output.text(&format!("{clear}{}{processes}", table(&rows, &before, Instant::now()).render()))?;
        }
        if !top.watch {
            return Ok(());
        }
        let now = Instant::now();
        before = rows.iter().filter_map(|row| Some((row.data.id.clone(), (now, row.top.cpu_usec?)))).collect();
        tokio::time::sleep(Duration::from_secs(top.interval)).await;
    }
}

async fn take(client: &Client, name: Option<&str>) -> Result<Vec<Row>, Error> {
    let boxes: Vec<BoxData> = match name {
        Some(name) => vec![client.find(name).await?],
        None => read(client.get(&["v2", "box"], &[]).await?)?,
    };
    let usage: Usage = read(client.get(&["v1", "usage"], &[]).await?)?;
    let mut disks: HashMap<String, u64> =
        usage.boxes.into_iter().filter_map(|bill| Some((bill.id, bill.storage_bytes?))).collect();
    let asked: Vec<_> = boxes.into_iter().map(|data| (disks.remove(&data.id), data)).collect();
    stream::iter(asked)
        .map(|(disk_bytes, data)| async move {
            match client.get(&["v1", "boxes", &data.id, "top"], &[]).await {
                Ok(answer) => {
                    let top = read(answer.clone())?;
                    Ok(Some(Row { data, disk_bytes, answer: Some(answer), top }))
                }
                // Deleted since it was listed.
                Err(error) if error.is_not_found() => Ok(None),
                // Not started, after a reboot for example: nothing runs, so nothing is used.
                Err(Error::Server { status: 409, .. }) => {
                    Ok(Some(Row { data, disk_bytes, answer: None, top: TopData::default() }))
                }
                Err(error) => Err(error),
            }
        })
        .buffered(QUESTIONS_MAX)
        .try_filter_map(|row| async move { Ok(row) })
        .try_collect()
        .await
}

fn document(row: &Row) -> Value {
    json!({
        "id": row.data.id,
        "name": row.data.name,
        "status": row.data.status,
        "storage_bytes": row.disk_bytes,
        "top": row.answer,
    })
}

fn table(rows: &[Row], before: &Before, now: Instant) -> Table {
    let mut table = Table::new(&["ID", "NAME", "STATUS", ">CPU%", ">CPU", ">MEMORY", ">PEAK", ">PIDS", ">DISK"]);
    let or_dash = |value: Option<u64>, show: fn(u64) -> String| value.map_or_else(|| "-".to_owned(), show);
    for row in rows {
        let status = if row.top.frozen == Some(true) { "paused" } else { &row.data.status };
        table.row([
            row.data.id.clone(),
            row.data.name.clone().unwrap_or_default(),
            status.to_owned(),
            share(row, before, now),
            or_dash(row.top.cpu_usec, human::cpu),
            or_dash(row.top.memory_current, human::bytes),
            or_dash(row.top.memory_peak, human::bytes),
            or_dash(row.top.pids, |pids| pids.to_string()),
            or_dash(row.disk_bytes, human::bytes),
        ]);
    }
    table
}

/// Percent of one core since the picture before. A counter that went back belongs to a new life of the box.
fn share(row: &Row, before: &Before, now: Instant) -> String {
    let measured = before.get(&row.data.id).zip(row.top.cpu_usec).and_then(|((then, old), new)| {
        let seconds = now.saturating_duration_since(*then).as_secs_f64();
        Some((new.checked_sub(*old)?, seconds)).filter(|_| seconds > 0.0)
    });
    match measured {
        Some((used, seconds)) => format!("{:.1}", used as f64 / 1e4 / seconds),
        None => "-".to_owned(),
    }
}

fn process_text(rows: &[Row]) -> String {
    let mut table = Table::new(&[">PID", "COMMAND"]);
    let mut any = false;
    for process in rows.iter().flat_map(|row| &row.top.processes) {
        any = true;
        table.row([process.pid.to_string(), process.comm.clone()]);
    }
    if any { format!("\n{}", table.render()) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cpu_usec: Option<u64>) -> Row {
        Row {
            data: BoxData { id: "a-b-1".into(), status: "running".into(), ..BoxData::default() },
            disk_bytes: Some(2 << 20),
            answer: None,
            top: TopData { cpu_usec, memory_current: Some(1 << 20), pids: Some(3), ..TopData::default() },
        }
    }

    #[test]
    fn the_table_shows_what_is_known_and_dashes_for_the_rest() {
        assert_eq!(
            table(&[row(Some(1_500_000))], &Before::new(), Instant::now()).render(),
            "ID     NAME  STATUS   CPU%     CPU  MEMORY  PEAK  PIDS   DISK\n\
             a-b-1        running     -  1.50 s   1 MiB     -     3  2 MiB\n"
        );
    }

    #[test]
    fn the_share_of_a_core_comes_from_two_pictures() {
        let then = Instant::now();
        let now = then + Duration::from_secs(2);
        let before = Before::from([("a-b-1".to_owned(), (then, 1_000_000))]);
        assert_eq!(share(&row(Some(2_000_000)), &before, now), "50.0");
        assert_eq!(share(&row(Some(5_000_000)), &before, now), "200.0");
        assert_eq!(share(&row(Some(10)), &before, now), "-");
        assert_eq!(share(&row(None), &before, now), "-");
        assert_eq!(share(&row(Some(2_000_000)), &before, then), "-");
    }

    #[test]
    fn processes_are_listed_below() {
        let mut with = row(None);
        with.top.processes = vec![super::super::types::Process { pid: 1, comm: "init".into() }];
        assert_eq!(process_text(&[with]), "\nPID  COMMAND\n  1  init\n");
        assert_eq!(process_text(&[row(None)]), "");
    }
}
