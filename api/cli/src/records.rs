//! What happened in a box: `icebox logs`, `icebox runs`, `icebox cancel`.

use std::collections::VecDeque;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::args_more;
use super::client::{Client, Patience, read};
use super::error::Error;
use super::human;
use super::output::Output;
use super::table::Table;
use super::types::{LogEntry, LogPage, RunData, RunPage};

const LOG_PAGE_ENTRIES: usize = 1_000;
/// `--follow` asks once a second: cheap for the server, and soon enough for people.
const FOLLOW_SECONDS: u64 = 1;
const RUN_ID_CHARS: usize = 13;

/// `icebox logs`.
pub(crate) async fn logs(client: &Client, output: &Output, logs: args_more::Logs) -> Result<(), Error> {
    let id = client.find(&logs.name).await?.id;
    let limit = logs.limit as usize;
    let mut last: VecDeque<Value> = VecDeque::new();
    let mut seen = 0;
    loop {
        let page = log_page(client, &id, seen).await?;
        if page.is_empty() {
            break;
        }
        seen += page.len();
        last.extend(page);
        last.drain(..last.len().saturating_sub(limit));
    }
    if output.is_json() && !logs.follow {
        return output.json(&json!({ "logs": last }));
    }
    last.into_iter().try_for_each(|entry| print_entry(output, entry))?;
    if !logs.follow {
        return Ok(());
    }
    loop {
        tokio::time::sleep(Duration::from_secs(FOLLOW_SECONDS)).await;
        let page = log_page(client, &id, seen).await?;
        seen += page.len();
        page.into_iter().try_for_each(|entry| print_entry(output, entry))?;
    }
}

/// The entries from `offset` on, oldest first.
async fn log_page(client: &Client, id: &str, offset: usize) -> Result<Vec<Value>, Error> {
    let query = [("offset", offset.to_string()), ("limit", LOG_PAGE_ENTRIES.to_string())];
    let mut answer = client.get(&["v2", "box", id, "logs"], &query).await?;
    match answer.get_mut("logs").map(Value::take) {
        Some(Value::Array(entries)) => Ok(entries),
        _ => Ok(Vec::new()),
    }
}

fn print_entry(output: &Output, entry: Value) -> Result<(), Error> {
    if output.is_json() {
        return output.json_line(&entry);
    }
    let page: LogPage = read(json!({ "logs": [entry] }))?;
    page.logs.iter().try_for_each(|entry| output.line(&log_line(entry)))
}

fn log_line(entry: &LogEntry) -> String {
    let line = format!("{}  {:5} {:6} {}", human::moment(entry.timestamp), entry.level, entry.source, entry.message);
    human::plain(line.trim_end())
}

/// `icebox runs`.
pub(crate) async fn runs(client: &Client, output: &Output, runs: args_more::Runs) -> Result<(), Error> {
    let id = client.find(&runs.name).await?.id;
    let mut answer = client.get(&["v1", "boxes", &id, "runs"], &[]).await?;
    if let Some(Value::Array(found)) = answer.get_mut("runs") {
        found.truncate(runs.limit as usize);
    }
    if output.is_json() {
        return output.json(&answer);
    }
    output.table(&run_table(&read::<RunPage>(answer)?.runs))
}

fn run_table(runs: &[RunData]) -> Table {
    let mut table = Table::new(&["RUN", "STATUS", ">EXIT", ">AGE", ">TIME", ">CPU", ">PEAK MEMORY", "COMMAND"]);
    for run in runs {
        table.row([
            // The beginning tells runs apart; `icebox cancel` finds the rest.
            run.id.chars().take(RUN_ID_CHARS).collect(),
            run.status.clone(),
            run.exit_code.map_or_else(|| "-".to_owned(), |code| code.to_string()),
            human::age(run.created_at),
            human::wall(run.duration_ms),
            human::cpu(run.cpu_ns.unwrap_or(0) / 1_000),
            run.memory_peak_bytes.map_or_else(|| "-".to_owned(), human::bytes),
            command(run),
        ]);
    }
    table
}

fn command(run: &RunData) -> String {
    match run.error_message.as_deref() {
        Some(message) if !message.is_empty() => format!("{} ({message})", run.prompt),
        _ => run.prompt.clone(),
    }
}

/// `icebox cancel`: the beginning of a run's id is enough if it fits one run only.
pub(crate) async fn cancel(client: &Client, name: &str, run: &str) -> Result<(), Error> {
    let id = client.find(name).await?.id;
    let known: RunPage = read(client.get(&["v1", "boxes", &id, "runs"], &[]).await?)?;
    let run = full_id(&known.runs, run)?;
    client.send(client.request(Method::POST, &["v2", "box", &id, "runs", run, "cancel"], Patience::Record)).await?;
    Ok(())
}

fn full_id<'a>(runs: &'a [RunData], beginning: &str) -> Result<&'a str, Error> {
    let mut fitting =
        runs.iter().map(|run| run.id.as_str()).filter(|id| !beginning.is_empty() && id.starts_with(beginning));
    match (fitting.next(), fitting.next()) {
        (Some(id), None) => Ok(id),
        (Some(_), Some(_)) => Err(Error::usage(format!("more than one run begins with `{beginning}`"))),
        (None, _) => {
            Err(Error::usage_with_hint(format!("no run begins with `{beginning}`"), "`icebox runs BOX` lists them"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(id: &str) -> RunData {
        RunData { id: id.to_owned(), ..RunData::default() }
    }

    #[test]
    fn a_log_line_is_clean_and_in_columns() {
        let entry = LogEntry {
            timestamp: 951_782_400,
            level: "info".into(),
            source: "system".into(),
            message: "hello \x1b]0;x\x07".into(),
        };
        assert_eq!(log_line(&entry), "2000-02-29 00:00:00Z  info  system hello \\u{1b}]0;x\\u{7}");
    }

    #[test]
    fn the_run_table_tells_exit_codes_and_reasons() {
        let done = RunData {
            status: "failed".into(),
            exit_code: Some(137),
            prompt: "python3 x.py".into(),
            error_message: Some("out of memory".into()),
            cpu_ns: Some(2_500_000),
            memory_peak_bytes: Some(1 << 30),
            duration_ms: 1_500.0,
            ..run("0190aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee")
        };
        let going = RunData { status: "running".into(), prompt: "sleep 9".into(), ..run("0190aaab-0000") };
        assert_eq!(
            run_table(&[going, done]).render(),
            "RUN            STATUS   EXIT  AGE    TIME     CPU  PEAK MEMORY  COMMAND\n\
             0190aaab-0000  running     -    -    0 ms       0            -  sleep 9\n\
             0190aaaa-bbbb  failed    137    -  1.50 s  2.5 ms        1 GiB  python3 x.py (out of memory)\n"
        );
    }

    #[test]
    fn a_beginning_must_fit_one_run_only() {
        let runs = [run("abc-1"), run("abd-2")];
        assert_eq!(full_id(&runs, "abc").ok(), Some("abc-1"));
        assert!(full_id(&runs, "ab").is_err());
        assert!(full_id(&runs, "x").is_err());
        assert!(full_id(&runs, "").is_err());
    }
}
