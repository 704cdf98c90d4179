//! Processes, as `/proc` shows them.

use std::collections::HashMap;

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
    let mut ticks = 0;
    for _ in 0..8 {
        let Some(before) = stat_of(root) else {
            return 0.0;
        };
        ticks = own_and_reaped(&before) + descendants(root).iter().map(own_and_reaped).sum::<u64>();
        let Some(after) = stat_of(root) else { break };
        if (after.cutime, after.cstime) == (before.cutime, before.cstime) {
            break;
        }
    }
    #[allow(
        clippy::cast_precision_loss,
        reason = "2^53 ticks are three million years"
    )]
    let seconds = ticks as f64 / procfs::ticks_per_second() as f64;
    seconds
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

fn own_and_reaped(stat: &Stat) -> u64 {
    stat.utime + stat.stime + stat.cutime.unsigned_abs() + stat.cstime.unsigned_abs()
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
