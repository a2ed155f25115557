//! Counters for Prometheus. No label contains data of a tenant, except for the counters of boxes' networks: these are
//! shown on the local machine only (see `http::system`).

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use icebox_shim::handle::{BoxPressure, Footprint};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::events::{Event, Fact, Sink};
use icebox_net::dns::DnsCounters;
use icebox_net::egress::EgressCounters;
use icebox_net::firewall::Counters;

/// Upper bounds in seconds: from a wake (tenths of milliseconds) to a slow request.
const SECONDS: [f64; 14] = [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 300.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    status: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RunLabels {
    status: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BoxLabels {
    status: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReadyLabels {
    runtime: String,
    size: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NetLabels {
    box_id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StallLabels {
    resource: String,
    tasks: String,
}

/// All counters of a daemon.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Histogram,
    runs: Family<RunLabels, Counter>,
    run_seconds: Histogram,
    boxes: Family<BoxLabels, Gauge>,
    ready: Family<ReadyLabels, Gauge>,
    ready_taken: Counter,
    ready_missed: Counter,
    created_seconds: Histogram,
    launch_seconds: Histogram,
    wake_seconds: Histogram,
    freeze_seconds: Histogram,
    deleted: Counter,
    reclaim_seconds: Histogram,
    reclaimed_bytes: Counter,
    memory_bytes: Gauge,
    swap_bytes: Gauge,
    stalled_seconds: Family<StallLabels, Counter<f64, AtomicU64>>,
    connections: Gauge,
    proc_held: Counter,
    proc_written: Counter,
    passed: Family<NetLabels, Counter>,
    net_sent: Family<NetLabels, Counter>,
    net_received: Family<NetLabels, Counter>,
    net_refused: Family<NetLabels, Counter>,
    net_denials: Family<NetLabels, Counter>,
    dns_questions: Counter,
    dns_failures: Counter,
    egress_connections: Counter,
    egress_open: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let histogram = || Histogram::new(SECONDS);
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("icebox")),
            requests: Family::default(),
            request_seconds: histogram(),
            runs: Family::default(),
            run_seconds: histogram(),
            boxes: Family::default(),
            ready: Family::default(),
            ready_taken: Counter::default(),
            ready_missed: Counter::default(),
            created_seconds: histogram(),
            launch_seconds: histogram(),
            wake_seconds: histogram(),
            freeze_seconds: histogram(),
            deleted: Counter::default(),
            reclaim_seconds: histogram(),
            reclaimed_bytes: Counter::default(),
            memory_bytes: Gauge::default(),
            swap_bytes: Gauge::default(),
            stalled_seconds: Family::default(),
            connections: Gauge::default(),
            proc_held: Counter::default(),
            proc_written: Counter::default(),
            passed: Family::default(),
            net_sent: Family::default(),
            net_received: Family::default(),
            net_refused: Family::default(),
            net_denials: Family::default(),
            dns_questions: Counter::default(),
            dns_failures: Counter::default(),
            egress_connections: Counter::default(),
            egress_open: Gauge::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register("requests", "Requests answered, by route and status", self.requests.clone());
        registry.register("runs", "Runs ended, by status", self.runs.clone());
        registry.register("boxes", "Boxes now, by status", self.boxes.clone());
        registry.register("boxes_deleted", "Boxes deleted", self.deleted.clone());
        registry.register("ready_boxes", "Ready boxes now, by runtime and size", self.ready.clone());
        registry.register("ready_boxes_taken", "Creations that took a ready box", self.ready_taken.clone());
        let missed = self.ready_missed.clone();
        registry.register("ready_boxes_missed", "Creations that found no ready box of a kind that is kept", missed);
        registry.register("connections", "Connections open now", self.connections.clone());
        let (held, written) = (self.proc_held.clone(), self.proc_written.clone());
        registry.register("proc_files_held", "Times a reader of a file of /proc in a box was held up", held);
        registry.register("proc_files_written", "Times such a file was written for a reader", written);
        let (memory, swap) = (self.memory_bytes.clone(), self.swap_bytes.clone());
        registry.register_with_unit("memory", "Memory that all boxes use now, asleep or awake", Unit::Bytes, memory);
        registry.register_with_unit("swap", "Memory of all boxes that is swapped out now", Unit::Bytes, swap);
        let reclaimed = self.reclaimed_bytes.clone();
        registry.register_with_unit("reclaimed", "Memory taken from sleeping boxes", Unit::Bytes, reclaimed);
        let (help, stalled) = ("Time in which boxes stood still for want of something", self.stalled_seconds.clone());
        registry.register_with_unit("stalled", help, Unit::Seconds, stalled);
        for (name, help, family) in [
            ("box_sent", "What a box has sent since it was started", &self.net_sent),
            ("box_received", "What has reached it", &self.net_received),
        ] {
            registry.register_with_unit(name, help, Unit::Bytes, family.clone());
        }
        let passed = self.passed.clone();
        registry.register_with_unit("box_passed", "What the daemon has passed on for a box", Unit::Bytes, passed);
        registry.register(
            "box_refused_packets",
            "Packets that the firewall has refused a box",
            self.net_refused.clone(),
        );
        registry.register("box_denials", "Refusals of firewall, DNS and egress proxy", self.net_denials.clone());
        registry.register("dns_questions", "Questions of boxes to the DNS proxy", self.dns_questions.clone());
        registry.register("dns_upstream_failures", "DNS servers that gave no answer", self.dns_failures.clone());
        registry.register(
            "egress_connections",
            "Connections through the egress proxy",
            self.egress_connections.clone(),
        );
        registry.register("egress_open", "Connections through the egress proxy now", self.egress_open.clone());
        let mut time = |name: &str, help: &str, histogram: &Histogram| {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        };
        time("request", "Time to the head of an answer", &self.request_seconds);
        time("run", "Wall time of runs", &self.run_seconds);
        time("create", "Time to create a box", &self.created_seconds);
        time("launch", "Time to start a box", &self.launch_seconds);
        time("wake", "Time to thaw a box", &self.wake_seconds);
        time("freeze", "Time to freeze a box", &self.freeze_seconds);
        time("reclaim", "Time to take the memory of a sleeping box", &self.reclaim_seconds);
    }

    /// A request was answered.
    pub fn request(&self, route: &str, status: u16, took: Duration) {
        let labels = RequestLabels { route: route.to_owned(), status: u32::from(status) };
        self.requests.get_or_create(&labels).inc();
        self.request_seconds.observe(took.as_secs_f64());
    }

    /// This many bytes were reclaimed from a sleeping box.
    pub fn reclaimed(&self, bytes: u64, took: Duration) {
        self.reclaimed_bytes.inc_by(bytes);
        self.reclaim_seconds.observe(took.as_secs_f64());
    }

    /// Usage and pressure of all boxes together, as the kernel counts them.
    pub fn set_together(&self, footprint: &Footprint, pressure: &BoxPressure) {
        self.memory_bytes.set(i64::try_from(footprint.memory).unwrap_or(i64::MAX));
        self.swap_bytes.set(i64::try_from(footprint.swap).unwrap_or(i64::MAX));
        for (resource, read) in [("cpu", pressure.cpu), ("memory", pressure.memory), ("io", pressure.io)] {
            let Some(read) = read else { continue };
            for (tasks, stall) in [("some", read.some), ("all", read.full)] {
                let labels = StallLabels { resource: resource.to_owned(), tasks: tasks.to_owned() };
                // The kernel's counter, so it is set and not added to.
                let seconds = Duration::from_micros(stall.total_usec).as_secs_f64();
                self.stalled_seconds.get_or_create(&labels).inner().store(seconds.to_bits(), Ordering::Relaxed);
            }
        }
    }

    /// A creation of a kind that is kept ready was given a ready box, or found none.
    pub fn ready_taken(&self, found: bool) {
        if found { &self.ready_taken } else { &self.ready_missed }.inc();
    }

    /// The ready boxes: runtime, size and number.
    pub fn set_ready(&self, ready: impl IntoIterator<Item = (String, &'static str, u32)>) {
        for (runtime, size, count) in ready {
            let labels = ReadyLabels { runtime, size: size.to_owned() };
            self.ready.get_or_create(&labels).set(i64::from(count));
        }
    }

    /// The kernel's counters of boxes' networks; boxes that are not in the list are removed.
    pub fn set_box_networks(&self, boxes: &[(String, Counters, u64)]) {
        let families = [&self.net_sent, &self.net_received, &self.net_refused, &self.net_denials];
        families.iter().for_each(|family| family.clear());
        for (box_id, counters, denials) in boxes {
            let values = [counters.sent.bytes, counters.received.bytes, counters.refused.packets, *denials];
            for (family, value) in families.iter().zip(values) {
                let labels = NetLabels { box_id: box_id.clone() };
                family.get_or_create(&labels).inner().store(value, Ordering::Relaxed);
            }
        }
    }

    /// The bytes that the daemon has relayed for each box: output, downloads, public URLs. Boxes that are not in the
    /// list are removed.
    pub fn set_passed(&self, boxes: &[(String, u64)]) {
        self.passed.clear();
        for (box_id, bytes) in boxes {
            let labels = NetLabels { box_id: box_id.clone() };
            self.passed.get_or_create(&labels).inner().store(*bytes, Ordering::Relaxed);
        }
    }

    /// The counters of the proxies.
    pub fn set_proxies(&self, dns: &DnsCounters, egress: &EgressCounters) {
        self.dns_questions.inner().store(dns.questions, Ordering::Relaxed);
        self.dns_failures.inner().store(dns.upstream_failures, Ordering::Relaxed);
        self.egress_connections.inner().store(egress.accepted, Ordering::Relaxed);
        self.egress_open.set(i64::try_from(egress.open).unwrap_or(i64::MAX));
    }

    /// How often readers of files of `/proc` in boxes were held up, and files written for them.
    pub fn set_proc_files(&self, (held, written): (u64, u64)) {
        self.proc_held.inner().store(held, Ordering::Relaxed);
        self.proc_written.inner().store(written, Ordering::Relaxed);
    }

    /// The number of open connections.
    pub fn set_connections(&self, open: i64) {
        self.connections.set(open);
    }

    /// The text that Prometheus reads. `boxes` has the number of boxes by status.
    #[must_use]
    pub fn text(&self, boxes: &[(&'static str, i64)]) -> String {
        for (status, count) in boxes {
            self.boxes.get_or_create(&BoxLabels { status: (*status).to_owned() }).set(*count);
        }
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}

/// Counts what happens, by the events.
impl Sink for Metrics {
    fn take(&self, event: &Event) {
        match &event.fact {
            Fact::Created { took, launch, .. } => {
                self.created_seconds.observe(took.as_secs_f64());
                self.launch_seconds.observe(launch.as_secs_f64());
            }
            Fact::Started { launch, .. } => self.launch_seconds.observe(launch.as_secs_f64()),
            Fact::Frozen { took, .. } | Fact::Paused { took } => self.freeze_seconds.observe(took.as_secs_f64()),
            Fact::Thawed { took } => self.wake_seconds.observe(took.as_secs_f64()),
            Fact::Deleted => {
                self.deleted.inc();
            }
            // The end of a run that no daemon has seen is in no counter: its time is unknown.
            Fact::RunEnded(end) if end.exit_code.is_some() => {
                self.runs.get_or_create(&RunLabels { status: end.state.as_str().to_owned() }).inc();
                let took = Duration::from_millis(u64::try_from(end.duration_ms).unwrap_or(0));
                self.run_seconds.observe(took.as_secs_f64());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use icebox_shim::handle::{Pressure, Stall};

    use super::*;

    #[test]
    fn the_text_has_every_family() {
        let metrics = Metrics::default();
        metrics.request("/v2/box", 200, Duration::from_millis(3));
        metrics.take(&Event::now("a", "account", Fact::Thawed { took: Duration::from_millis(1) }));
        let stall = Stall { total_usec: 1_500_000, ..Stall::default() };
        let io = Some(Pressure { some: stall, full: Stall::default() });
        metrics.set_together(&Footprint { memory: 4096, swap: 0 }, &BoxPressure { io, ..BoxPressure::default() });
        let sent = icebox_net::firewall::Count { packets: 1, bytes: 77 };
        let counters = Counters { sent, ..Counters::default() };
        metrics.set_box_networks(&[("a".to_owned(), counters, 3), ("gone".to_owned(), counters, 0)]);
        metrics.set_box_networks(&[("a".to_owned(), counters, 3)]);
        metrics.set_passed(&[("a".to_owned(), 99)]);
        metrics.set_proc_files((12, 5));
        metrics.set_ready([("node".to_owned(), "small", 3)]);
        metrics.ready_taken(true);
        let text = metrics.text(&[("idle", 2)]);
        assert!(!text.contains("gone"), "{text}");
        for part in [
            "icebox_box_sent_bytes_total{box_id=\"a\"} 77",
            "icebox_box_passed_bytes_total{box_id=\"a\"} 99",
            "icebox_proc_files_held_total 12",
            "icebox_proc_files_written_total 5",
            "icebox_box_denials_total{box_id=\"a\"} 3",
            "icebox_requests_total{route=\"/v2/box\",status=\"200\"} 1",
            "icebox_boxes{status=\"idle\"} 2",
            "icebox_ready_boxes{runtime=\"node\",size=\"small\"} 3",
            "icebox_ready_boxes_taken_total 1",
            "icebox_ready_boxes_missed_total 0",
            "icebox_wake_seconds_bucket",
            "icebox_memory_bytes 4096",
            "icebox_stalled_seconds_total{resource=\"io\",tasks=\"some\"} 1.5",
            "# EOF",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
