//! Automatic snapshots: `icebox snapshot schedule`.

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::args_snapshots::{Keep, ScheduleArgs};
use super::client::{Client, Patience, read};
use super::error::Error;
use super::human;
use super::output::Output;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Schedule {
    keep: Keep,
    due_ms: i64,
    error: Option<String>,
}

/// `icebox snapshot schedule`.
pub(crate) async fn schedule(client: &Client, output: &Output, args: ScheduleArgs) -> Result<(), Error> {
    let id = client.find(&args.name).await?.id;
    let route = ["v1", "boxes", id.as_str(), "snapshot-schedule"];
    if args.off {
        client.send(client.request(Method::DELETE, &route, Patience::Record)).await?;
        output.remark("off; the snapshots that there are stay");
        return Ok(());
    }
    let answer = match args.keep {
        Some(keep) => {
            client.json(client.request(Method::PUT, &route, Patience::Record).json(&json!({ "keep": keep }))).await?
        }
        None => client.get(&route, &[]).await?,
    };
    show(output, answer)
}

fn show(output: &Output, answer: Value) -> Result<(), Error> {
    if output.is_json() {
        return output.json(&answer);
    }
    let schedule: Schedule = read(answer)?;
    output.line(&text(&schedule))?;
    match schedule.error {
        Some(error) => output.line(&human::plain(&format!("the last attempt failed: {error}"))),
        None => Ok(()),
    }
}

fn text(schedule: &Schedule) -> String {
    format!("keep {}; the next one is due at {}", schedule.keep, human::moment(schedule.due_ms.div_euclid(1000)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_shown_as_they_are_typed() {
        let schedule = Schedule { keep: "daily=7,hourly=24".parse().expect("rules"), ..Schedule::default() };
        assert_eq!(text(&schedule), "keep hourly=24,daily=7; the next one is due at 1970-01-01 00:00:00Z");
        for bad in ["", "hourly", "hourly=", "hourly=x", "hourly=-1", "yearly=1", "hourly=1,hourly=2", "daily=0"] {
            assert!(bad.parse::<Keep>().is_err(), "{bad}");
        }
    }
}
