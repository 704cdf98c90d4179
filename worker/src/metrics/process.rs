//! What the process takes from its machine.

use std::fmt::Error;

use procfs::process::Process;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::sheet::Sheet;

#[derive(Debug)]
pub(super) struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        // Nothing is better than a 0 that looks like a figure.
        let Ok(stat) = Process::myself().and_then(|process| process.stat()) else {
            return Ok(());
        };
        let mut sheet = Sheet(encoder);
        let ticks = stat.utime + stat.stime;
        sheet.counter(
            "process_cpu_seconds",
            "CPU time that the process has used.",
            [([], ticks as f64 / procfs::ticks_per_second() as f64)],
        )?;
        sheet.gauge(
            "process_resident_memory_bytes",
            "Memory that the process holds.",
            [([], stat.rss * procfs::page_size())],
        )
    }
}
