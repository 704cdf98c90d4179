//! The reshard experiment: shards grow, shrink, move and split while a worker is kept busy through Kafka, and an oracle
//! reads every shard afterwards.
//!
//! One endless stream of order events keeps the worker's backlog at a fixed length. Each change begins after a quiet
//! stretch and is followed by one. Then the stream stops, the worker drains, and the oracle compares what the shards
//! hold with what was sent: each event once, each user's events in order, and the same final rows as in one plain
//! Postgres that nobody disturbed.

mod changes;
pub(crate) mod load;
pub(crate) mod oracle;
mod results;
mod sampler;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures_util::future::try_join_all;
use shardlane_local::{Durability, Kafka, KafkaOptions, kafka_available};
use shardlane_router::{Epoch, ShardId, SlotMap, TokenHash};
use shardlane_sql::servers::LayoutServers;
use shardlane_sql::{CitusPath, Layout, Store, StoreOptions, digest};
use shardlane_worker::{TopicSet, Worker, WorkerSettings, create_topics};

use self::changes::Ground;
use self::load::{Load, Pace};
use self::oracle::Verdict;
pub use self::results::{ChangeResult, Results, Sample, Settings, render};
use self::sampler::Sampler;
use crate::machine;
use crate::results::Skipped;

/// How long the worker may take for what is left when the stream stops.
const DRAIN_MAX: Duration = Duration::from_secs(120);

