//! Forks: fork, promote, diff, try.

use reqwest::Method;
use serde_json::{Value, json};

use super::args_forks::{Diff, Fork, Try};
use super::client::{Client, Patience, read};
use super::error::Error;
use super::human;
use super::output::Output;
use super::table::Table;
use super::types::BoxData;

/// CPU nanoseconds that cost a dollar: $0.10 per core-hour.
const NS_PER_DOLLAR: f64 = 36e12;

/// `icebox fork`.
pub(crate) async fn fork(client: &Client, output: &Output, fork: Fork) -> Result<(), Error> {
    let made = make(client, &client.find(&fork.name).await?.id, fork.count).await?;
    if output.is_json() {
        return output.json(&Value::Array(made));
    }
    made.into_iter().try_for_each(|record| output.line(&human::plain(&read::<BoxData>(record)?.id)))
}

async fn make(client: &Client, id: &str, count: u32) -> Result<Vec<Value>, Error> {
    let request = client.request(Method::POST, &["v1", "boxes", id, "fork"], Patience::Work);
    let answer = client.json(request.json(&json!({ "count": count }))).await?;
    Ok(answer["boxes"].as_array().cloned().unwrap_or_default())
}

/// `icebox promote`.
pub(crate) async fn promote(client: &Client, output: &Output, name: &str) -> Result<(), Error> {
    let record = put_back(client, &client.find(name).await?.id).await?;
    if output.is_json() {
        return output.json(&record);
    }
    output.line(&human::plain(read::<BoxData>(record)?.title()))
}

async fn put_back(client: &Client, id: &str) -> Result<Value, Error> {
    client.json(client.request(Method::POST, &["v1", "boxes", id, "promote"], Patience::Work)).await
}

/// `icebox diff`.
pub(crate) async fn diff(client: &Client, output: &Output, diff: Diff) -> Result<(), Error> {
    let id = client.find(&diff.name).await?.id;
    let answer = changes(client, &id, &diff.base).await?;
    if output.is_json() {
        return output.json(&answer);
    }
    for change in answer["changes"].as_array().into_iter().flatten() {
        let sign = match change["change"].as_str() {
            Some("added") => '+',
            Some("removed") => '-',
            _ => '~',
        };
        output.line(&human::plain(&format!("{sign} {}", change["path"].as_str().unwrap_or_default())))?;
    }
    if answer["truncated"] == true {
        output.remark("there are more changes than are shown");
    }
    Ok(())
}

async fn changes(client: &Client, id: &str, base: &str) -> Result<Value, Error> {
    client.json(client.request(Method::GET, &["v1", "boxes", id, "diff", base], Patience::Work)).await
}

/// One fork of `icebox try`, and what its command did.
#[derive(Debug)]
struct Attempt {
    id: String,
    exit_code: i64,
    seconds: f64,
    cpu_ns: u64,
    output: String,
    changes: Vec<Value>,
}

/// `icebox try`: the exit code is 0 if a fork was promoted or every command succeeded, else 1.
pub(crate) async fn attempt(client: &Client, output: &Output, attempt: Try) -> Result<u8, Error> {
    let origin = client.find(&attempt.name).await?.id;
    // One more, in which nothing runs: the others are compared with it.
    let forks = make(client, &origin, attempt.count + 1).await?;
    let ids: Vec<String> = forks.iter().filter_map(|fork| fork["id"].as_str().map(str::to_owned)).collect();
    let tried = run_all(client, output, &attempt, &ids).await;
    let promoted = tried.as_ref().ok().and_then(|(_, promoted)| promoted.clone());
    for id in ids.iter().filter(|id| promoted.as_ref() != Some(*id)) {
        let removed = client.send(client.request(Method::DELETE, &["v2", "box", id], Patience::Work)).await;
        if let Err(error) = removed {
            super::error::report(&error);
        }
    }
    let (code, _) = tried?;
    Ok(code)
}

