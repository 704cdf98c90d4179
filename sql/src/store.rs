//! Where a user's rows live, and the connections that lead there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use jiff::Timestamp;
use shardlane_citus::is_placement_error;
use shardlane_router::{Epoch, ShardId, ShardMap, SlotMap};
use tokio::task::AbortHandle;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Config, Row};
use tracing::Instrument as _;
use uuid::Uuid;

use crate::applied::Applied;
use crate::follow::Source;
use crate::outbox::Outbox;
use crate::park::{Carried, ParkLimits};
use crate::queue::{Drain, Rules};
use crate::routes::{Lane, Routes, Target, Way};
use crate::session::PoolWaits;
use crate::stage::{Origin, Record, Staged, stage};
use crate::transaction::Work;
use crate::{CitusPath, ErrorClass, SqlError, identity};

/// The databases behind a layout.
#[derive(Debug, Clone)]
pub enum Backend {
    /// One Postgres, with or without time partitions.
    One {
        /// Its DSN.
        url: String,
    },
    /// Manual shards.
    Shards {
        /// DSNs, in the order of [`SlotMap::shards`].
        urls: Vec<String>,
        /// Slot -> shard, as the databases were set up. Once slots have moved, the shards' own catalog replaces it.
        map: SlotMap,
    },
    /// A Citus cluster.
    Citus {
        /// The coordinator's DSN; the nodes are reached with the same user and database.
        coordinator: String,
        /// Which way batches take.
        path: CitusPath,
    },
}

/// Bounds of a store.
#[derive(Debug, Clone, Copy)]
pub struct StoreOptions {
    /// Connections over all servers of the layout, so that layouts compare fairly; each server gets its part, at
    /// least one.
    pub connections_max: u32,
    /// How long one waits for a connection.
    pub connect_timeout: Duration,
    /// How often the shards' catalog or Citus's metadata is asked for changes, jittered; refused writes ask at once.
    pub poll_interval: Duration,
    /// How long, and how many, events may wait for one that they need.
    pub park: ParkLimits,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            connections_max: 8,
            connect_timeout: Duration::from_secs(5),
            poll_interval: Duration::from_secs(2),
            park: ParkLimits::default(),
        }
    }
}

/// A server that does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerDown {
    /// The shards on it.
    pub shards: Vec<ShardId>,
    /// host:port/name of its database.
    pub server: String,
    /// Why not.
    pub error: String,
}

/// A layout's routing and pools. Clones share them.
///
/// Routing is a snapshot that is replaced as a whole while shards move; readers never lock.
#[derive(Clone)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) routes: ArcSwap<Routes>,
    source: Source,
    follower: Option<AbortHandle>,
    park: ParkLimits,
    pub(crate) buried: Mutex<BTreeMap<(shardlane_domain::Source, &'static str), u64>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(follower) = &self.follower {
            follower.abort();
        }
    }
}

impl Store {
    /// Connects to each server once, and refuses a layout that is not what the map says. A server that is away while
    /// another one answers is no reason not to begin: what is for its shards waits until it is back, and whether it is
    /// what the map says is asked then.
    ///
    /// # Errors
    /// [`SqlError`]: no server answers, a server refuses us, a shard is another one, two DSNs of one database, a Citus
    /// cluster whose hash or tables are not ours.
    pub async fn connect(backend: Backend, options: StoreOptions) -> Result<Store, SqlError> {
        let (routes, source) = Source::connect(backend, options).await?;
        open_all(&routes).await?;
        let shared = Arc::new_cyclic(|shared| Shared {
            routes: ArcSwap::from_pointee(routes),
            follower: source.follow(shared.clone(), options.poll_interval),
            park: options.park,
            buried: Mutex::default(),
            source,
        });
        Ok(Store { shared })
    }

    /// Where everything is now.
    #[must_use]
    pub fn routes(&self) -> Arc<Routes> {
        self.shared.routes.load_full()
    }

    /// Looks for newer routes than `seen` (a [`Routes::epoch`]) and takes them. Many callers cause one look.
    /// What cannot be asked stays as it is.
    pub async fn refresh(&self, seen: Epoch) {
        self.shared.refresh(seen).await;
    }

