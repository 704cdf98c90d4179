//! One cell of the experiment: clients that work for a while, and the proof that nothing was lost.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, ensure};

use super::ground::Ground;
use super::results::{RoutingRun, RoutingSettings};
use super::work::{Path, Work, Workload};
use crate::closed_loop::drive;
use crate::machine::own_cpu_seconds;

/// What is measured at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) workload: Workload,
    pub(super) path: Path,
    pub(super) clients: u32,
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
        let drive = async |seconds| {
            let tally = drive(&work, self.clients, seconds, run).await;
            tally.with_context(|| self.name())
        };
        let warm = drive(settings.warm_up()).await?;

        let hops = ground.hops(path).await?;
        let (servers, client) = (ground.server_cpu_seconds(path), own_cpu_seconds());
        let tally = drive(settings.seconds).await?;
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
