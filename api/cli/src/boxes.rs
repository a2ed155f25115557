//! Verbs on box records: create, ls, freeze, wake, restart, reclaim, rm, idle, keep, why.

use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::{Map, Value, json};

use super::args;
use super::client::{Client, Patience, read};
use super::error::Error;
use super::human;
use super::net;
use super::output::Output;
use super::runtimes;
use super::table::Table;
use super::types::{BoxData, Kept, Reclaimed, Why};
use super::volumes;

/// How long a box may take until it is ready.
const CREATE_SECONDS_MAX: u64 = 300;
const CREATE_POLL_MILLISECONDS: u64 = 100;

/// `icebox create`.
pub(crate) async fn create(client: &Client, output: &Output, create: args::Create) -> Result<(), Error> {
    if let Some(runtime) = &create.image {
        runtimes::announce(client, output, runtime).await;
    }
    let request = client.request(Method::POST, &["v2", "box"], Patience::Work).json(&create_body(create));
    ready(client, output, request).await
}

/// Sends a request that makes a box, and waits until the box is ready.
pub(crate) async fn ready(client: &Client, output: &Output, request: RequestBuilder) -> Result<(), Error> {
    let began = std::time::Instant::now();
    let mut record = client.json(request).await?;
    let mut made: BoxData = read(record.clone())?;
    while made.status == "creating" {
        if began.elapsed() > Duration::from_secs(CREATE_SECONDS_MAX) {
            return Err(Error::protocol("create the box", format!("{} is still not ready", made.id)));
        }
        tokio::time::sleep(Duration::from_millis(CREATE_POLL_MILLISECONDS)).await;
        record = client.get(&["v2", "box", &made.id], &[]).await?;
        made = read(record.clone())?;
    }
    if made.status == "error" {
        return Err(Error::protocol("create the box", format!("{} failed to start; see `icebox logs {0}`", made.id)));
    }
    if output.is_json() {
        return output.json(&record);
    }
    output.line(&made.id)?;
    output.remark(&format!(
        "ready in {}; `icebox exec {}` opens a shell",
        human::wall(began.elapsed().as_secs_f64() * 1e3),
        made.title()
    ));
    Ok(())
}

/// Only what was asked for is sent: the defaults are the server's.
pub(crate) fn create_body(create: args::Create) -> Value {
    let mut body = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(key.to_owned(), value);
        }
    };
    put("network_policy", net::policy_body(create.policy, create.lists));
    put("name", create.name.map(Value::from));
    put("runtime", create.image.map(Value::from));
    put("size", create.size.map(|size| size.word().into()));
    put("labels", (!create.labels.is_empty()).then(|| create.labels.into()));
    put(
        "env_vars",
        (!create.env.is_empty()).then(|| Value::Object(create.env.into_iter().map(|(k, v)| (k, v.into())).collect())),
    );
    put("idle_seconds", create.idle.map(Value::from));
    put("keep_alive", create.keep_alive.then(|| true.into()));
    put("init_command", create.init_command.map(Value::from));
    put("ephemeral", create.ephemeral.then(|| true.into()));
    put("ttl", create.ttl.map(Value::from));
    put("volumes", volumes::body_of(create.volumes));
    Value::Object(body)
}

/// `icebox ls`.
pub(crate) async fn list(client: &Client, output: &Output, list: args::List) -> Result<(), Error> {
    let query: Vec<_> = list.label.into_iter().map(|label| ("label", label)).collect();
    let records = client.get(&["v2", "box"], &query).await?;
    if output.is_json() && !list.quiet {
        return output.json(&records);
    }
    let boxes: Vec<BoxData> = read(records)?;
    if list.quiet {
        let ids: Vec<&str> = boxes.iter().map(|data| data.id.as_str()).collect();
        return if output.is_json() {
            output.json(&json!(ids))
        } else {
            ids.iter().try_for_each(|id| output.line(&human::plain(id)))
        };
    }
    if boxes.is_empty() {
        output.remark("no boxes yet; `icebox create` makes one");
    }
    output.table(&list_table(&boxes))
}

fn list_table(boxes: &[BoxData]) -> Table {
    let mut table = Table::new(&["ID", "NAME", "STATUS", "SIZE", ">AGE", ">LAST USED", ">CPU", ">COST", "LABELS"]);
    for data in boxes {
        table.row([
            data.id.clone(),
            data.name.clone().unwrap_or_default(),
            status(data),
            data.size.clone().unwrap_or_default(),
            human::age(data.created_at),
            human::age(data.last_activity_at),
            human::cpu(data.total_cpu_ns.unwrap_or(0) / 1_000),
            human::dollars(data.total_compute_cost_usd.unwrap_or(0.0)),
            data.labels.join(" "),
        ]);
    }
    table
}

