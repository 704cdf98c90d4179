//! The ingest experiment: one seeded stream through Kafka into every layout, by every path.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use shardlane_router::{Epoch, ShardId, SlotMap, TokenHash};
use shardlane_sql::servers::{LayoutDatabase, LayoutServers};
use shardlane_sql::{CitusPath, Digest, Layout, RejectReason, Report, Store, StoreOptions, digest};
use shardlane_worker::{Stats, TopicSet, WorkerSettings, create_topics};

use crate::fill::fill;
use crate::lab::{Lab, checkpoint, connect, cpu_seconds, wal_bytes};
use crate::machine::{commit, describe, own_cpu_seconds};
use crate::raw::{self, Lanes, histogram};
use crate::replay::consume;
use crate::results::{LayoutResult, Ratio, Replay, Results, Run, Settings, Skew};
use crate::stream::{StreamSettings, Webhook, generate};

/// The quantiles of batch latency that results hold.
const QUANTILES: [f64; 10] = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0];

/// What to run.
#[derive(Debug, Clone)]
pub struct IngestOptions {
    /// The layouts, in the order of the table.
    pub layouts: Vec<Layout>,
    /// Primaries of the layout `shards`.
    pub shards: u32,
    /// Size and shape.
    pub settings: Settings,
    /// The command line, for the results.
    pub command: String,
}

/// One way through one layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Case {
    layout: Layout,
    path: Path,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    Worker,
    RawSql,
    Aligned,
    Modulo,
    Coordinator,
    CoordinatorGrouped,
    Owner,
}

impl Path {
    const fn as_str(self) -> &'static str {
        match self {
            Path::Worker => "worker",
            Path::RawSql => "raw-sql",
            Path::Aligned => "aligned",
            Path::Modulo => "modulo",
            Path::Coordinator => CitusPath::Coordinator.as_str(),
            Path::CoordinatorGrouped => CitusPath::CoordinatorGrouped.as_str(),
            Path::Owner => CitusPath::Owner.as_str(),
        }
    }

    /// Whether the topic is partitioned so that each batch holds users of every shard.
    const fn is_mixed(self) -> bool {
        matches!(self, Path::Modulo | Path::Coordinator)
    }

    const fn citus_path(self) -> CitusPath {
        match self {
            Path::Coordinator => CitusPath::Coordinator,
            Path::CoordinatorGrouped => CitusPath::CoordinatorGrouped,
            Path::Worker | Path::RawSql | Path::Aligned | Path::Modulo | Path::Owner => {
                CitusPath::Owner
            }
        }
    }
}

fn paths(layout: Layout) -> &'static [Path] {
    match layout {
        Layout::Single | Layout::Partman => &[Path::Worker, Path::RawSql],
        Layout::Shards => &[Path::Aligned, Path::Modulo, Path::RawSql],
        Layout::Citus => &[
            Path::Coordinator,
            Path::CoordinatorGrouped,
            Path::Owner,
            Path::RawSql,
        ],
    }
}

/// What one pass over the stream did.
pub(crate) struct Outcome {
    pub(crate) seconds: f64,
    rows: u64,
    pub(crate) batches: u64,
    counts: BTreeMap<String, u64>,
    latency_us: Histogram<u64>,
    skew: Option<Skew>,
}

impl Outcome {
    pub(crate) fn new() -> Self {
        Outcome {
            seconds: 0.0,
            rows: 0,
            batches: 0,
            counts: BTreeMap::new(),
            latency_us: histogram(),
            skew: None,
        }
    }

