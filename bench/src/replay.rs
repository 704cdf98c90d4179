//! One topic through a worker: the first time, and again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use jiff::Timestamp;
use shardlane_sql::Store;
use shardlane_worker::{Worker, WorkerSettings};

use crate::ingest::Outcome;

/// How long a run may make no progress at all.
const STALLED_MAX: Duration = Duration::from_secs(60);

/// Consumes `events` records with a group of its own and returns what the worker counted. `progress` is called with
/// the records done so far.
pub(crate) async fn consume(
    settings: WorkerSettings,
    store: Arc<Store>,
    events: u64,
    progress: impl Fn(u64),
) -> anyhow::Result<Outcome> {
    let mut worker = Worker::start(settings, Arc::clone(&store)).await?;
    let stats = worker.stats();
    let mut last = (0, Instant::now());
    let finished = loop {
        tokio::select! {
            () = worker.failed() => break None,
            () = tokio::time::sleep(Duration::from_millis(2)) => {}
        }
        let done = stats.counts().done;
        if done >= events {
            break Some(Instant::now());
        }
        progress(done);
        if done > last.0 {
            last = (done, Instant::now());
        } else if last.1.elapsed() > STALLED_MAX {
            bail!(
                "no progress for {} s at {done} of {events} records",
                STALLED_MAX.as_secs()
            );
        }
    };
    // A dispute whose order was being created at the same moment is left to the sweep.
    let done = Instant::now();
    while finished.is_some() && !store.is_settled(Timestamp::now()).await? {
        if done.elapsed() > STALLED_MAX {
            bail!("what waits in the database does not move");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    worker.stop().await?;
    let Some(finished) = finished else {
        bail!("the worker ended without an error")
    };
    let Some(started) = stats.first_record_at() else {
        bail!("no record came")
    };
    Ok(Outcome::of_worker(&stats, finished.duration_since(started)))
}
