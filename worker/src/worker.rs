//! A worker's life: start, failure, stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use shardlane_sql::{RetentionJob, Store};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::consumer::subscribe;
use crate::dead_letter::DeadLetters;
use crate::error::WorkerError;
use crate::lane::Shared;
use crate::poller::Poller;
use crate::retention;
use crate::settings::WorkerSettings;
use crate::stats::Stats;
use crate::sweep;

/// What there is to know about a worker, for [`StatsServer`](crate::StatsServer). It outlives it.
#[derive(Clone)]
pub struct WorkerView {
    pub(crate) shared: Arc<Shared>,
}

/// A running worker. Dropped, it stops without waiting; [`Worker::stop`] waits.
pub struct Worker {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    failed: watch::Receiver<bool>,
    sweep: AbortHandle,
    thread: Option<std::thread::JoinHandle<Result<(), WorkerError>>>,
    _retention: Option<RetentionJob>,
}

impl Worker {
    /// Checks the topics against the map, subscribes and starts. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`WorkerError`] where broker, topics or map do not fit.
    pub async fn start(settings: WorkerSettings, store: Arc<Store>) -> Result<Worker, WorkerError> {
        let runtime = Handle::current();
        let stats = Arc::new(Stats::new());
        let retention = retention::start(&settings, &store, &stats).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let (failing, failed) = watch::channel(false);
        let shared = Arc::new(Shared {
            dead_letters: DeadLetters::new(&settings.bootstrap)?,
            stats,
            store,
            settings,
        });
        let consumer = {
            let shared = Arc::clone(&shared);
            tokio::task::spawn_blocking(move || subscribe(&shared))
                .await
                .map_err(|_| WorkerError::Panicked)??
        };
        let sweep = runtime
            .spawn(sweep::run(Arc::clone(&shared)))
            .abort_handle();
        let poller = Poller {
            consumer: Arc::new(consumer),
            shared: Arc::clone(&shared),
            runtime,
            stop: Arc::clone(&stop),
            error: Arc::default(),
        };
        let thread = std::thread::Builder::new()
            .name("shardlane-poll".into())
            .spawn(move || {
                let result = poller.run();
                // The receiver may be gone with the worker.
                failing.send_replace(result.is_err());
                result
            })
            .map_err(|_| WorkerError::Panicked)?;
        Ok(Worker {
            shared,
            stop,
            failed,
            sweep,
            thread: Some(thread),
            _retention: retention,
        })
    }

    /// Its counters, which outlive it.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.shared.stats)
    }

    /// For a server that answers about it.
    pub fn view(&self) -> WorkerView {
        WorkerView {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Returns when the worker has ended by itself, which it only does for an error: [`Worker::stop`] gives it.
    pub async fn failed(&mut self) {
        // An error means that the thread is gone, which is a failure too.
        self.failed.wait_for(|failed| *failed).await.ok();
    }

    /// Stops: batches under way are finished within the settings' `drain_max`, what is not begun is left to the
    /// next owner.
    ///
    /// # Errors
    /// The error for which the worker had stopped before.
    pub async fn stop(mut self) -> Result<(), WorkerError> {
        self.stop.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        tokio::task::spawn_blocking(move || thread.join())
            .await
            .ok()
            .and_then(Result::ok)
            .unwrap_or(Err(WorkerError::Panicked))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Its transaction is rolled back, and the events of it wait on.
        self.sweep.abort();
        self.stop.store(true, Ordering::Release);
    }
}
