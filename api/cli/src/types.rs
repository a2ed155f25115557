//! What the server answers, as far as tables need it.
//!
//! Lenient on purpose: a field that is missing or null is its default, so that an older or newer server still gives a
//! table. Programs get the server's own JSON (`--json`), not these.

use serde::{Deserialize, Deserializer};

/// Null reads as the default, just as an absent key does.
fn lenient<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(input: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

/// A box.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct BoxData {
    pub(crate) id: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) status: String,
    pub(crate) name: Option<String>,
    pub(crate) size: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) labels: Vec<String>,
    pub(crate) keep_alive: Option<bool>,
    pub(crate) created_at: Option<i64>,
    pub(crate) last_activity_at: Option<i64>,
    pub(crate) total_cpu_ns: Option<u64>,
    pub(crate) total_compute_cost_usd: Option<f64>,
    pub(crate) expires_at: Option<i64>,
    pub(crate) kept: Option<Kept>,
}

/// The owner keeps a box awake.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Kept {
    /// Unix milliseconds of the end, if it has one.
    pub(crate) until_ms: Option<i64>,
}

impl Kept {
    /// In words.
    pub(crate) fn text(self, now_seconds: i64) -> String {
        match self.until_ms {
            Some(until_ms) => {
                let left = u64::try_from(until_ms.div_euclid(1000) - now_seconds).unwrap_or(0);
                format!("kept awake for {}", super::human::span(left))
            }
            None => "kept awake".to_owned(),
        }
    }
}

impl BoxData {
    /// What people call it.
    pub(crate) fn title(&self) -> &str {
        self.name.as_deref().filter(|name| !name.is_empty()).unwrap_or(&self.id)
    }
}

/// Answer of exec and code.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ExecResult {
    pub(crate) exit_code: Option<i64>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) output: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) error: String,
}

/// `{logs: […]}`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct LogPage {
    #[serde(deserialize_with = "lenient")]
    pub(crate) logs: Vec<LogEntry>,
}

/// A line of the log of a box.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct LogEntry {
    pub(crate) timestamp: i64,
    #[serde(deserialize_with = "lenient")]
    pub(crate) level: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) source: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) message: String,
}

/// `{runs: […]}`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RunPage {
    #[serde(deserialize_with = "lenient")]
    pub(crate) runs: Vec<RunData>,
}

/// A public URL that was just made.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct OpenedUrl {
    #[serde(deserialize_with = "lenient")]
    pub(crate) url: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) host_url: String,
    pub(crate) token: Option<String>,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<String>,
}

/// `{previews: […]}`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct UrlList {
    #[serde(deserialize_with = "lenient")]
    pub(crate) previews: Vec<UrlItem>,
}

/// A public URL.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct UrlItem {
    pub(crate) port: u16,
    #[serde(deserialize_with = "lenient")]
    pub(crate) url: String,
    pub(crate) created_at: Option<i64>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) basic_auth: bool,
    #[serde(deserialize_with = "lenient")]
    pub(crate) bearer_token: bool,
}

/// A run of a box.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RunData {
    pub(crate) id: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) status: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) prompt: String,
    pub(crate) cpu_ns: Option<u64>,
    pub(crate) memory_peak_bytes: Option<u64>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) duration_ms: f64,
    pub(crate) created_at: Option<i64>,
    pub(crate) exit_code: Option<i64>,
    pub(crate) error_message: Option<String>,
}

/// `{files: […]}`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct FilePage {
    #[serde(deserialize_with = "lenient")]
    pub(crate) files: Vec<FileEntry>,
}

/// An entry of a directory in a box.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct FileEntry {
    pub(crate) name: String,
    pub(crate) is_dir: bool,
}

/// What a path in a box is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct FileStat {
    #[serde(rename = "type", deserialize_with = "lenient")]
    pub(crate) kind: String,
}

impl FileStat {
    /// Whether it is a directory.
    pub(crate) fn is_directory(&self) -> bool {
        self.kind == "directory"
    }
}

/// What a box cost.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct BoxBill {
    #[serde(deserialize_with = "lenient")]
    pub(crate) id: String,
    pub(crate) name: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) status: String,
    pub(crate) storage_bytes: Option<u64>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) core_seconds: f64,
    #[serde(deserialize_with = "lenient")]
    pub(crate) gb_hours: f64,
    #[serde(deserialize_with = "lenient")]
    pub(crate) cpu_dollars: f64,
    #[serde(deserialize_with = "lenient")]
    pub(crate) storage_dollars: f64,
    #[serde(deserialize_with = "lenient")]
    pub(crate) total_dollars: f64,
}

