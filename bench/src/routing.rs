//! The routing experiment: what it is worth to send a statement to the node that owns its user.
//!
//! One Citus cluster and one plain Postgres, the real tables, the same statements and the same number of connections
//! on every path; only the choice of the connection differs.

mod cell;
mod ground;
mod lookups;
pub mod results;
pub mod table;
mod work;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};

use crate::ingest::say;
use crate::machine::{commit, describe};
use cell::Cell;
use ground::Ground;
use results::{RoutingResults, RoutingRun, RoutingSettings, ratios, summary};
use work::Workload;

/// Runs the experiment. `command` is the command line, for the results.
///
/// # Errors
/// Where Citus is not installed, a server fails, an answer is wrong, or a row that was acknowledged is not there.
pub async fn run(settings: &RoutingSettings, command: &str) -> anyhow::Result<RoutingResults> {
    let started = Instant::now();
    let started_at = jiff::Timestamp::now();
    if settings.runs == 0 || settings.users == 0 || settings.batch_rows == 0 {
        bail!("users, batch rows and runs must be 1 or more");
    }
    if settings.clients.is_empty() || settings.clients.contains(&0) {
        bail!("the number of clients must be 1 or more");
    }
    let progress = ProgressBar::new(0).with_style(ProgressStyle::with_template(
        "{spinner} [{elapsed_precise}] {bar:32} {pos}/{len} {msg}",
    )?);
    progress.enable_steady_tick(Duration::from_millis(100));
    say(&progress, "starting servers");
    let ground = Ground::prepare(settings.users, settings.citus_shards).await?;
    let versions = ground.versions().await?;

    let groups = groups(&settings.clients);
    let count: usize = groups.iter().map(Vec::len).sum();
    progress.set_length(count as u64 * u64::from(settings.runs));
    let mut all: Vec<Vec<(Cell, Vec<RoutingRun>)>> = groups
        .into_iter()
        .map(|cells| cells.into_iter().map(|cell| (cell, Vec::new())).collect())
        .collect();
    for run in 1..=settings.runs {
        for group in &mut all {
            // The paths of a workload follow each other, each time from another one on: what drifts harms all alike.
            let count = group.len();
            for turn in 0..count {
                let (cell, runs) = &mut group[(turn + usize::try_from(run)? - 1) % count];
                say(
                    &progress,
                    &format!("{}, run {run}/{}", cell.name(), settings.runs),
                );
                runs.push(cell.measure(&ground, settings, run).await?);
                progress.inc(1);
            }
        }
    }
    say(&progress, "route lookups");
    let (watch, users, runs) = (
        ground.watch().await?,
        Arc::clone(&ground.users),
        settings.runs,
    );
    let lookups =
        tokio::task::spawn_blocking(move || lookups::measure(&watch, users.all(), runs)).await?;
    progress.finish_and_clear();

    let results: Vec<_> = all
        .into_iter()
        .flatten()
        .map(|(cell, runs)| summary(cell, ground.connections(cell.clients), runs))
        .collect();
    Ok(RoutingResults {
        experiment: "routing".to_owned(),
        started_at: started_at.to_string(),
        took_s: started.elapsed().as_secs_f64(),
        machine: describe(),
        commit: commit(),
        command: command.to_owned(),
        versions,
        settings: settings.clone(),
        ratios: ratios(&results),
        results,
        lookups,
    })
}

/// What is compared with each other: the paths of one workload with one number of clients.
fn groups(clients: &[u32]) -> Vec<Vec<Cell>> {
    let of = |workload: Workload, clients: u32| {
        let paths = workload.paths().iter();
        paths
            .map(|path| Cell {
                workload,
                path: *path,
                clients,
            })
            .collect()
    };
    Workload::ALL
        .into_iter()
        .flat_map(|workload| clients.iter().map(move |clients| of(workload, *clients)))
        .collect()
}
