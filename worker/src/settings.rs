//! What a worker can be told.

use std::time::Duration;

use shardlane_domain::REPLAY_WINDOW;
use shardlane_sql::RetentionSettings;
use shardlane_sql::SweepTiming;

use crate::map_watch::MapSource;
use crate::topics::TopicSet;

/// Settings of a worker.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// `host:port`, comma-separated.
    pub bootstrap: String,
    /// The consumer group.
    pub group: String,
    /// What to consume.
    pub topics: TopicSet,
    /// The map by which producers place records. It only counts what is misplaced.
    pub map: MapSource,
    /// A batch is full at this many records.
    pub batch_rows_max: usize,
    /// A batch is full at this many bytes of payload.
    pub batch_bytes_max: usize,
    /// A batch that is not full waits this long for more.
    pub batch_linger: Duration,
    /// The first delay before a failed batch is tried again; doubled each time, with full jitter.
    pub retry_delay_min: Duration,
    /// The longest such delay.
    pub retry_delay_max: Duration,
    /// How long the group waits for a worker that is silent, before others take its partitions. Most of the time from
    /// a kill to the next commit. A broker takes 6 s or more by default.
    pub session_timeout: Duration,
    /// How long a revoked or stopping lane may take to finish the batch that it is at.
    pub drain_max: Duration,
    /// How the inbox is kept small; `None` keeps its rows for ever.
    pub inbox_retention: Option<RetentionSettings>,
    /// How old dead letters are replayed, from when their webhooks were accepted: the inbox must remember for longer
    /// than this and the topics' retention together.
    pub replay_window: Duration,
    /// How often what waits in the database is looked at.
    pub sweep: SweepTiming,
}

impl WorkerSettings {
    /// Settings with the defaults of a small machine.
    pub fn new(
        bootstrap: String,
        group: String,
        topics: TopicSet,
        map: impl Into<MapSource>,
    ) -> Self {
        WorkerSettings {
            bootstrap,
            group,
            topics,
            map: map.into(),
            batch_rows_max: 2_000,
            batch_bytes_max: 8 * 1024 * 1024,
            batch_linger: Duration::from_millis(20),
            retry_delay_min: Duration::from_millis(50),
            retry_delay_max: Duration::from_secs(5),
            session_timeout: Duration::from_secs(6),
            drain_max: Duration::from_secs(10),
            inbox_retention: None,
            replay_window: REPLAY_WINDOW,
            sweep: SweepTiming::default(),
        }
    }
}
