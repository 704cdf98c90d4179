//! What runs, for a person and for a script.

use std::path::Path;

use comfy_table::{Table, presets};
use serde::Serialize;

use super::state::State;
use crate::error::ServerError;

/// One line of `shardlane status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StatusRow {
    /// Name of the server.
    pub name: String,
    /// What kind of server.
    pub kind: &'static str,
    /// Its process, if it lives.
    pub pid: Option<u32>,
    /// Its port.
    pub port: u16,
    /// DSN or bootstrap server.
    pub url: String,
    /// `running`, `starting` or `stopped`.
    pub state: &'static str,
}

/// The servers of the directory. Takes no lock: it may be asked while `up` is at work.
///
/// # Errors
/// If `state.json` cannot be read.
pub fn status(home: &Path) -> Result<Vec<StatusRow>, ServerError> {
    let rows = State::read(home)?.servers.into_iter().map(|server| {
        let alive = server.process.filter(|process| process.is_alive());
        StatusRow {
            kind: server.kind.name(),
            pid: alive.map(|process| process.pid),
            port: server.port,
            state: match (alive.is_some(), server.ready) {
                (true, true) => "running",
                (true, false) => "starting",
                (false, _) => "stopped",
            },
            name: server.name,
            url: server.url,
        }
    });
    Ok(rows.collect())
}

/// The rows as a table.
#[must_use]
pub fn table(rows: &[StatusRow]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["name", "kind", "pid", "port", "url", "state"]);
    for row in rows {
        let pid = row.pid.map_or_else(|| "-".into(), |pid| pid.to_string());
        let port = row.port.to_string();
        table.add_row([
            row.name.as_str(),
            row.kind,
            &pid,
            &port,
            &row.url,
            row.state,
        ]);
    }
    table.trim_fmt()
}
