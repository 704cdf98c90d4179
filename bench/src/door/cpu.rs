//! CPU time of a process' threads, by what they do.

use procfs::process::Process;

/// Which threads to count, by the beginning of their names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Threads(pub(super) &'static [&'static str]);

/// The front door's runtime, and Kafka's client: its own threads, and the one that hands out delivery reports.
pub(super) const SERVER: Threads = Threads(&["door", "rdk:", "producer polli"]);

impl Threads {
    /// Seconds on a CPU since the threads began; those that have ended are not in it.
    pub(super) fn cpu_seconds(self) -> anyhow::Result<f64> {
        let mut nanoseconds = 0;
        for task in Process::myself()?.tasks()? {
            // A thread may end while it is looked at.
            let Ok(task) = task else { continue };
            let (Ok(stat), Ok(times)) = (task.stat(), task.schedstat()) else {
                continue;
            };
            if self.0.iter().any(|name| stat.comm.starts_with(name)) {
                nanoseconds += times.sum_exec_runtime;
            }
        }
        #[expect(
            clippy::cast_precision_loss,
            reason = "hours of CPU time are below 2^52 ns"
        )]
        let seconds = nanoseconds as f64 / 1e9;
        Ok(seconds)
    }
}
