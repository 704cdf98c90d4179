//! How far ahead the event logs have time partitions.

use std::convert::Infallible;
use std::fmt::Error;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use shardlane_sql::{Store, TimePartitions};

use super::sheet::Sheet;

/// They are made for days ahead.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// What was seen last: a collector cannot wait for a database.
#[derive(Debug, Clone, Default)]
pub(crate) struct TimePartitionCollector {
    seen: Arc<RwLock<Vec<TimePartitions>>>,
}

impl TimePartitionCollector {
    /// Looks from time to time, for as long as the future lives.
    pub(crate) async fn follow(self, store: Arc<Store>) -> Infallible {
        loop {
            let now = store.time_partitions().await;
            *self.seen.write().unwrap_or_else(PoisonError::into_inner) = now;
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

impl Collector for TimePartitionCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let now = Timestamp::now();
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        let shards: Vec<String> = seen.iter().map(|it| it.shard.to_string()).collect();
        Sheet(encoder).gauge(
            "shardlane_time_partitions_ahead_seconds",
            "How long until the last time partition of an event log ends.",
            seen.iter().zip(&shards).map(|(it, shard)| {
                let ahead = it.until.unwrap_or(now).duration_since(now);
                let labels = [
                    ("shard", &**shard),
                    ("server", &*it.server),
                    ("table", &*it.table),
                ];
                (labels, ahead.as_secs_f64())
            }),
        )
    }
}
