//! How far ahead the event logs have time partitions, where they have any.

use jiff::Timestamp;
use shardlane_router::ShardId;

use crate::{SqlError, Store};

const EVENT_LOGS: [&str; 2] = ["order_events", "dispute_events"];
const READ: &str = include_str!("statements/read_time_partitions.sql");

/// One event log of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimePartitions {
    /// The shard; the first of those that share the database.
    pub shard: ShardId,
    /// Its database: host:port/name.
    pub server: String,
    /// The log.
    pub table: String,
    /// Where the last time partition ends; none: there is only the default one.
    pub until: Option<Timestamp>,
}

impl Store {
    /// Each event log that is partitioned by time, whatever the layout. Nothing of a server that does not tell.
    pub async fn time_partitions(&self) -> Vec<TimePartitions> {
        let mut found = Vec::new();
        for (pool, shards) in self.routes().servers() {
            let shard = shards[0];
            let asked = async {
                let session = pool.get(shard).await?;
                let rows = session.client.query(READ, &[&&EVENT_LOGS[..]]).await?;
                Ok::<_, SqlError>(rows)
            };
            match asked.await {
                Ok(rows) => found.extend(rows.iter().map(|row| TimePartitions {
                    shard,
                    server: pool.server().to_owned(),
                    table: row.get(0),
                    until: row.get(1),
                })),
                Err(error) => tracing::debug!("shard {shard}: time partitions: {error}"),
            }
        }
        found
    }
}
