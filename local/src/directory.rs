//! Where a server keeps its files.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::ServerError;
use crate::run_as::RunAs;

/// Where a server keeps its data and its log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DataDir {
    /// A directory that is removed with the server.
    #[default]
    Temporary,
    /// A directory that stays, and whose data is used again. It holds `data/` and `server.log`.
    Named(PathBuf),
}

/// A directory that exists and that the server's user owns.
pub(crate) struct Place {
    path: PathBuf,
    /// Removes a temporary directory as long as no lifeline has taken that duty over.
    temporary: Option<tempfile::TempDir>,
}

impl Place {
    pub(crate) fn open(dir: &DataDir, kind: &str, run_as: &RunAs) -> Result<Place, ServerError> {
        let place = match dir {
            DataDir::Temporary => {
                let temporary = tempfile::Builder::new()
                    .prefix(&format!("shardlane-{kind}-"))
                    .tempdir()
                    .map_err(ServerError::io("cannot create a temporary directory"))?;
                Place {
                    path: temporary.path().to_owned(),
                    temporary: Some(temporary),
                }
            }
            DataDir::Named(path) => {
                let what = format!("cannot create {}", path.display());
                std::fs::create_dir_all(path).map_err(ServerError::io(what.clone()))?;
                let path = std::fs::canonicalize(path).map_err(ServerError::io(what))?;
                Place {
                    path,
                    temporary: None,
                }
            }
        };
        run_as.give(&place.path)?;
        Ok(place)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory to remove at the server's end, if it is temporary.
    pub(crate) fn to_remove(&self) -> Option<&Path> {
        self.temporary.as_ref().map(|_| self.path.as_path())
    }

    /// From now on somebody else removes the directory.
    pub(crate) fn hand_over(self) -> PathBuf {
        if let Some(temporary) = self.temporary {
            return temporary.keep();
        }
        self.path
    }
}

/// Copies the log out of a temporary directory that is about to be removed, to a file beside it
/// (`DIRECTORY.log`). Returns where the log is to be found.
pub(crate) fn keep_log(directory: &Path, log: &Path) -> PathBuf {
    let copy = directory.with_added_extension("log");
    let copied = std::fs::read(log).and_then(|text| {
        // Never through a file or link that somebody else has put there.
        let mut file = std::fs::File::options()
            .write(true)
            .create_new(true)
            .open(&copy)?;
        file.write_all(&text)
    });
    if copied.is_ok() { copy } else { log.to_owned() }
}