    /// The target that holds a user; `None` while the user's slot is frozen. For one event; a batch takes one
    /// snapshot of [`Store::routes`].
    #[must_use]
    pub fn target_of(&self, user: Uuid) -> Option<Target> {
        self.shared.routes.load().target_of(user)
    }

    /// Writes one target's records in one transaction, which [`Staged::commit`] commits. All records must belong
    /// to `target`, in the order in which they shall apply.
    ///
    /// # Errors
    /// [`SqlError`], with nothing written; [`SqlError::class`] says what to do.
    pub async fn stage(&self, target: Target, records: &[Record]) -> Result<Staged, SqlError> {
        self.stage_carrying(target, records, &[], &|_| Carried::default())
            .await
    }

    /// As [`Store::stage`], for records that carry a key and headers: `carried` is asked for those that are parked.
    /// `dead` stood among the records and are dead letters already: they are counted, and the fence moves over them.
    ///
    /// # Errors
    /// As [`Store::stage`].
    pub async fn stage_carrying(
        &self,
        target: Target,
        records: &[Record],
        dead: &[Origin],
        carried: &(dyn Fn(usize) -> Carried + Sync),
    ) -> Result<Staged, SqlError> {
        self.stage_all(target, records, dead, carried, Drain::RELEASE)
            .await
    }

    /// As [`Store::stage`], for a caller who cannot keep [`Report::letters`](crate::Report::letters) now: nothing that
    /// waited before is let go, and the sweep does it later.
    ///
    /// # Errors
    /// As [`Store::stage`].
    pub async fn stage_without_release(
        &self,
        target: Target,
        records: &[Record],
    ) -> Result<Staged, SqlError> {
        self.stage_all(target, records, &[], &|_| Carried::default(), Drain::OFF)
            .await
    }

    /// Counts records that are dead letters already and moves the fence over them, in the order in which they stood
    /// among the others.
    ///
    /// # Errors
    /// As [`Store::stage`].
    pub async fn stage_dead(&self, target: Target, dead: &[Origin]) -> Result<Staged, SqlError> {
        self.stage_all(target, &[], dead, &|_| Carried::default(), Drain::OFF)
            .await
    }

    async fn stage_all(
        &self,
        target: Target,
        records: &[Record],
        dead: &[Origin],
        carried: &(dyn Fn(usize) -> Carried + Sync),
        drain: Drain,
    ) -> Result<Staged, SqlError> {
        let routes = self.routes();
        let staged = async {
            let lane = lane_of(&routes, target)?;
            let session = lane.pool.get(target.shard).await?;
            let rules = Rules {
                limits: self.limits(),
                now: Timestamp::now(),
                drain,
            };
            let work = Work {
                target,
                anchor: lane.anchor,
                records,
                dead,
                carried,
                swept: None,
                rules,
            };
            stage(session, work).await
        };
        let span = tracing::info_span!("stage", shard = %target.shard, records = records.len());
        let staged = staged.instrument(span).await;
        staged.map_err(|error| self.explain(error, target))
    }

    /// How far `target` has applied a partition of a topic.
    ///
    /// # Errors
    /// [`SqlError::Postgres`], [`SqlError::PoolTimeout`]; [`SqlError::Rerouted`] where it takes other slots than the map
    /// says by which it was found.
    pub async fn applied(
        &self,
        target: Target,
        topic: &str,
        partition: i32,
    ) -> Result<Applied, SqlError> {
        const READ_APPLIED: &str = include_str!("statements/read_applied.sql");
        let routes = self.routes();
        let applied = async {
            let lane = lane_of(&routes, target)?;
            let session = lane.pool.get(target.shard).await?;
            let params: [&(dyn ToSql + Sync); 3] = [&lane.anchor, &topic, &partition];
            if routes.catalog().is_none() {
                let statement = &session.statements.read_fence;
                let row = session.client.query_opt(statement, &params).await?;
                return Ok(Applied::new(row.map(|row| row.get(0)), Vec::new()));
            }
            let rows = session.client.query(READ_APPLIED, &params).await?;
            applied_of(target, &rows)
        };
        applied.await.map_err(|error| self.explain(error, target))
    }

