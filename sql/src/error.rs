//! What can go wrong with a database, and what a caller should do about it.

use shardlane_citus::CitusError;
use shardlane_router::{MapError, ShardId};
use tokio_postgres::error::SqlState;

use crate::identity::IdentityError;
use crate::slots::NotASlotSet;
use crate::sqlstate;

/// A failed statement, connection or precondition.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// Postgres or the connection to it.
    #[error("{}", describe(.0))]
    Postgres(#[source] tokio_postgres::Error),
    /// No connection was free or could be made in time.
    #[error("no connection to shard {shard} within {seconds} s{}", .last.as_deref().map(|last| format!(": {last}")).unwrap_or_default())]
    PoolTimeout {
        /// The shard.
        shard: ShardId,
        /// How long was waited, in seconds.
        seconds: u64,
        /// What the last attempt to connect said.
        last: Option<String>,
    },
    /// There is no connection, and an attempt to make one failed.
    #[error("shard {shard} cannot be reached{}", .last.as_deref().map(|last| format!(": {last}")).unwrap_or_default())]
    Unreachable {
        /// The shard.
        shard: ShardId,
        /// What the attempt said, unless somebody else was told.
        last: Option<String>,
    },
    /// A row was written by somebody else between our read and our write; fold anew.
    #[error("a concurrent writer changed {table} under this batch")]
    Conflict {
        /// The table whose optimistic lock failed.
        table: &'static str,
    },
    /// This batch, or a part of it, was applied before: a replay, or this worker is a zombie.
    #[error("the fence of {topic}/{partition} is past offset {offset}: another worker was here")]
    Fenced {
        /// The topic.
        topic: String,
        /// The Kafka partition.
        partition: i32,
        /// The batch's first offset in that partition.
        offset: i64,
    },
    /// The shard has taken other slots since the batch was routed, or is no more.
    #[error("shard {shard} no longer takes what was routed to it: {reason}")]
    Rerouted {
        /// The shard.
        shard: ShardId,
        /// Who said so.
        reason: String,
    },
    /// The user's slot is on its way to another shard, and nobody takes it for a moment.
    #[error("the user's slot is being moved to another shard")]
    Frozen,
    /// Another worker sweeps this shard's parked events at the moment.
    #[error("another worker sweeps shard {shard} at the moment")]
    SweptElsewhere {
        /// The shard.
        shard: ShardId,
    },
    /// The database is another shard than the map says, or has another epoch.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The Citus cluster cannot be routed to.
    #[error(transparent)]
    Citus(#[from] CitusError),
    /// The map does not fit the databases.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A stored value that this version does not know.
    #[error(
        "{table} holds {value:?}, which this version does not know; was it written by a newer one?"
    )]
    UnknownValue {
        /// The table.
        table: &'static str,
        /// The value.
        value: String,
    },
    /// A text that is no set of slots.
    #[error(transparent)]
    Slots(#[from] NotASlotSet),
    /// Settings that contradict each other.
    #[error("{0}")]
    Settings(String),
}

/// What a caller should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// Wait and try the same again.
    Transient,
    /// A row is at fault: the batch without it will pass.
    Data,
    /// Applied before: drop what the fence covers.
    Fenced,
    /// The map is old: refresh it ([`Store::refresh`](crate::Store::refresh)) and route anew.
    Rerouted,
    /// Neither waiting nor leaving rows out helps: stop and say so.
    Permanent,
}

impl SqlError {
    /// What to do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            SqlError::Postgres(error) => class_of(error),
            SqlError::PoolTimeout { .. }
            | SqlError::Unreachable { .. }
            | SqlError::Conflict { .. }
            | SqlError::SweptElsewhere { .. }
            | SqlError::Frozen => ErrorClass::Transient,
            SqlError::Fenced { .. } => ErrorClass::Fenced,
            SqlError::Rerouted { .. } => ErrorClass::Rerouted,
            SqlError::Identity(error) if error.is_only_age() => ErrorClass::Rerouted,
            SqlError::Citus(CitusError::Metadata(error)) => class_of(error),
            SqlError::Citus(
                CitusError::Connect { .. } | CitusError::Silent { .. } | CitusError::Refresh { .. },
            ) => ErrorClass::Transient,
            SqlError::Identity(_)
            | SqlError::Citus(_)
            | SqlError::Map(_)
            | SqlError::UnknownValue { .. }
            | SqlError::Slots(_)
            | SqlError::Settings(_) => ErrorClass::Permanent,
        }
    }
}

impl SqlError {
    /// Whether the database itself is away, for everybody: nobody answered, or it said that it takes nobody now.
    pub fn is_outage(&self) -> bool {
        match self {
            SqlError::PoolTimeout { .. } | SqlError::Unreachable { .. } => true,
            SqlError::Postgres(error) => match error.code() {
                // Connection, out of resources, operator intervention.
                Some(state) => {
                    ["08", "53", "57"].contains(&&state.code()[..2])
                        && *state != SqlState::QUERY_CANCELED
                }
                None => error.is_closed() || is_io(error),
            },
            _ => false,
        }
    }
}

/// What to do about an error of the client or the server.
fn class_of(error: &tokio_postgres::Error) -> ErrorClass {
    let Some(state) = error.code() else {
        // No SQLSTATE: the connection broke. Values that the client could not encode are our own mistake, but
        // they are about one row.
        return if error.is_closed() || error.as_db_error().is_none() && is_io(error) {
            ErrorClass::Transient
        } else {
            ErrorClass::Data
        };
    };
    sqlstate::class_of(state)
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    std::iter::successors(std::error::Error::source(error), |error| error.source())
        .any(|error| error.is::<std::io::Error>())
}

/// tokio-postgres alone shows just "db error".
fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => {
            let detail = db
                .detail()
                .map(|detail| format!(" ({detail})"))
                .unwrap_or_default();
            format!(
                "Postgres says {}: {}{detail}",
                db.code().code(),
                db.message()
            )
        }
        None => {
            let chain: Vec<String> =
                std::iter::successors(std::error::Error::source(error), |error| error.source())
                    .map(ToString::to_string)
                    .collect();
            if chain.is_empty() {
                error.to_string()
            } else {
                format!("{error}: {}", chain.join(": "))
            }
        }
    }
}

impl From<tokio_postgres::Error> for SqlError {
    fn from(error: tokio_postgres::Error) -> Self {
        SqlError::Postgres(error)
    }
}
