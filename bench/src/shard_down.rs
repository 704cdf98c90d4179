//! The shard-down experiment: one of two servers goes away under load and comes back, and what it costs the other one is
//! measured.
//!
//! Events are sent at one rate, which both servers can take together and a server that came back can take several times.
//! So the healthy server's rate says whether it is held up, and not that it has the cores for itself meanwhile, as it
//! would behind a backlog that saturates them. Afterwards an oracle compares what the servers hold with what was sent.

mod recorder;
mod results;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use shardlane_local::{Durability, Kafka, KafkaOptions, Postgres, kafka_available};
use shardlane_router::{Epoch, ShardId, SlotMap, TokenHash};
use shardlane_sql::servers::{LayoutDatabase, LayoutServers};
use shardlane_sql::{CitusPath, Layout, SlotSet, Store, StoreOptions, digest};
use shardlane_worker::{TopicSet, Worker, WorkerSettings, create_topics};

use self::recorder::{Outage, Recorder};
pub use self::results::{OutageResult, Results, Sample, Settings, render};
use crate::machine;
use crate::reshard::load::{Load, Pace};
use crate::reshard::oracle::{self, Verdict};
use crate::results::Skipped;

/// How long a wait may take before the experiment gives up.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often a condition is asked for.
const ASK: Duration = Duration::from_millis(10);

/// What to run.
#[derive(Debug, Clone)]
pub struct ShardDownOptions {
    /// `shards` and `citus`, or one of them.
    pub layouts: Vec<Layout>,
    /// The size.
    pub settings: Settings,
    /// The command line, for the results.
    pub command: String,
}

/// Runs the experiment.
///
/// # Errors
/// Where Kafka or all layouts are missing, a server fails otherwise than it shall, or the worker stands still.
pub async fn run(options: &ShardDownOptions) -> anyhow::Result<Results> {
    let (started, started_at) = (Instant::now(), jiff::Timestamp::now());
    kafka_available()?;
    let mut results = Results {
        experiment: "shard-down".to_owned(),
        started_at: started_at.to_string(),
        took_s: 0.0,
        machine: machine::describe(),
        commit: machine::commit(),
        command: options.command.clone(),
        settings: options.settings.clone(),
        results: Vec::new(),
        samples: BTreeMap::new(),
        ratios: Vec::new(),
        skipped: Vec::new(),
    };
    for layout in &options.layouts {
        if !matches!(layout, Layout::Shards | Layout::Citus) {
            bail!("layout {layout} has one server only; choose from shards, citus");
        }
        if let Err(missing) = LayoutServers::available(*layout) {
            results.skipped.push(Skipped {
                layout: layout.to_string(),
                reason: missing.to_string(),
            });
            continue;
        }
        let (result, samples) = run_layout(&options.settings, *layout)
            .await
            .with_context(|| format!("layout {layout}"))?;
        results.ratios.extend(result.ratios());
        results.results.push(result);
        results.samples.insert(layout.to_string(), samples);
    }
    results.took_s = started.elapsed().as_secs_f64();
    Ok(results)
}

