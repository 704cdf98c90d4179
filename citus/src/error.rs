//! [`CitusError`]: why a cluster cannot be routed to.

use std::sync::Arc;

use shardlane_router::MapError;
use uuid::Uuid;

/// Why a cluster cannot be routed to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CitusError {
    /// The server did not answer, or refused the question.
    #[error(
        "the Citus metadata could not be read; is this a Citus node, and is the extension created in this database?"
    )]
    Metadata(#[source] tokio_postgres::Error),
    /// A node did not let us in.
    #[error("no connection to {node}; does it run, and may this user connect to this database?")]
    Connect {
        /// `host:port`.
        node: String,
        /// What the driver says.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A node was asked and did not answer.
    #[error("{node} did not answer within {seconds} s; is it overloaded, or the network down?")]
    Silent {
        /// `host:port`.
        node: String,
        /// How long it had.
        seconds: f32,
    },
    /// A refresh that several callers waited for failed.
    #[error("the cluster's map could not be refreshed; the last good one stays in use")]
    Refresh(#[source] Arc<CitusError>),
    /// The watch's task has ended.
    #[error("the watch has stopped; start a new one")]
    Stopped,
    /// A table is missing or not hash-distributed.
    #[error(
        "table {table} {problem}; run `shardlane migrate --layout citus` against the coordinator"
    )]
    Table {
        /// The table.
        table: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Tables that belong together are not in one colocation group.
    #[error(
        "tables {first} and {second} are not colocated, so one user's rows lie on different nodes; distribute both with colocate_with"
    )]
    NotColocated {
        /// The table that the others are compared with.
        first: String,
        /// The one that differs.
        second: String,
    },
    /// The distribution column is not a `uuid`.
    #[error(
        "{table} is distributed by {column} of type {found}, but the router hashes a uuid; distribute it by a uuid column"
    )]
    ColumnType {
        /// The table.
        table: String,
        /// Its distribution column.
        column: String,
        /// That column's type.
        found: String,
    },
    /// Two texts may be equal without being the same bytes.
    #[error(
        "the distribution column of {0} has a nondeterministic collation, which no client can hash"
    )]
    Collation(String),
    /// A shard with more than one active placement.
    #[error(
        "shard {0} has more than one active placement; set citus.shard_replication_factor to 1"
    )]
    Replicated(i64),
    /// The ranges are not a map.
    #[error("the cluster's shard ranges are no map of the hash")]
    Map(#[from] MapError),
    /// The server places a key elsewhere than the map does.
    #[error(
        "self-test failed: for {key} the server says shard {server}, the map says shard {ours}; do not route to this cluster with this version"
    )]
    SelfTest {
        /// The probed key.
        key: Uuid,
        /// The shard that Citus names.
        server: i64,
        /// The shard that our hash and map name.
        ours: i64,
    },
}