/// The status, and what is special about the life of the box.
fn status(data: &BoxData) -> String {
    let mut text = data.status.clone();
    if data.keep_alive == Some(true) {
        text.push_str(" (keep-alive)");
    }
    if let Some(kept) = data.kept {
        text.push_str(&format!(" ({})", kept.text(human::now_unix_seconds())));
    }
    if let Some(end) = data.expires_at.filter(|end| *end > 0) {
        let left = u64::try_from(end - human::now_unix_seconds()).unwrap_or(0);
        text.push_str(&format!(" (gone in {})", human::span(left)));
    }
    text
}

/// `icebox freeze`.
pub(crate) async fn freeze(client: &Client, output: &Output, names: &[String]) -> Result<(), Error> {
    change(client, output, names, &["v2", "box"], "pause").await
}

/// `icebox wake`.
pub(crate) async fn wake(client: &Client, output: &Output, names: &[String]) -> Result<(), Error> {
    change(client, output, names, &["v2", "box"], "resume").await
}

/// `icebox restart`.
pub(crate) async fn restart(client: &Client, output: &Output, names: &[String]) -> Result<(), Error> {
    change(client, output, names, &["v1", "boxes"], "restart").await
}

async fn change(
    client: &Client,
    output: &Output,
    names: &[String],
    place: &[&str; 2],
    verb: &str,
) -> Result<(), Error> {
    let mut changed = Vec::new();
    for name in names {
        let id = client.find(name).await?.id;
        client.send(client.request(Method::POST, &[place[0], place[1], &id, verb], Patience::Record)).await?;
        changed.push(client.get(&["v2", "box", &id], &[]).await?);
    }
    if output.is_json() {
        return output.json(&Value::Array(changed));
    }
    for record in changed {
        let data: BoxData = read(record)?;
        output.line(&human::plain(&format!("{}  {}", data.title(), data.status)))?;
    }
    Ok(())
}

/// `icebox reclaim`.
pub(crate) async fn reclaim(client: &Client, output: &Output, name: &str) -> Result<(), Error> {
    let id = client.find(name).await?.id;
    let request = client.request(Method::POST, &["v1", "boxes", &id, "reclaim"], Patience::Work);
    let answer = client.json(request).await?;
    if output.is_json() {
        return output.json(&answer);
    }
    let done: Reclaimed = read(answer)?;
    let [before, after, swap] = [done.memory_before, done.memory_after, done.swap_after].map(human::bytes);
    output.line(&format!("memory {before} -> {after}, {swap} in swap"))?;
    if done.cut_short {
        output.remark("the box was woken meanwhile");
    }
    Ok(())
}

/// `icebox rm`: goes on after a failure, so that one unknown name does not keep the other boxes.
pub(crate) async fn remove(client: &Client, output: &Output, remove: args::Remove) -> Result<(), Error> {
    let mut removed = Vec::new();
    let mut failure = None;
    for name in &remove.boxes {
        match remove_one(client, name).await {
            Ok(id) => removed.push(id),
            Err(error) if remove.force && error.is_not_found() => {}
            Err(error) => {
                if let Some(earlier) = failure.replace(error) {
                    super::error::report(&earlier);
                }
            }
        }
    }
    if output.is_json() {
        output.json(&json!({ "deleted": removed }))?;
    } else {
        removed.iter().try_for_each(|id| output.line(&human::plain(id)))?;
    }
    failure.map_or(Ok(()), Err)
}

async fn remove_one(client: &Client, name: &str) -> Result<String, Error> {
    let id = client.find(name).await?.id;
    client.send(client.request(Method::DELETE, &["v2", "box", &id], Patience::Work)).await?;
    Ok(id)
}

/// `icebox idle`.
pub(crate) async fn idle(client: &Client, output: &Output, idle: args::Idle) -> Result<(), Error> {
    let id = match idle.name.filter(|_| !idle.account) {
        Some(name) => Some(client.find(&name).await?.id),
        None => None,
    };
    let segments = match &id {
        Some(id) => vec!["v1", "boxes", id, "idle"],
        None => vec!["v1", "account", "idle"],
    };
    let body = json!({ "idle_seconds": idle.time.0 });
    let request = client.request(Method::PUT, &segments, Patience::Record).json(&body);
    let answer = client.json(request).await?;
    if output.is_json() {
        return output.json(&answer);
    }
    let subject = id.unwrap_or_else(|| "boxes without a time of their own".to_owned());
    // The server tells the time in force, which is not what was asked for when that was `default`.
    let seconds = answer.get("idle_seconds").and_then(Value::as_u64).or(idle.time.0);
    let time = seconds.map_or_else(|| "the default time".to_owned(), human::span);
    output.line(&human::plain(&format!("{subject}: frozen after {time} without work")))
}

