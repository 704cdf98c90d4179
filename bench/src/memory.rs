//! The memory experiment: what a worker process takes at most while it works off a backlog that is many times what it may
//! hold.
//!
//! The worker is the command that users run, with its defaults, in a process of its own. Once it works, the database hangs
//! for some seconds, so that everything that may be full is full; then it drains the backlog to its end. The figure is the
//! kernel's own peak of the process (`VmHWM`), which no sampling can miss.

mod process;
mod results;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use shardlane_local::{Durability, Kafka, KafkaOptions, kafka_available};
use shardlane_router::{Epoch, ShardId, SlotMap, TokenHash};
use shardlane_sql::Layout;
use shardlane_sql::servers::LayoutServers;
use shardlane_worker::{TopicSet, create_topics};

use self::process::WorkerProcess;
pub use self::results::{MemoryResult, Point, Results, Settings, render};
use crate::fill::fill;
use crate::lab::connect;
use crate::machine;
use crate::stream::{StreamSettings, generate};

/// How long the worker may do nothing at all.
const STALLED_MAX: Duration = Duration::from_secs(60);
/// How often the worker is asked.
const ASK: Duration = Duration::from_millis(100);
/// Points of the curve.
const POINTS: u64 = 20;
/// The database hangs when this part of the backlog is done: all batches have been of full size by then.
const HANGS_AFTER: u64 = 10;

/// What to run.
#[derive(Debug, Clone)]
pub struct MemoryOptions {
    /// The `shardlane` command, whose `worker` is measured.
    pub program: PathBuf,
    /// The size.
    pub settings: Settings,
    /// The command line, for the results.
    pub command: String,
}

/// Runs the experiment.
///
/// # Errors
/// Where Kafka or Postgres is missing, a server fails, or the worker ends or stands still.
pub async fn run(options: &MemoryOptions) -> anyhow::Result<Results> {
    let (started, started_at) = (Instant::now(), jiff::Timestamp::now());
    let settings = &options.settings;
    kafka_available()?;
    eprintln!("starting servers");
    let (servers, kafka) = tokio::join!(
        LayoutServers::start(Layout::Single, Durability::Durable, 1, &[]),
        Kafka::start(KafkaOptions::default())
    );
    let (servers, kafka) = (servers?, kafka.context("Kafka did not start")?);
    let map = SlotMap::aligned(
        Epoch(1),
        TokenHash::Postgres,
        settings.partitions,
        &[ShardId(0)],
    )?;
    let database = servers.create("memory", &map, 1).await?;
    let records_bytes = publish(settings, &kafka, &map).await?;

    let mut worker = WorkerProcess::start(
        &options.program,
        &database.urls()[0],
        &kafka.bootstrap(),
        settings.partitions,
    )
    .await?;
    let result = watch(settings, &mut worker, &database.urls()[0]).await;
    let result = MemoryResult {
        events: settings.events,
        records_bytes,
        ..result?
    };
    worker.stop().await?;
    Ok(Results {
        experiment: "memory".to_owned(),
        started_at: started_at.to_string(),
        took_s: started.elapsed().as_secs_f64(),
        machine: machine::describe(),
        commit: machine::commit(),
        command: options.command.clone(),
        settings: settings.clone(),
        ratios: result.ratios(),
        results: vec![result],
    })
}

/// Fills the topics. Gives the bytes of all payloads.
async fn publish(settings: &Settings, kafka: &Kafka, map: &SlotMap) -> anyhow::Result<u64> {
    let topics = TopicSet::with_prefix("");
    // The stream's times lie in the past, where the default retention would delete them.
    let keep = [("retention.ms", "-1")];
    create_topics(&kafka.bootstrap(), &topics, settings.partitions, 1, &keep).await?;
    let stream = StreamSettings::ingest(
        usize::try_from(settings.events)?,
        settings.users,
        0.0,
        1,
        settings.payload_bytes,
    );
    eprintln!("sending {} events to Kafka", settings.events);
    let (bootstrap, map) = (kafka.bootstrap(), map.clone());
    let sent = move || {
        let stream = generate(&stream);
        fill(&bootstrap, &topics, &map, &stream)?;
        anyhow::Ok(stream.iter().map(|it| it.payload.len() as u64).sum())
    };
    tokio::task::spawn_blocking(sent).await?
}

/// Until the backlog is done.
async fn watch(
    settings: &Settings,
    worker: &mut WorkerProcess,
    database: &str,
) -> anyhow::Result<MemoryResult> {
    let mut result = MemoryResult::default();
    let (began, mut progress, mut hung) = (Instant::now(), (0, Instant::now()), Duration::ZERO);
    loop {
        let stats = worker.stats().await?;
        let memory = worker.memory()?;
        if result.points.len() as u64 * settings.events <= stats.done * POINTS {
            result.points.push(Point {
                done: stats.done,
                resident_mib: memory.resident_mib,
            });
        }
        if stats.done >= settings.events {
            let seconds = (began.elapsed() - hung).as_secs_f64();
            #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
            let rate = settings.events as f64 / seconds;
            return Ok(MemoryResult {
                peak_mib: memory.peak_mib,
                in_flight_peak_bytes: stats.in_flight_bytes_peak,
                events_per_s: rate,
                ..result
            });
        }
        if hung.is_zero() && stats.done * HANGS_AFTER >= settings.events {
            eprintln!("the database hangs for {} ms", settings.hang_ms);
            hung = Duration::from_millis(settings.hang_ms);
            let client = connect(database).await?;
            client
                .batch_execute("begin; lock table inbox in access exclusive mode")
                .await?;
            tokio::time::sleep(hung).await;
            client.batch_execute("rollback").await?;
            let (stats, memory) = (worker.stats().await?, worker.memory()?);
            result.hanging_resident_mib = memory.resident_mib;
            result.hanging_in_flight_bytes = stats.in_flight_bytes;
            progress.1 = Instant::now();
        }
        if stats.done > progress.0 {
            progress = (stats.done, Instant::now());
        }
        ensure!(
            progress.1.elapsed() < STALLED_MAX,
            "no progress for {STALLED_MAX:?} at {} of {} events",
            stats.done,
            settings.events
        );
        tokio::time::sleep(ASK).await;
    }
}
