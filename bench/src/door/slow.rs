//! What others feel of senders that never end their requests: the same open loop without them and beside them, in turns.

use std::time::Duration;

use anyhow::Context as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::results::{Slow, SlowRun};
use crate::load::results::{Arrivals, LoadSettings};
use crate::load::target::Target;
use crate::load::{LoadOptions, run};
use crate::routing::results::Spread;

/// How many of them.
pub(super) const SOCKETS: u32 = 1_000;
/// A byte of a header at a time: often enough to look alive.
const DRIP: Duration = Duration::from_millis(500);

/// Measures `runs` pairs of `seconds` each at `rate` requests a second.
pub(super) async fn measure(
    target: &Target,
    load: &LoadSettings,
    runs: u32,
) -> anyhow::Result<Slow> {
    let mut pairs = Vec::new();
    for round in 0..runs {
        let mut p99_ms = [0.0; 2];
        // Each round begins with the other one.
        for turn in 0..2 {
            let beside = (turn + round) % 2 == 1;
            let sockets = if beside {
                open(target).await?
            } else {
                JoinSet::new()
            };
            let settings = LoadSettings {
                arrivals: Arrivals::Constant,
                seed: u64::from(round) * 2 + u64::from(turn) + 1_000,
                ..load.clone()
            };
            let results = run(LoadOptions {
                target: target.clone(),
                settings,
                key: None,
                databases: Vec::new(),
                command: "in the experiment".to_owned(),
            })
            .await?;
            anyhow::ensure!(
                results.is_good(),
                "requests beside {} sockets failed",
                sockets.len()
            );
            anyhow::ensure!(
                sockets.len() == if beside { SOCKETS as usize } else { 0 },
                "slow sockets ended before the requests did"
            );
            p99_ms[usize::from(beside)] = results.measured.latency_ms.p99;
        }
        pairs.push(SlowRun {
            alone_p99_ms: p99_ms[0],
            beside_p99_ms: p99_ms[1],
        });
    }
    Ok(Slow {
        sockets: SOCKETS,
        requests_per_s: load.rate,
        ratio: Spread::of(
            pairs
                .iter()
                .map(|pair| pair.beside_p99_ms / pair.alone_p99_ms),
        ),
        runs: pairs,
    })
}

/// Sockets that begin a header and go on for ever; they are closed when the set is dropped.
async fn open(target: &Target) -> anyhow::Result<JoinSet<()>> {
    let mut sockets = JoinSet::new();
    for _ in 0..SOCKETS {
        let mut stream = TcpStream::connect(target.address())
            .await
            .context("a slow socket cannot be opened; is the limit of open files too low?")?;
        stream
            .write_all(b"POST /webhooks/payments/orders HTTP/1.1\r\nx-slow: ")
            .await?;
        sockets.spawn(async move {
            while stream.write_all(b"a").await.is_ok() {
                tokio::time::sleep(DRIP).await;
            }
        });
    }
    Ok(sockets)
}
