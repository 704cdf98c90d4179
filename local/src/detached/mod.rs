//! Servers that outlive the command that started them: `shardlane up`, `down` and `status`.
//!
//! They live in one directory (see [`home`]) with `state.json`, which names each server with its
//! process, and `servers/NAME/` with data and log. A process is known by its number *and* its
//! start time, so a number that the kernel has given to somebody else is never signalled.
//!
//! Each step is written down before the next one, and a server that runs without being written
//! down is recognised by its arguments: whatever was killed when, the next `up` or `down` finds
//! it.

mod show;
mod start;
mod state;
mod stop;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::ServerError;
use crate::proc::ProcessId;
pub use show::{StatusRow, status, table};
use state::Home;

/// A set of servers to bring up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// One Postgres.
    Single,
    /// One Postgres with pg_partman's background worker.
    Partman,
    /// Several primaries that know nothing of each other.
    Shards,
    /// A Citus coordinator and two workers.
    Citus,
}

impl Layout {
    /// All layouts.
    pub const ALL: [Layout; 4] = [
        Layout::Single,
        Layout::Partman,
        Layout::Shards,
        Layout::Citus,
    ];

    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Layout::Single => "single",
            Layout::Partman => "partman",
            Layout::Shards => "shards",
            Layout::Citus => "citus",
        }
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Layout {
    type Err = String;

    fn from_str(name: &str) -> Result<Layout, String> {
        let known = Layout::ALL.into_iter().find(|layout| layout.name() == name);
        known
            .ok_or_else(|| format!("no such layout: {name}; known: single, partman, shards, citus"))
    }
}

/// What `up` is to bring up. What runs already stays.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// The layouts.
    pub layouts: Vec<Layout>,
    /// Number of primaries of the layout `shards`.
    pub shards: usize,
    /// Also a Kafka?
    pub kafka: bool,
}

/// What kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// PostgreSQL.
    Postgres,
    /// A Citus coordinator.
    CitusCoordinator,
    /// A Citus worker.
    CitusWorker,
    /// Apache Kafka.
    Kafka,
}

impl Kind {
    /// The name in the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Postgres => "postgres",
            Kind::CitusCoordinator => "citus coordinator",
            Kind::CitusWorker => "citus worker",
            Kind::Kafka => "kafka",
        }
    }
}

/// One server, as `state.json` knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Name, and the name of its directory.
    pub name: String,
    /// What kind of server.
    pub kind: Kind,
    /// Its process, once started.
    pub process: Option<ProcessId>,
    /// Did it come up? A server that did not is a leftover.
    pub ready: bool,
    /// Its port, which stays the same from one `up` to the next.
    pub port: u16,
    /// DSN of the database `shardlane`, or Kafka's bootstrap server.
    pub url: String,
}

impl Server {
    /// Is it up, as far as its process tells?
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.ready && self.process.is_some_and(ProcessId::is_alive)
    }
}

/// The directory of the detached servers: `$SHARDLANE_HOME`, or `./.shardlane`.
#[must_use]
pub fn home() -> PathBuf {
    std::env::var_os("SHARDLANE_HOME")
        .filter(|home| !home.is_empty())
        .map_or_else(|| ".shardlane".into(), PathBuf::from)
}

/// Brings up what does not run yet, and waits until it is ready. `say` gets one line for each
/// thing that a person would want to know, among them what an earlier run has left behind.
///
/// Returns all servers of the directory.
///
/// # Errors
/// What this run has started is stopped again.
pub async fn up(
    home: &Path,
    options: &UpOptions,
    say: &(dyn Fn(&str) + Sync),
) -> Result<Vec<Server>, ServerError> {
    let home = Home::lock_or_create(home)?;
    start::up(&home, options, say).await
}

/// Stops all servers of the directory, in order, and with `volumes` removes their data. Returns
/// the names of those that ran.
///
/// # Errors
/// If one does not stop, even when killed.
pub async fn down(home: &Path, volumes: bool) -> Result<Vec<String>, ServerError> {
    match Home::lock_existing(home)? {
        Some(home) => stop::down(&home, volumes).await,
        None => Ok(Vec::new()),
    }
}