/// What to run.
#[derive(Debug, Clone)]
pub struct ReshardOptions {
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
/// Where Kafka or all layouts are missing, a server fails, or a change does.
pub async fn run(options: &ReshardOptions) -> anyhow::Result<Results> {
    let (started, started_at) = (Instant::now(), jiff::Timestamp::now());
    kafka_available()?;
    let mut skipped = Vec::new();
    let mut layouts = Vec::new();
    for layout in &options.layouts {
        if !matches!(layout, Layout::Shards | Layout::Citus) {
            bail!("layout {layout} has nothing to reshard; choose from shards, citus");
        }
        match LayoutServers::available(*layout) {
            Ok(()) => layouts.push(*layout),
            Err(missing) => skipped.push(Skipped {
                layout: layout.to_string(),
                reason: missing.to_string(),
            }),
        }
    }
    eprintln!("starting servers");
    let kafka = async {
        let kafka = Kafka::start(KafkaOptions::default()).await;
        kafka.context("Kafka did not start")
    };
    // The primaries that shards can grow to are there from the start.
    let primaries = changes::primaries(options.settings.quick);
    let servers = try_join_all(layouts.iter().map(async |layout| {
        let servers = LayoutServers::start(*layout, Durability::Durable, primaries, &[]).await;
        servers.with_context(|| format!("layout {layout}"))
    }));
    let (kafka, servers) = futures_util::try_join!(kafka, servers)?;
    let mut results = Vec::new();
    let mut samples = BTreeMap::new();
    for (layout, servers) in layouts.into_iter().zip(servers) {
        let (changes, curve) = run_layout(options, layout, servers, &kafka)
            .await
            .with_context(|| format!("layout {layout}"))?;
        results.extend(changes);
        samples.insert(layout.to_string(), curve);
    }
    Ok(Results {
        experiment: "reshard".to_owned(),
        started_at: started_at.to_string(),
        took_s: started.elapsed().as_secs_f64(),
        machine: machine::describe(),
        commit: machine::commit(),
        command: options.command.clone(),
        settings: options.settings.clone(),
        results,
        samples,
        skipped,
    })
}

/// A change as it was measured: when, and which events were sent meanwhile.
pub(crate) struct Span {
    pub(crate) change: String,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    /// The end of the quiet stretch after it.
    pub(crate) quiet_until: Instant,
    /// Events are numbered as they are sent; these were sent from this change's lead to the next one's.
    pub(crate) events: std::ops::Range<u64>,
    /// Slots that moved, where only those may wait.
    pub(crate) moved: Option<shardlane_sql::SlotSet>,
}

async fn run_layout(
    options: &ReshardOptions,
    layout: Layout,
    servers: LayoutServers,
    kafka: &Kafka,
) -> anyhow::Result<(Vec<ChangeResult>, Vec<Sample>)> {
    let settings = &options.settings;
    let map = SlotMap::aligned(
        Epoch(1),
        TokenHash::Postgres,
        settings.partitions,
        &[ShardId(0), ShardId(1)],
    )?;
    let database = servers
        .create("reshard", &map, settings.citus_shards)
        .await?;
    let store = Arc::new(
        Store::connect(
            database.backend(CitusPath::Owner),
            StoreOptions {
                connections_max: settings.connections,
                connect_timeout: Duration::from_secs(10),
                poll_interval: Duration::from_secs(1),
                ..StoreOptions::default()
            },
        )
        .await?,
    );
    let topics = TopicSet::with_prefix(&format!("reshard-{layout}"));
    // The events carry times of their own, long past: Kafka would delete them half a minute after its start.
    let keep = [("retention.ms", "-1")];
    create_topics(&kafka.bootstrap(), &topics, settings.partitions, 1, &keep).await?;
    let group = format!("reshard-{layout}");
    let mut worker = WorkerSettings::new(kafka.bootstrap(), group, topics.clone(), map.clone());
    worker.batch_rows_max = settings.batch_rows_max;
    let worker = Worker::start(worker, Arc::clone(&store)).await?;
    let stats = worker.stats();

    let load = Load::start(
        &kafka.bootstrap(),
        &topics,
        &map,
        settings.users,
        settings
            .rate
            .map_or(Pace::Backlog(settings.backlog), Pace::Rate),
        Arc::clone(&stats),
    )?;
    let truth = (layout == Layout::Citus).then(|| database.urls()[0].clone());
    let sampler = Sampler::start(Arc::clone(&stats), Arc::clone(&store), truth);
    let sampler_start = Instant::now();
    let mut ground = Ground::new(layout, &servers, &database).await?;
    let pause = Duration::from_millis(settings.pause_ms);
    let mut spans = Vec::new();
    while stats.counts().done < settings.users {
        // The worker joins its group and opens its lanes: that is no part of the quiet stretch.
        if load.has_failed() || sampler_start.elapsed() > DRAIN_MAX {
            bail!("the worker does not begin: {:?}", stats.counts());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(pause).await;
    for change in changes::of(layout, settings.quick) {
        // What is sent in the quiet stretch before belongs to the change too.
        let first = spans.last().map_or(0, |span: &Span| span.events.end);
        eprintln!("{layout}: {change}");
        let began = Instant::now();
        let moved = ground
            .run(change)
            .await
            .with_context(|| change.to_string())?;
        let ended = Instant::now();
        tokio::time::sleep(pause).await;
        sampler.recovered(ended).await;
        spans.push(Span {
            change: change.to_string(),
            began,
            ended,
            quiet_until: Instant::now(),
            events: first..load.sent(),
            moved,
        });
    }
    let sent = load.stop().await?;
    if let Some(last) = spans.last_mut() {
        last.events.end = sent;
    }
    let deadline = Instant::now() + DRAIN_MAX;
    while stats.counts().done < sent {
        if Instant::now() > deadline {
            let counts = stats.counts();
            worker.stop().await.context("the worker ended")?;
            bail!("the worker has not drained {sent} events: {counts:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let recording = sampler.stop().await?;
    worker.stop().await?;

    eprintln!("{layout}: asking every shard");
    let urls = ground.urls().await?;
    let verdict = Verdict::read(&urls, settings.users, sent).await?;
    let undisturbed = oracle::undisturbed(settings.users, sent, &map).await?;
    let equal_state = digest(&urls).await? == undisturbed;
    let misplaced = ground.misplaced().await?;
    let results = spans
        .iter()
        .map(|span| {
            let measured = recording.of(span);
            let found = verdict.of(&span.events);
            ChangeResult {
                layout: layout.to_string(),
                change: span.change.clone(),
                lost: found.lost,
                twice: found.twice,
                out_of_order: found.out_of_order,
                misplaced,
                equal_state,
                ..measured
            }
        })
        .collect();
    Ok((results, recording.curve()))
}
