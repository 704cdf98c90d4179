//! The door experiment: what the front door takes, what a request costs, and how long it takes to its row.
//!
//! Server and clients are one process, on threads with names of their own, so that the server's CPU time is known
//! apart. They share the machine, so rates are no server's capacity alone: ratios and CPU time are what to read.

mod capacity;
mod cpu;
pub mod results;
mod slow;
mod steps;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::SignedDuration;
use shardlane_domain::Event;
use shardlane_ingest::{IngestSettings, Mode, Server, Sources};
use shardlane_router::{Epoch, ShardId, SlotMap, TokenHash};
use shardlane_sql::{CitusPath, Layout, Store, StoreOptions};
use shardlane_worker::{Publisher, TopicSet, Worker, WorkerSettings, accepted_now, create_topics};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::ingest::say;
use crate::lab::Lab;
use crate::load::results::{Arrivals, LoadResults, LoadSettings};
use crate::load::target::Target;
use crate::load::{LoadOptions, run as run_load};
use crate::machine::{commit, describe};
use crate::routing::results::Spread;
use crate::stream::{StreamSettings, Webhook, generate};
use results::{Capacity, CapacityRun, DoorResults, DoorSettings, Slow, Step, Way, goals};

/// How long a record may wait for the broker.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests of the step measurement.
const STEP_REQUESTS: usize = 20_000;
/// Records that a new publisher sends before anything counts.
const WARM_UP_RECORDS: usize = 50;
/// How long a worker may take to have them in the database.
const JOIN_MAX: Duration = Duration::from_secs(60);
/// Share of the capacity that is sent beside slow sockets: so far below it that what is felt is the sockets, not a queue.
const SLOW_SHARE: f64 = 0.1;
/// Of a capacity run, before it counts.
const WARM_UP: f64 = 0.25;

/// Runs the experiment. `command` is the command line, for the results.
///
/// # Errors
/// Where Kafka or Postgres is missing, a server fails, or an answer of a capacity run is not 202.
pub async fn run(settings: &DoorSettings, command: &str) -> anyhow::Result<DoorResults> {
    let (started, started_at) = (Instant::now(), jiff::Timestamp::now());
    if settings.runs == 0 || settings.connections == 0 || settings.users == 0 {
        bail!("runs, connections and users must be 1 or more");
    }
    let progress = ProgressBar::new(u64::from(settings.runs) * 4 + 1).with_style(
        ProgressStyle::with_template("{spinner} [{elapsed_precise}] {bar:32} {pos}/{len} {msg}")?,
    );
    progress.enable_steady_tick(Duration::from_millis(100));
    say(&progress, "starting servers");
    let ground = Ground::prepare(settings).await?;
    let versions = ground.lab.versions().await?;

    let kafka = ground.publisher("capacity").await?;
    let discarding = kafka.clone().discarding();
    let doors = [
        (Way::Kafka, ground.open(&kafka).await?, settings.connections),
        (
            Way::NoProduce,
            ground.open(&discarding).await?,
            settings.connections,
        ),
        (Way::Sequential, ground.open(&kafka).await?, 1),
    ];
    let webhooks = Arc::new(ground.webhooks(STEP_REQUESTS, 0));
    let mut runs: [Vec<CapacityRun>; 3] = Default::default();
    let mut steps: Vec<(&str, Vec<f64>)> = Vec::new();
    for round in 1..=settings.runs {
        for turn in 0..doors.len() {
            // Each round begins elsewhere, so that no way is always the first one.
            let index = (turn + usize::try_from(round)? - 1) % doors.len();
            let (way, door, connections) = &doors[index];
            say(
                &progress,
                &format!("{}, run {round}/{}", way.as_str(), settings.runs),
            );
            let stream = ground.stream(usize::MAX, u64::from(round) * 10 + turn as u64);
            let run = capacity::measure(&door.target, stream, *connections, settings.seconds);
            runs[index].push(run.await.with_context(|| format!("way {}", way.as_str()))?);
            progress.inc(1);
        }
        say(&progress, &format!("steps, run {round}/{}", settings.runs));
        let costs = {
            let (webhooks, kafka, discarding) =
                (Arc::clone(&webhooks), kafka.clone(), discarding.clone());
            let measured = async move { steps::measure(webhooks, &kafka, &discarding).await };
            ground.runtime()?.spawn(measured).await??
        };
        for (index, (name, us)) in costs.into_iter().enumerate() {
            if steps.len() == index {
                steps.push((name, Vec::new()));
            }
            steps[index].1.push(us);
        }
        progress.inc(1);
    }
    let capacity: Vec<Capacity> = Way::ALL
        .into_iter()
        .zip(runs)
        .map(|(way, runs)| Capacity {
            way,
            requests_per_s: Spread::of(runs.iter().map(|run| run.requests_per_s)),
            server_cpu_us: Spread::of(runs.iter().map(|run| run.server_cpu_us)),
            runs,
        })
        .collect();
    for (_, door, _) in doors {
        door.close().await?;
    }

    let taken = capacity[0].requests_per_s.median;
    let rate = (taken * settings.open_share).max(1.0);
    say(
        &progress,
        &format!("open loop, {rate:.0}/s for {} s", settings.open_seconds),
    );
    let open = ground.open_loop(rate).await?;
    let rate = (taken * SLOW_SHARE).max(1.0);
    say(&progress, &format!("slow sockets, {rate:.0}/s"));
    let slow = ground.beside_slow_sockets(&kafka, rate).await?;
    progress.finish_and_clear();
    let steps: Vec<Step> = steps
        .into_iter()
        .map(|(name, us)| Step {
            name: name.to_owned(),
            cpu_us: Spread::of(us),
        })
        .collect();
    let goals = goals(&capacity, &steps, &open, &slow);
    // Before their broker stops, of which they would complain.
    drop((kafka, discarding));
    drop(ground);
    Ok(DoorResults {
        experiment: "door".to_owned(),
        started_at: started_at.to_string(),
        took_s: started.elapsed().as_secs_f64(),
        machine: describe(),
        commit: commit(),
        command: command.to_owned(),
        versions,
        settings: settings.clone(),
        capacity,
        steps,
        open,
        slow,
        goals,
    })
}

