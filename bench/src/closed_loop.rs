//! Clients that work at once, each one operation after the other.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tokio::task::JoinSet;

use crate::raw::histogram;

/// What each client does again and again. The wait for a connection is a part of its latency.
pub(crate) trait Operation: Send + Sync + 'static {
    type Error: std::error::Error + Send + Sync + 'static;

    fn operate(&self, rng: &mut ChaCha8Rng)
    -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Whether this error ends the experiment; others are counted.
    fn is_fatal(error: &Self::Error) -> bool;
}

/// What the clients did.
pub(crate) struct Tally {
    /// Until the last client was done.
    pub(crate) seconds: f64,
    /// Operations that succeeded.
    pub(crate) ops: u64,
    pub(crate) failed: u64,
    /// Of those that succeeded, in us.
    pub(crate) latency_us: Histogram<u64>,
}

/// Runs the clients until the time is over. Another client of another `run` has other random numbers.
///
/// # Errors
/// The first fatal one.
pub(crate) async fn drive<O: Operation>(
    operation: &Arc<O>,
    clients: u32,
    seconds: f64,
    run: u32,
) -> anyhow::Result<Tally> {
    let started = Instant::now();
    let until = started + Duration::from_secs_f64(seconds);
    let mut working = JoinSet::new();
    for client in 0..clients {
        let rng = ChaCha8Rng::seed_from_u64((u64::from(run) << 32) | u64::from(client));
        working.spawn(one_client(Arc::clone(operation), until, rng));
    }
    let mut tally = Tally::new();
    while let Some(outcome) = working.join_next().await {
        let outcome = outcome??;
        tally.ops += outcome.ops;
        tally.failed += outcome.failed;
        tally.latency_us.add(outcome.latency_us)?;
    }
    tally.seconds = started.elapsed().as_secs_f64();
    Ok(tally)
}

async fn one_client<O: Operation>(
    operation: Arc<O>,
    until: Instant,
    mut rng: ChaCha8Rng,
) -> Result<Tally, O::Error> {
    let mut tally = Tally::new();
    let mut started = Instant::now();
    while started < until {
        let outcome = operation.operate(&mut rng).await;
        let ended = Instant::now();
        match outcome {
            Ok(()) => {
                tally.ops += 1;
                let took = u64::try_from((ended - started).as_micros()).unwrap_or(u64::MAX);
                tally.latency_us.saturating_record(took.max(1));
            }
            Err(error) if O::is_fatal(&error) => return Err(error),
            Err(error) => {
                tally.failed += 1;
                if tally.failed == 1 {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "an operation failed"
                    );
                }
            }
        }
        started = ended;
    }
    Ok(tally)
}

impl Tally {
    fn new() -> Tally {
        Tally {
            seconds: 0.0,
            ops: 0,
            failed: 0,
            latency_us: histogram(),
        }
    }
}
