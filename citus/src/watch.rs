//! [`Watch`]: the map of a cluster, kept true while the cluster changes.
//!
//! Citus notifies nobody, so a task asks: one short digest row every two seconds or so, and the whole map only when
//! the digest is another one. Who sees a connection error or a moved shard calls [`Watch::suspect`], and the task
//! asks at once; however many call, it asks no more often than [`WatchOptions::refresh_gap_min`] allows.
//!
//! The task asks the address that it was given; while that does not answer, any node of the last map. Give it the
//! coordinator's: after `citus_update_node` the others learn the new address a moment later.

mod shared;
mod source;
mod task;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering::AcqRel;
use std::time::Duration;

use serde::Serialize;
use shardlane_router::{Epoch, ShardMap};
use tokio::sync::watch::{self, Receiver};
use tokio::task::JoinHandle;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Config, NoTls, Socket};

use self::shared::Shared;
use self::source::{Answer, Source};
use self::task::{Done, Task};
use crate::{CitusError, MapDiff};

/// How a [`Watch`] works. Make it from the default and change its fields.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WatchOptions {
    /// How long from one poll to the next, give or take a fifth, so that many processes do not poll in step: 2 s.
    pub poll_interval: Duration,
    /// The least time between two refreshes that were asked for: 100 ms. It grows up to the poll interval while
    /// they fail.
    pub refresh_gap_min: Duration,
    /// How long one node has to let us in, and again to answer, before another is asked: 3 s.
    pub answer_time_max: Duration,
    /// How many of the last changes [`Watch::diffs`] keeps: 32.
    pub diffs_kept_max: usize,
    /// The epoch of the first map: 1. Each change adds one.
    pub first_epoch: Epoch,
}

impl Default for WatchOptions {
    fn default() -> WatchOptions {
        WatchOptions {
            poll_interval: Duration::from_secs(2),
            refresh_gap_min: Duration::from_millis(100),
            answer_time_max: Duration::from_secs(3),
            diffs_kept_max: 32,
            first_epoch: Epoch(1),
        }
    }
}

/// What a [`Watch`] has done since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WatchStats {
    /// Calls of [`Watch::suspect`] and [`Watch::refresh`].
    pub requests: u64,
    /// How often the cluster was asked.
    pub polls: u64,
    /// How often the whole map was read, the first time included.
    pub refreshes: u64,
    /// How often the map was another one.
    pub changes: u64,
    /// Polls without an answer, or with a map that cannot be used.
    pub failures: u64,
    /// How long ago the cluster last confirmed the map.
    pub confirmed_ago: Duration,
}

/// A cluster's map, kept true by a task until this value is dropped.
///
/// Share it in an `Arc`. Reading the map neither locks nor waits.
pub struct Watch {
    shared: Arc<Shared>,
    changed: Receiver<Arc<ShardMap>>,
    done: Receiver<Done>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Reads the map of `tables` as [`load`](crate::load) does, and goes on watching it. `config` is the
    /// coordinator's (several hosts are tried in turn); other nodes are reached with the same user and database.
    ///
    /// # Errors
    /// [`CitusError`] where there is no connection, or where the tables cannot be routed to.
    pub async fn start(
        config: Config,
        tables: &[&str],
        options: WatchOptions,
    ) -> Result<Watch, CitusError> {
        Watch::start_tls(config, NoTls, tables, options).await
    }

    /// As [`Watch::start`], over TLS.
    ///
    /// # Errors
    /// As [`Watch::start`].
    pub async fn start_tls<T>(
        config: Config,
        tls: T,
        tables: &[&str],
        options: WatchOptions,
    ) -> Result<Watch, CitusError>
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::Stream: Send,
        T::TlsConnect: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        let mut source = Source::new(config, tls, tables, options.answer_time_max);
        let answer = source.ask(None, &[], options.first_epoch).await?;
        let Answer::Map(digest, map) = answer else {
            unreachable!("without a digest to compare with, the answer is a map");
        };
        let shared = Arc::new(Shared::new(map));
        let (changed, changes) = watch::channel(shared.map.load_full());
        let (done, finished) = watch::channel(Done {
            requests: 0,
            outcome: Ok(()),
        });
        let task = Task {
            source,
            options,
            shared: Arc::clone(&shared),
            changed,
            done,
            digest,
        };
        Ok(Watch {
            shared,
            changed: changes,
            done: finished,
            task: tokio::spawn(task.run()),
        })
    }

    /// The newest map.
    #[must_use]
    pub fn current(&self) -> Arc<ShardMap> {
        self.shared.map.load_full()
    }

    /// The newest map, cheaper still: no counter that all readers share is touched. For a lookup, not to be held
    /// over an `.await`.
    #[must_use]
    pub fn peek(&self) -> impl Deref<Target = Arc<ShardMap>> + use<> {
        self.shared.map.load()
    }

    /// A channel that holds the newest map and tells of each new one, for those who keep something beside it, such
    /// as a pool a node. A slow reader sees the last map, not each. It closes when the watch is dropped.
    #[must_use]
    pub fn subscribe(&self) -> Receiver<Arc<ShardMap>> {
        self.changed.clone()
    }

    /// "I saw a connection error, or a shard that is not there." Asks for a refresh and returns at once. Any number
    /// of calls cause one refresh.
    pub fn suspect(&self) {
        self.request();
    }

    /// Waits for a refresh that begins after this call, and gives its map. Any number of waiters share one.
    ///
    /// # Errors
    /// [`CitusError::Refresh`] if it failed; [`Watch::current`] stays what it was. [`CitusError::Stopped`] if the
    /// runtime of the watch is shutting down.
    pub async fn refresh(&self) -> Result<Arc<ShardMap>, CitusError> {
        let request = self.request();
        let mut done = self.done.clone();
        let served = done.wait_for(|done| done.requests >= request).await;
        let outcome = served.map_err(|_| CitusError::Stopped)?.outcome.clone();
        outcome.map_err(CitusError::Refresh)?;
        Ok(self.current())
    }

    /// The last changes, oldest first.
    #[must_use]
    pub fn diffs(&self) -> Vec<MapDiff> {
        self.shared.diffs()
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> WatchStats {
        self.shared.stats()
    }

    fn request(&self) -> u64 {
        let request = self.shared.requests.fetch_add(1, AcqRel) + 1;
        self.shared.wake.notify_one();
        request
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("map", &*self.peek())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
