//! `icebox net` and `icebox policy`: the network of a box. Neither wakes it.

use reqwest::Method;
use serde_json::{Map, Value};

use super::args;
use super::client::{Client, Patience, read};
use super::error::Error;
use super::human;
use super::output::Output;
use super::table::Table;
use super::types::{BoxNetwork, Counted, NetworkPolicy};

/// `icebox net`.
pub(crate) async fn net(client: &Client, output: &Output, name: &str) -> Result<(), Error> {
    let data = client.find(name).await?;
    let answer = client.get(&["v1", "boxes", &data.id, "net"], &[]).await?;
    if output.is_json() {
        return output.json(&answer);
    }
    output.text(&text(data.title(), &read(answer)?))
}

/// `icebox policy`.
pub(crate) async fn policy(client: &Client, output: &Output, wanted: args::Policy) -> Result<(), Error> {
    let data = client.find(&wanted.name).await?;
    if let Some(body) = policy_body(wanted.mode, wanted.lists) {
        let path = ["v2", "box", &data.id, "config", "network-policy"];
        client.json(client.request(Method::PUT, &path, Patience::Work).json(&body)).await?;
    }
    let answer = client.get(&["v2", "box", &data.id], &[]).await?;
    let told = answer.get("network_policy").cloned().unwrap_or_default();
    if output.is_json() {
        return output.json(&told);
    }
    output.line(&human::plain(&policy_text(&read(told)?)))
}

/// A policy as the API takes it; none if nothing was asked for. The server says what does not go together.
pub(crate) fn policy_body(mode: Option<args::PolicyMode>, lists: args::PolicyLists) -> Option<Value> {
    let lists = [
        ("allowed_domains", lists.allow_domains),
        ("allowed_cidrs", lists.allow_cidrs),
        ("denied_cidrs", lists.deny_cidrs),
    ];
    let given: Map<String, Value> = lists
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(key, list)| (key.to_owned(), list.into()))
        .collect();
    let mode = mode.or_else(|| (!given.is_empty()).then_some(args::PolicyMode::Custom))?;
    let mode = [("mode".to_owned(), Value::from(mode.word()))];
    Some(Value::Object(mode.into_iter().chain(given).collect()))
}

fn text(title: &str, net: &BoxNetwork) -> String {
    let address = match (&net.address, &net.gateway) {
        (Some(address), Some(gateway)) => format!("{address}, gateway and DNS server {gateway}"),
        _ => "none: this box has a loopback interface only".to_owned(),
    };
    let state = if net.connected { "" } else { " (not connected: it has no processes, or no network)" };
    let mut text = format!("{title}{state}\naddress   {address}\npolicy    {}\n", policy_text(&net.policy));
    for (label, count) in [("sent", net.sent), ("received", net.received), ("refused", net.refused)] {
        text.push_str(&format!("{label:<10}{}\n", counted(count)));
    }
    text.push_str(&format!("{} open connections\n", net.connections_total));
    let mut text = human::plain(&text);
    if !net.connections.is_empty() {
        text.push_str(&connections(net));
    }
    if !net.denials.is_empty() {
        text.push_str("refused lately:\n");
        text.push_str(&denials(net));
    }
    text
}

fn counted(count: Counted) -> String {
    format!("{} in {} packets", human::bytes(count.bytes), count.packets)
}

fn policy_text(policy: &NetworkPolicy) -> String {
    let lists =
        [("domains", &policy.allowed_domains), ("networks", &policy.allowed_cidrs), ("but not", &policy.denied_cidrs)];
    let named = lists.iter().filter(|(_, list)| !list.is_empty());
    let told = named.map(|(label, list)| format!("; {label}: {}", list.join(" ")));
    std::iter::once(policy.mode.clone()).chain(told).collect()
}

fn connections(net: &BoxNetwork) -> String {
    let mut table = Table::new(&["PROTOCOL", "TO", "STATE"]);
    for one in &net.connections {
        let port = one.port.map_or_else(String::new, |port| format!(":{port}"));
        table.row([one.protocol.clone(), format!("{}{port}", one.address), one.state.clone().unwrap_or_default()]);
    }
    table.render()
}

fn denials(net: &BoxNetwork) -> String {
    let mut table = Table::new(&["LAST", "TIMES", "WHAT", "RULE"]);
    for denied in &net.denials {
        let what = denied;
        let target = [what.name.clone(), what.address.clone()].into_iter().flatten();
        let port = what.port.map(|port| format!("port {port}"));
        let parts: Vec<String> = std::iter::once(what.protocol.clone()).chain(target).chain(port).collect();
        let last = human::age(Some(denied.last_ms.div_euclid(1000)));
        table.row([last, denied.count.to_string(), parts.join(" "), what.rule.clone()]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_told() {
        let net = serde_json::json!({
            "connected": true, "address": "10.213.0.3", "gateway": "10.213.0.2", "mtu": 1500,
            "policy": {"mode": "custom", "allowed_domains": ["a.example"], "denied_cidrs": null},
            "sent": {"packets": 2, "bytes": 3000}, "connections": [], "connections_total": 0,
            "denials": [{"rule": "not in allowed_domains", "protocol": "dns", "name": "evil.example", "count": 7}],
        });
        let net: BoxNetwork = serde_json::from_value(net).expect("an answer");
        let text = text("b", &net);
        for part in ["10.213.0.3", "custom; domains: a.example", "in 2 packets", "dns evil.example", "not in allowed"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
