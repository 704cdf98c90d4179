//! What others feel of senders that never end their requests: the same open loop without them and beside them, in turns.
//!
//! These senders share the machine with the door, so their own cost is in the figure too.

use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at};

use super::results::{Slow, SlowRun};
use crate::load::results::LoadSettings;
use crate::load::target::Target;
use crate::load::{LoadOptions, run};
use crate::routing::results::Spread;

/// How many of them.
pub(super) const SOCKETS: u32 = 1_000;
/// A byte of a header at a time: often enough to look alive.
const DRIP: Duration = Duration::from_millis(500);

/// Measures `rounds` pairs of loads.
///
/// # Errors
/// Where a socket cannot be opened or is closed too early, or a request has no 2xx.
pub(super) async fn measure(
    target: &Target,
    load: &LoadSettings,
    rounds: u32,
) -> anyhow::Result<Slow> {
    // Not measured: a new door answers its first requests late, and those would all be of one side.
    alone(target, load, 999).await?;
    let mut runs = Vec::new();
    for round in 0..rounds {
        let seed = 1_000 + 2 * u64::from(round);
        // Each round begins with the other one.
        let (alone_p99_ms, beside_p99_ms) = if round % 2 == 0 {
            let alone = alone(target, load, seed).await?;
            (alone, beside(target, load, seed + 1).await?)
        } else {
            let beside = beside(target, load, seed).await?;
            (alone(target, load, seed + 1).await?, beside)
        };
        runs.push(SlowRun {
            alone_p99_ms,
            beside_p99_ms,
        });
    }
    Ok(Slow {
        sockets: SOCKETS,
        requests_per_s: load.rate,
        ratio: Spread::of(runs.iter().map(|run| run.beside_p99_ms / run.alone_p99_ms)),
        runs,
    })
}

/// The p99 of a load, in milliseconds.
async fn alone(target: &Target, load: &LoadSettings, seed: u64) -> anyhow::Result<f64> {
    let results = run(LoadOptions {
        target: target.clone(),
        settings: LoadSettings {
            seed,
            ..load.clone()
        },
        key: None,
        databases: Vec::new(),
        command: "in the experiment".to_owned(),
    })
    .await?;
    anyhow::ensure!(
        results.is_good(),
        "not every request was answered with 2xx in time: {:?} {:?}, {} never sent",
        results.measured.statuses,
        results.measured.errors,
        results.measured.missed
    );
    Ok(results.measured.latency_ms.p99)
}

async fn beside(target: &Target, load: &LoadSettings, seed: u64) -> anyhow::Result<f64> {
    // The door takes connections in their order, so it holds these before the first of the load.
    let mut sockets = open(target).await?;
    let p99_ms = alone(target, load, seed).await?;
    anyhow::ensure!(
        sockets.try_join_next().is_none(),
        "the door closed a slow socket while requests were measured beside it; make the runs shorter"
    );
    Ok(p99_ms)
}

/// Senders that begin a header and never end it. A task ends where the door closes its socket.
async fn open(target: &Target) -> anyhow::Result<JoinSet<()>> {
    let mut sockets = JoinSet::new();
    for number in 0..SOCKETS {
        let mut stream = TcpStream::connect(target.address)
            .await
            .context("a slow socket cannot be opened; is the limit of open files too low?")?;
        stream
            .write_all(b"POST /webhooks/payments/orders HTTP/1.1\r\nx-slow: ")
            .await?;
        // Spread evenly: a burst would be an attack of another kind.
        let first = Instant::now() + DRIP * number / SOCKETS;
        sockets.spawn(async move {
            let mut drip = interval_at(first, DRIP);
            let mut answer = [0];
            loop {
                tokio::select! {
                    _ = stream.read(&mut answer) => return,
                    _ = drip.tick() => if stream.write_all(b"a").await.is_err() {
                        return;
                    },
                }
            }
        });
    }
    Ok(sockets)
}