    pub(crate) fn of_worker(stats: &Stats, took: Duration) -> Self {
        let (counts, hot) = (stats.counts(), stats.hot());
        let busiest = hot.users.first().map_or(0, |(_, events)| *events);
        #[expect(
            clippy::cast_precision_loss,
            reason = "counts of an experiment are far below 2^52"
        )]
        let busiest_user = busiest as f64 / hot.total.max(1) as f64;
        Outcome {
            skew: Some(Skew {
                busiest_slot: hot.skew,
                busiest_user,
            }),
            seconds: took.as_secs_f64(),
            rows: counts.rows,
            batches: counts.batches,
            latency_us: stats.batch_latency_us(),
            counts: [
                ("applied", counts.applied),
                ("duplicate", counts.duplicates),
                ("stale", counts.stale),
                ("illegal", counts.illegal),
                ("parked", counts.parked),
                ("released", counts.released),
                ("out_of_order", counts.too_early),
                ("queue_full", counts.queue_full),
                ("duplicate_with_different_payload", counts.different_payload),
                ("malformed", counts.malformed),
                ("fenced", counts.fenced),
                ("misrouted", counts.misrouted),
                ("retries", counts.retries),
            ]
            .into_iter()
            .map(|(name, count)| (name.to_owned(), count))
            .collect(),
        }
    }

    pub(crate) fn batch(&mut self, report: &Report) {
        let mut count = |name: &str, n: usize| {
            *self.counts.entry(name.to_owned()).or_default() += n as u64;
        };
        count("applied", report.applied);
        count("duplicate", report.duplicates);
        count("stale", report.stale);
        count("parked", report.parked);
        count("released", report.released);
        let parked = report.letters.iter().map(|letter| letter.reason);
        for reason in report.rejected.iter().map(|it| it.reason).chain(parked) {
            count(RejectReason::class(reason), 1);
        }
        self.rows += report.rows;
        self.batches += 1;
        self.latency_us.saturating_record(
            u64::try_from(report.took.as_micros())
                .unwrap_or(u64::MAX)
                .max(1),
        );
    }

    pub(crate) fn add(&mut self, other: Outcome) -> anyhow::Result<()> {
        self.rows += other.rows;
        self.batches += other.batches;
        for (name, count) in other.counts {
            *self.counts.entry(name).or_default() += count;
        }
        self.latency_us.add(other.latency_us)?;
        Ok(())
    }

    pub(crate) fn count(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "microseconds of a batch and counts of events are small"
    )]
    pub(crate) fn latency_ms(&self, quantile: f64) -> f64 {
        self.latency_us.value_at_quantile(quantile) as f64 / 1_000.0
    }
}

/// Everything that the runs share.
struct Experiment<'a> {
    options: &'a IngestOptions,
    lab: Lab,
    aligned: SlotMap,
    modulo: SlotMap,
    lanes: Option<Arc<Lanes>>,
    progress: ProgressBar,
}

/// What the runs of one case left.
struct CaseRuns {
    case: Case,
    runs: Vec<Run>,
    balance: BTreeMap<String, u64>,
    replay: Option<Replay>,
    skew: Option<Skew>,
}

/// Runs the experiment.
///
/// # Errors
/// Where the settings make no map, Kafka is missing, no layout can run, or a server fails.
pub async fn run(options: &IngestOptions) -> anyhow::Result<Results> {
    let started = Instant::now();
    let started_at = jiff::Timestamp::now();
    let settings = &options.settings;
    if settings.runs == 0 || settings.events == 0 || settings.batch_rows_max == 0 {
        bail!("events, runs and batch rows must be 1 or more");
    }
    let shards: Vec<ShardId> = (0..i64::from(options.shards)).map(ShardId).collect();
    let map = |build: fn(_, _, _, &[ShardId]) -> _| {
        build(Epoch(1), TokenHash::Postgres, settings.partitions, &shards)
    };
    let (aligned, modulo) = (map(SlotMap::aligned)?, map(SlotMap::modulo)?);

    let bars = MultiProgress::new();
    let progress = bars.add(ProgressBar::new(0).with_style(ProgressStyle::with_template(
        "{spinner} [{elapsed_precise}] {bar:32} {pos}/{len} {msg}",
    )?));
    progress.enable_steady_tick(Duration::from_millis(100));
    say(&progress, "starting servers");
    let lab = Lab::start(&options.layouts, usize::try_from(options.shards)?).await?;
    for skipped in &lab.skipped {
        say(
            &progress,
            &format!("skipped {}: {}", skipped.layout, skipped.reason),
        );
    }
    let versions = lab.versions().await?;
    let cases: Vec<Case> = lab
        .layouts
        .iter()
        .flat_map(|servers| {
            let layout = servers.layout();
            paths(layout).iter().map(move |path| Case {
                layout,
                path: *path,
            })
        })
        .collect();

    say(&progress, "generating the stream");
    let stream = Arc::new(generate(&StreamSettings::ingest(
        usize::try_from(settings.events)?,
        settings.users,
        settings.skew,
        settings.seed,
        settings.payload_bytes,
    )));
    let lanes = raw::lanes(&stream, &aligned)?;
    let mut experiment = Experiment {
        options,
        lab,
        aligned,
        modulo,
        lanes: Some(Arc::new(lanes)),
        progress: progress.clone(),
    };
    experiment.fill_topics(&cases, stream).await?;

    progress.set_length(cases.len() as u64 * u64::from(settings.runs));
    let mut all: Vec<CaseRuns> = cases
        .iter()
        .map(|case| CaseRuns {
            case: *case,
            runs: Vec::new(),
            balance: BTreeMap::new(),
            replay: None,
            skew: None,
        })
        .collect();
    for run in 1..=settings.runs {
        // Each round begins elsewhere, so that no case is always the first one after a pause.
        let count = all.len();
        for turn in 0..count {
            let index = (turn + usize::try_from(run)? - 1) % count;
            experiment.run_case(&mut all[index], run).await?;
            progress.inc(1);
        }
    }
    experiment.lanes = None;
    progress.finish_and_clear();

    let reference = all
        .iter()
        .find_map(|case| case.runs.first())
        .map(|run| run.state_digest.clone());
    let ratios = ratios(&all);
    let skew = all.iter().find_map(|case| case.skew);
    Ok(Results {
        experiment: "ingest".to_owned(),
        started_at: started_at.to_string(),
        took_s: started.elapsed().as_secs_f64(),
        machine: describe(),
        commit: commit(),
        command: options.command.clone(),
        versions,
        settings: settings.clone(),
        replays: all.iter().filter_map(|case| case.replay.clone()).collect(),
        results: all
            .into_iter()
            .map(|case| case.summary(settings.events, reference.as_deref()))
            .collect(),
        skew,
        ratios,
        skipped: experiment.lab.skipped,
    })
}

