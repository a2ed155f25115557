//! Measures the network of boxes in the closed world of the tests, for `cargo xtask bench net`. Prints one JSON report per
//! line: title, unit, cases with their samples, marks, notes. All candidates of a report are measured in turns.
//!
//! The clients are threads of this program that have entered a box's network namespace: what is measured is the way of
//! the packets, not the language of a program in a box. Servers that have to freeze live in the boxes.

mod fleet;
mod places;
mod tls;
mod urls;
mod way;

use serde_json::{Value, json};

/// What was measured of one candidate.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) note: &'static str,
    pub(crate) samples: Vec<f64>,
}

impl Case {
    pub(crate) fn new(name: impl Into<String>, note: &'static str) -> Self {
        Self { name: name.into(), note, samples: Vec::new() }
    }

    /// Nearest-rank percentile.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
    }
}

/// Something that should be at most so much.
pub(crate) struct Mark {
    pub(crate) text: &'static str,
    pub(crate) reached: f64,
    pub(crate) wanted: f64,
}

pub(crate) fn report(
    title: &str,
    unit: &'static str,
    base: Option<&str>,
    cases: &[Case],
    marks: &[Mark],
    notes: &[String],
) {
    let cases: Vec<Value> =
        cases.iter().map(|c| json!({ "name": c.name, "note": c.note, "samples": c.samples })).collect();
    let marks: Vec<Value> =
        marks.iter().map(|m| json!({ "text": m.text, "reached": m.reached, "wanted": m.wanted })).collect();
    println!(
        "{}",
        json!({ "title": title, "unit": unit, "base": base, "cases": cases, "marks": marks, "notes": notes })
    );
}

/// Measures for so many rounds, and reports.
type Part = fn(usize);

fn main() {
    // Rounds, so that a trial run can be short.
    let rounds = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(20);
    let only: Vec<String> = std::env::args().skip(2).collect();
    let parts: [(&str, Part); 4] =
        [("way", way::measure), ("fleet", fleet::measure), ("tls", tls::measure), ("urls", urls::measure)];
    for (name, part) in parts {
        if only.is_empty() || only.iter().any(|o| o == name) {
            eprintln!("measuring {name} …");
            part(rounds);
        }
    }
}
