//! What can go wrong with a server, in sentences for the person who started it.

use std::path::{Path, PathBuf};

use crate::missing::Missing;

/// A server could not be started, stopped or set up.
///
/// Each variant displays only itself; the cause, if any, is its `source`.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Something is not installed here.
    #[error(transparent)]
    Missing(#[from] Missing),

    /// The operating system refused something.
    #[error("{what}")]
    Io {
        /// What was attempted, with the path.
        what: String,
        /// The cause.
        source: std::io::Error,
    },

    /// The caller fixed a port on which something listens.
    #[error(
        "port {port} is taken by another program; choose another port, or none to get a free one"
    )]
    PortTaken {
        /// The port.
        port: u16,
    },

    /// The server ended before it answered.
    #[error("{server} ended with status {status} before it was ready; its log is {log}\n{tail}", log = log.display())]
    Ended {
        /// Which server.
        server: String,
        /// Exit status as a shell reports it: above 128 is 128 + the signal.
        status: i32,
        /// The kept log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },

    /// The server runs and does not answer.
    #[error("{server} was not ready after {seconds} s; its log is {log}\n{tail}", log = log.display())]
    NotReady {
        /// Which server.
        server: String,
        /// The bound.
        seconds: u64,
        /// The kept log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },

    /// The server did not stop in time.
    #[error("{server} (process {pid}) did not stop within {seconds} s")]
    NotStopped {
        /// Which server.
        server: String,
        /// Its process.
        pid: u32,
        /// The bound.
        seconds: u64,
    },

    /// The user that runs Postgres cannot enter the directory.
    #[error(
        "user {user} cannot enter {directory}; choose a directory that it can reach, or name another user in SHARDLANE_POSTGRES_USER",
        directory = directory.display()
    )]
    Unreachable {
        /// The user.
        user: String,
        /// The directory.
        directory: PathBuf,
    },

    /// An option that makes no sense.
    #[error("{0}")]
    Refused(String),

    /// A helper program failed.
    #[error("{what}:\n{detail}")]
    Command {
        /// What was attempted.
        what: String,
        /// The program's own words.
        detail: String,
    },

    /// A server refused a statement.
    #[error("{what}")]
    Sql {
        /// What was attempted.
        what: String,
        /// The cause.
        source: tokio_postgres::Error,
    },
}

impl ServerError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> ServerError {
        let what = what.into();
        move |source| ServerError::Io { what, source }
    }

    pub(crate) fn sql(
        what: impl Into<String>,
    ) -> impl FnOnce(tokio_postgres::Error) -> ServerError {
        let what = what.into();
        move |source| ServerError::Sql { what, source }
    }
}

/// The last lines of a log, indented, for an error message.
pub(crate) fn tail_of_log(log: &Path) -> String {
    const LINES_MAX: usize = 15;
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LINES_MAX);
    lines[from..]
        .iter()
        .map(|line| format!("  | {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}
