//! Manual shards, resharded online: slots move between shards under full write load.
//!
//! A reshard is a list of steps over a plan ([`Plan`]), and a journal in the first shard says how many are done. Each
//! step can be repeated, so a reshard that was killed goes on where it was:
//!
//! 1. *Prepare*: joining databases get their schema and an identity without slots; targets admit what will come.
//! 2. *Copy*: a publication with the slots' row filter on the source, a subscription on the target. No trigger, and
//!    nothing in the way of writers.
//! 3. For each target: *catch up* until a marker row needs almost no time; *compare* rows and checksums of each slot, in
//!    two snapshots that hold the same; *freeze* the slots at their sources, whose CHECKs then refuse them; *drain* (a
//!    marker behind the last row has arrived); *verify* what was written since the snapshots; *switch*: the target takes
//!    the slots. Writers of these slots wait from freeze to switch, others do not.
//! 4. *Detach* the subscriptions, *clean* the sources, *finish*.
//!
//! Who owns what changes in freeze and switch only, each in one transaction of one shard; see [`Catalog`](crate::Catalog).

mod journal;
mod plan;
mod replicate;
mod run;
mod servers;
mod snapshots;
mod verify;

use std::time::Duration;

use shardlane_router::{MapError, ShardId, Slot};

pub use self::journal::Journal;
pub use self::plan::{Change, Move, Plan, Step};
pub(crate) use self::run::RESHARD_LOCK;
pub use self::run::{Reshard, ReshardOptions};
use crate::{MigrateError, SqlError};

/// Why a reshard stopped. What was done is in the journal; nothing is half-done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReshardError {
    /// A shard did not answer, or refused.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// The schema of a joining shard.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// The new map is none.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The shards have what they should have already.
    #[error("nothing moves: the shards are balanced over these databases already")]
    NothingToDo,
    /// There is nothing to go on with.
    #[error("no reshard is under way; start one with --add DSN or --remove SHARD")]
    NoneUnderWay,
    /// Another one is not finished.
    #[error(
        "a reshard of {joining} joining and {leaving} leaving shards is under way; finish it with `shardlane reshard run` \
         without --add and --remove, or give it up with `shardlane reshard abort`"
    )]
    UnderWay {
        /// How many shards join in it.
        joining: usize,
        /// How many leave.
        leaving: usize,
    },
    /// Two at once.
    #[error("another `shardlane reshard` is at work on these shards; wait for it")]
    Busy,
    /// A source cannot be followed.
    #[error(
        "shard {shard} has wal_level {found}; logical replication needs `wal_level = logical` in its postgresql.conf and a restart"
    )]
    WalLevel {
        /// The shard.
        shard: ShardId,
        /// Its setting.
        found: String,
    },
    /// A database that joins would lose or hide what it holds.
    #[error(
        "{0} is not empty, so it cannot join; give an empty database, or a shard that has left these shards"
    )]
    NotEmpty(String),
    /// A shard that was named is not in the catalog.
    #[error("shard {0} is not one of these shards")]
    UnknownShard(ShardId),
    /// The copy did not come to its end.
    #[error(
        "the copy from shard {from} to shard {to} is not complete after {waited:?}; see the target's log, then run again"
    )]
    CopyTooSlow {
        /// The source.
        from: ShardId,
        /// The target.
        to: ShardId,
        /// How long was waited.
        waited: Duration,
    },
    /// The target lags too much to freeze anything.
    #[error(
        "shard {to} does not catch up with its sources, although their workers were asked to hold back: a marker takes \
         more than an eighth of the stall of {stall_max:?}; run again when there is less load"
    )]
    Lagging {
        /// The target.
        to: ShardId,
        /// The stall that is allowed.
        stall_max: Duration,
    },
    /// The frozen slots would have stalled for too long.
    #[error(
        "moving to shard {to} would stall its slots for more than {stall_max:?}: they were thawed and are where they were; \
         run again when there is less load, or with a longer --stall-max"
    )]
    Stalled {
        /// The target.
        to: ShardId,
        /// The stall that is allowed.
        stall_max: Duration,
    },
    /// Source and target differ.
    #[error(
        "{table} differs in slot {slot}: shard {from} has {expected} rows, shard {to} has {found}, or their checksums differ; \
         the slots were thawed and are where they were: give the reshard up with `shardlane reshard abort`, and run `shardlane audit`"
    )]
    Different {
        /// The table.
        table: &'static str,
        /// The first slot that differs.
        slot: Slot,
        /// The source.
        from: ShardId,
        /// The target.
        to: ShardId,
        /// Rows at the source.
        expected: i64,
        /// Rows at the target.
        found: i64,
    },
    /// Too late.
    #[error(
        "shard {0} has taken its slots already, so there is no way back; finish with `shardlane reshard run`"
    )]
    Switched(ShardId),
}

impl From<tokio_postgres::Error> for ReshardError {
    fn from(error: tokio_postgres::Error) -> Self {
        ReshardError::Sql(error.into())
    }
}
