//! What passes is waited for.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use rdkafka::error::KafkaError;
use shardlane_router::ShardId;
use shardlane_sql::{ErrorClass, SqlError};

use super::Lane;
use crate::breaker::{LOOK, Pass};
use crate::error::WorkerError;
use crate::stats::Stats;

impl Lane {
    pub(super) fn retry(&self) -> ExponentialBackoff {
        let settings = &self.shared.settings;
        ExponentialBuilder::default()
            .with_min_delay(settings.retry_delay_min)
            .with_max_delay(settings.retry_delay_max)
            .without_max_times()
            .with_jitter()
            .build()
    }

    /// Waits while the shard is away; `None`: the lane is closing.
    pub(super) async fn pass(&self, shard: ShardId) -> Option<Pass> {
        let breaker = self.shared.breakers.of(shard);
        loop {
            if let Some(pass) = breaker.pass() {
                return Some(pass);
            }
            self.pauses();
            if !self.pause(LOOK).await {
                return None;
            }
        }
    }

    /// Tells the breaker what the shard answered.
    pub(super) fn answer<T>(&self, pass: Pass, answer: Result<T, SqlError>) -> Result<T, Failure> {
        let error = match answer {
            Err(error) if error.is_outage() => error,
            answer => {
                pass.answered();
                self.progress.resume();
                return Ok(answer?);
            }
        };
        self.pauses();
        if pass.away() {
            Stats::add(&self.shared.stats.counters.outages, 1);
        }
        Err(Failure::Away(error))
    }

    /// The lane takes nothing from its partition for a while.
    pub(super) fn pauses(&self) {
        if self.progress.pause() {
            Stats::add(&self.shared.stats.counters.pauses, 1);
            tracing::info!(topic = %self.topic, partition = self.partition, "paused");
        }
    }

    /// Waits before another try. False: the lane is closing, so there is none.
    pub(super) async fn wait(&self, retry: &mut ExponentialBackoff, error: &Failure) -> bool {
        let delay = match error {
            // The breaker says how long.
            Failure::Away(_) => Duration::ZERO,
            _ => retry.next().unwrap_or(self.shared.settings.retry_delay_max),
        };
        tracing::warn!(topic = %self.topic, partition = self.partition, ?delay, "waiting: {error}");
        self.pause(delay).await
    }

    /// Waits. False: the lane is closing.
    pub(super) async fn pause(&self, delay: Duration) -> bool {
        let until = Instant::now() + delay;
        while Instant::now() < until {
            if self.progress.is_closing() {
                return false;
            }
            let left = until.saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(Duration::from_millis(50))).await;
        }
        !self.progress.is_closing()
    }
}

/// Why one try failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// The database is away, for all lanes.
    #[error(transparent)]
    Away(SqlError),
    #[error("a dead letter was not acknowledged: {0}")]
    DeadLetter(#[from] KafkaError),
    #[error("the broker did not say where the log ends: {0}")]
    LogEnd(#[source] KafkaError),
}

impl Failure {
    pub(super) fn class(&self) -> ErrorClass {
        match self {
            Failure::Sql(error) | Failure::Away(error) => error.class(),
            Failure::DeadLetter(_) | Failure::LogEnd(_) => ErrorClass::Transient,
        }
    }
}

impl From<Failure> for WorkerError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Sql(error) | Failure::Away(error) => WorkerError::Sql(error),
            Failure::DeadLetter(error) | Failure::LogEnd(error) => WorkerError::Kafka(error),
        }
    }
}
