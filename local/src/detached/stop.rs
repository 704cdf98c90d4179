//! Stopping detached servers, those that nobody wrote down included.

use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Kind;
use super::state::{Home, State};
use crate::error::ServerError;
use crate::proc::{ProcessId, find_by_arguments};

const POLL: Duration = Duration::from_millis(20);
const STEP_TIME_MAX: Duration = Duration::from_secs(30);

pub(super) async fn down(home: &Home, volumes: bool) -> Result<Vec<String>, ServerError> {
    let mut state = home.load()?;
    let running = found(home, &state);
    try_join_all(
        running
            .iter()
            .map(|(name, process)| stop(name, kind_of(&state, name), *process)),
    )
    .await?;
    for server in &mut state.servers {
        server.process = None;
        server.ready = false;
    }
    home.save(&state)?;
    if volumes {
        remove(home)?;
    }
    let mut names: Vec<String> = running.into_iter().map(|(name, _)| name).collect();
    names.dedup();
    Ok(names)
}

/// All live processes that belong to this directory, with the names of their servers: the ones
/// written down, and the ones that a killed `up` had no time to write down.
pub(super) fn found(home: &Home, state: &State) -> Vec<(String, ProcessId)> {
    let mut found: Vec<(String, ProcessId)> = Vec::new();
    for server in &state.servers {
        let written = server.process.filter(|process| process.is_alive());
        found.extend(written.map(|process| (server.name.clone(), process)));
    }
    let directories = std::fs::read_dir(home.path.join("servers"))
        .into_iter()
        .flatten()
        .flatten();
    for directory in directories {
        let name = directory.file_name().to_string_lossy().into_owned();
        for process in processes_of(&directory.path()) {
            if !found.iter().any(|(_, known)| *known == process) {
                found.push((name.clone(), process));
            }
        }
    }
    found.sort_by(|left, right| left.0.cmp(&right.0));
    found
}

/// A postmaster or an initdb has the directory after `-D`; a broker or its storage tool names
/// its settings file. Postgres's children rewrite their arguments and are not found.
fn processes_of(directory: &Path) -> Vec<ProcessId> {
    let data = directory.join("data");
    let unfinished = directory.join("data.unfinished");
    let settings = directory.join("server.properties");
    find_by_arguments(|arguments| {
        let paths: Vec<&Path> = arguments.iter().map(Path::new).collect();
        let postgres = paths
            .windows(2)
            .any(|pair| pair[0] == Path::new("-D") && (pair[1] == data || pair[1] == unfinished));
        let kafka = arguments.iter().any(|it| it.starts_with("kafka."))
            && paths.iter().any(|path| *path == settings);
        postgres || kafka
    })
}

fn kind_of(state: &State, name: &str) -> Kind {
    let by_name = if name == "kafka" {
        Kind::Kafka
    } else {
        Kind::Postgres
    };
    state.server(name).map_or(by_name, |server| server.kind)
}

/// Asks a server to stop, ever more firmly.
pub(super) async fn stop(name: &str, kind: Kind, process: ProcessId) -> Result<(), ServerError> {
    let signals = match kind {
        Kind::Kafka => &[Signal::SIGTERM, Signal::SIGKILL][..],
        Kind::Postgres | Kind::CitusCoordinator | Kind::CitusWorker => {
            &[Signal::SIGINT, Signal::SIGQUIT, Signal::SIGKILL][..]
        }
    };
    let pid = Pid::from_raw(process.pid.cast_signed());
    for signal in signals {
        let deadline = Instant::now() + STEP_TIME_MAX;
        if process.is_alive()
            && let Err(error) = kill(pid, *signal)
            && process.is_alive()
        {
            let what = format!("cannot stop {name} (process {pid})");
            return Err(ServerError::Io {
                what,
                source: error.into(),
            });
        }
        while Instant::now() < deadline {
            if !process.is_alive() {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }
    let seconds = STEP_TIME_MAX.as_secs() * signals.len() as u64;
    Err(ServerError::NotStopped {
        server: name.to_owned(),
        pid: process.pid,
        seconds,
    })
}

/// Removes what `up` made, and the directory itself if nothing else is in it.
fn remove(home: &Home) -> Result<(), ServerError> {
    let what = format!("cannot remove {}", home.path.display());
    std::fs::remove_dir_all(home.path.join("servers")).map_err(ServerError::io(what.clone()))?;
    for name in ["state.json", "state.json.unfinished", "lock"] {
        match std::fs::remove_file(home.path.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(ServerError::Io {
                    what,
                    source: error,
                });
            }
            _ => {}
        }
    }
    match std::fs::remove_dir(&home.path) {
        Err(error) if error.kind() != std::io::ErrorKind::DirectoryNotEmpty => {
            Err(ServerError::Io {
                what,
                source: error,
            })
        }
        _ => Ok(()),
    }
}
