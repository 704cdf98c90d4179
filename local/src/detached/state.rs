//! The directory of the detached servers: its lock and its `state.json`.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Server;
use crate::error::ServerError;

/// The directory, locked against another `up` or `down`.
pub(crate) struct Home {
    pub(crate) path: PathBuf,
    _lock: File,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) servers: Vec<Server>,
}

impl Home {
    pub(crate) fn lock_or_create(path: &Path) -> Result<Home, ServerError> {
        let what = format!("cannot create {}", path.display());
        std::fs::create_dir_all(path.join("servers")).map_err(ServerError::io(what))?;
        Home::lock(path)
    }

    /// `None` if nothing was ever brought up here.
    pub(crate) fn lock_existing(path: &Path) -> Result<Option<Home>, ServerError> {
        if path.join("servers").is_dir() {
            Home::lock(path).map(Some)
        } else {
            Ok(None)
        }
    }

    fn lock(path: &Path) -> Result<Home, ServerError> {
        let what = format!("cannot lock {}", path.display());
        let path = std::fs::canonicalize(path).map_err(ServerError::io(what.clone()))?;
        let lock = File::options()
            .create(true)
            .append(true)
            .open(path.join("lock"));
        let lock = lock.map_err(ServerError::io(what.clone()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Home { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(ServerError::Refused(format!(
                "another shardlane up or down is at work in {}",
                path.display()
            ))),
            Err(TryLockError::Error(source)) => Err(ServerError::Io { what, source }),
        }
    }

    pub(crate) fn server_dir(&self, name: &str) -> PathBuf {
        self.path.join("servers").join(name)
    }

    pub(crate) fn load(&self) -> Result<State, ServerError> {
        State::read(&self.path)
    }

    /// Written beside and renamed: a reader sees the old state or the new one.
    pub(crate) fn save(&self, state: &State) -> Result<(), ServerError> {
        let file = self.path.join("state.json");
        let unfinished = self.path.join("state.json.unfinished");
        let what = format!("cannot write {}", file.display());
        serde_json::to_string_pretty(state)
            .map_err(std::io::Error::from)
            .and_then(|text| std::fs::write(&unfinished, text + "\n"))
            .and_then(|()| std::fs::rename(&unfinished, &file))
            .map_err(ServerError::io(what))
    }
}

impl State {
    pub(crate) fn read(home: &Path) -> Result<State, ServerError> {
        let file = home.join("state.json");
        let what = format!("cannot read {}", file.display());
        match std::fs::read_to_string(&file) {
            Ok(text) => serde_json::from_str(&text).map_err(|it| ServerError::io(what)(it.into())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(State::default()),
            Err(error) => Err(ServerError::io(what)(error)),
        }
    }

    pub(crate) fn server(&self, name: &str) -> Option<&Server> {
        self.servers.iter().find(|server| server.name == name)
    }

    /// Replaces the server of this name, or adds it.
    pub(crate) fn put(&mut self, server: Server) {
        match self
            .servers
            .iter_mut()
            .find(|known| known.name == server.name)
        {
            Some(known) => *known = server,
            None => self.servers.push(server),
        }
        // For the reader: `single` before `partman`, `shard-9` before `shard-10`, Kafka last.
        self.servers.sort_by(|left, right| {
            let key = |it: &Server| (it.kind, it.name.len());
            key(left)
                .cmp(&key(right))
                .then_with(|| left.name.cmp(&right.name))
        });
    }
}