/// `icebox keep`.
pub(crate) async fn keep(client: &Client, output: &Output, keep: args::Keep) -> Result<(), Error> {
    let data = client.find(&keep.name).await?;
    let segments = ["v1", "boxes", data.id.as_str(), "keep"];
    let request = match keep.off {
        true => client.request(Method::DELETE, &segments, Patience::Record),
        false => client.request(Method::POST, &segments, Patience::Work).json(&json!({ "seconds": keep.duration })),
    };
    let answer = client.json(request).await?;
    if output.is_json() {
        return output.json(&answer);
    }
    let text = match keep.off {
        true => "freezes again when it has no work".to_owned(),
        false => read::<Kept>(answer)?.text(human::now_unix_seconds()),
    };
    output.line(&human::plain(&format!("{}: {text}", data.title())))
}

/// `icebox why`.
pub(crate) async fn why(client: &Client, output: &Output, name: &str) -> Result<(), Error> {
    let data = client.find(name).await?;
    let answer = client.get(&["v1", "boxes", &data.id, "why"], &[]).await?;
    if output.is_json() {
        return output.json(&answer);
    }
    output.text(&why_text(data.title(), &read(answer)?))
}

fn why_text(title: &str, why: &Why) -> String {
    let mut text = format!("{title} is {}\n", why.status);
    if let Some(seconds) = why.freezes_in_seconds {
        text.push_str(&format!("freezes in {} if nothing happens\n", human::span(seconds.max(0.0).ceil() as u64)));
    }
    for (title, reasons) in [("awake because:", &why.awake_because), ("waits for:", &why.waiting_for)] {
        if !reasons.is_empty() {
            text.push_str(title);
            text.push('\n');
            reasons.iter().for_each(|reason| text.push_str(&format!("  - {reason}\n")));
        }
    }
    human::plain(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create_args() -> args::Create {
        args::Create {
            name: None,
            size: None,
            labels: Vec::new(),
            env: Vec::new(),
            idle: None,
            keep_alive: false,
            volumes: Vec::new(),
            init_command: None,
            ephemeral: false,
            ttl: None,
            image: None,
            policy: None,
            lists: args::PolicyLists::default(),
        }
    }

    #[test]
    fn a_plain_create_sends_nothing() {
        assert_eq!(create_body(create_args()), json!({}));
        let lists = args::PolicyLists { allow_domains: vec!["a.b".into()], ..args::PolicyLists::default() };
        let policy = json!({ "mode": "custom", "allowed_domains": ["a.b"] });
        assert_eq!(create_body(args::Create { lists, ..create_args() })["network_policy"], policy);
        let policy = Some(args::PolicyMode::DenyAll);
        let body = create_body(args::Create { policy, ..create_args() });
        assert_eq!(body["network_policy"], json!({ "mode": "deny-all" }));
    }

    #[test]
    fn create_sends_the_words_of_the_wire() {
        let full = args::Create {
            image: Some("mine:1".into()),
            name: Some("n".into()),
            size: Some(crate::args_create::Size::Medium),
            labels: vec!["a".into()],
            env: vec![("K".into(), "v".into())],
            idle: Some(5),
            keep_alive: true,
            volumes: vec![crate::args_volume::parse_volume("v:/data:ro").expect("a volume")],
            init_command: Some("true".into()),
            ephemeral: true,
            ttl: Some(60),
            policy: None,
            lists: args::PolicyLists::default(),
        };
        assert_eq!(
            create_body(full),
            json!({"name": "n", "runtime": "mine:1", "size": "medium", "labels": ["a"], "env_vars": {"K": "v"}, "idle_seconds": 5,
                   "keep_alive": true, "init_command": "true", "ephemeral": true, "ttl": 60,
                   "volumes": [{"name": "v", "path": "/data", "read_only": true}]})
        );
    }

    #[test]
    fn the_list_shows_what_people_ask_for() {
        let data = BoxData {
            id: "right-flamingo-14486".into(),
            name: Some("build".into()),
            status: "idle".into(),
            size: Some("small".into()),
            keep_alive: Some(true),
            kept: Some(Kept { until_ms: None }),
            total_cpu_ns: Some(1_500_000_000),
            total_compute_cost_usd: Some(0.000_04),
            labels: vec!["ci".into(), "x".into()],
            ..BoxData::default()
        };
        assert_eq!(
            list_table(&[data]).render(),
            "ID                    NAME   STATUS                          SIZE   AGE  LAST USED     CPU       COST  LABELS\n\
             right-flamingo-14486  build  idle (keep-alive) (kept awake)  small    -          -  1.50 s  $0.000040  ci x\n"
        );
    }

    #[test]
    fn why_speaks_in_sentences() {
        let why = Why {
            status: "running".into(),
            awake_because: vec!["run 7 is going on: sleep 100".into()],
            freezes_in_seconds: Some(59.2),
            waiting_for: Vec::new(),
        };
        assert_eq!(
            why_text("build", &why),
            "build is running\nfreezes in 1m if nothing happens\nawake because:\n  - run 7 is going on: sleep 100\n"
        );
    }
}