/// Runs, shows and promotes. The exit code, and the fork that has become its origin.
async fn run_all(
    client: &Client,
    output: &Output,
    wanted: &Try,
    ids: &[String],
) -> Result<(u8, Option<String>), Error> {
    let Some((base, ids)) = ids.split_first() else {
        return Err(Error::protocol("make the forks", "the server made none"));
    };
    let running = ids.iter().map(|id| run_one(client, id, &wanted.argv));
    let mut attempts = Vec::new();
    for done in futures::future::join_all(running).await {
        attempts.push(done?);
    }
    for one in &mut attempts {
        one.changes = changes(client, &one.id, base).await?["changes"].as_array().cloned().unwrap_or_default();
    }
    let winner = match wanted.promote {
        Some(number) => attempts.get(number as usize - 1),
        None if wanted.promote_first_success => {
            let mut good: Vec<&Attempt> = attempts.iter().filter(|one| one.exit_code == 0).collect();
            good.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
            good.first().copied()
        }
        None => None,
    };
    let promoted = match winner {
        Some(winner) => {
            put_back(client, &winner.id).await?;
            Some(winner.id.clone())
        }
        None => None,
    };
    show(output, &attempts, promoted.as_deref())?;
    let success = promoted.is_some() || attempts.iter().all(|one| one.exit_code == 0);
    Ok((u8::from(!success), promoted))
}

async fn run_one(client: &Client, id: &str, argv: &[String]) -> Result<Attempt, Error> {
    let began = std::time::Instant::now();
    let request = client.request(Method::POST, &["v2", "box", id, "exec"], Patience::Work);
    let answer = client.json(request.json(&json!({ "command": argv }))).await?;
    Ok(Attempt {
        id: id.to_owned(),
        exit_code: answer["exit_code"].as_i64().unwrap_or(-1),
        seconds: began.elapsed().as_secs_f64(),
        cpu_ns: answer["cpu_ns"].as_u64().unwrap_or(0),
        output: answer["output"].as_str().unwrap_or_default().to_owned(),
        changes: Vec::new(),
    })
}

fn show(output: &Output, attempts: &[Attempt], promoted: Option<&str>) -> Result<(), Error> {
    if output.is_json() {
        let all = attempts.iter().map(|one| {
            json!({
                "exit_code": one.exit_code, "seconds": one.seconds, "cpu_ns": one.cpu_ns, "output": one.output,
                "cost_dollars": one.cpu_ns as f64 / NS_PER_DOLLAR, "changes": one.changes,
                "promoted": promoted == Some(one.id.as_str()),
            })
        });
        return output.json(&Value::Array(all.collect()));
    }
    output.table(&table(attempts, promoted))
}

fn table(attempts: &[Attempt], promoted: Option<&str>) -> Table {
    let mut table = Table::new(&[">TRY", ">EXIT", ">TIME", ">CPU", ">COST", ">CHANGES", "LAST LINE", ""]);
    for (number, one) in attempts.iter().enumerate() {
        table.row([
            (number + 1).to_string(),
            one.exit_code.to_string(),
            human::wall(one.seconds * 1e3),
            human::cpu(one.cpu_ns / 1000),
            human::dollars(one.cpu_ns as f64 / NS_PER_DOLLAR),
            one.changes.len().to_string(),
            one.output.trim_end().lines().last().unwrap_or_default().to_owned(),
            if promoted == Some(one.id.as_str()) { "promoted".to_owned() } else { String::new() },
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_stand_side_by_side() {
        let one = |id: &str, exit_code, output: &str| Attempt {
            id: id.into(),
            exit_code,
            seconds: 1.5,
            cpu_ns: 2_000_000_000,
            output: output.into(),
            changes: vec![json!({})],
        };
        let text = table(&[one("a", 1, "x\ny\n"), one("b", 0, "")], Some("b")).render();
        assert_eq!(text.lines().count(), 3);
        assert!(text.lines().nth(1).is_some_and(|line| line.ends_with('y')), "{text}");
        assert!(text.ends_with("promoted\n"), "{text}");
    }
}
