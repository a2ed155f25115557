//! `/proc/cpuinfo`, `stat` and `loadavg` of a box's processors, which are numbered from 0.

use std::fmt::Write as _;
use std::time::Duration;

/// Ticks of a second in files of `/proc` (`USER_HZ`), on every architecture that boxes run on.
const TICK: Duration = Duration::from_millis(10);
/// The averages of `loadavg`: over one, five and fifteen minutes.
const PERIODS: [f64; 3] = [60.0, 300.0, 900.0];
/// The shortest time that makes a new average.
const LOAD_SECONDS_MIN: f64 = 0.5;

/// Processor time of a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Cpu {
    pub(super) user: Duration,
    pub(super) system: Duration,
}

/// The descriptions of these processors of the host, as those of one package with these cores.
pub(super) fn cpuinfo(host: &str, cpus: &[u32]) -> String {
    let count = cpus.len();
    let mut text = String::new();
    let mut next = 0;
    for block in host.split_inclusive("\n\n") {
        if !number_of(block).is_some_and(|number| cpus.contains(&number)) {
            continue;
        }
        for line in block.lines() {
            let key = line.split(':').next().unwrap_or_default();
            let new = match key.trim_end() {
                "processor" | "core id" | "apicid" | "initial apicid" => next,
                "physical id" => 0,
                "siblings" | "cpu cores" => count,
                _ => {
                    let _ = writeln!(text, "{line}");
                    continue;
                }
            };
            let _ = writeln!(text, "{key}: {new}");
        }
        next += 1;
    }
    text
}

/// The number in the line `processor : 3`.
fn number_of(block: &str) -> Option<u32> {
    let (key, value) = block.lines().next()?.split_once(':')?;
    (key.trim() == "processor").then(|| value.trim().parse().ok())?
}

/// `/proc/stat`. The kernel counts a box's time for all processors together, so each has an equal share of it. A cgroup
/// has no number of interrupts, context switches and forks: these are 0. The one process that runs is the reader.
pub(super) fn stat(processors: usize, cpu: Cpu, idle: Duration, boot: u64) -> String {
    let all = [cpu.user, cpu.system, idle].map(ticks);
    let count = processors.max(1) as u64;
    let mut text = String::new();
    let mut line = |name: &str, [user, system, idle]: [u64; 3]| {
        let _ = writeln!(text, "{name} {user} 0 {system} {idle} 0 0 0 0 0 0");
    };
    line("cpu ", all);
    for index in 0..count {
        // The shares of a sum that is not divisible differ by one tick.
        line(&format!("cpu{index}"), all.map(|sum| sum / count + u64::from(index < sum % count)));
    }
    let _ = write!(
        text,
        "intr 0\nctxt 0\nbtime {boot}\nprocesses 0\nprocs_running 1\nprocs_blocked 0\n\
         softirq 0 0 0 0 0 0 0 0 0 0 0\n"
    );
    text
}

/// The number of processors in a text of [`stat`].
pub(super) fn count(stat: &str) -> usize {
    stat.lines().filter(|line| line.strip_prefix("cpu").is_some_and(|rest| !rest.starts_with(' '))).count()
}

fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_nanos() / TICK.as_nanos()).unwrap_or(u64::MAX)
}

/// The load averages: how many processors the box used, averaged over a minute, five and fifteen.
///
/// The kernel has no load average of a cgroup. Between two readings of the box's processor time the mean is exact, so
/// the readings that the daemon takes anyway are enough, and time asleep decays by the next one. Tasks that only wait
/// for a processor or a disk are not in it.
#[derive(Debug)]
pub(super) struct Load {
    at: Duration,
    used: Duration,
    averages: [f64; 3],
}

impl Load {
    /// Of a box that started at this time.
    pub(super) fn new(at: Duration) -> Self {
        Self { at, used: Duration::ZERO, averages: [0.0; 3] }
    }

    /// Takes a reading: `used` is all that the box has used by `now`.
    pub(super) fn update(&mut self, now: Duration, used: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        if passed < LOAD_SECONDS_MIN {
            return;
        }
        let mean = used.saturating_sub(self.used).as_secs_f64() / passed;
        for (average, period) in self.averages.iter_mut().zip(PERIODS) {
            let kept = (-passed / period).exp();
            *average = *average * kept + mean * (1.0 - kept);
        }
        (self.at, self.used) = (now, used);
    }

    /// `/proc/loadavg`. The one task that is told to run is the reader. The last process id is not known outside the
    /// box's pid namespace: 0.
    pub(super) fn text(&self, tasks: u64) -> String {
        let [one, five, fifteen] = self.averages;
        format!("{one:.2} {five:.2} {fifteen:.2} 1/{} 0\n", tasks.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn stat_shares_the_time_among_the_processors() {
        let cpu = Cpu { user: seconds(2.01), system: seconds(1.02) };
        let text = stat(2, cpu, seconds(10.5), 1_700_000_000);
        let expected = "\
cpu  201 0 102 1050 0 0 0 0 0 0
cpu0 101 0 51 525 0 0 0 0 0 0
cpu1 100 0 51 525 0 0 0 0 0 0
intr 0
ctxt 0
btime 1700000000
processes 0
procs_running 1
procs_blocked 0
softirq 0 0 0 0 0 0 0 0 0 0 0
";
        assert_eq!(text, expected);
        assert_eq!(count(&text), 2);
        assert_eq!(count(&stat(0, cpu, seconds(1.0), 1)), 1, "there is no machine without a processor");
    }

    #[test]
    fn cpuinfo_has_the_wanted_processors_numbered_from_0() {
        let block = |number: u32| {
            format!(
                "processor\t: {number}\nmodel name\t: A {number}\nphysical id\t: 1\nsiblings\t: 12\ncore id\t\t: {number}\n\
                 cpu cores\t: 6\nflags\t\t: fpu: x\n\n"
            )
        };
        let host: String = (0..12).map(block).collect();
        let told = |index: u32, number: u32| {
            format!(
                "processor\t: {index}\nmodel name\t: A {number}\nphysical id\t: 0\nsiblings\t: 2\ncore id\t\t: {index}\n\
                 cpu cores\t: 2\nflags\t\t: fpu: x\n\n"
            )
        };
        assert_eq!(cpuinfo(&host, &[1, 10]), told(0, 1) + &told(1, 10));
    }

    #[test]
    fn the_load_is_the_mean_use_and_decays() {
        let mut load = Load::new(seconds(100.0));
        load.update(seconds(100.2), seconds(0.2));
        assert_eq!(load.text(3), "0.00 0.00 0.00 1/3 0\n", "too short a time");
        load.update(seconds(160.0), seconds(120.0));
        assert_eq!(load.text(3), "1.26 0.36 0.13 1/3 0\n");
        for minute in 1..=60 {
            load.update(seconds(160.0 + f64::from(minute) * 60.0), seconds(120.0 + f64::from(minute) * 120.0));
        }
        assert_eq!(load.text(0), "2.00 2.00 1.97 1/1 0\n");
        load.update(seconds(10_000.0), seconds(7320.0));
        assert!(load.text(1).starts_with("0.00 0.00 0.00 "), "{}", load.text(1));
    }

    #[test]
    fn many_short_readings_make_the_average_of_one_long_one() {
        let (mut often, mut once) = (Load::new(seconds(0.0)), Load::new(seconds(0.0)));
        for second in 1..=120 {
            often.update(seconds(f64::from(second)), seconds(f64::from(second) * 0.5));
        }
        once.update(seconds(120.0), seconds(60.0));
        assert_eq!(often.text(1), once.text(1));
    }
}