/// A snapshot.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Snapshot {
    #[serde(deserialize_with = "lenient")]
    pub(crate) id: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) name: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) box_id: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) status: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) size_bytes: u64,
    pub(crate) created_at: Option<i64>,
    pub(crate) error: Option<String>,
}

/// Answer of the lists of snapshots.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Snapshots {
    #[serde(deserialize_with = "lenient")]
    pub(crate) snapshots: Vec<Snapshot>,
}

/// What the snapshots or the volumes of an account cost.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct KeptBill {
    pub(crate) count: u64,
    pub(crate) gb_hours: f64,
    pub(crate) storage_dollars: f64,
}

/// What an account cost.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Usage {
    #[serde(deserialize_with = "lenient")]
    pub(crate) boxes: Vec<BoxBill>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) totals: BoxBill,
    pub(crate) snapshots: Option<KeptBill>,
    pub(crate) volumes: Option<KeptBill>,
    pub(crate) prices: Option<Prices>,
}

/// What a bill was computed with.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Prices {
    pub(crate) dollars_per_core_hour: f64,
    pub(crate) dollars_per_gb_month: f64,
}

/// What keeps a box awake, or what it waits for.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Why {
    #[serde(deserialize_with = "lenient")]
    pub(crate) status: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) awake_because: Vec<String>,
    pub(crate) freezes_in_seconds: Option<f64>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) waiting_for: Vec<String>,
}

/// What a reclaim has done.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Reclaimed {
    pub(crate) memory_before: u64,
    pub(crate) memory_after: u64,
    pub(crate) swap_after: u64,
    pub(crate) cut_short: bool,
}

/// What a box uses at the moment.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TopData {
    pub(crate) cpu_usec: Option<u64>,
    pub(crate) memory_current: Option<u64>,
    pub(crate) memory_peak: Option<u64>,
    pub(crate) pids: Option<u64>,
    pub(crate) frozen: Option<bool>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) processes: Vec<Process>,
}

/// A process of a box.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Process {
    pub(crate) pid: i64,
    #[serde(deserialize_with = "lenient")]
    pub(crate) comm: String,
}

/// The network of a box.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct BoxNetwork {
    pub(crate) connected: bool,
    pub(crate) address: Option<String>,
    pub(crate) gateway: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) policy: NetworkPolicy,
    #[serde(deserialize_with = "lenient")]
    pub(crate) sent: Counted,
    #[serde(deserialize_with = "lenient")]
    pub(crate) received: Counted,
    #[serde(deserialize_with = "lenient")]
    pub(crate) refused: Counted,
    #[serde(deserialize_with = "lenient")]
    pub(crate) connections: Vec<BoxConnection>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) connections_total: u64,
    #[serde(deserialize_with = "lenient")]
    pub(crate) denials: Vec<Denied>,
}

/// What a box may reach.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NetworkPolicy {
    #[serde(deserialize_with = "lenient")]
    pub(crate) mode: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) allowed_domains: Vec<String>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) allowed_cidrs: Vec<String>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) denied_cidrs: Vec<String>,
}

/// Packets and their bytes.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Counted {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// An open connection of a box.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct BoxConnection {
    #[serde(deserialize_with = "lenient")]
    pub(crate) protocol: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) address: String,
    pub(crate) port: Option<u16>,
    pub(crate) state: Option<String>,
}

/// A refused connection or name, with how often it was tried.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Denied {
    #[serde(deserialize_with = "lenient")]
    pub(crate) rule: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) protocol: String,
    pub(crate) address: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) name: Option<String>,
    pub(crate) count: u64,
    pub(crate) last_ms: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_absent_and_unknown_fields_are_all_fine() {
        let data: BoxData =
            serde_json::from_str(r#"{"id":"a-b-1","status":null,"labels":null,"name":null,"invented_later":{"x":1}}"#)
                .expect("reads");
        assert_eq!(data.title(), "a-b-1");
        let usage: Usage = serde_json::from_str(r#"{"account":"x","boxes":null}"#).expect("reads");
        assert!(usage.boxes.is_empty());
        let top: TopData = serde_json::from_str("{}").expect("reads");
        assert!(top.processes.is_empty());
    }

    #[test]
    fn an_empty_name_is_no_name() {
        let data: BoxData = serde_json::from_str(r#"{"id":"a-b-1","name":""}"#).expect("reads");
        assert_eq!(data.title(), "a-b-1");
    }
}
