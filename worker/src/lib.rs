//! Kafka to shards. One thread polls; each assigned partition has a lane, a task that batches its records, groups
//! them by shard and takes each group through one transaction.
//!
//! Invariants:
//! - **The key decides, not the partition**: a record in a foreign partition is applied to its user's shard and
//!   counted as misrouted.
//! - **An offset is committed only after the database's commit**, and after the broker has acknowledged every dead
//!   letter before it.
//! - **Nothing vanishes**: a record ends as a row, as a counted duplicate, or as a dead letter.
//! - **A lane that cannot go on stops its own partition only**: it pauses, and resumes by itself.
//! - **Everything is bounded**: rows and bytes of a batch, records that wait, retries' delay.
//!
//! No SQL here, and no routing table: `shardlane-sql` and `shardlane-router` have those.

mod audit;
mod breaker;
mod cloud_event;
mod consumer;
mod dead_letter;
mod dlq;
mod drain;
mod error;
mod flow;
mod growth;
mod headers;
mod hot;
mod lag;
mod lane;
mod live;
mod log_scan;
mod map_document;
mod map_topic;
mod map_watch;
mod metrics;
mod ops;
mod poller;
mod publisher;
mod reader;
mod record;
mod relay;
mod retention;
mod settings;
mod stats;
mod stats_server;
mod sweep;
mod topic_error;
mod topic_retention;
mod topics;
mod trace;
mod watchdog;
mod worker;

pub use audit::{RECORDS_MAX, TopicAudit, TopicFinding, audit_topics};
pub use dlq::{DeadLetterLog, DlqError};
pub use error::WorkerError;
pub use growth::{GrowthError, GrowthOutcome, GrowthSettings, GrowthStep, abort_growth, grow};
pub use hot::{HOT_MAX, HotKeys, skew};
pub use lag::Lag;
pub use map_document::{DocumentError, MapDocument};
pub use map_topic::{MapTopicError, create_map, read_map};
pub use map_watch::{MapSource, MapTiming, MapWatch, Snapshot};
pub use metrics::{metrics_answer, register_buried, register_pools, register_process};
pub use ops::{PROBLEM_TYPE_PREFIX, Probe, ProblemDetails, not_ready};
pub use publisher::{PublishError, Published, Publisher, Refused, accepted_now};
pub use relay::{Relay, RelayCounts, RelaySettings, RelayStats};
pub use settings::WorkerSettings;
pub use stats::{Counts, Stats, TopicCounts};
pub use stats_server::{HotAnswer, HotSlot, HotUser, StatsServer, StatsServerError};
pub use topic_retention::{TopicRetention, set_retention};
pub(crate) use topics::DLQ_MESSAGE_BYTES_MAX;
pub use topics::{
    DLQ_SUFFIX, ExtraPartitions, TopicError, TopicReport, TopicSet, check_topics, create_topics,
    delete_topics, verify_topics,
};
pub use trace::{HEADER_TRACEPARENT, HEADER_TRACESTATE, TraceContext};
pub use worker::{Worker, WorkerView};

/// Kafka header: the id of the hash that placed the record.
pub const HEADER_HASH_ID: &str = "shardlane-hash-id";
/// Kafka header: the epoch of the map that placed the record.
pub const HEADER_EPOCH: &str = "shardlane-epoch";
/// Kafka header of a replayed letter: when the front door accepted the webhook.
pub const HEADER_ACCEPTED_AT: &str = "shardlane-accepted-at";
/// Kafka header of a replayed letter: the letter's id.
pub const HEADER_REPLAYED_FROM: &str = "shardlane-replayed-from";
/// Kafka header: the user's slot.
pub const HEADER_SLOT: &str = "shardlane-slot";
