//! What the routing experiment measured, as its `results.json` has it. Scripts rely on these names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::cell::Cell;
use crate::results::Machine;

/// The experiment with everything that is needed to judge and to repeat it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoutingResults {
    /// `routing`.
    pub experiment: String,
    /// RFC 3339.
    pub started_at: String,
    /// How long the whole experiment took, in seconds.
    pub took_s: f64,
    /// Where it ran.
    pub machine: Machine,
    /// The commit of the code, with `-dirty` where the tree had changes; `unknown` outside a checkout.
    pub commit: String,
    /// The command line that repeats it.
    pub command: String,
    /// Versions by name: `postgres`, `citus`, `shardlane`.
    pub versions: BTreeMap<String, String>,
    /// What was asked for.
    pub settings: RoutingSettings,
    /// One row a workload, number of clients and path.
    pub results: Vec<RoutingResult>,
    /// The owner against each other path.
    pub ratios: Vec<RoutingRatio>,
    /// Routes a second on one thread.
    pub lookups: Lookups,
}

/// Routes of a user to a node, a second, on one thread, while a watch polls.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lookups {
    /// From a map that never changes.
    pub plain_per_s: Spread,
    /// From the watch by `peek`, taken anew for each route.
    pub peek_per_s: Spread,
    /// From the watch by `current`, taken anew for each route.
    pub current_per_s: Spread,
    /// Every run.
    pub runs: Vec<LookupRun>,
}

/// One run of the lookups.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LookupRun {
    /// From a map that never changes.
    pub plain_per_s: f64,
    /// From the watch by `peek`.
    pub peek_per_s: f64,
    /// From the watch by `current`.
    pub current_per_s: f64,
}

/// The size of the experiment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoutingSettings {
    /// Users, each with one order.
    pub users: u32,
    /// Length of a cell, in seconds, after a warm-up.
    pub seconds: f64,
    /// Numbers of clients that work at once.
    pub clients: Vec<u32>,
    /// Shards of the Citus tables, over two workers.
    pub citus_shards: u32,
    /// Rows a batch.
    pub batch_rows: usize,
    /// Runs a cell.
    pub runs: u32,
}

impl RoutingSettings {
    /// Enough for a session to have its plans: Postgres and Citus settle on one after the fifth use.
    pub(super) fn warm_up(&self) -> f64 {
        (self.seconds * 0.25).max(0.1)
    }
}

/// What one path did with one workload: medians over the runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoutingResult {
    /// `insert`, `batch`, `read`, `read-modify-write`.
    pub workload: String,
    /// `single`, `coordinator`, `any-node`, `owner`; for batches also `coordinator-grouped`, `any-node-grouped`,
    /// for reads `owner-watched`.
    pub path: String,
    /// Clients that work at once, each one operation after the other.
    pub clients: u32,
    /// Connections of all clients to all nodes.
    pub connections: u32,
    /// Median.
    pub ops_per_s: f64,
    /// Slowest run.
    pub ops_per_s_min: f64,
    /// Fastest run.
    pub ops_per_s_max: f64,
    /// Median; rows written, or read.
    pub rows_per_s: f64,
    /// Median of the runs' median latency of an operation, in us, with the wait for a connection.
    pub p50_us: f64,
    /// Likewise the 95th percentile.
    pub p95_us: f64,
    /// Likewise the 99th percentile.
    pub p99_us: f64,
    /// Median CPU time of all servers of the path, in us a row.
    pub server_cpu_us_per_row: f64,
    /// Median CPU time of our own process, in us a row.
    pub client_cpu_us_per_row: f64,
    /// How often a node turned to another one, an operation; absent without Citus.
    pub hops_per_op: Option<f64>,
    /// Connections on all servers of the path, those between nodes included.
    pub backends: f64,
    /// Operations that failed, over all runs.
    pub failed_ops: u64,
    /// Every run.
    pub runs: Vec<RoutingRun>,
}

/// One run of one cell.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoutingRun {
    /// Counted from 1.
    pub run: u32,
    /// Until the last client was done.
    pub seconds: f64,
    /// Operations that succeeded.
    pub ops: u64,
    /// Their rows.
    pub rows: u64,
    /// Operations that failed.
    pub failed_ops: u64,
    /// Rows, or increments of a row, found afterwards, those of the warm-up included. Fewer than were acknowledged
    /// would have failed the experiment.
    pub stored_rows: u64,
    /// Operations a second.
    pub ops_per_s: f64,
    /// Rows a second.
    pub rows_per_s: f64,
    /// Median latency in us.
    pub p50_us: u64,
    /// The 95th percentile.
    pub p95_us: u64,
    /// The 99th percentile.
    pub p99_us: u64,
    /// CPU seconds of the servers.
    pub server_cpu_s: f64,
    /// CPU seconds of our process.
    pub client_cpu_s: f64,
    /// How often a node turned to another one, an operation.
    pub hops_per_op: Option<f64>,
    /// Connections on all servers at the end.
    pub backends: u64,
}

