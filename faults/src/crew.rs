//! Worker processes, held by the harness.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;

/// How long a worker may take to start.
const START_MAX: Duration = Duration::from_secs(60);
/// How long a worker may take to end in order: its drain, and some.
const END_MAX: Duration = Duration::from_secs(25);

/// What a worker process has said so far.
#[derive(Debug, Clone, Default)]
struct Said {
    started: bool,
    point: bool,
    counts: Option<serde_json::Value>,
}

/// One worker process.
pub struct Member {
    /// Its name, which its connections to Postgres bear.
    pub name: String,
    /// Its log.
    pub log: PathBuf,
    child: Child,
    /// Open for as long as the worker shall live; `wait` would close the child's own.
    _stdin: Option<ChildStdin>,
    pid: Pid,
    said: watch::Receiver<Said>,
}

impl Member {
    /// Starts a process; its stderr goes to `log`.
    ///
    /// # Errors
    /// The program cannot be run.
    pub fn spawn(mut command: Command, name: &str, log: PathBuf) -> anyhow::Result<Member> {
        let stderr = std::fs::File::create(&log)?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a worker")?;
        let pid = child.id().context("a worker has a process number")?;
        let stdout = child.stdout.take().context("a worker has a stdout")?;
        let (sender, said) = watch::channel(Said::default());
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                sender.send_modify(|said| match line.split_once(' ') {
                    None if line == "started" => said.started = true,
                    Some(("point", _)) => said.point = true,
                    Some(("counts", json)) => said.counts = serde_json::from_str(json).ok(),
                    _ => {}
                });
            }
        });
        Ok(Member {
            name: name.to_owned(),
            log,
            _stdin: child.stdin.take(),
            child,
            pid: Pid::from_raw(i32::try_from(pid)?),
            said,
        })
    }

    /// Waits until it says that it runs.
    ///
    /// # Errors
    /// It ended, or took too long.
    pub async fn started(&mut self) -> anyhow::Result<()> {
        let what = format!(
            "worker {} did not start; see {}",
            self.name,
            self.log.display()
        );
        tokio::time::timeout(START_MAX, self.said.wait_for(|said| said.started))
            .await
            .with_context(|| what.clone())?
            .map(drop)
            .context(what)
    }

    /// Waits until it stands at the point that its environment names.
    ///
    /// # Errors
    /// It does not come there in time.
    pub async fn at_point(&mut self, within: Duration) -> anyhow::Result<()> {
        let what = format!("worker {} did not come to its point", self.name);
        tokio::time::timeout(within, self.said.wait_for(|said| said.point))
            .await
            .with_context(|| what.clone())?
            .map(drop)
            .context(what)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The process is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(self.pid, signal).with_context(|| format!("{signal} to worker {}", self.name))
    }

    /// Whether it has ended by itself.
    #[must_use]
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// SIGKILL, and waits for the end.
    ///
    /// # Errors
    /// The process was gone before.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        if self.has_ended() {
            bail!(
                "worker {} had ended before it was killed; see {}",
                self.name,
                self.log.display()
            );
        }
        self.signal(Signal::SIGKILL)?;
        self.child.wait().await?;
        Ok(())
    }

    /// SIGTERM, and waits until it has ended in order. Gives its counters.
    ///
    /// # Errors
    /// It ended otherwise, or not in time.
    pub async fn terminate(mut self) -> anyhow::Result<serde_json::Value> {
        self.signal(Signal::SIGTERM)?;
        let status = tokio::time::timeout(END_MAX, self.child.wait())
            .await
            .with_context(|| format!("worker {} ignores SIGTERM", self.name))??;
        if !status.success() {
            bail!(
                "worker {} ended with {status}; see {}",
                self.name,
                self.log.display()
            );
        }
        Ok(self.said.borrow().counts.clone().unwrap_or_default())
    }
}
