//! As many requests as a front door takes: clients that send the next one when they have the answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::task::JoinSet;

use super::WARM_UP;
use super::cpu::SERVER;
use super::results::CapacityRun;
use crate::load::arrivals::Arrival;
use crate::load::connection::Connection;
use crate::load::target::Target;
use crate::stream::{Stream, StreamSettings};

const PATIENCE: Duration = Duration::from_secs(10);

/// One run, after a warm-up of a quarter of its length.
pub(super) async fn measure(
    target: &Target,
    stream: StreamSettings,
    connections: u32,
    seconds: f64,
) -> anyhow::Result<CapacityRun> {
    let stream = Arc::new(Mutex::new(Stream::new(stream)));
    let done = Arc::new(AtomicU64::new(0));
    let warm_up = Duration::from_secs_f64(seconds * WARM_UP);
    let until = Instant::now() + warm_up + Duration::from_secs_f64(seconds);
    let mut clients = JoinSet::new();
    for _ in 0..connections {
        let connection = Connection::open(target).await?;
        let (target, stream, done) = (target.clone(), Arc::clone(&stream), Arc::clone(&done));
        clients.spawn(client(connection, target, stream, done, until));
    }
    let mark = || {
        anyhow::Ok((
            Instant::now(),
            SERVER.cpu_seconds()?,
            done.load(Ordering::Relaxed),
        ))
    };
    tokio::time::sleep(warm_up).await;
    let (began, cpu_before, done_before) = mark()?;
    tokio::time::sleep_until(until.into()).await;
    let (ended, cpu_after, done_after) = mark()?;
    while let Some(client) = clients.join_next().await {
        client.context("a client panicked")??;
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "requests of a run are far below 2^52"
    )]
    let requests = (done_after - done_before).max(1) as f64;
    Ok(CapacityRun {
        requests_per_s: requests / (ended - began).as_secs_f64(),
        server_cpu_us: (cpu_after - cpu_before) * 1e6 / requests,
    })
}

async fn client(
    mut connection: Connection,
    target: Target,
    stream: Arc<Mutex<Stream>>,
    done: Arc<AtomicU64>,
    until: Instant,
) -> anyhow::Result<()> {
    while Instant::now() < until {
        let next = stream.lock().unwrap_or_else(PoisonError::into_inner).next();
        let arrival = Arrival {
            scheduled: Instant::now(),
            number: 0,
            webhook: next.context("the stream does not end")?,
        };
        match connection.send(&target, None, arrival, PATIENCE).await {
            Ok(status) if status == 202 => done.fetch_add(1, Ordering::Relaxed),
            Ok(status) => bail!("an answer is {status}, not 202"),
            Err(failure) => bail!("no answer: {}", failure.as_str()),
        };
    }
    Ok(())
}
