//! Samples, their percentiles, the printed table and the JSON of a report.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

/// What was measured of one candidate.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) name: String,
    values: Vec<f64>,
    /// A remark that the reader needs: what this candidate does not do.
    pub(super) note: &'static str,
}

impl Case {
    pub(super) fn new(name: impl Into<String>, note: &'static str) -> Self {
        Self { name: name.into(), values: Vec::new(), note }
    }

    pub(super) fn add(&mut self, sample: Duration) {
        self.add_value(sample.as_secs_f64() * 1e3);
    }

    pub(super) fn add_value(&mut self, value: f64) {
        self.values.push(value);
    }

    pub(super) fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// Nearest-rank percentile; NaN without samples.
    pub(super) fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
    }
}

/// A mark that the project wants to reach, and what was reached.
#[derive(Debug, Clone)]
struct Mark {
    text: String,
    reached: f64,
    wanted: f64,
}

/// A table.
#[derive(Debug, Clone)]
pub(super) struct Report {
    title: String,
    unit: &'static str,
    cases: Vec<Case>,
    base: Option<String>,
    marks: Vec<Mark>,
    notes: Vec<String>,
}

impl Report {
    pub(super) fn new(title: impl Into<String>, unit: &'static str, cases: Vec<Case>) -> Self {
        Self { title: title.into(), unit, cases, base: None, marks: Vec::new(), notes: Vec::new() }
    }

    /// Adds a column: how many times as long as `base`.
    pub(super) fn ratio_to(mut self, base: &str) -> Self {
        self.base = Some(base.to_owned());
        self
    }

    pub(super) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// A figure that should be at most `wanted`.
    pub(super) fn mark(mut self, text: impl Into<String>, reached: f64, wanted: f64) -> Self {
        self.marks.push(Mark { text: text.into(), reached, wanted });
        self
    }

    fn ratio(&self, case: &Case) -> Option<f64> {
        let base = self.cases.iter().find(|c| Some(&c.name) == self.base.as_ref())?;
        let ratio = case.median() / base.median();
        ratio.is_finite().then_some(ratio)
    }

    fn to_json(&self) -> Value {
        let cases: Vec<Value> = self.cases.iter().map(|case| {
            json!({
                "name": case.name, "n": case.values.len(), "median": case.median(), "p10": case.percentile(10),
                "p90": case.percentile(90), "p99": case.percentile(99), "ratio": self.ratio(case), "note": case.note,
                "samples": case.values,
            })
        }).collect();
        let marks: Vec<Value> = self.marks.iter()
            .map(|m| json!({ "mark": m.text, "wanted_at_most": m.wanted, "reached": m.reached, "met": m.reached <= m.wanted }))
            .collect();
        json!({
            "title": self.title, "unit": self.unit, "ratio_to": self.base, "cases": cases, "marks": marks, "notes": self.notes,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{} ({})", self.title, self.unit)?;
        let width = self.cases.iter().map(|c| c.name.chars().count()).max().unwrap_or(0).max(8);
        write!(f, "  {:width$}  {:>5} {:>10} {:>10} {:>10} {:>10}", "", "n", "median", "p10", "p90", "p99")?;
        if let Some(base) = &self.base {
            write!(f, "  × {base}")?;
        }
        writeln!(f)?;
        for case in &self.cases {
            write!(f, "  {:width$}  {:>5}", case.name, case.values.len())?;
            for value in [case.median(), case.percentile(10), case.percentile(90), case.percentile(99)] {
                write!(f, " {value:>10.3}")?;
            }
            match self.ratio(case) {
                Some(ratio) => write!(f, "  {ratio:>6.2}")?,
                None if self.base.is_some() => write!(f, "       –")?,
                None => {}
            }
            let gap = if case.note.is_empty() { "" } else { "  " };
            writeln!(f, "{gap}{}", case.note)?;
        }
        for mark in &self.marks {
            let met = if mark.reached <= mark.wanted { "reached" } else { "MISSED" };
            writeln!(f, "  {met}: {} = {:.3}, mark {}", mark.text, mark.reached, mark.wanted)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "  note: {note}"))
    }
}

/// The machine in one line.
pub(super) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let model = read("/proc/cpuinfo");
    let model =
        model.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("").trim_start_matches([' ', '\t', ':']);
    let memory = read("/proc/meminfo");
    let memory = memory.lines().next().unwrap_or("").split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok());
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or("?");
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("machine: {cpus} × {model}, {} MB, Linux {}, load {load}", memory.unwrap_or(0) / 1024, kernel.trim())
}

/// The document of one benchmark.
pub(super) fn to_json(name: &str, reports: &[Report]) -> Value {
    json!({ "benchmark": name, "machine": machine(), "reports": reports.iter().map(Report::to_json).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let mut case = Case::new("x", "");
        for value in (1..=100).rev() {
            case.add_value(f64::from(value));
        }
        let got = [10, 50, 90, 99, 100].map(|p| case.percentile(p));
        assert_eq!(got, [10.0, 50.0, 90.0, 99.0, 100.0]);
        assert!(Case::new("empty", "").median().is_nan());
    }

    #[test]
    fn ratios_and_marks_are_in_the_table_and_in_the_json() {
        let mut slow = Case::new("slow", "");
        let mut quick = Case::new("quick", "no seccomp");
        slow.add_value(10.0);
        quick.add_value(4.0);
        let report = Report::new("title", "ms", vec![slow, quick]).ratio_to("slow").mark("quick", 4.0, 3.0);
        let text = report.to_string();
        assert!(text.contains("0.40") && text.contains("MISSED") && text.contains("no seccomp"), "{text}");
        assert_eq!(report.to_json()["cases"][1]["ratio"], 0.4);
        assert_eq!(report.to_json()["marks"][0]["met"], false);
    }
}
