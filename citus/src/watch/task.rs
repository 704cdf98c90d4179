//! The task behind a [`Watch`](super::Watch): when to ask, and what to do with the answer.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use shardlane_router::{Epoch, ShardMap};
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep_until};
use tokio_postgres::Socket;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};

use super::WatchOptions;
use super::shared::Shared;
use super::source::{Answer, Source};
use crate::{CitusError, MapDiff};

/// The outcome of the last refresh, and how many requests had been made when it began.
#[derive(Debug, Clone)]
pub(super) struct Done {
    pub(super) requests: u64,
    pub(super) outcome: Result<(), Arc<CitusError>>,
}

pub(super) struct Task<T> {
    pub(super) source: Source<T>,
    pub(super) options: WatchOptions,
    pub(super) shared: Arc<Shared>,
    pub(super) changed: watch::Sender<Arc<ShardMap>>,
    pub(super) done: watch::Sender<Done>,
    pub(super) digest: String,
}

impl<T> Task<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + 'static,
    T::Stream: Send,
    T::TlsConnect: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    pub(super) async fn run(mut self) {
        let mut served = 0;
        let mut failed_in_a_row = 0_u32;
        loop {
            let gap = self.gap(failed_in_a_row);
            let began = Instant::now();
            self.wait(served, began + gap).await;
            // Whoever asked until now is served by this one refresh.
            served = self.shared.requests.load(Acquire);
            let outcome = self.refresh().await;
            failed_in_a_row = match &outcome {
                Ok(()) => 0,
                Err(error) => {
                    self.tell_failure(error, failed_in_a_row);
                    failed_in_a_row.saturating_add(1)
                }
            };
            self.done.send_replace(Done {
                requests: served,
                outcome: outcome.map_err(Arc::new),
            });
        }
    }

    /// Until a poll is due, or until somebody asks, but not before `earliest`.
    async fn wait(&self, served: u64, earliest: Instant) {
        let jitter = rand::random_range(0.8..=1.2);
        let poll_at = Instant::now() + self.options.poll_interval.mul_f64(jitter);
        while self.shared.requests.load(Acquire) == served {
            tokio::select! {
                () = sleep_until(poll_at) => return,
                () = self.shared.wake.notified() => {}
            }
        }
        sleep_until(earliest.min(poll_at)).await;
    }

    /// After failures the gap grows, so that a cluster that is down is not hammered by those who suspect it.
    fn gap(&self, failed_in_a_row: u32) -> Duration {
        let factor = 1_u32 << failed_in_a_row.min(6);
        let longest = self.options.poll_interval.max(self.options.refresh_gap_min);
        (self.options.refresh_gap_min * factor).min(longest)
    }

    async fn refresh(&mut self) -> Result<(), CitusError> {
        let shared = Arc::clone(&self.shared);
        shared.polls.fetch_add(1, Relaxed);
        let old = shared.map.load_full();
        let epoch = Epoch(old.epoch().0 + 1);
        let answer = self
            .source
            .ask(Some(&self.digest), old.nodes(), epoch)
            .await?;
        shared.confirm();
        let Answer::Map(digest, new) = answer else {
            return Ok(());
        };
        shared.refreshes.fetch_add(1, Relaxed);
        self.digest = digest;
        let diff = MapDiff::between(&old, &new);
        if !diff.is_empty() {
            self.publish(Arc::new(new), diff);
        }
        Ok(())
    }

    fn publish(&self, map: Arc<ShardMap>, diff: MapDiff) {
        for change in &diff.changes {
            tracing::info!(epoch = diff.to.0, "Citus map: {change}");
        }
        self.shared.changes.fetch_add(1, Relaxed);
        self.shared.remember(diff, self.options.diffs_kept_max);
        self.shared.map.store(Arc::clone(&map));
        self.changed.send_replace(map);
    }

    /// Loud once, then quiet until it works again.
    fn tell_failure(&self, error: &CitusError, failed_before: u32) {
        self.shared.failures.fetch_add(1, Relaxed);
        let epoch = self.shared.map.load().epoch().0;
        let source = std::error::Error::source(error).map(ToString::to_string);
        if failed_before == 0 {
            tracing::warn!(epoch, %error, source, "the Citus map could not be refreshed; the old one stays in use");
        } else {
            tracing::debug!(epoch, %error, source, "the Citus map could not be refreshed");
        }
    }
}
