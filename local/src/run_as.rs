//! Postgres refuses to run as root: who runs it then.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{Gid, Uid, User, chown};

use crate::error::ServerError;
use crate::missing::Missing;

/// The user that a server runs as.
#[derive(Debug, Clone)]
pub(crate) enum RunAs {
    /// The user of this process.
    Oneself,
    /// Another one, because this process is root's.
    Other { name: String, uid: Uid, gid: Gid },
}

impl RunAs {
    /// Oneself; for root the user `$SHARDLANE_POSTGRES_USER`, or `postgres`.
    pub(crate) fn for_postgres() -> Result<RunAs, Missing> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(RunAs::Oneself);
        }
        let name = std::env::var("SHARDLANE_POSTGRES_USER").unwrap_or_else(|_| "postgres".into());
        match User::from_name(&name) {
            Ok(Some(user)) if !user.uid.is_root() => Ok(RunAs::Other {
                name,
                uid: user.uid,
                gid: user.gid,
            }),
            _ => Err(Missing::PostgresUser { name }),
        }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            RunAs::Oneself => "of this process",
            RunAs::Other { name, .. } => name,
        }
    }

    /// Makes the command run as this user, without supplementary groups.
    pub(crate) fn apply(&self, command: &mut Command) {
        if let RunAs::Other { uid, gid, .. } = self {
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
    }

    /// Gives a file or directory to this user.
    pub(crate) fn give(&self, path: &Path) -> Result<(), ServerError> {
        if let RunAs::Other { uid, gid, .. } = self {
            chown(path, Some(*uid), Some(*gid)).map_err(|errno| ServerError::Io {
                what: format!("cannot give {} to user {}", path.display(), self.name()),
                source: errno.into(),
            })?;
        }
        Ok(())
    }
}
