//! Where an experiment runs, and what it costs there.

use procfs::Current;
use procfs::process::Process;

use crate::results::Machine;

/// This machine, as /proc and /etc/os-release describe it; what cannot be read is `unknown`.
pub(crate) fn describe() -> Machine {
    let unknown = || "unknown".to_owned();
    let cpus = procfs::CpuInfo::current().ok();
    let cpu = cpus
        .as_ref()
        .and_then(|cpus| cpus.model_name(0).map(str::to_owned));
    let bytes = procfs::Meminfo::current()
        .map(|memory| memory.mem_total)
        .unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "GiB with one decimal are shown")]
    let memory_gib = bytes as f64 / f64::from(1 << 30);
    let os = std::fs::read_to_string("/etc/os-release")
        .ok()
        .and_then(|text| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
            Some(line.trim_matches('"').to_owned())
        });
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok();
    Machine {
        cpu: cpu.unwrap_or_else(unknown),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory_gib,
        kernel: kernel.map_or_else(unknown, |text| text.trim().to_owned()),
        os: os.unwrap_or_else(unknown),
    }
}

/// Processes that ran or waited for a processor, on average in the last minute; `None` where /proc does not say.
pub(crate) fn load_average() -> Option<f64> {
    procfs::LoadAverage::current()
        .ok()
        .map(|load| f64::from(load.one))
}

/// CPU seconds of this process, user and system.
pub(crate) fn own_cpu_seconds() -> f64 {
    let Ok(stat) = Process::myself().and_then(|process| process.stat()) else {
        return 0.0;
    };
    #[expect(clippy::cast_precision_loss, reason = "ticks of an experiment are few")]
    let seconds = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
    seconds
}

/// The commit that is checked out in the current directory, `-dirty` where files differ from it.
pub(crate) fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git")
            .args(arguments)
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if !changes.is_empty() => format!("{commit}-dirty"),
        _ => commit,
    }
}
