//! Processes, as `/proc` shows them.

use std::collections::HashMap;
use std::time::Duration;

use procfs::process::{Process, Stat};
use serde::{Deserialize, Serialize};

/// A process that cannot be confused with a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The number.
    pub pid: u32,
    /// When it started, in clock ticks since the machine's start.
    pub start_ticks: u64,
}

impl ProcessId {
    /// The live process with this number. A zombie is not alive.
    #[must_use]
    pub fn of(pid: u32) -> Option<ProcessId> {
        let stat = stat_of(pid)?;
        (stat.state != 'Z' && stat.state != 'X').then_some(ProcessId {
            pid,
            start_ticks: stat.starttime,
        })
    }

    /// Does this very process still live?
    #[must_use]
    pub fn is_alive(self) -> bool {
        ProcessId::of(self.pid) == Some(self)
    }
}

/// Seconds of CPU time (user + system) of a process, of the children that it has reaped and of
/// its live descendants. Zero for a process that is gone.
#[must_use]
pub fn cpu_seconds_of_tree(root: u32) -> f64 {
    // A child that ends between two reads would be counted twice or not at all: read again
    // until the root has reaped nobody meanwhile.
    let mut nanoseconds = 0;
    for _ in 0..8 {
        let Some(before) = stat_of(root) else {
            return 0.0;
        };
        nanoseconds =
            own_and_reaped(&before) + descendants(root).iter().map(own_and_reaped).sum::<u64>();
        let Some(after) = stat_of(root) else { break };
        if (after.cutime, after.cstime) == (before.cutime, before.cstime) {
            break;
        }
    }
    Duration::from_nanos(nanoseconds).as_secs_f64()
}

/// Bytes of memory of a process and its live descendants, what they share counted once among them (PSS). Zero where the
/// kernel does not tell.
#[must_use]
pub fn memory_bytes_of_tree(root: u32) -> u64 {
    let own = root.cast_signed();
    let tree = descendants(root).into_iter().map(|stat| stat.pid);
    [own]
        .into_iter()
        .chain(tree)
        .filter_map(proportional_bytes)
        .sum()
}

fn proportional_bytes(pid: i32) -> Option<u64> {
    let maps = Process::new(pid).ok()?.smaps_rollup().ok()?;
    maps.memory_map_rollup
        .iter()
        .filter_map(|map| map.extension.map.get("Pss").copied())
        .reduce(|a, b| a + b)
}

/// The live processes whose arguments satisfy `wanted`.
pub(crate) fn find_by_arguments(wanted: impl Fn(&[String]) -> bool) -> Vec<ProcessId> {
    let Ok(processes) = procfs::process::all_processes() else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter(|process| process.cmdline().is_ok_and(|arguments| wanted(&arguments)))
        .filter_map(|process| ProcessId::of(process.pid.unsigned_abs()))
        .collect()
}

fn stat_of(pid: u32) -> Option<Stat> {
    Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()
}

/// In nanoseconds. `stat` cuts each process's time down to whole ticks of 10 ms, so that a hundred backends which did a
/// little would seem to have done nothing; the scheduler's own sum is exact, but of the first thread only.
fn own_and_reaped(stat: &Stat) -> u64 {
    let tick = 1_000_000_000 / procfs::ticks_per_second().max(1);
    let reaped = (stat.cutime.unsigned_abs() + stat.cstime.unsigned_abs()) * tick;
    let exact = Process::new(stat.pid).and_then(|process| process.schedstat());
    let exact = exact.map_or(0, |times| times.sum_exec_runtime);
    reaped + exact.max((stat.utime + stat.stime) * tick)
}

fn descendants(root: u32) -> Vec<Stat> {
    let Ok(processes) = procfs::process::all_processes() else {
        return Vec::new();
    };
    let mut children: HashMap<i32, Vec<Stat>> = HashMap::new();
    for stat in processes
        .flatten()
        .filter_map(|process| process.stat().ok())
    {
        children.entry(stat.ppid).or_default().push(stat);
    }
    let mut found = Vec::new();
    let mut open = vec![root.cast_signed()];
    while let Some(parent) = open.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            open.push(child.pid);
            found.push(child);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    /// Forty processes that did some milliseconds each: most of it is less than a tick.
    #[test]
    fn cpu_time_below_a_tick_is_counted() {
        let script = "exec 3<&0; n=0; while [ $n -lt 40 ]; do n=$((n + 1)); \
                      (j=0; while [ $j -lt 2000 ]; do j=$((j + 1)); done; exec cat <&3) & done; wait";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let children = || descendants(shell.id());
        let began = Instant::now();
        while children()
            .iter()
            .filter(|child| child.comm == "cat")
            .count()
            < 40
        {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "{:?}",
                children()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        let ticks: u64 = children()
            .iter()
            .map(|child| child.utime + child.stime)
            .sum();
        let seconds = cpu_seconds_of_tree(shell.id());
        // They end with their input.
        drop(shell.stdin.take());
        shell.wait().unwrap();
        #[expect(clippy::cast_precision_loss, reason = "few ticks")]
        let in_ticks = ticks as f64 / procfs::ticks_per_second() as f64;
        assert!(
            seconds > in_ticks + 0.04,
            "{seconds} s, of it {in_ticks} s in whole ticks"
        );
    }
}