/// On a terminal above the bar, in a log as a line.
pub(crate) fn say(progress: &ProgressBar, line: &str) {
    if progress.is_hidden() {
        eprintln!("{line}");
    } else {
        progress.set_message(line.to_owned());
    }
}

impl Experiment<'_> {
    fn map(&self, path: Path) -> &SlotMap {
        if path.is_mixed() {
            &self.modulo
        } else {
            &self.aligned
        }
    }

    fn topics(path: Path) -> TopicSet {
        TopicSet::with_prefix(if path.is_mixed() { "modulo" } else { "aligned" })
    }

    async fn fill_topics(&self, cases: &[Case], stream: Arc<Vec<Webhook>>) -> anyhow::Result<()> {
        let bootstrap = self.lab.kafka.bootstrap();
        for mixed in [false, true] {
            let Some(case) = cases.iter().find(|case| case.path.is_mixed() == mixed) else {
                continue;
            };
            let (topics, map) = (Self::topics(case.path), self.map(case.path).clone());
            say(
                &self.progress,
                &format!("sending {} events to Kafka", stream.len()),
            );
            // The stream's times lie in the past, where the default retention would delete them.
            let keep = [("retention.ms", "-1")];
            create_topics(&bootstrap, &topics, map.partition_count(), 1, &keep).await?;
            let (bootstrap, stream) = (bootstrap.clone(), Arc::clone(&stream));
            tokio::task::spawn_blocking(move || fill(&bootstrap, &topics, &map, &stream)).await??;
        }
        Ok(())
    }

    fn servers(&self, layout: Layout) -> anyhow::Result<&LayoutServers> {
        self.lab
            .layouts
            .iter()
            .find(|servers| servers.layout() == layout)
            .context("a case exists for a layout that runs")
    }

    async fn run_case(&self, of: &mut CaseRuns, run: u32) -> anyhow::Result<()> {
        let Case { layout, path } = of.case;
        let settings = &self.options.settings;
        let what = format!("{layout} {} run {run}/{}", path.as_str(), settings.runs);
        say(&self.progress, &what);
        let servers = self.servers(layout)?;
        let name = format!("lab_{}_{run}", path.as_str().replace('-', "_"));
        let database = servers
            .create(&name, &self.aligned, settings.citus_shards)
            .await
            .with_context(|| format!("{what}: the database could not be set up"))?;
        let store = self.store(&database, path).await?;
        checkpoint(servers).await?;

        let (wal, cpu) = (wal_bytes(servers).await?, self.cpu(servers));
        let outcome = match path {
            Path::RawSql => {
                let lanes = self.lanes.clone().context("the stream is decoded")?;
                raw::run(Arc::clone(&store), lanes, settings.batch_rows_max).await
            }
            _ => {
                self.consume(path, Arc::clone(&store), &format!("{what} fresh"))
                    .await
            }
        }
        .with_context(|| what.clone())?;
        let cpu = self.cpu(servers).since(&cpu);
        let wal = wal_bytes(servers).await?.saturating_sub(wal);
        let state = digest(database.urls()).await?;
        of.skew = outcome.skew;
        of.runs
            .push(to_run(run, settings.events, &outcome, &cpu, wal, &state));

        if run == settings.runs {
            of.balance = balance(&database, layout).await?;
            if path != Path::RawSql {
                let again = self
                    .consume(path, store, &format!("{what} replay"))
                    .await
                    .with_context(|| format!("{what}: replay"))?;
                let rate = per_second(settings.events, again.seconds);
                let fresh = of.runs.last().map_or(f64::NAN, |run| run.events_per_s);
                of.replay = Some(Replay {
                    layout: layout.to_string(),
                    path: path.as_str().to_owned(),
                    events_per_s: rate,
                    times_fresh: rate / fresh,
                    rows_changed: digest(database.urls()).await? != state,
                });
            }
        } else {
            drop(store);
        }
        servers.drop(&name).await?;
        Ok(())
    }

    async fn store(&self, database: &LayoutDatabase, path: Path) -> anyhow::Result<Arc<Store>> {
        let options = StoreOptions {
            connections_max: self.options.settings.connections,
            // Every lane waits for its turn; a slow layout's turns are long.
            connect_timeout: Duration::from_secs(60),
            ..StoreOptions::default()
        };
        Ok(Arc::new(
            Store::connect(database.backend(path.citus_path()), options).await?,
        ))
    }

    async fn consume(&self, path: Path, store: Arc<Store>, what: &str) -> anyhow::Result<Outcome> {
        let events = self.options.settings.events;
        let group = format!("lab {what}");
        let mut settings = WorkerSettings::new(
            self.lab.kafka.bootstrap(),
            group,
            Self::topics(path),
            self.map(path).clone(),
        );
        settings.batch_rows_max = self.options.settings.batch_rows_max;
        let progress = &self.progress;
        consume(settings, store, events, |done| {
            if !progress.is_hidden() {
                progress.set_message(format!("{what}: {done} of {events} events"));
            }
        })
        .await
    }

    fn cpu(&self, servers: &LayoutServers) -> Cpu {
        Cpu {
            servers: cpu_seconds(servers),
            client: own_cpu_seconds(),
            kafka: self.lab.kafka.cpu_seconds(),
        }
    }
}

