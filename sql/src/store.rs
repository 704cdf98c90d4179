//! Where a user's rows live, and the connections that lead there.

use std::collections::HashMap;
use std::time::Duration;

use shardlane_citus as citus;
use shardlane_router::{
    Epoch, KeyRange, RouteKey, ShardId, ShardMap, Slot, SlotMap, Token, TokenHash, anchor_uuid,
};
use tokio_postgres::{Config, NoTls};
use uuid::Uuid;

use crate::identity::{IdentityError, ShardIdentity};
use crate::session::{self, Pool, SessionManager};
use crate::stage::{Record, Staged, stage};
use crate::{CitusPath, SqlError, TABLES};

/// The databases behind a layout.
#[derive(Debug, Clone)]
pub enum Backend {
    /// One Postgres, with or without time partitions.
    One {
        /// Its DSN.
        url: String,
    },
    /// Manual shards: the map's shards in ascending order, a DSN each.
    Shards {
        /// DSNs, in the order of [`SlotMap::shards`].
        urls: Vec<String>,
        /// Slot -> shard.
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
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            connections_max: 8,
            connect_timeout: Duration::from_secs(5),
        }
    }
}

/// A place to which one transaction can go: a shard, as the layout cuts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target(usize);

struct Lane {
    shard: ShardId,
    anchor: Uuid,
    pool: usize,
}

enum Routing {
    One,
    Slots(Box<SlotMap>, HashMap<ShardId, usize>),
    Ranges(Box<ShardMap>, HashMap<ShardId, usize>),
}

/// A layout's routing and pools.
pub struct Store {
    routing: Routing,
    lanes: Vec<Lane>,
    pools: Vec<Pool>,
}

impl Store {
    /// Connects to each server once, and refuses a layout that is not what the map says.
    ///
    /// # Errors
    /// [`SqlError`]: a server that does not answer, a shard that is another one, two DSNs of one database, a Citus
    /// cluster whose hash or tables are not ours.
    pub async fn connect(backend: Backend, options: StoreOptions) -> Result<Store, SqlError> {
        let pool = |config: Config, expected, servers: usize| {
            let share = options.connections_max / u32::try_from(servers).unwrap_or(u32::MAX).max(1);
            Pool::new(config, expected, share.max(1), options.connect_timeout)
        };
        let everything = KeyRange::FULL;
        let (routing, lanes, pools) = match backend {
            Backend::One { url } => {
                let anchor = anchor_uuid(TokenHash::Postgres, &everything);
                let lane = Lane {
                    shard: ShardId(0),
                    anchor,
                    pool: 0,
                };
                (Routing::One, vec![lane], vec![pool(parse(&url)?, None, 1)])
            }
            Backend::Shards { urls, map } => {
                let shards = map.shards().to_vec();
                if urls.len() != shards.len() {
                    return Err(SqlError::Settings(format!(
                        "the map has {} shards but {} DSNs were given; give one a shard, in the order of the shards",
                        shards.len(),
                        urls.len()
                    )));
                }
                if map.hash() != TokenHash::Postgres {
                    return Err(IdentityError::HashNotCheckable(map.hash()).into());
                }
                let configs = urls
                    .iter()
                    .map(|url| parse(url))
                    .collect::<Result<Vec<_>, _>>()?;
                refuse_twins(&urls)?;
                let mut lanes = Vec::new();
                let mut pools = Vec::new();
                for (index, (shard, config)) in shards.iter().zip(configs).enumerate() {
                    let first = map.slot_ranges_of(*shard).first().cloned().ok_or_else(|| {
                        SqlError::Settings(format!(
                            "shard {shard} owns no slot; leave it out of the map"
                        ))
                    })?;
                    let first = Slot::new(*first.start())?;
                    let anchor = anchor_uuid(map.hash(), &first.key_range());
                    lanes.push(Lane {
                        shard: *shard,
                        anchor,
                        pool: index,
                    });
                    pools.push(pool(
                        config,
                        Some(ShardIdentity::of(&map, *shard)),
                        shards.len(),
                    ));
                }
                let index = index_of(&lanes);
                (Routing::Slots(Box::new(map), index), lanes, pools)
            }
            Backend::Citus { coordinator, path } => {
                let config = parse(&coordinator)?;
                let map = read_citus_map(&config).await?;
                match path {
                    CitusPath::Coordinator => {
                        let anchor = anchor_uuid(TokenHash::Postgres, &everything);
                        let lane = Lane {
                            shard: ShardId(0),
                            anchor,
                            pool: 0,
                        };
                        (Routing::One, vec![lane], vec![pool(config, None, 1)])
                    }
                    CitusPath::CoordinatorGrouped => {
                        let lanes = citus_lanes(&map, |_| 0)?;
                        let index = index_of(&lanes);
                        (
                            Routing::Ranges(Box::new(map), index),
                            lanes,
                            vec![pool(config, None, 1)],
                        )
                    }
                    CitusPath::Owner => {
                        let lanes = citus_lanes(&map, |node| node)?;
                        let nodes = map.nodes();
                        let pools = nodes
                            .iter()
                            .map(|node| pool(at(&config, &node.host, node.port), None, nodes.len()))
                            .collect();
                        let index = index_of(&lanes);
                        (Routing::Ranges(Box::new(map), index), lanes, pools)
                    }
                }
            }
        };
        for (index, pool) in pools.iter().enumerate() {
            let shard = shard_of_pool(&lanes, index);
            pool.open(shard).await?;
        }
        Ok(Store {
            routing,
            lanes,
            pools,
        })
    }

