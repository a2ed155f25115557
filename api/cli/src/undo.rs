//! Taking commands back: undo.

use std::io::BufRead;

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::args_undo::Undo;
use super::client::{Client, Patience, read};
use super::error::Error;
use super::human;
use super::output::Output;
use super::table::Table;
use super::terminal;

/// Width of a command in a list.
const COMMAND_WIDTH: usize = 60;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    on: bool,
    steps: u64,
    max_age_seconds: u64,
    points: Vec<Point>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Point {
    id: String,
    command: String,
    taken_ms: i64,
    size_bytes: u64,
}

/// `icebox undo`.
pub(crate) async fn undo(client: &Client, output: &Output, undo: Undo) -> Result<(), Error> {
    let found = client.find(&undo.name).await?;
    let route = ["v1", "boxes", found.id.as_str(), "undo"];
    if undo.on {
        let body = json!({ "steps": undo.steps, "max_age_seconds": undo.max_age });
        let answer = client.json(client.request(Method::PUT, &route, Patience::Record).json(&body)).await?;
        return show(output, answer);
    }
    if undo.off {
        client.send(client.request(Method::DELETE, &route, Patience::Work)).await?;
        output.remark("off; the copies are gone");
        return Ok(());
    }
    let answer = client.get(&route, &[]).await?;
    if undo.list {
        return show(output, answer);
    }
    let state: State = read(answer)?;
    // Without a point the server says why.
    let newest = state.points.into_iter().next().unwrap_or_default();
    if !newest.id.is_empty() && !undo.yes && !is_agreed(found.title(), &newest)? {
        output.remark("nothing was changed");
        return Ok(());
    }
    let body = if newest.id.is_empty() { json!({}) } else { json!({ "point": newest.id }) };
    let answer = client.json(client.request(Method::POST, &route, Patience::Work).json(&body)).await?;
    if output.is_json() {
        return output.json(&answer);
    }
    let undone: Point = read(answer["undone"].clone())?;
    output.line(&human::one_line(&undone.command, COMMAND_WIDTH))?;
    output.remark(&format!("taken back; {} more can be", answer["left"].as_u64().unwrap_or(0)));
    Ok(())
}

/// Says what ends. On a terminal, waits for the answer.
fn is_agreed(title: &str, point: &Point) -> Result<bool, Error> {
    let text = format!(
        "The disk of {} goes back to {} ago, before: {}\nWhat was written since is lost, all its processes end, and it starts again.",
        human::plain(title),
        human::age(Some(point.taken_ms.div_euclid(1000))),
        human::one_line(&point.command, COMMAND_WIDTH),
    );
    eprintln!("{text}");
    if !terminal::is_interactive() {
        return Ok(true);
    }
    eprint!("Go back? [y/N] ");
    let mut line = String::new();
    let answer = std::io::stdin().lock().read_line(&mut line);
    answer.map_err(|cause| Error::io("read", "the answer", cause))?;
    Ok(is_yes(&line))
}

fn is_yes(line: &str) -> bool {
    matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

fn show(output: &Output, answer: Value) -> Result<(), Error> {
    if output.is_json() {
        return output.json(&answer);
    }
    let state: State = read(answer)?;
    match state.on {
        true => output.remark(&format!(
            "on: the last {} commands, up to {} old",
            state.steps,
            human::span(state.max_age_seconds)
        )),
        false => output.remark("off; `icebox undo BOX --on` turns it on"),
    }
    output.table(&table(&state.points))
}

fn table(points: &[Point]) -> Table {
    let mut table = Table::new(&[">AGE", ">SIZE", "BEFORE"]);
    for point in points {
        table.row([
            human::age(Some(point.taken_ms.div_euclid(1000))),
            human::bytes(point.size_bytes),
            human::one_line(&point.command, COMMAND_WIDTH),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_one() {
        assert!(["y\n", "Yes\n", " YES "].iter().all(|line| is_yes(line)));
        assert!(["", "\n", "n\n", "yy\n", "no\n"].iter().all(|line| !is_yes(line)));
    }

    #[test]
    fn commands_are_shown_on_one_line() {
        let point = Point { command: "rm -rf\n/x".into(), size_bytes: 1 << 20, ..Point::default() };
        let text = table(&[point]).render();
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains("1 MiB") && text.ends_with("rm -rf /x\n"), "{text}");
    }
}
