//! How far the database has applied a partition.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use shardlane_sql::{Applied, ErrorClass, SqlError, Target};

use super::retry::Failure;
use super::{Fences, Lane};
use crate::error::WorkerError;

/// How long the broker may take to say where a log ends. Shorter than the drain at a hand-over.
const LOG_END_MAX: Duration = Duration::from_secs(5);

/// What the database says of a target.
pub(super) enum Read {
    Applied(Applied),
    /// The lane was closed before an answer came.
    Closed,
    /// The target has taken other slots meanwhile.
    Rerouted(SqlError),
}

/// Whether all targets are known that were asked for.
pub(super) enum Known {
    All,
    Closed,
    Rerouted(SqlError),
}

impl Lane {
    /// Makes known how far each of these targets has applied the partition. The log is known to reach `seen`.
    pub(super) async fn know(
        &self,
        targets: &[Target],
        seen: i64,
        fences: &mut Fences,
    ) -> Result<Known, WorkerError> {
        let unknown = || targets.iter().filter(|it| !fences.contains_key(it));
        let read = try_join_all(unknown().map(|target| self.read_applied(*target, seen))).await?;
        let unknown: Vec<Target> = unknown().copied().collect();
        let mut known = Known::All;
        for (target, read) in unknown.into_iter().zip(read) {
            match read {
                Read::Applied(applied) => {
                    fences.insert(target, applied);
                }
                Read::Closed => return Ok(Known::Closed),
                Read::Rerouted(error) => known = Known::Rerouted(error),
            }
        }
        Ok(known)
    }

    /// How far `target` has applied this partition; waits while its database is away.
    ///
    /// The log is known to reach `seen`; only a fence beyond that asks the broker where it ends.
    pub(super) async fn read_applied(
        &self,
        target: Target,
        seen: i64,
    ) -> Result<Read, WorkerError> {
        let mut retry = self.retry();
        loop {
            let (store, topic) = (&self.shared.store, &self.topic);
            let Some(pass) = self.pass(target.shard()).await else {
                return Ok(Read::Closed);
            };
            let read = store.applied(target, topic, self.partition).await;
            let failure = match self.answer(pass, read) {
                Ok(applied) => {
                    let Some(fence) = applied.highest().filter(|fence| *fence > seen) else {
                        return Ok(Read::Applied(applied));
                    };
                    match self.log_end().await {
                        Ok(end) if fence <= end => return Ok(Read::Applied(applied)),
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
                    }
                }
                Err(Failure::Sql(error)) => match error.class() {
                    ErrorClass::Transient => Failure::Sql(error),
                    ErrorClass::Rerouted => return Ok(Read::Rerouted(error)),
                    ErrorClass::Data
                    | ErrorClass::Held
                    | ErrorClass::Fenced
                    | ErrorClass::Permanent => {
                        return Err(error.into());
                    }
                },
                Err(away) => away,
            };
            if !self.wait(&mut retry, &failure).await {
                return Ok(Read::Closed);
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