/// The owner against another path: taken within each round of runs, then over the rounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoutingRatio {
    /// The workload.
    pub workload: String,
    /// Clients that work at once.
    pub clients: u32,
    /// `owner/coordinator`, ...
    pub name: String,
    /// Throughput; above 1 the owner is faster.
    pub ops_per_s: Spread,
    /// Median latency; below 1 the owner is faster.
    pub p50_us: Spread,
    /// CPU time of the servers a row; below 1 the owner is cheaper.
    pub server_cpu_us_per_row: Spread,
}

/// Where values lie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of some values; all zero of none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() {
            0 => 0.0,
            n if n % 2 == 1 => values[middle],
            _ => f64::midpoint(values[middle - 1], values[middle]),
        };
        Spread {
            median,
            min: values.first().copied().unwrap_or(0.0),
            max: values.last().copied().unwrap_or(0.0),
        }
    }
}

impl RoutingRun {
    #[expect(
        clippy::cast_precision_loss,
        reason = "counts of an experiment are far below 2^52"
    )]
    fn us_per_row(&self, cpu_s: f64) -> f64 {
        cpu_s * 1e6 / self.rows.max(1) as f64
    }

    fn server_cpu_us_per_row(&self) -> f64 {
        self.us_per_row(self.server_cpu_s)
    }
}

/// One row of the results.
#[expect(
    clippy::cast_precision_loss,
    reason = "microseconds of an operation and counts of connections are small"
)]
pub(super) fn summary(cell: Cell, connections: u32, runs: Vec<RoutingRun>) -> RoutingResult {
    let spread = |value: fn(&RoutingRun) -> f64| Spread::of(runs.iter().map(value));
    let ops = spread(|run| run.ops_per_s);
    RoutingResult {
        workload: cell.workload.as_str().to_owned(),
        path: cell.path.as_str().to_owned(),
        clients: cell.clients,
        connections,
        ops_per_s: ops.median,
        ops_per_s_min: ops.min,
        ops_per_s_max: ops.max,
        rows_per_s: spread(|run| run.rows_per_s).median,
        p50_us: spread(|run| run.p50_us as f64).median,
        p95_us: spread(|run| run.p95_us as f64).median,
        p99_us: spread(|run| run.p99_us as f64).median,
        server_cpu_us_per_row: spread(RoutingRun::server_cpu_us_per_row).median,
        client_cpu_us_per_row: spread(|run| run.us_per_row(run.client_cpu_s)).median,
        hops_per_op: runs
            .iter()
            .all(|run| run.hops_per_op.is_some())
            .then(|| spread(|run| run.hops_per_op.unwrap_or(0.0)).median),
        backends: spread(|run| run.backends as f64).median,
        failed_ops: runs.iter().map(|run| run.failed_ops).sum(),
        runs,
    }
}

/// The owner against each other path of the same workload and number of clients.
#[expect(
    clippy::cast_precision_loss,
    reason = "microseconds of an operation are few"
)]
pub(super) fn ratios(results: &[RoutingResult]) -> Vec<RoutingRatio> {
    let mut ratios = Vec::new();
    for owner in results.iter().filter(|result| result.path == "owner") {
        let others = results.iter().filter(|other| {
            (&other.workload, other.clients) == (&owner.workload, owner.clients)
                && other.path != owner.path
        });
        for other in others {
            let spread = |value: fn(&RoutingRun) -> f64| {
                let pairs = owner.runs.iter().zip(&other.runs);
                Spread::of(pairs.map(|(owner, other)| value(owner) / value(other)))
            };
            ratios.push(RoutingRatio {
                workload: owner.workload.clone(),
                clients: owner.clients,
                name: format!("owner/{}", other.path),
                ops_per_s: spread(|run| run.ops_per_s),
                p50_us: spread(|run| run.p50_us as f64),
                server_cpu_us_per_row: spread(RoutingRun::server_cpu_us_per_row),
            });
        }
    }
    ratios
}
