//! [`OperateError`]: why an operation was not done, and what to do.

use shardlane_router::{MapError, Node, ShardId};
use tokio_postgres::error::SqlState;

use super::RebalanceProgress;

/// Why an operation was not done, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperateError {
    /// The client is connected to a worker.
    #[error("this is a worker, not the coordinator; connect to the coordinator and repeat")]
    NotCoordinator,
    /// A shard that is not there.
    #[error("there is no shard {0}; it may have been split: read the map again")]
    NoShard(ShardId),
    /// A node that is not there.
    #[error("there is no node {0} (group {group}) in the cluster; add it first", group = .0.group)]
    NoNode(Node),
    /// A job that is not there.
    #[error("there is no rebalance {0}; Citus may have forgotten it")]
    NoJob(i64),
    /// A split whose points are not inside the shard.
    #[error("the shard cannot be cut there")]
    Points(#[from] MapError),
    /// A split with too few or too many nodes.
    #[error("{pieces} pieces need as many nodes, but {nodes} were named")]
    PieceCount {
        /// How many pieces the points make.
        pieces: usize,
        /// How many nodes were named.
        nodes: usize,
    },
    /// An online split with a piece that stays on the shard's node.
    #[error(
        "an online split hangs if a piece stays on the shard's own node {0} and rows are updated (citus issue 6790); send all pieces to other nodes and move them back, or block writes"
    )]
    PieceStays(Node),
    /// The distribution column does not hash as a uuid does.
    #[error("table {0} is not distributed by a uuid, so a uuid is no tenant of it")]
    NotUuid(String),
    /// The time for an operation is over.
    #[error(
        "it took too long to {0} and was undone; allow more time, or block writes, which is quicker"
    )]
    TimeOver(&'static str),
    /// A setting that online transfers need.
    #[error(
        "cannot {0} online; set wal_level = logical and, where Postgres has the setting, add citus to output_plugin_libraries, on each node"
    )]
    NotLogical(&'static str, #[source] tokio_postgres::Error),
    /// The nodes do not know of a change yet.
    #[error(
        "the coordinator knows the change, but not all nodes do; check that each node of pg_dist_node is up"
    )]
    MetadataBehind,
    /// A rebalance did not end in time.
    #[error(
        "{0}; it goes on in the background, so ask for its progress, or stop it with citus_rebalance_stop()"
    )]
    StillRebalancing(RebalanceProgress),
    /// A rebalance failed.
    #[error("{progress}: {message}; correct that and rebalance again")]
    RebalanceFailed {
        /// How far it came.
        progress: RebalanceProgress,
        /// What Citus says of the first move that failed.
        message: String,
    },
    /// The server refused, for a reason of its own.
    #[error("cannot {what}: {said}")]
    Server {
        /// What was to be done.
        what: &'static str,
        /// What the server says, with its hint.
        said: String,
        /// The whole of it.
        #[source]
        source: tokio_postgres::Error,
    },
}

impl OperateError {
    pub(super) fn server(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> OperateError {
        move |source| {
            let Some(server) = source.as_db_error() else {
                let said = "the connection failed".to_owned();
                return OperateError::Server { what, said, source };
            };
            let message = server.message();
            if *server.code() == SqlState::QUERY_CANCELED {
                return OperateError::TimeOver(what);
            }
            if message.contains("output plugin") || message.contains("wal_level") {
                return OperateError::NotLogical(what, source);
            }
            let hint = server.hint().map(|it| format!(" ({it})"));
            let said = format!("{message}{}", hint.unwrap_or_default());
            OperateError::Server { what, said, source }
        }
    }
}