async fn run_layout(
    settings: &Settings,
    layout: Layout,
) -> anyhow::Result<(OutageResult, Vec<Sample>)> {
    eprintln!("{layout}: starting servers");
    let (servers, kafka) = tokio::join!(
        LayoutServers::start(layout, Durability::Durable, 2, &[]),
        Kafka::start(KafkaOptions::default())
    );
    let (servers, kafka) = (servers?, kafka.context("Kafka did not start")?);
    let shards = [ShardId(0), ShardId(1)];
    let map = SlotMap::aligned(Epoch(1), TokenHash::Postgres, settings.partitions, &shards)?;
    let database = servers
        .create("shard_down", &map, settings.partitions)
        .await?;
    let backend = database.backend(CitusPath::Owner);
    let store = Arc::new(Store::connect(backend, StoreOptions::default()).await?);
    let (victim, lost) = victim(&servers, &database, &store)?;

    let topics = TopicSet::with_prefix("shard-down");
    // The events carry times of their own, long past: Kafka would delete them half a minute after its start.
    let keep = [("retention.ms", "-1")];
    create_topics(&kafka.bootstrap(), &topics, settings.partitions, 1, &keep).await?;
    let group = "shard-down".to_owned();
    let worker = WorkerSettings::new(kafka.bootstrap(), group, topics.clone(), map.clone());
    let worker = Worker::start(worker, store).await?;
    let stats = worker.stats();
    let load = Load::start(
        &kafka.bootstrap(),
        &topics,
        &map,
        settings.users,
        Pace::Rate(settings.rate),
        Arc::clone(&stats),
    )?;
    let recorder = Recorder::start(Arc::clone(&stats), load.counter(), lost);
    // The worker joins its group, and works off what was sent meanwhile: that is no part of the quiet stretch.
    until("the worker does not keep up with the load", &load, || {
        stats.counts().done >= settings.users && recorder.waiting() <= settings.rate / 4
    })
    .await?;
    let outage = strike(settings, layout, victim, &recorder, &load).await?;
    let sent = load.stop().await?;
    let deadline = Instant::now() + PATIENCE;
    while stats.counts().done < sent {
        ensure!(
            Instant::now() < deadline,
            "the worker has not drained {sent} events: {:?}",
            stats.counts()
        );
        tokio::time::sleep(ASK).await;
    }
    worker.stop().await?;
    let recording = recorder.stop().await?;

    eprintln!("{layout}: asking every shard");
    let found = Verdict::read(database.urls(), settings.users, sent)
        .await?
        .of(&(0..sent));
    let undisturbed = oracle::undisturbed(settings.users, sent, &map).await?;
    let result = OutageResult {
        layout: layout.to_string(),
        events: sent,
        lost: found.lost,
        twice: found.twice,
        out_of_order: found.out_of_order,
        equal_state: digest(database.urls()).await? == undisturbed,
        ..recording.of(&outage)?
    };
    Ok((result, recording.curve()))
}

/// The server that will go away, the last one, and the slots that it holds.
fn victim<'a>(
    servers: &'a LayoutServers,
    database: &LayoutDatabase,
    store: &Store,
) -> anyhow::Result<(&'a Postgres, SlotSet)> {
    let victim = *servers.nodes().last().context("a layout has servers")?;
    let routes = store.routes();
    let lost = match routes.shard_map() {
        Some(cluster) => SlotSet::of(|slot| {
            let shard = cluster.shard_for(slot.key_range().first());
            cluster.node_of(shard).port == victim.port()
        }),
        None => SlotSet::of(|slot| {
            Some(&database.map().shard_of(slot)) == database.map().shards().last()
        }),
    };
    ensure!(
        !lost.is_empty() && lost.len() < SlotSet::of(|_| true).len(),
        "the server that shall go away holds {} slots",
        lost.len()
    );
    Ok((victim, lost))
}

/// A quiet stretch, the outage, and the time until nothing waits any more than before it.
async fn strike(
    settings: &Settings,
    layout: Layout,
    victim: &Postgres,
    recorder: &Recorder,
    load: &Load,
) -> anyhow::Result<Outage> {
    let lead = Duration::from_millis(settings.lead_ms);
    tokio::time::sleep(lead).await;
    let usual = recorder.waiting_max_since(lead);
    eprintln!("{layout}: a server goes away for {} ms", settings.outage_ms);
    let down = Instant::now();
    victim.kill().await?;
    tokio::time::sleep(Duration::from_millis(settings.outage_ms)).await;
    victim.restart().await?;
    let up = Instant::now();
    eprintln!("{layout}: it is back");
    until("the backlog is not drained", load, || {
        recorder.waiting() <= usual
    })
    .await?;
    let drained = Instant::now();
    tokio::time::sleep(lead.min(Duration::from_secs(2))).await;
    Ok(Outage {
        lead,
        down,
        up,
        drained,
    })
}

async fn until(what: &str, load: &Load, met: impl Fn() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !met() {
        ensure!(!load.has_failed(), "{what}: the load has ended");
        ensure!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(ASK).await;
    }
    Ok(())
}
