//! What one scenario owns: a database on each server, topics, a consumer group, and workers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};
use shardlane_domain::Source;
use shardlane_local::{create_database, drop_database};
use shardlane_router::{PartitionId, SlotMap};
use shardlane_sql::{Detail, Layout, migrate};
use shardlane_worker::{TopicSet, create_topics, delete_topics};
use tokio::process::Command;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

use crate::crew::Member;
use crate::door::Door;
use crate::lab::Lab;
use crate::log::{BROKER_MAX, asker};
use crate::webhook::REFUSED_MARK;
use crate::worker::map;

/// Partitions of each topic.
pub const PARTITIONS: u32 = 4;
/// Longer than anything takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// How long events may wait for others when all topics are read.
const WAITING_MAX: Duration = Duration::from_secs(15);
/// How long an event waits for the broker at the front door.
const DOOR_TIMEOUT: Duration = Duration::from_secs(3);

/// (source, partition) -> offset.
pub type Offsets = BTreeMap<(&'static str, i32), i64>;

/// How workers work.
#[derive(Debug, Clone, Copy)]
pub struct WorkerShape {
    /// Records a batch.
    pub batch_rows_max: usize,
    /// How long a batch waits for more.
    pub linger: Duration,
}

impl Default for WorkerShape {
    fn default() -> Self {
        WorkerShape {
            batch_rows_max: 200,
            linger: Duration::from_millis(40),
        }
    }
}

/// How the topics came to their end.
#[derive(Debug)]
pub struct Drained {
    /// Workers that had ended by themselves.
    pub ended: u32,
    /// They did not: where the partitions stand. What lies behind is not taken, and the oracle will miss it.
    pub stands_still: Option<String>,
}

/// A scenario's own world.
pub struct World<'a> {
    /// The servers, which no other scenario uses at this time.
    pub lab: &'a Lab,
    /// The databases, one a shard.
    pub databases: Vec<String>,
    /// By which way workers reach them; a proxy changes this.
    pub worker_urls: Vec<String>,
    /// Who owns what.
    pub map: SlotMap,
    /// The topics.
    pub topics: TopicSet,
    /// The consumer group.
    pub group: String,
    /// Each partition holds users of one shard only, as the map places them.
    pub aligned: bool,
    /// How workers work.
    pub shape: WorkerShape,
    /// This version parks what comes too early, and counts outcomes.
    pub parks: bool,
    /// Whether workers that are started from now on relay the outboxes.
    pub relay: bool,
    /// What each worker has in its environment.
    pub environment: Vec<(String, String)>,
    name: String,
    workers: u32,
    /// For questions about topics and the group.
    asker: BaseConsumer,
}

