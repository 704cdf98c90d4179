//! The worker as a process of its own.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use procfs::process::Process;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// How long the worker may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// What `GET /stats` says.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Stats {
    pub(super) done: u64,
    pub(super) in_flight_bytes: u64,
    pub(super) in_flight_bytes_peak: u64,
}

/// What the kernel says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    pub(super) resident_mib: u64,
    pub(super) peak_mib: u64,
}

/// A running `shardlane worker`; it ends with this value.
pub(super) struct WorkerProcess {
    child: Child,
    pid: i32,
    address: String,
    agent: ureq::Agent,
}

impl WorkerProcess {
    pub(super) async fn start(
        program: &Path,
        database: &str,
        bootstrap: &str,
        partitions: u32,
    ) -> anyhow::Result<WorkerProcess> {
        let mut child = Command::new(program)
            .args(["worker", "--layout", "single", "--database", database])
            .args(["--kafka", bootstrap, "--listen", "127.0.0.1:0"])
            .args(["--partitions", &partitions.to_string()])
            // The topics keep the stream's old times for ever.
            .args(["--inbox-retention", "off"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("the worker cannot be started")?;
        let pid = child.id().context("the worker has a process number")?;
        let stderr = child.stderr.take().context("the worker has a stderr")?;
        let mut lines = BufReader::new(stderr).lines();
        let said = async {
            while let Some(line) = lines.next_line().await? {
                if let Some((_, address)) = line.split_once("http://") {
                    return Ok(address.to_owned());
                }
                eprintln!("{line}");
            }
            bail!("the worker ended before it began")
        };
        let address = tokio::time::timeout(PATIENCE, said)
            .await
            .context("the worker does not start")??;
        // A full pipe would stop it.
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                eprintln!("{line}");
            }
        });
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .build()
            .new_agent();
        Ok(WorkerProcess {
            child,
            pid: i32::try_from(pid)?,
            address,
            agent,
        })
    }

    pub(super) async fn stats(&self) -> anyhow::Result<Stats> {
        let (agent, url) = (self.agent.clone(), format!("http://{}/stats", self.address));
        let ask = move || {
            let mut answer = agent.get(&url).call()?;
            let body = answer.body_mut().read_to_string()?;
            anyhow::Ok(serde_json::from_str(&body)?)
        };
        let answer = tokio::task::spawn_blocking(ask).await?;
        answer.context("the worker does not answer")
    }

    pub(super) fn memory(&self) -> anyhow::Result<Memory> {
        let status = Process::new(self.pid)?.status()?;
        let mib = |kib: Option<u64>| kib.map(|kib| kib.div_ceil(1_024));
        Ok(Memory {
            resident_mib: mib(status.vmrss).context("the worker has memory")?,
            peak_mib: mib(status.vmhwm).context("the worker has memory")?,
        })
    }

    /// Kills it: it has done what it was measured for.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }
}
