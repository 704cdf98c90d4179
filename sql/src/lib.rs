//! The only crate that speaks SQL to business tables: migrations, layouts, pools, and [`Store::stage`], which
//! takes one shard's batch through one transaction.
//!
//! Invariants:
//! - **A layout is DDL and a list of pools, not a code path**: the statements in `statements/` run on each.
//! - **A few statements a batch, whatever its size**: never one a row.
//! - **Once**: what `inbox` knows changes no state; the fence refuses a batch that was applied before.
//! - **A manual shard knows its own slots and epoch**: CHECKs refuse a foreign row, and a connection to the wrong
//!   shard is refused before it is used.
//! - No Kafka and no HTTP here: whoever calls brings decoded events.

mod applied;
pub mod audit;
mod catalog;
mod counting;
mod dead_letters;
mod digest;
mod error;
mod fold;
mod follow;
mod identity;
mod layout;
mod migrate;
#[doc(hidden)]
pub mod mutants;
mod outbox;
mod outcome;
mod park;
mod queue;
pub mod reshard;
mod retention;
mod routes;
mod rows;
#[cfg(feature = "servers")]
pub mod servers;
mod session;
#[cfg(test)]
mod simulation;
mod slots;
mod sqlstate;
mod stage;
mod store;
mod sweep;
#[cfg(feature = "testing")]
pub mod testing;
mod time_partitions;
mod transaction;

pub use applied::Applied;
pub use catalog::{Catalog, Pace, ShardEntry, catalog_history, read_catalog};
pub use dead_letters::NewLetter;
pub use digest::{Digest, DigestError, digest};
pub use error::{ErrorClass, SqlError};
pub use fold::{RejectReason, Rejected};
pub use identity::{IdentityError, ShardIdentity};
pub use layout::{CitusPath, Layout, UnknownLayout};
pub use migrate::{Detail, MigrateError, migrate};
pub use outbox::{Outbox, OutboxLag, OutboxRow, OutboxSession};
pub use outcome::EventOutcome;
pub use park::{Carried, Header, ParkLimits, ParkedLetter};
pub use retention::{RetentionJob, RetentionSettings};
pub use routes::{Routes, Target, Way};
pub use session::PoolWaits;
pub use slots::{NotASlotSet, SlotSet};
pub use stage::{Origin, Record, Report, Staged};
pub use store::{Backend, ServerDown, Store, StoreOptions};
pub use sweep::{KeepLetters, SweepError, SweepTiming, Swept, sweep_while};
pub use time_partitions::TimePartitions;

/// The business tables, each with a `user_id` in every unique key; the first names Citus's colocation group.
pub const TABLES: [&str; 10] = [
    "inbox",
    "kafka_fence",
    "kafka_outcomes",
    "parked",
    "orders",
    "disputes",
    "outbox",
    "order_directory",
    "order_events",
    "dispute_events",
];

/// The tables whose rows belong to their user's slot, in the order in which a batch takes their locks. The fences and
/// the counts of outcomes do not: they belong to the shard.
pub(crate) const SLOT_TABLES: [&str; 8] = [
    "inbox",
    "parked",
    "orders",
    "disputes",
    "order_events",
    "dispute_events",
    "outbox",
    "order_directory",
];