    /// Moves the fence of `target` to `next`: all of its records before that are applied, and the last of them stood
    /// before its fence. Where somebody has moved it further since it stays there.
    ///
    /// # Errors
    /// As [`Store::applied`].
    pub async fn pass(
        &self,
        target: Target,
        topic: &str,
        partition: i32,
        next: i64,
    ) -> Result<(), SqlError> {
        let routes = self.routes();
        let passed = async {
            let lane = lane_of(&routes, target)?;
            let session = lane.pool.get(target.shard).await?;
            let epoch = i64::try_from(target.epoch.0).unwrap_or(i64::MAX);
            let params: [&(dyn ToSql + Sync); 5] =
                [&lane.anchor, &topic, &partition, &epoch, &next];
            let statement = &session.statements.pass_fence;
            session.client.execute(statement, &params).await?;
            Ok(())
        };
        passed.await.map_err(|error| self.explain(error, target))
    }

    /// Every fence of every target: (topic, partition, target) -> next offset.
    ///
    /// # Errors
    /// As [`Store::fence`].
    #[cfg(feature = "testing")]
    pub async fn fences(
        &self,
    ) -> Result<std::collections::HashMap<(String, i32, Target), i64>, SqlError> {
        let mut fences = std::collections::HashMap::new();
        for lane in self.routes().lanes() {
            let session = lane.pool.get(lane.target.shard).await?;
            let query =
                "select topic, kafka_partition, next_offset from kafka_fence where user_id = $1";
            for row in session.client.query(query, &[&lane.anchor]).await? {
                fences.insert((row.get(0), row.get(1), lane.target), row.get(2));
            }
        }
        Ok(fences)
    }

    /// Asks each server whether it is there, all at once. Back come those that do not say so within `deadline`.
    ///
    /// It takes a connection of the pool, so a server whose connections are all in use for longer than that counts too.
    pub async fn servers_down(&self, deadline: Duration) -> Vec<ServerDown> {
        let routes = self.routes();
        let asks = routes
            .servers()
            .into_iter()
            .map(|(pool, shards)| async move {
                let answer = tokio::time::timeout(deadline, pool.ping(shards[0])).await;
                let error = match answer {
                    Ok(Ok(())) => return None,
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => format!("no answer within {deadline:?}"),
                };
                Some(ServerDown {
                    shards,
                    server: pool.server().to_owned(),
                    error,
                })
            });
        let answers = join_all(asks).await;
        answers.into_iter().flatten().collect()
    }

    /// How each pool is used, and how long its users have waited for a connection.
    #[must_use]
    pub fn pool_waits(&self) -> Vec<PoolWaits> {
        let routes = self.routes();
        let servers = routes.servers().into_iter();
        servers.map(|(pool, shards)| pool.waits(shards)).collect()
    }

    /// Where a batch for `target` went that was routed by `sent`, as is known now. A move that nobody here has heard of
    /// yet is not: a map is at most [`StoreOptions::poll_interval`] old.
    #[must_use]
    pub fn way(&self, sent: &Routes, target: Target) -> Way {
        sent.way(target, &self.shared.routes.load())
    }

    /// Where rows wait to be published: each database, or Citus's coordinator, which sees those of all nodes.
    #[must_use]
    pub fn outboxes(&self) -> Vec<Outbox> {
        let databases = self.shared.source.databases(&self.routes()).into_iter();
        databases
            .map(|(shard, config)| Outbox::new(shard, config))
            .collect()
    }

    /// Each database once, for connections that are apart from the pools.
    pub(crate) fn databases(&self) -> Vec<Config> {
        let databases = self.shared.source.databases(&self.routes()).into_iter();
        databases.map(|(_, config)| config).collect()
    }

    pub(crate) fn limits(&self) -> ParkLimits {
        self.shared.park
    }

    /// Says what an error means for routing, and has a look for newer routes where it hints at them.
    pub(crate) fn explain(&self, error: SqlError, target: Target) -> SqlError {
        let citus = self.shared.routes.load().shard_map().is_some();
        let error = rerouted(error, target.shard, citus);
        if error.class() == ErrorClass::Transient {
            self.shared.source.suspect();
        }
        error
    }
}

