//! Automatic snapshots of a box: how many are kept, which are surplus, and when the next one is due.

use serde::{Deserialize, Serialize};

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
const WEEK_MS: i64 = 7 * DAY_MS;
/// Most snapshots of one rule.
const KEPT_MAX: u32 = 200;

/// How many automatic snapshots are kept: the newest of each of the last hours, days and weeks (UTC) that have one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepRules {
    /// Hours.
    pub hourly: u32,
    /// Days.
    pub daily: u32,
    /// Weeks.
    pub weekly: u32,
}

/// The automatic snapshots of a box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// The box.
    pub box_id: String,
    /// How many are kept.
    pub rules: KeepRules,
    /// Unix milliseconds of the next one.
    pub due_ms: i64,
    /// When the disk was last written, as of the last one; `None` before the first.
    pub mark: Option<String>,
    /// Why the last attempt failed.
    pub error: Option<String>,
}

impl KeepRules {
    fn rules(self) -> [(u32, i64); 3] {
        [(self.hourly, HOUR_MS), (self.daily, DAY_MS), (self.weekly, WEEK_MS)]
    }

    /// Checks the numbers; the error describes the problem.
    pub fn check(self) -> Result<(), String> {
        if self.rules().iter().any(|(count, _)| *count > KEPT_MAX) {
            return Err(format!("keep: each of hourly, daily and weekly must be 0 to {KEPT_MAX}"));
        }
        if self.rules().iter().all(|(count, _)| *count == 0) {
            return Err("keep: one of hourly, daily and weekly must be at least 1".to_owned());
        }
        Ok(())
    }

    /// Milliseconds between two snapshots: those of the shortest rule.
    #[must_use]
    pub fn period_ms(self) -> i64 {
        self.rules().iter().find(|(count, _)| *count > 0).map_or(WEEK_MS, |(_, period)| *period)
    }

    /// The ones of these that no rule keeps. `taken`: ids and Unix milliseconds, in any order. The newest is always kept.
    #[must_use]
    pub fn surplus(self, taken: &[(String, i64)]) -> Vec<String> {
        let mut newest_first: Vec<&(String, i64)> = taken.iter().collect();
        newest_first.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| b.0.cmp(&a.0)));
        let mut left = self.rules().map(|(count, period)| (count, period, None));
        let mut surplus = Vec::new();
        for (index, (id, taken_ms)) in newest_first.into_iter().enumerate() {
            let mut kept = index == 0;
            for (count, period, last) in &mut left {
                let span = taken_ms.div_euclid(*period);
                if *count > 0 && *last != Some(span) {
                    (*count, *last, kept) = (*count - 1, Some(span), true);
                }
            }
            if !kept {
                surplus.push(id.clone());
            }
        }
        surplus
    }
}

impl Schedule {
    /// When the next one is due, as seen now: a clock that was set back does not put it off by more than a period.
    #[must_use]
    pub fn due_at(&self, now_ms: i64) -> i64 {
        self.due_ms.min(now_ms + self.rules.period_ms())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: &[i64]) -> Vec<(String, i64)> {
        hours.iter().map(|hour| (hour.to_string(), hour * HOUR_MS + 5)).collect()
    }

    fn kept(rules: KeepRules, hours: &[i64]) -> Vec<i64> {
        let surplus = rules.surplus(&at(hours));
        hours.iter().copied().filter(|hour| !surplus.contains(&hour.to_string())).collect()
    }

    #[test]
    fn the_newest_of_each_span_is_kept() {
        let rules = KeepRules { hourly: 3, daily: 2, weekly: 0 };
        let all: Vec<i64> = (0..60).collect();
        // Three hours, and the last of the day before.
        assert_eq!(kept(rules, &all), [47, 57, 58, 59]);
        assert_eq!(kept(KeepRules { weekly: 1, ..KeepRules::default() }, &all), [59]);
        // Hours without one do not count.
        assert_eq!(kept(rules, &[1, 10, 20, 40]), [10, 20, 40]);
        assert_eq!(kept(KeepRules { daily: 2, ..KeepRules::default() }, &[1, 10, 20, 40]), [20, 40]);
        assert!(rules.surplus(&[]).is_empty());
        // Two of the same hour.
        let twice = [("a".to_owned(), 10), ("b".to_owned(), 20)];
        assert_eq!(KeepRules { hourly: 5, ..KeepRules::default() }.surplus(&twice), ["a"]);
    }

    #[test]
    fn a_schedule_keeps_what_its_rules_say_over_time() {
        let rules = KeepRules { hourly: 24, daily: 7, weekly: 4 };
        let mut taken: Vec<(String, i64)> = Vec::new();
        for hour in 0..24 * 60 {
            taken.push((hour.to_string(), hour * HOUR_MS + 5));
            let surplus = rules.surplus(&taken);
            taken.retain(|(id, _)| !surplus.contains(id));
        }
        // The newest of the last day is one of the hours, and the newest of the last two weeks are some of the days.
        assert_eq!(taken.len(), 24 + 6 + 2, "{taken:?}");
    }

    #[test]
    fn a_clock_that_was_set_back_puts_nothing_off() {
        let rules = KeepRules { hourly: 1, ..KeepRules::default() };
        let schedule = Schedule { box_id: "b".into(), rules, due_ms: 100 * DAY_MS, mark: None, error: None };
        assert_eq!(schedule.due_at(0), HOUR_MS);
        assert_eq!(schedule.due_at(200 * DAY_MS), 100 * DAY_MS);
    }

    #[test]
    fn rules_have_bounds() {
        for (hourly, daily, good) in [(1, 0, true), (0, 0, false), (0, KEPT_MAX, true), (KEPT_MAX + 1, 1, false)] {
            assert_eq!(KeepRules { hourly, daily, weekly: 0 }.check().is_ok(), good);
        }
        assert_eq!(KeepRules { daily: 1, weekly: 1, hourly: 0 }.period_ms(), DAY_MS);
    }
}