/// CPU seconds so far.
struct Cpu {
    servers: f64,
    client: f64,
    kafka: f64,
}

impl Cpu {
    fn since(&self, before: &Cpu) -> Cpu {
        Cpu {
            servers: self.servers - before.servers,
            client: self.client - before.client,
            kafka: self.kafka - before.kafka,
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of an experiment are far below 2^52"
)]
fn per_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds.max(1e-9)
}

fn to_run(
    run: u32,
    events: u64,
    outcome: &Outcome,
    cpu: &Cpu,
    wal_bytes: u64,
    state: &Digest,
) -> Run {
    Run {
        run,
        seconds: outcome.seconds,
        events_per_s: per_second(events, outcome.seconds),
        rows_per_s: per_second(outcome.rows, outcome.seconds),
        server_cpu_s: cpu.servers,
        client_cpu_s: cpu.client,
        kafka_cpu_s: cpu.kafka,
        wal_bytes,
        batches: outcome.batches,
        counts: ["duplicate", "illegal"]
            .iter()
            .map(|name| ((*name).to_owned(), outcome.count(name)))
            .chain(outcome.counts.clone())
            .collect(),
        latency_ms: QUANTILES
            .map(|quantile| (quantile, outcome.latency_ms(quantile)))
            .to_vec(),
        state_digest: state.to_string(),
    }
}

/// Rows of the inbox by shard: by database on manual shards, by Citus shard, or the one server's.
pub(crate) async fn balance(
    database: &LayoutDatabase,
    layout: Layout,
) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut balance = BTreeMap::new();
    for (index, url) in database.urls().iter().enumerate() {
        let client = connect(url).await?;
        let query = match layout {
            Layout::Citus => {
                "select 'shard ' || get_shard_id_for_distribution_column('inbox', user_id)::text, count(*) \
                 from inbox group by 1"
            }
            _ => "select null::text, count(*) from inbox",
        };
        for row in client.query(query, &[]).await? {
            let name: Option<String> = row.get(0);
            let rows = row.get::<_, i64>(1).unsigned_abs();
            balance.insert(name.unwrap_or_else(|| format!("shard {index}")), rows);
        }
    }
    Ok(balance)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