/// Makes the first session to each server. Each is awaited, because one that is wrong counts more than one that is away.
async fn open_all(routes: &Routes) -> Result<(), SqlError> {
    let servers = routes.servers();
    let opened = join_all(servers.iter().map(|(pool, shards)| pool.open(shards[0]))).await;
    let mut away = Vec::new();
    for ((pool, _), opened) in servers.iter().zip(opened) {
        match opened {
            Ok(()) => {}
            Err(error) if error.is_outage() => away.push((pool.server(), error)),
            Err(error) => return Err(error),
        }
    }
    if away.len() == servers.len()
        && let Some((_, error)) = away.pop()
    {
        return Err(error);
    }
    for (server, error) in away {
        tracing::warn!("{server} is away, and what is for its shards waits: {error}");
    }
    Ok(())
}

pub(crate) fn lane_of(routes: &Routes, target: Target) -> Result<&Lane, SqlError> {
    routes.lane(target).ok_or_else(|| SqlError::Rerouted {
        shard: target.shard,
        reason: "the newest map has it otherwise".to_owned(),
    })
}

fn applied_of(target: Target, rows: &[Row]) -> Result<Applied, SqlError> {
    let epoch = |row: &Row, column| row.get::<_, Option<i64>>(column).map(i64::unsigned_abs);
    let own = rows.first().and_then(|row| epoch(row, 0));
    if own != Some(target.epoch.0) {
        return Err(SqlError::Rerouted {
            shard: target.shard,
            reason: format!("it takes the slots of epoch {}", own.unwrap_or(0)),
        });
    }
    let fence = rows
        .first()
        .filter(|row| epoch(row, 1) == Some(target.epoch.0));
    let past = rows.iter().filter_map(|row| {
        let slots: Option<String> = row.get(4);
        slots.map(|slots| Ok((slots.parse()?, row.get(3))))
    });
    let past = past.collect::<Result<Vec<_>, SqlError>>()?;
    Ok(Applied::new(fence.map(|row| row.get(2)), past))
}

/// Errors that say that the batch was routed by an old map.
fn rerouted(error: SqlError, shard: ShardId, citus: bool) -> SqlError {
    let SqlError::Postgres(postgres) = &error else {
        return error;
    };
    let db = postgres.as_db_error();
    let foreign = db.is_some_and(is_foreign_slot);
    // What writers see who were planned before a split: the batch is routed anew rather than given up.
    let gone = citus
        && db.is_some()
        && error.class() != ErrorClass::Transient
        && is_placement_error(postgres);
    match db {
        Some(db) if foreign || gone => SqlError::Rerouted {
            shard,
            reason: db.message().to_owned(),
        },
        _ => error,
    }
}

/// A manual shard's CHECKs refuse what a newer map gives to another shard.
fn is_foreign_slot(error: &DbError) -> bool {
    *error.code() == SqlState::CHECK_VIOLATION
        && error.constraint().is_some_and(|name| {
            name.ends_with(identity::SLOT_CHECK) || name == identity::EPOCH_CHECK
        })
}

impl Shared {
    pub(crate) async fn refresh(&self, seen: Epoch) {
        if self.routes.load().epoch() > seen {
            return;
        }
        match self.source.newer(&self.routes).await {
            Ok(Some(routes)) => self.replace(routes),
            Ok(None) => {}
            Err(error) => tracing::warn!("the routes stay as they are: {error}"),
        }
    }

    /// Takes a map that Citus's watch has seen.
    pub(crate) async fn take(&self, map: Arc<ShardMap>) {
        if let Source::Citus(citus) = &self.source
            && let Some(routes) = citus.after(&self.routes, map).await
        {
            self.replace(routes);
        }
    }

    /// Two looks at once may both find news: the older of them is dropped.
    fn replace(&self, routes: Routes) {
        let (frozen, routes) = (routes.has_frozen(), Arc::new(routes));
        self.routes.rcu(|current| {
            if routes.epoch() > current.epoch() {
                Arc::clone(&routes)
            } else {
                Arc::clone(current)
            }
        });
        if frozen {
            // Wakes the follower, which looks often from now on.
            self.source.suspect();
        }
    }
}

pub(crate) fn parse(url: &str) -> Result<Config, SqlError> {
    let mut config: Config = url.parse().map_err(|error: tokio_postgres::Error| {
        // The DSN may hold a password, so only the reason is shown.
        SqlError::Settings(format!(
            "a DSN cannot be read: {error}; expected postgres://user@host:port/database"
        ))
    })?;
    if config.get_application_name().is_none() {
        config.application_name("shardlane");
    }
    Ok(config)
}
