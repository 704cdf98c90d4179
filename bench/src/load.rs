//! An open-loop generator for the front door: requests leave by a schedule, whatever the answers do.
//!
//! Invariants:
//! - **Latency counts from the scheduled time.** A request that waits for a connection waits in the figures too, so a
//!   server that stands still shows what its senders would have felt (no coordinated omission).
//! - **Nothing is left out silently**: a send whose turn did not come in time is `missed`; it and a request without an
//!   answer count in the quantiles with the time that they waited, which is less than the truth.
//! - **Everything is bounded**: connections, requests, time, an answer's size, what waits to be sent.

pub(crate) mod arrivals;
pub(crate) mod connection;
pub mod results;
mod rows;
mod tally;
pub mod target;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::{SignedDuration, Timestamp};
use shardlane_domain::SigningKey;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use crate::machine::{commit, describe};
use crate::stream::{Stream, StreamSettings};
use arrivals::Arrival;
use connection::Connection;
use results::{LoadResults, LoadSettings};
use rows::Rows;
use tally::Tally;
use target::Target;

/// The most requests of one run.
pub const REQUESTS_MAX: u64 = 5_000_000;
/// How many arrivals may wait for a connection; the rest of them waits in the schedule, and none is lost.
const WAITING_MAX: usize = 10_000;
/// Progress in a log, where a bar would be noise.
const LINE_EVERY: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(200);

/// What to send, where to, and what to look at afterwards.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where the front door is.
    pub target: Target,
    /// Size and shape.
    pub settings: LoadSettings,
    /// Signs each request.
    pub key: Option<SigningKey>,
    /// The shards in which some events are looked for.
    pub databases: Vec<String>,
    /// The command line without its secrets, for the results.
    pub command: String,
}

/// Sends, and waits for the last answer.
///
/// # Errors
/// Settings that bound nothing, a target where nobody listens, a database that does not answer.
pub async fn run(options: LoadOptions) -> anyhow::Result<LoadResults> {
    let settings = &options.settings;
    let requests = settings.requests()?;
    let (started, started_at) = (Instant::now(), Timestamp::now());
    let rows = Rows::connect(&options.databases).await?;
    let mut connections = Vec::new();
    for _ in 0..settings.connections {
        // Before the schedule begins, so that it pays for no handshake, and a wrong address is told at once.
        connections.push(Connection::open(&options.target).await.with_context(|| {
            format!(
                "nobody listens on {}; is the front door running?",
                options.target
            )
        })?);
    }

    let stream = Stream::new(StreamSettings::load(
        usize::try_from(requests)?,
        settings.users,
        settings.seed,
        settings.payload_bytes,
        SignedDuration::from_secs_f64(settings.duration_s),
        settings.payments,
    ));
    let start = Instant::now() + Duration::from_millis(50);
    let tally = Arc::new(Tally::new(start, settings.duration_s));
    let (give, take) = mpsc::channel(WAITING_MAX);
    let schedule = arrivals::schedule(settings, start);
    let pacer = std::thread::Builder::new()
        .name("load-pacer".into())
        .spawn(move || arrivals::pace(schedule, stream, &give))?;

    let take = Arc::new(Mutex::new(take));
    let sender = Arc::new(Sender {
        target: options.target.clone(),
        key: options.key.clone(),
        timeout: Duration::from_secs_f64(settings.timeout_s),
        tally: Arc::clone(&tally),
        rows: rows.as_ref().map(|rows| rows.handle(settings.rate)),
    });
    let mut senders: JoinSet<()> = connections
        .into_iter()
        .map(|connection| Arc::clone(&sender).run(connection, Arc::clone(&take)))
        .collect();
    drop(sender);
    let bar = ProgressBar::new(requests).with_style(ProgressStyle::with_template(
        "{spinner} [{elapsed_precise}] {bar:32} {pos}/{len} {msg}",
    )?);
    let all = async {
        while let Some(ended) = senders.join_next().await {
            ended.context("a sender panicked")?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        ended = all => ended?,
        () = show(&bar, &tally) => {}
    }
    bar.finish_and_clear();
    if pacer.join().is_err() {
        bail!("the pacer panicked");
    }
    let measured = tally.measured();
    let rows = match rows {
        Some(rows) => Some(rows.finish().await?),
        None => None,
    };
    Ok(LoadResults {
        experiment: "load".to_owned(),
        started_at: started_at.to_string(),
        took_s: started.elapsed().as_secs_f64(),
        machine: describe(),
        commit: commit(),
        command: options.command,
        settings: options.settings,
        scheduled: requests,
        measured,
        rows,
    })
}

/// What all connections share.
struct Sender {
    target: Target,
    key: Option<SigningKey>,
    timeout: Duration,
    tally: Arc<Tally>,
    rows: Option<rows::Handle>,
}

impl Sender {
    /// Takes the next arrival whenever its connection is free.
    async fn run(
        self: Arc<Self>,
        mut connection: Connection,
        arrivals: Arc<Mutex<mpsc::Receiver<Arrival>>>,
    ) {
        loop {
            let Some(arrival) = arrivals.lock().await.recv().await else {
                return;
            };
            let scheduled = arrival.scheduled;
            if scheduled.elapsed() >= self.timeout {
                self.tally.missed(scheduled);
                continue;
            }
            self.tally.sent(scheduled);
            if let Some(rows) = &self.rows {
                rows.offer(&arrival);
            }
            let number = arrival.number;
            let answer = connection
                .send(&self.target, self.key.as_ref(), arrival, self.timeout)
                .await;
            self.tally.answered(scheduled, answer);
            if let Some(rows) = &self.rows
                && !answer.is_ok_and(|status| status.is_success())
            {
                rows.forget(number);
            }
        }
    }
}

/// A bar on a terminal, a line now and then in a log; never ends.
async fn show(bar: &ProgressBar, tally: &Tally) {
    let mut line_at = Instant::now() + LINE_EVERY;
    loop {
        tokio::time::sleep(TICK).await;
        let (done, sentence) = tally.progress();
        bar.set_position(done);
        bar.set_message(sentence.clone());
        if bar.is_hidden() && Instant::now() >= line_at {
            eprintln!("load: {done} sends are over: {sentence}");
            line_at += LINE_EVERY;
        }
    }
}
