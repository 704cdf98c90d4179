//! The four ways to store.

use std::fmt;
use std::str::FromStr;

/// How the tables are laid out over servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layout {
    /// One Postgres, plain tables.
    Single,
    /// One Postgres, event logs time-partitioned by pg_partman.
    Partman,
    /// Two primaries or more, each with its own slots.
    Shards,
    /// A Citus cluster, tables distributed by `user_id`.
    Citus,
}

/// A name that is no layout.
#[derive(Debug, thiserror::Error)]
#[error("unknown layout {0:?}; choose from single, partman, shards, citus")]
pub struct UnknownLayout(String);

impl Layout {
    /// Every layout.
    pub const ALL: [Layout; 4] = [
        Layout::Single,
        Layout::Partman,
        Layout::Shards,
        Layout::Citus,
    ];

    /// The name on the command line and in results.
    pub const fn as_str(self) -> &'static str {
        match self {
            Layout::Single => "single",
            Layout::Partman => "partman",
            Layout::Shards => "shards",
            Layout::Citus => "citus",
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Layout {
    type Err = UnknownLayout;

    fn from_str(text: &str) -> Result<Self, UnknownLayout> {
        Layout::ALL
            .into_iter()
            .find(|layout| layout.as_str() == text)
            .ok_or_else(|| UnknownLayout(text.to_owned()))
    }
}

/// Which way a batch takes into a Citus cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CitusPath {
    /// All shards mixed in one transaction through the coordinator: what a client does that knows nothing.
    Coordinator,
    /// One shard a transaction, still through the coordinator.
    CoordinatorGrouped,
    /// One shard a transaction, sent to the node that owns it.
    Owner,
}

impl CitusPath {
    /// The name in results.
    pub const fn as_str(self) -> &'static str {
        match self {
            CitusPath::Coordinator => "coordinator",
            CitusPath::CoordinatorGrouped => "coordinator-grouped",
            CitusPath::Owner => "owner",
        }
    }
}
