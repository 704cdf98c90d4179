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
    /// A batch is full at this many bytes, or where its lane may hold no more.
    pub batch_bytes_max: usize,
    /// A batch that is not full waits this long for more.
    pub batch_linger: Duration,
    /// The first delay before a failed batch is tried again; doubled each time, with full jitter.
    pub retry_delay_min: Duration,
    /// The longest such delay.
    pub retry_delay_max: Duration,
    /// What the lanes may hold of records that are not done, in bytes, over all lanes, but for a record each. Half of it
    /// is shared out equally, the other half is for those that come first.
    pub in_flight_bytes_max: usize,
    /// What librdkafka may fetch ahead, in bytes, about, over all partitions of the map.
    pub fetch_ahead_bytes_max: usize,
    /// `group.instance.id`: a name that this worker has after each restart, and no other worker of the group. A restart
    /// within `session_timeout` then moves no partition; one that takes longer, or an end, is noticed only after it.
    pub group_instance_id: Option<String>,
    /// How long the group waits for a worker that is silent. The broker has bounds for it: 6 s to 30 minutes by default.
    pub session_timeout: Duration,
    /// How often the topics are looked at for new partitions.
    pub metadata_refresh: Duration,
    /// An offset commit that was refused is repeated after this time.
    pub commit_repeat: Duration,
    /// A partition that has records and gives none for this long, to a lane that waits for some, has its consumer made
    /// anew.
    pub stall_max: Duration,
    /// How long a revoked or stopping lane may take to finish the batch that it is at.
    pub drain_max: Duration,
    /// How often what waits in the database is looked at.
    pub sweep: SweepTiming,
    /// How the inbox is kept small; `None` keeps its rows for ever.
    pub inbox_retention: Option<RetentionSettings>,
    /// How old dead letters are replayed, from when their webhooks were accepted: the inbox must remember for longer
    /// than this and the topics' retention together.
    pub replay_window: Duration,
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
            in_flight_bytes_max: 48 * 1024 * 1024,
            fetch_ahead_bytes_max: 32 * 1024 * 1024,
            group_instance_id: None,
            session_timeout: Duration::from_secs(6),
            metadata_refresh: Duration::from_secs(5),
            commit_repeat: Duration::from_secs(1),
            stall_max: Duration::from_secs(30),
            drain_max: Duration::from_secs(10),
            sweep: SweepTiming::default(),
            inbox_retention: None,
            replay_window: REPLAY_WINDOW,
        }
    }
}