impl CaseRuns {
    fn summary(self, events: u64, reference: Option<&str>) -> LayoutResult {
        let of = |value: &dyn Fn(&Run) -> f64| median(self.runs.iter().map(value).collect());
        let quantile = |wanted: f64| {
            of(&|run: &Run| {
                run.latency_ms
                    .iter()
                    .find(|(quantile, _)| (quantile - wanted).abs() < 1e-9)
                    .map_or(0.0, |(_, ms)| *ms)
            })
        };
        #[expect(
            clippy::cast_precision_loss,
            reason = "counts of an experiment are far below 2^52"
        )]
        let events = events as f64;
        let rates = || self.runs.iter().map(|run| run.events_per_s);
        let last = |name: &str| {
            self.runs
                .last()
                .and_then(|run| run.counts.get(name))
                .copied()
                .unwrap_or(0)
        };
        #[expect(
            clippy::cast_precision_loss,
            reason = "bytes of an experiment are far below 2^52"
        )]
        let wal_bytes_per_event = of(&|run: &Run| run.wal_bytes as f64 / events);
        LayoutResult {
            layout: self.case.layout.to_string(),
            path: self.case.path.as_str().to_owned(),
            events_per_s: of(&|run: &Run| run.events_per_s),
            events_per_s_min: rates().fold(f64::INFINITY, f64::min),
            events_per_s_max: rates().fold(0.0, f64::max),
            rows_per_s: of(&|run: &Run| run.rows_per_s),
            p50_ms: quantile(0.5),
            p95_ms: quantile(0.95),
            p99_ms: quantile(0.99),
            server_cpu_us_per_event: of(&|run: &Run| run.server_cpu_s * 1e6 / events),
            client_cpu_us_per_event: of(&|run: &Run| run.client_cpu_s * 1e6 / events),
            kafka_cpu_us_per_event: match self.case.path {
                Path::RawSql => 0.0,
                _ => of(&|run: &Run| run.kafka_cpu_s * 1e6 / events),
            },
            wal_bytes_per_event,
            duplicates: last("duplicate"),
            illegal: last("illegal"),
            equal_state: self
                .runs
                .iter()
                .all(|run| Some(run.state_digest.as_str()) == reference),
            balance: self.balance,
            runs: self.runs,
        }
    }
}

/// The goals: each ratio within a round of runs, then the median over the rounds.
fn ratios(all: &[CaseRuns]) -> Vec<Ratio> {
    use Layout::{Citus, Partman, Shards, Single};
    let runs = |layout, path| {
        all.iter()
            .find(|of| of.case == Case { layout, path })
            .map(|of| &of.runs)
    };
    let mut ratios = Vec::new();
    let mut push = |name: String, value: f64, goal: f64| {
        ratios.push(Ratio {
            name,
            value,
            goal,
            met: value >= goal,
        });
    };
    for (above, below, goal) in [
        ((Citus, Path::Owner), (Citus, Path::Coordinator), 4.0),
        ((Citus, Path::Owner), (Shards, Path::Aligned), 0.9),
        ((Partman, Path::Worker), (Single, Path::Worker), 0.8),
        ((Shards, Path::Aligned), (Single, Path::Worker), 0.95),
        ((Single, Path::Worker), (Single, Path::RawSql), 0.7),
    ] {
        let (Some(a), Some(b)) = (runs(above.0, above.1), runs(below.0, below.1)) else {
            continue;
        };
        let value = median(
            a.iter()
                .zip(b)
                .map(|(a, b)| a.events_per_s / b.events_per_s)
                .collect(),
        );
        let name = format!(
            "{} {} / {} {}",
            above.0,
            above.1.as_str(),
            below.0,
            below.1.as_str()
        );
        push(name, value, goal);
    }
    for replay in all.iter().filter_map(|of| of.replay.as_ref()) {
        let name = format!("{} {} replay / fresh", replay.layout, replay.path);
        push(name, replay.times_fresh, 10.0);
    }
    ratios
}
