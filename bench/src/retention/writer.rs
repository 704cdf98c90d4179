//! One session that inserts at a constant rate.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::ground::Log;

/// What its inserts took since the last question, from the time at which they were due.
#[derive(Debug, Clone, Copy)]
pub(super) struct Latencies {
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

pub(super) struct Writer {
    latencies: Arc<Mutex<Histogram<u64>>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<u64>>,
}

impl Writer {
    pub(super) async fn start(log: &Log, per_s: u32) -> anyhow::Result<Writer> {
        let client = log.client().await?;
        let statement = client.prepare(&log.insert_one()).await?;
        let latencies = Arc::new(Mutex::new(Histogram::new(3)?));
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn({
            let latencies = Arc::clone(&latencies);
            async move {
                let began = Instant::now();
                let mut written: u64 = 0;
                while !*stopped.borrow() {
                    // Due whether the one before is done or not: a stall is felt by all that come in it.
                    let due = began
                        + Duration::from_secs_f64(1.0 / f64::from(per_s))
                            .mul_f64(written_f64(written));
                    tokio::time::sleep_until(due.into()).await;
                    client.execute(&statement, &[]).await?;
                    written += 1;
                    let us = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
                    lock(&latencies).saturating_record(us.max(1));
                }
                Ok(written)
            }
        });
        Ok(Writer {
            latencies,
            stop,
            task,
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "microseconds of an insert")]
    pub(super) fn latencies_so_far(&mut self) -> Latencies {
        let mut latencies = lock(&self.latencies);
        let seen = Latencies {
            p99_ms: latencies.value_at_quantile(0.99) as f64 / 1e3,
            max_ms: latencies.max() as f64 / 1e3,
        };
        latencies.reset();
        seen
    }

    /// How many rows it has written.
    pub(super) async fn stop(self) -> anyhow::Result<u64> {
        self.stop.send_replace(true);
        self.task.await?
    }
}

#[expect(clippy::cast_precision_loss, reason = "inserts of a run are few")]
fn written_f64(written: u64) -> f64 {
    written as f64
}

fn lock(latencies: &Mutex<Histogram<u64>>) -> std::sync::MutexGuard<'_, Histogram<u64>> {
    latencies.lock().unwrap_or_else(PoisonError::into_inner)
}