/// The servers, and a runtime for front doors alone.
struct Ground {
    settings: DoorSettings,
    lab: Lab,
    map: Arc<SlotMap>,
    doors: Option<Runtime>,
}

/// A front door that listens.
struct Door {
    target: Target,
    stop: oneshot::Sender<()>,
    running: tokio::task::JoinHandle<Result<(), shardlane_ingest::IngestError>>,
}

impl Door {
    async fn close(self) -> anyhow::Result<()> {
        // An error means that it has ended already, which the next line tells.
        self.stop.send(()).ok();
        Ok(self.running.await??)
    }
}

impl Drop for Ground {
    /// A runtime must not end on another's thread while it could block that; a failed run would tell of this instead.
    fn drop(&mut self) {
        if let Some(doors) = self.doors.take() {
            doors.shutdown_background();
        }
    }
}

impl Ground {
    async fn prepare(settings: &DoorSettings) -> anyhow::Result<Ground> {
        let lab = Lab::start(&[Layout::Single], 1).await?;
        let map = SlotMap::aligned(
            Epoch(1),
            TokenHash::Postgres,
            settings.partitions,
            &[ShardId(0)],
        )?;
        let doors = tokio::runtime::Builder::new_multi_thread()
            .thread_name("door")
            .enable_all()
            .build()?;
        Ok(Ground {
            settings: settings.clone(),
            lab,
            map: Arc::new(map),
            doors: Some(doors),
        })
    }

    fn runtime(&self) -> anyhow::Result<&Runtime> {
        self.doors
            .as_ref()
            .context("the runtime is there until the end")
    }

