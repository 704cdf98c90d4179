//! The cache folder, and its lock.

use std::fs::File;
use std::path::PathBuf;

use crate::error::ServerError;

/// `$SHARDLANE_CACHE`, or `shardlane` under `$XDG_CACHE_HOME` or `~/.cache`.
pub(crate) fn folder() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(folder) = set("SHARDLANE_CACHE") {
        return folder.into();
    }
    if let Some(folder) = set("XDG_CACHE_HOME") {
        return PathBuf::from(folder).join("shardlane");
    }
    match set("HOME") {
        Some(home) => PathBuf::from(home).join(".cache/shardlane"),
        None => std::env::temp_dir().join("shardlane-cache"),
    }
}

/// Waits until no other process fills the cache. The lock ends with the returned file, and the
/// kernel ends it with the process.
pub(crate) async fn lock() -> Result<File, ServerError> {
    let path = folder().join("lock");
    let what = format!("cannot lock {}", path.display());
    let locked = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(folder())?;
        let file = File::options().create(true).append(true).open(path)?;
        file.lock()?;
        Ok(file)
    });
    locked
        .await
        .unwrap_or_else(|end| Err(std::io::Error::other(end)))
        .map_err(ServerError::io(what))
}
