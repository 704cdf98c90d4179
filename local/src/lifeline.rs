//! A child process that cannot outlive this one: the Rust end of `lifeline.sh`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::error::ServerError;
use crate::run_as::RunAs;

const SCRIPT: &str = include_str!("lifeline.sh");
const POLL: Duration = Duration::from_millis(5);

/// How to ask a server to stop: signals in turn, so many tenths of a second apart, then KILL.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StopHow {
    pub(crate) signals: &'static str,
    pub(crate) tenths: u32,
}

impl StopHow {
    /// After this time even KILL was sent and had its time to work.
    fn bound(self) -> Duration {
        let signals = u32::try_from(self.signals.split(',').count()).unwrap_or(1);
        Duration::from_millis(100) * (self.tenths * (signals + 1)) + Duration::from_secs(10)
    }
}

/// The keeper of one directory and of one server at a time.
pub(crate) struct Lifeline {
    keeper: Mutex<Child>,
    orders: Mutex<Option<ChildStdin>>,
    reports: watch::Receiver<Reports>,
    stop_how: StopHow,
}

/// What the keeper has said so far.
#[derive(Debug, Clone, Copy, Default)]
struct Reports {
    runs: u32,
    pid: u32,
    exited: Option<i32>,
    ended: bool,
}

impl Lifeline {
    /// Starts a keeper as `run_as`. It removes `remove` at its end.
    pub(crate) fn open(
        log: &Path,
        cwd: &Path,
        remove: Option<&Path>,
        run_as: &RunAs,
        stop_how: StopHow,
    ) -> Result<Lifeline, ServerError> {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", SCRIPT, "shardlane-lifeline"])
            .arg(log)
            .arg(remove.unwrap_or(Path::new("")))
            .current_dir(cwd)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A terminal's Ctrl-C then reaches the parent, which decides what is stopped when.
            .process_group(0);
        clean_environment(&mut command);
        run_as.apply(&mut command);
        let mut keeper = command.spawn().map_err(|source| match source.kind() {
            std::io::ErrorKind::PermissionDenied => ServerError::Unreachable {
                user: run_as.name().to_owned(),
                directory: cwd.to_owned(),
            },
            _ => ServerError::Io {
                what: "cannot start /bin/sh".into(),
                source,
            },
        })?;
        let orders = keeper.stdin.take();
        let (sender, reports) = watch::channel(Reports::default());
        let lines = keeper.stdout.take().map(BufReader::new);
        // A thread and not a task: a server in a `static` outlives the runtime that started it.
        std::thread::spawn(move || {
            for line in lines
                .into_iter()
                .flat_map(BufRead::lines)
                .map_while(Result::ok)
            {
                sender.send_modify(|said| match line.split_once(' ') {
                    Some(("pid", pid)) => {
                        said.runs += 1;
                        said.pid = pid.parse().unwrap_or_default();
                        said.exited = None;
                    }
                    Some(("exited", status)) => said.exited = status.parse().ok().or(Some(-1)),
                    _ => {}
                });
            }
            sender.send_modify(|said| {
                said.ended = true;
                said.exited = said.exited.or(Some(-1));
            });
        });
        Ok(Lifeline {
            keeper: Mutex::new(keeper),
            orders: Mutex::new(orders),
            reports,
            stop_how,
        })
    }

    /// Starts a command. Returns its process number.
    pub(crate) async fn run(&self, argv: &[String]) -> Result<u32, ServerError> {
        let runs = self.reports.borrow().runs;
        let quoted = argv
            .iter()
            .map(|it| quote(it))
            .collect::<Result<Vec<_>, _>>()?
            .join(" ");
        let StopHow { signals, tenths } = self.stop_how;
        self.order(&format!("run {signals} {tenths} {quoted}\n"))?;
        let said = self
            .until(Duration::from_secs(30), |said| {
                said.runs > runs || said.ended
            })
            .await;
        match said {
            Some(said) if said.runs > runs => Ok(said.pid),
            _ => Err(ServerError::Command {
                what: format!("cannot run {}", argv.first().map_or("", String::as_str)),
                detail: "the shell that keeps the server has ended".into(),
            }),
        }
    }