impl World<'_> {
    /// Makes databases and topics.
    ///
    /// # Errors
    /// A server that does not answer.
    pub async fn new<'a>(lab: &'a Lab, stem: &str) -> anyhow::Result<World<'a>> {
        let name = format!(
            "{}_{}",
            stem.replace('-', "_"),
            &Uuid::new_v4().simple().to_string()[..8]
        );
        let map = map(PARTITIONS, lab.postgres.len())?;
        let mut databases = Vec::new();
        for (server, shard) in lab.postgres.iter().zip(map.shards()) {
            create_database(&server.url("postgres"), &name).await?;
            migrate(
                &server.url(&name),
                Layout::Shards,
                Detail::Shard(&map, *shard),
            )
            .await?;
            databases.push(server.url(&name));
        }
        let topics = TopicSet::with_prefix(&name);
        create_topics(&lab.kafka.bootstrap(), &topics, PARTITIONS, 1, &[]).await?;
        let mut world = World {
            lab,
            worker_urls: databases.clone(),
            databases,
            map,
            topics,
            group: format!("{name}-workers"),
            aligned: true,
            shape: WorkerShape::default(),
            parks: false,
            relay: false,
            environment: Vec::new(),
            asker: asker(&lab.kafka.bootstrap(), &format!("{name}-workers"))?,
            name,
            workers: 0,
        };
        world
            .until("the topics", async || Ok(world.ends()?.len() == 8))
            .await?;
        let parked = "select to_regclass('parked') is not null";
        world.parks = world.client(0).await?.query_one(parked, &[]).await?.get(0);
        Ok(world)
    }

    /// Events that wait for another one.
    async fn waiting(&self) -> anyhow::Result<i64> {
        let mut waiting = 0;
        for shard in (0..self.databases.len()).filter(|_| self.parks) {
            let client = self.client(shard).await?;
            let row = client.query_one("select count(*) from parked", &[]).await?;
            waiting += row.get::<_, i64>(0);
        }
        Ok(waiting)
    }

    /// Gives the disk back. A world that is not finished leaves its databases for whoever wants to look.
    ///
    /// # Errors
    /// A server that does not answer.
    pub async fn finish(self) -> anyhow::Result<()> {
        for server in &self.lab.postgres {
            drop_database(&server.url("postgres"), &self.name).await?;
        }
        // The map's topic may not exist.
        delete_topics(&self.lab.kafka.bootstrap(), &self.topics)
            .await
            .ok();
        Ok(())
    }

    /// The bootstrap servers.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        self.lab.kafka.bootstrap()
    }

    /// A way in, by the world's map.
    ///
    /// # Errors
    /// As [`Door::publisher`].
    pub async fn door(&self) -> anyhow::Result<Door> {
        Door::publisher(&self.bootstrap(), &self.topics, &self.map, DOOR_TIMEOUT).await
    }

    /// Starts a worker process, and does not wait for it.
    ///
    /// # Errors
    /// The program cannot be run.
    pub fn spawn(&mut self, environment: &[(&str, &str)]) -> anyhow::Result<Member> {
        self.workers += 1;
        let worker = format!("{}-w{}", self.name, self.workers);
        let mut command = Command::new(self.lab.program());
        command
            .arg("worker")
            .args(["--kafka", &self.bootstrap()])
            .args(["--group", &self.group])
            .args(["--prefix", &self.name])
            .args(["--partitions", &PARTITIONS.to_string()])
            .args(["--batch-rows-max", &self.shape.batch_rows_max.to_string()])
            .args(["--linger-ms", &self.shape.linger.as_millis().to_string()]);
        if self.relay {
            command.arg("--relay");
        }
        for url in &self.worker_urls {
            command
                .arg("--database")
                .arg(format!("{url}?application_name={worker}"));
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.envs(environment.iter().copied());
        let log = self.lab.logs().join(format!("{worker}.log"));
        Member::spawn(command, &worker, log)
    }

    /// Starts so many workers, and waits until they run.
    ///
    /// # Errors
    /// One that does not start.
    pub async fn crew(&mut self, size: usize) -> anyhow::Result<Vec<Member>> {
        let mut crew = Vec::new();
        for _ in 0..size {
            crew.push(self.spawn(&[])?);
        }
        for member in &mut crew {
            member.started().await?;
        }
        Ok(crew)
    }

    /// A client of one shard's database.
    ///
    /// # Errors
    /// The server is away.
    pub async fn client(&self, shard: usize) -> anyhow::Result<Client> {
        let (client, connection) = tokio_postgres::connect(&self.databases[shard], NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Executes on each shard.
    ///
    /// # Errors
    /// A server that refuses.
    pub async fn execute(&self, sql: &str) -> anyhow::Result<()> {
        for shard in 0..self.databases.len() {
            self.client(shard)
                .await?
                .batch_execute(sql)
                .await
                .context("a scenario's own SQL")?;
        }
        Ok(())
    }

    /// Each batch on these shards takes so much longer.
    ///
    /// # Errors
    /// A server that refuses.
    pub async fn slow_down(&self, shards: &[usize], by: Duration) -> anyhow::Result<()> {
        let sql = format!(
            "create or replace function slow() returns trigger language plpgsql as \
             'begin perform pg_sleep({}); return null; end'; \
             create or replace trigger slow before insert on inbox for each statement execute function slow()",
            by.as_secs_f64()
        );
        for shard in shards {
            self.client(*shard).await?.batch_execute(&sql).await?;
        }
        Ok(())
    }

    /// The shards refuse events with a mark, as a row that violates something: poison for a batch.
    ///
    /// # Errors
    /// A server that refuses.
    pub async fn refuse_poison(&self) -> anyhow::Result<()> {
        self.execute(&format!(
            "alter table order_events add constraint poison check (payload::text not like '%{REFUSED_MARK}%')"
        ))
        .await
    }

    /// Asks until the answer is yes.
    ///
    /// # Errors
    /// It was not within [`PATIENCE`].
    pub async fn until(
        &self,
        what: &str,
        mut ask: impl AsyncFnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<Duration> {
        let began = Instant::now();
        loop {
            let answer = ask().await;
            match answer {
                Ok(true) => return Ok(began.elapsed()),
                Ok(false) if began.elapsed() > PATIENCE => bail!("{what}: not within {PATIENCE:?}"),
                Err(error) if began.elapsed() > PATIENCE => {
                    return Err(error.context(what.to_owned()));
                }
                Ok(false) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Where each partition ends.
    ///
    /// # Errors
    /// The broker is away.
    pub fn ends(&self) -> anyhow::Result<Offsets> {
        let mut ends = Offsets::new();
        for (source, topic, partition) in self.partitions() {
            let (_, end) = self.asker.fetch_watermarks(&topic, partition, BROKER_MAX)?;
            ends.insert((source, partition), end);
        }
        Ok(ends)
    }

    /// What the group has committed; nothing is 0.
    ///
    /// # Errors
    /// The broker is away.
    pub fn committed(&self) -> anyhow::Result<Offsets> {
        let mut list = TopicPartitionList::new();
        for (_, topic, partition) in self.partitions() {
            list.add_partition(&topic, partition);
        }
        let committed = self.asker.committed_offsets(list, BROKER_MAX)?;
        let mut offsets = Offsets::new();
        for (source, topic, partition) in self.partitions() {
            let element = committed.find_partition(&topic, partition);
            let offset = match element.map(|it| it.offset()) {
                Some(Offset::Offset(offset)) => offset,
                _ => 0,
            };
            offsets.insert((source, partition), offset);
        }
        Ok(offsets)
    }

    /// How far the shards that can be asked have applied each partition.
    ///
    /// # Errors
    /// None; what cannot be asked is left out.
    pub async fn fences(&self) -> anyhow::Result<Offsets> {
        let mut fences = Offsets::new();
        for shard in 0..self.databases.len() {
            let Ok(client) = self.client(shard).await else {
                continue;
            };
            let query = "select topic, kafka_partition, next_offset from kafka_fence";
            for row in client.query(query, &[]).await? {
                let source = Source::of_topic(row.get(0))?.as_str();
                let fence: &mut i64 = fences.entry((source, row.get(1))).or_default();
                *fence = (*fence).max(row.get(2));
            }
        }
        Ok(fences)
    }

    /// Each topic's partitions: source, topic, partition.
    pub fn partitions(&self) -> impl Iterator<Item = (&'static str, String, i32)> {
        let partitions = i32::try_from(PARTITIONS).unwrap_or_default();
        Source::ALL.iter().flat_map(move |source| {
            let topic = self.topics.of(*source);
            (0..partitions).map(move |partition| (source.as_str(), topic.clone(), partition))
        })
    }

    /// The shard that takes a partition.
    #[must_use]
    pub fn shard_of(&self, partition: i32) -> usize {
        let shard = self.map.shards_of(PartitionId(partition)).first().copied();
        let place = self.map.shards().iter().position(|it| Some(*it) == shard);
        place.unwrap_or_default()
    }

    /// Whether all that lies in the topics has come to an end.
    ///
    /// # Errors
    /// A server is away.
    pub async fn is_drained(&self) -> anyhow::Result<bool> {
        let (ends, committed, fences) = (self.ends()?, self.committed()?, self.fences().await?);
        // A last batch of dead letters moves no fence, and a commit may be lost: either of them tells.
        let done = |(key, end): (&(&str, i32), &i64)| {
            committed.get(key) >= Some(end) || self.aligned && fences.get(key) >= Some(end)
        };
        Ok(ends.iter().filter(|(_, end)| **end > 0).all(done))
    }

    /// Waits until all has come to an end, or stands still. A worker that has ended by itself is started again, as whoever
    /// supervises it would.
    ///
    /// # Errors
    /// The program cannot be run.
    pub async fn drain(&mut self, crew: &mut [Member]) -> anyhow::Result<Drained> {
        let mut ended = 0;
        let mut progress = (Offsets::new(), Instant::now());
        loop {
            ended += self.replace_ended(crew).await?;
            let drained = self.is_drained().await.unwrap_or(false);
            // What waits for an event that is lost waits for ever, and the oracle will say so.
            let waits = drained
                && progress.1.elapsed() < WAITING_MAX
                && self.waiting().await.unwrap_or(1) > 0;
            if drained && !waits {
                let stands_still = None;
                return Ok(Drained {
                    ended,
                    stands_still,
                });
            }
            let now = self.committed().unwrap_or_default();
            if now != progress.0 {
                progress = (now, Instant::now());
            }
            if progress.1.elapsed() > PATIENCE / 2 {
                let still = format!(
                    "partitions stand still for {:?}: ends {:?}, committed {:?}, fences {:?}",
                    PATIENCE / 2,
                    self.ends(),
                    progress.0,
                    self.fences().await
                );
                return Ok(Drained {
                    ended,
                    stands_still: Some(still),
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts another worker in the place of each that has ended by itself.
    ///
    /// # Errors
    /// The program cannot be run.
    pub async fn replace_ended(&mut self, crew: &mut [Member]) -> anyhow::Result<u32> {
        let mut ended = 0;
        for member in crew.iter_mut() {
            if member.has_ended() {
                ended += 1;
                // Not at once, as a supervisor.
                tokio::time::sleep(Duration::from_millis(200)).await;
                *member = self.spawn(&[])?;
            }
        }
        Ok(ended)
    }

    /// Stops a worker (SIGSTOP) at a moment when it has written and not committed: the servers say so while it stands still.
    ///
    /// # Errors
    /// It has no batch under way for a long time.
    pub async fn stop_in_flight(&self, member: &Member) -> anyhow::Result<()> {
        let mut clients = Vec::new();
        for shard in 0..self.databases.len() {
            clients.push(self.client(shard).await?);
        }
        let query = "select count(*) from pg_stat_activity where application_name = $1 \
                     and backend_xid is not null";
        let deadline = Instant::now() + PATIENCE / 2;
        while Instant::now() < deadline {
            member.signal(Signal::SIGSTOP)?;
            for client in &clients {
                if client
                    .query_one(query, &[&member.name])
                    .await?
                    .get::<_, i64>(0)
                    > 0
                {
                    return Ok(());
                }
            }
            member.signal(Signal::SIGCONT)?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!(
            "worker {} had no batch under way; see {}",
            member.name,
            member.log.display()
        )
    }

    /// Transactions of workers that have written something and are open now, on one shard.
    ///
    /// # Errors
    /// The server is away.
    pub async fn in_flight(&self, shard: usize) -> anyhow::Result<i64> {
        let client = self.client(shard).await?;
        let query = "select count(*) from pg_stat_activity where datname = $1 \
                     and application_name like $1 || '-w%' and backend_xid is not null";
        Ok(client.query_one(query, &[&self.name]).await?.get(0))
    }

    /// Waits until a batch is under way on this shard.
    ///
    /// # Errors
    /// None for a long time.
    pub async fn until_in_flight(&self, shard: usize) -> anyhow::Result<()> {
        let busy = async || Ok(self.in_flight(shard).await? > 0);
        self.until("a batch under way", busy).await.map(drop)
    }

    /// From now on: the time until each partition that has something to do has moved on, or is done.
    ///
    /// # Errors
    /// One stands still.
    pub async fn recovery(&mut self, crew: &mut [Member]) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let before = self.fences().await?;
        loop {
            self.replace_ended(crew).await?;
            let moved = async {
                let (now, ends, committed) =
                    (self.fences().await?, self.ends()?, self.committed()?);
                anyhow::Ok(ends.iter().all(|(key, end)| {
                    now.get(key) > before.get(key)
                        || now.get(key) >= Some(end)
                        || committed.get(key) >= Some(end)
                }))
            };
            if moved.await.unwrap_or(false) {
                return Ok(began.elapsed());
            }
            if began.elapsed() > PATIENCE {
                bail!(
                    "partitions stand still after {PATIENCE:?}: {before:?}, {:?}",
                    self.ends()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The world's name, which its databases bear.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}