    /// Every target.
    pub fn targets(&self) -> impl Iterator<Item = Target> + use<> {
        (0..self.lanes.len()).map(Target)
    }

    /// The shard behind a target: 0 where the layout is not cut.
    pub fn shard(&self, target: Target) -> ShardId {
        self.lanes[target.0].shard
    }

    /// The target that holds a user. No I/O, no allocation.
    pub fn target_of(&self, user: Uuid) -> Target {
        let key = RouteKey::Uuid(user);
        match &self.routing {
            Routing::One => Target(0),
            Routing::Slots(map, index) => Target(index[&map.shard_for(&key)]),
            Routing::Ranges(map, index) => {
                let token: Token = map.hash().token(&key);
                Target(index[&map.shard_for(token).shard])
            }
        }
    }

    /// Writes one target's records in one transaction, which [`Staged::commit`] commits. All records must belong
    /// to `target`, in the order in which they shall apply.
    ///
    /// # Errors
    /// [`SqlError`], with nothing written; [`SqlError::class`] says what to do.
    pub async fn stage(&self, target: Target, records: &[Record]) -> Result<Staged<'_>, SqlError> {
        let session = self.session(target).await?;
        stage(session, self.lanes[target.0].anchor, records).await
    }

    /// How far `target` has applied a partition of a topic: the next offset, or `None` if it never saw it.
    ///
    /// # Errors
    /// [`SqlError::Postgres`], [`SqlError::PoolTimeout`].
    pub async fn fence(
        &self,
        target: Target,
        topic: &str,
        partition: i32,
    ) -> Result<Option<i64>, SqlError> {
        let session = self.session(target).await?;
        let anchor = self.lanes[target.0].anchor;
        let row = session
            .client
            .query_opt(
                &session.statements.read_fence,
                &[&anchor, &topic, &partition],
            )
            .await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Every fence of every target: (topic, partition, target) -> next offset.
    ///
    /// # Errors
    /// As [`Store::fence`].
    #[cfg(feature = "testing")]
    pub async fn fences(&self) -> Result<HashMap<(String, i32, Target), i64>, SqlError> {
        let mut fences = HashMap::new();
        for target in self.targets() {
            let session = self.session(target).await?;
            let anchor = self.lanes[target.0].anchor;
            let query =
                "select topic, kafka_partition, next_offset from kafka_fence where user_id = $1";
            for row in session.client.query(query, &[&anchor]).await? {
                fences.insert((row.get(0), row.get(1), target), row.get(2));
            }
        }
        Ok(fences)
    }

    /// Asks each server whether it is there.
    ///
    /// # Errors
    /// The first server's that is not.
    pub async fn ping(&self) -> Result<(), SqlError> {
        for (index, pool) in self.pools.iter().enumerate() {
            let shard = shard_of_pool(&self.lanes, index);
            pool.get(shard).await?.client.batch_execute("").await?;
        }
        Ok(())
    }

    async fn session(
        &self,
        target: Target,
    ) -> Result<bb8::PooledConnection<'_, SessionManager>, SqlError> {
        let lane = &self.lanes[target.0];
        self.pools[lane.pool].get(lane.shard).await
    }
}

fn parse(url: &str) -> Result<Config, SqlError> {
    let mut config: Config = url.parse().map_err(|error: tokio_postgres::Error| {
        // The DSN may hold a password, so only the reason is shown.
        SqlError::Settings(format!(
            "a DSN cannot be read: {error}; expected postgres://user@host:port/database"
        ))
    })?;
    config.application_name("shardlane");
    Ok(config)
}

fn at(config: &Config, host: &str, port: u16) -> Config {
    let mut node = Config::new();
    node.host(host).port(port).application_name("shardlane");
    if let Some(user) = config.get_user() {
        node.user(user);
    }
    if let Some(password) = config.get_password() {
        node.password(password);
    }
    if let Some(database) = config.get_dbname() {
        node.dbname(database);
    }
    node
}

fn refuse_twins(urls: &[String]) -> Result<(), SqlError> {
    let mut names: Vec<String> = urls.iter().map(|url| session::database_name(url)).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(SqlError::Settings(format!(
            "two shards have the same database {}; each shard needs its own",
            pair[0]
        ))),
        None => Ok(()),
    }
}

fn citus_lanes(map: &ShardMap, pool_of: impl Fn(usize) -> usize) -> Result<Vec<Lane>, SqlError> {
    map.shards()
        .iter()
        .map(|range| {
            let anchor = anchor_uuid(map.hash(), &range.range);
            Ok(Lane {
                shard: range.shard,
                anchor,
                pool: pool_of(range.node),
            })
        })
        .collect()
}

/// A shard behind a pool, to name it in errors: the first, where a node holds several.
fn shard_of_pool(lanes: &[Lane], pool: usize) -> ShardId {
    lanes
        .iter()
        .find(|lane| lane.pool == pool)
        .map_or(ShardId(0), |lane| lane.shard)
}

fn index_of(lanes: &[Lane]) -> HashMap<ShardId, usize> {
    lanes
        .iter()
        .enumerate()
        .map(|(index, lane)| (lane.shard, index))
        .collect()
}

async fn read_citus_map(config: &Config) -> Result<ShardMap, SqlError> {
    let (client, connection) = config.connect(NoTls).await?;
    let driver = tokio::spawn(connection);
    let map = citus::load(&client, &TABLES, Epoch(1)).await;
    drop(client);
    driver.await.ok();
    Ok(map?)
}