    /// Runs a command to its end. Returns its exit status; `None` if the time is over, and then
    /// the command is stopped.
    pub(crate) async fn run_to_end(
        &self,
        argv: &[String],
        time_max: Duration,
    ) -> Result<Option<i32>, ServerError> {
        self.run(argv).await?;
        let said = self.until(time_max, |said| said.exited.is_some()).await;
        if said.is_none() {
            self.stop(None).await?;
        }
        Ok(said.and_then(|said| said.exited))
    }

    /// Process number of the command that runs, or ran last.
    pub(crate) fn pid(&self) -> u32 {
        self.reports.borrow().pid
    }

    /// Exit status of the last command, if it has ended.
    pub(crate) fn exited(&self) -> Option<i32> {
        self.reports.borrow().exited
    }

    /// Stops the command and keeps the directory, so that it can be run again.
    pub(crate) async fn stop(&self, signals: Option<&str>) -> Result<(), ServerError> {
        if self.exited().is_some() {
            return Ok(());
        }
        self.order(&format!("stop {}\n", signals.unwrap_or_default()))?;
        let bound = self.stop_how.bound();
        match self.until(bound, |said| said.exited.is_some()).await {
            Some(_) => Ok(()),
            None => Err(self.not_stopped()),
        }
    }

    /// Lets the lifeline go without waiting for what follows from it.
    pub(crate) fn let_go(&self) {
        self.orders
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .take();
    }

    /// Lets go and waits until server, keeper and temporary directory are gone.
    pub(crate) async fn close(&self) -> Result<(), ServerError> {
        self.let_go();
        let deadline = Instant::now() + self.stop_how.bound();
        while !self.keeper_is_gone() {
            if Instant::now() > deadline {
                return Err(self.not_stopped());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    fn keeper_is_gone(&self) -> bool {
        let mut keeper = self
            .keeper
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        !matches!(keeper.try_wait(), Ok(None))
    }

    fn not_stopped(&self) -> ServerError {
        ServerError::NotStopped {
            server: "the server".into(),
            pid: self.pid(),
            seconds: self.stop_how.bound().as_secs(),
        }
    }

    fn order(&self, line: &str) -> Result<(), ServerError> {
        let mut orders = self
            .orders
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let sent = match orders.as_mut() {
            Some(orders) => orders.write_all(line.as_bytes()),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        };
        sent.map_err(ServerError::io("the shell that keeps the server has ended"))
    }

    async fn until(
        &self,
        time_max: Duration,
        wanted: impl FnMut(&Reports) -> bool,
    ) -> Option<Reports> {
        let mut reports = self.reports.clone();
        let said = tokio::time::timeout(time_max, reports.wait_for(wanted)).await;
        said.ok()?.ok().map(|said| *said)
    }
}

impl Drop for Lifeline {
    /// Waits, bounded, so that nothing is left when the owner's scope ends.
    fn drop(&mut self) {
        self.let_go();
        let deadline = Instant::now() + self.stop_how.bound();
        while !self.keeper_is_gone() {
            if Instant::now() > deadline {
                tracing::warn!(pid = self.pid(), "a server did not stop in time");
                return;
            }
            std::thread::sleep(POLL);
        }
    }
}

/// A server must not take its settings from the variables of whoever starts it.
pub(crate) fn clean_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("PG") || name_text.starts_with("LC_") {
            command.env_remove(&name);
        }
    }
    command.env("LC_ALL", "C.UTF-8");
}

fn quote(word: &str) -> Result<String, ServerError> {
    if word.contains(['\n', '\0']) {
        return Err(ServerError::Refused(format!(
            "a line break in a path or setting: {word:?}"
        )));
    }
    Ok(format!("'{}'", word.replace('\'', r"'\''")))
}