    /// Into new topics under a prefix.
    async fn publisher(&self, prefix: &str) -> anyhow::Result<Publisher> {
        let (bootstrap, topics) = (self.lab.kafka.bootstrap(), TopicSet::with_prefix(prefix));
        create_topics(&bootstrap, &topics, self.settings.partitions, 1, &[]).await?;
        let map = Arc::clone(&self.map);
        let connect = move || Publisher::connect(&bootstrap, topics, map, MESSAGE_TIMEOUT);
        let publisher = tokio::task::spawn_blocking(connect).await??;
        // A new client first asks for leaders and a producer's id, which no request should pay for.
        let warm_up = self.webhooks(WARM_UP_RECORDS, u64::MAX);
        for webhook in warm_up {
            let event = Event::decode(webhook.source, webhook.payload, accepted_now())?;
            publisher.publish(&event).await?;
        }
        Ok(publisher)
    }

    async fn open(&self, publisher: &Publisher) -> anyhow::Result<Door> {
        let settings = IngestSettings {
            listen: ([127, 0, 0, 1], 0).into(),
            // A slow socket has a place until its deadline: there must be more places than of those.
            connections_max: usize::try_from(2 * slow::SOCKETS)?,
            ..IngestSettings::new(Sources::unsigned())
        };
        let mode = Mode::Kafka(publisher.clone());
        let server = self
            .runtime()?
            .spawn(Server::bind(settings, mode))
            .await??;
        let target = Target::parse(&format!("http://{}", server.address()), false)?;
        let (stop, stopped) = oneshot::channel();
        let running = self.runtime()?.spawn(server.run(async {
            stopped.await.ok();
        }));
        Ok(Door {
            target,
            stop,
            running,
        })
    }

    fn stream(&self, events: usize, seed: u64) -> StreamSettings {
        let settings = &self.settings;
        let span = SignedDuration::from_secs(60);
        StreamSettings::load(
            events,
            settings.users,
            seed,
            settings.payload_bytes,
            span,
            0.0,
        )
    }

    fn webhooks(&self, events: usize, seed: u64) -> Vec<Webhook> {
        generate(&self.stream(events, seed))
    }

    async fn beside_slow_sockets(&self, publisher: &Publisher, rate: f64) -> anyhow::Result<Slow> {
        let settings = &self.settings;
        let door = self.open(publisher).await?;
        let load = LoadSettings {
            rate,
            // Long enough for a p99, and far from the header's deadline, 30 seconds, at which slow sockets are closed.
            duration_s: (2.0 * settings.seconds).min(10.0),
            connections: settings.connections,
            users: settings.users,
            payload_bytes: settings.payload_bytes,
            payments: 0.3,
            ..LoadSettings::default()
        };
        let slow = slow::measure(&door.target, &load, settings.runs).await?;
        door.close().await?;
        Ok(slow)
    }

    /// A front door, a worker and a database, at a part of the capacity.
    async fn open_loop(&self, rate: f64) -> anyhow::Result<LoadResults> {
        let settings = &self.settings;
        let servers = self.lab.layouts.first().context("one layout runs")?;
        let database = servers
            .create("door", &self.map, settings.partitions)
            .await?;
        let backend = database.backend(CitusPath::Owner);
        let store = Arc::new(Store::connect(backend, StoreOptions::default()).await?);
        let publisher = self.publisher("open").await?;
        let worker = Worker::start(
            WorkerSettings::new(
                self.lab.kafka.bootstrap(),
                "door".to_owned(),
                TopicSet::with_prefix("open"),
                &*self.map,
            ),
            store,
        )
        .await?;
        let began = Instant::now();
        while worker.stats().counts().done < WARM_UP_RECORDS as u64 {
            if began.elapsed() > JOIN_MAX {
                bail!("the worker has not taken its first records within {JOIN_MAX:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let door = self.open(&publisher).await?;
        let load = LoadSettings {
            rate,
            duration_s: settings.open_seconds,
            arrivals: Arrivals::Constant,
            connections: settings.connections,
            users: settings.users,
            seed: 1,
            payload_bytes: settings.payload_bytes,
            ..LoadSettings::default()
        };
        let results = run_load(LoadOptions {
            target: door.target.clone(),
            settings: load,
            key: None,
            databases: database.urls().to_vec(),
            command: "in the experiment".to_owned(),
        })
        .await?;
        door.close().await?;
        worker.stop().await?;
        Ok(results)
    }
}
