//! How far the database has applied a partition.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use shardlane_sql::{ErrorClass, SqlError, Target};

use super::Lane;
use super::retry::Failure;
use crate::error::WorkerError;

/// How long the broker may take to say where a log ends. Shorter than the drain at a hand-over.
const LOG_END_MAX: Duration = Duration::from_secs(5);

/// What the database says of a target's fence.
pub(super) enum Fence {
    At(i64),
    /// The lane was closed before an answer came.
    Closed,
    /// The target has taken other slots meanwhile.
    Rerouted(SqlError),
}

impl Lane {
    /// How far `target` has applied this partition; waits while its database is away.
    ///
    /// The log is known to reach `seen`; only a fence beyond that asks the broker where it ends.
    pub(super) async fn read_fence(&self, target: Target, seen: i64) -> Result<Fence, WorkerError> {
        let mut retry = self.retry();
        loop {
            let (store, topic) = (&self.shared.store, &self.topic);
            let Some(pass) = self.pass(target.shard()).await else {
                return Ok(Fence::Closed);
            };
            let read = store.fence(target, topic, self.partition).await;
            let failure = match self.answer(pass, read) {
                Ok(None) => return Ok(Fence::At(0)),
                Ok(Some(fence)) if fence <= seen => return Ok(Fence::At(fence)),
                Ok(Some(fence)) => match self.log_end().await {
                    Ok(end) if fence <= end => return Ok(Fence::At(fence)),
                    Ok(end) => {
                        return Err(WorkerError::FenceBeyondLog {
                            topic: self.topic.to_string(),
                            partition: self.partition,
                            fence,
                            end,
                        });
                    }
                    // The broker is away for a moment, which is no reason to end.
                    Err(error) => Failure::LogEnd(error),
                },
                Err(Failure::Sql(error)) => match error.class() {
                    ErrorClass::Transient => Failure::Sql(error),
                    ErrorClass::Rerouted => return Ok(Fence::Rerouted(error)),
                    ErrorClass::Data | ErrorClass::Fenced | ErrorClass::Permanent => {
                        return Err(error.into());
                    }
                },
                Err(away) => away,
            };
            if !self.wait(&mut retry, &failure).await {
                return Ok(Fence::Closed);
            }
        }
    }

    async fn log_end(&self) -> Result<i64, KafkaError> {
        let consumer = Arc::clone(&self.consumer);
        let (topic, partition) = (Arc::clone(&self.topic), self.partition);
        let watermarks = tokio::task::spawn_blocking(move || {
            consumer.fetch_watermarks(&topic, partition, LOG_END_MAX)
        });
        let (_, end) = watermarks.await.map_err(|_| KafkaError::Canceled)??;
        Ok(end)
    }
}
