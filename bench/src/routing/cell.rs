//! One cell of the experiment: clients that work for a while, and the proof that nothing was lost.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tokio::task::JoinSet;

use super::ground::Ground;
use super::results::{RoutingRun, RoutingSettings};
use super::work::{OperationError, Path, Work, Workload};
use crate::machine::own_cpu_seconds;
use crate::raw::histogram;

/// What is measured at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) workload: Workload,
    pub(super) path: Path,
    pub(super) clients: u32,
}

/// What clients did in a stretch of time.
struct Tally {
    seconds: f64,
    ops: u64,
    failed: u64,
    latency_us: Histogram<u64>,
}

impl Cell {
    pub(super) fn name(self) -> String {
        format!(
            "{} {} with {} clients",
            self.workload.as_str(),
            self.path.as_str(),
            self.clients
        )
    }

    /// Warms up, measures, and compares what is stored with what was acknowledged.
    pub(super) async fn measure(
        self,
        ground: &Ground,
        settings: &RoutingSettings,
        run: u32,
    ) -> anyhow::Result<RoutingRun> {
        let Cell { workload, path, .. } = self;
        ground.clear(path).await?;
        let before = ground.written(workload, path).await?;
        let pools = ground.pools(workload, path, self.clients).await?;
        let work = Arc::new(Work {
            workload,
            path,
            pools,
            users: Arc::clone(&ground.users),
            batch_rows: settings.batch_rows,
            ids: AtomicU64::new(0),
        });
        let warm = self.drive(&work, settings.warm_up(), run).await?;

        let hops = ground.hops(path).await?;
        let (servers, client) = (ground.server_cpu_seconds(path), own_cpu_seconds());
        let tally = self.drive(&work, settings.seconds, run).await?;
        let server_cpu_s = ground.server_cpu_seconds(path) - servers;
        let client_cpu_s = own_cpu_seconds() - client;
        let hops = match (hops, ground.hops(path).await?) {
            (Some(before), Some(after)) => Some(per(after.saturating_sub(before), tally.ops)),
            _ => None,
        };
        let backends = ground.backends(path).await?;

        let after = ground.written(workload, path).await?;
        let (acknowledged, unknown) = match workload {
            Workload::Read => (0, 0),
            _ => (
                (warm.ops + tally.ops) * work.rows(),
                (warm.failed + tally.failed) * work.rows(),
            ),
        };
        let stored = after.saturating_sub(before);
        ensure!(
            (acknowledged..=acknowledged + unknown).contains(&stored),
            "{}: {acknowledged} rows were acknowledged, {stored} are stored",
            self.name()
        );
        ensure!(tally.ops > 0, "{}: no operation succeeded", self.name());
        Ok(RoutingRun {
            run,
            seconds: tally.seconds,
            ops: tally.ops,
            rows: tally.ops * work.rows(),
            failed_ops: tally.failed,
            stored_rows: stored,
            ops_per_s: per_second(tally.ops, tally.seconds),
            rows_per_s: per_second(tally.ops * work.rows(), tally.seconds),
            p50_us: tally.latency_us.value_at_quantile(0.5),
            p95_us: tally.latency_us.value_at_quantile(0.95),
            p99_us: tally.latency_us.value_at_quantile(0.99),
            server_cpu_s,
            client_cpu_s,
            hops_per_op: hops,
            backends,
        })
    }

    /// The clients, each one operation after the other, until the time is over.
    async fn drive(self, work: &Arc<Work>, seconds: f64, run: u32) -> anyhow::Result<Tally> {
        let started = Instant::now();
        let until = started + Duration::from_secs_f64(seconds);
        let mut clients = JoinSet::new();
        for client in 0..self.clients {
            // Another client of another run meets other users.
            let rng = ChaCha8Rng::seed_from_u64((u64::from(run) << 32) | u64::from(client));
            clients.spawn(one_client(Arc::clone(work), until, rng));
        }
        let mut tally = Tally::new();
        while let Some(outcome) = clients.join_next().await {
            let outcome = outcome?.with_context(|| self.name())?;
            tally.ops += outcome.ops;
            tally.failed += outcome.failed;
            tally.latency_us.add(outcome.latency_us)?;
        }
        tally.seconds = started.elapsed().as_secs_f64();
        Ok(tally)
    }
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

/// Waiting for a free connection is a part of an operation's latency.
async fn one_client(
    work: Arc<Work>,
    until: Instant,
    mut rng: ChaCha8Rng,
) -> Result<Tally, OperationError> {
    let mut tally = Tally::new();
    let mut started = Instant::now();
    while started < until {
        let outcome = work.operate(&mut rng).await;
        let ended = Instant::now();
        match outcome {
            Ok(()) => {
                tally.ops += 1;
                let took = u64::try_from((ended - started).as_micros()).unwrap_or(u64::MAX);
                tally.latency_us.saturating_record(took.max(1));
            }
            Err(error @ OperationError::Wrong { .. }) => return Err(error),
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

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of an experiment are far below 2^52"
)]
fn per_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds.max(1e-9)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of an experiment are far below 2^52"
)]
fn per(count: u64, of: u64) -> f64 {
    count as f64 / (of as f64).max(1.0)
}
