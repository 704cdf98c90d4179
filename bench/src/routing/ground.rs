//! What the cells stand on: the servers, the tables with their users, and the questions that prove a result.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use anyhow::{Context, ensure};
use jiff::Timestamp;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shardlane_citus::{Watch, WatchOptions};
use shardlane_local::Durability;
use shardlane_router::{Epoch, RouteKey, ShardId, ShardMap, SlotMap, TokenHash, group_by_shard};
use shardlane_sql::Layout;
use shardlane_sql::servers::LayoutServers;
use tokio_postgres::{Client, Config};
use uuid::Uuid;

use super::work::{Path, Workload};
use crate::lab::{checkpoint, connect, cpu_seconds};
use crate::pools::{Choice, Pools, config};

const DATABASE: &str = "routing";
/// What the workloads touch.
const TABLES: [&str; 2] = ["orders", "outbox"];
/// Rows that one statement of the set-up inserts.
const SEED_ROWS: usize = 1_000;

/// The users, and how the cluster's shards divide them.
pub(super) struct Users {
    all: Vec<Uuid>,
    by_shard: Vec<Vec<Uuid>>,
}

impl Users {
    fn new(count: u32, map: &ShardMap) -> Users {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let all: Vec<Uuid> = (0..count)
            .map(|_| uuid::Builder::from_random_bytes(rng.random()).into_uuid())
            .collect();
        let groups = group_by_shard(all.iter().copied(), |user| {
            map.route(&RouteKey::Uuid(*user)).shard
        });
        Users {
            by_shard: groups.into_iter().map(|(_, users)| users).collect(),
            all,
        }
    }

    pub(super) fn all(&self) -> &[Uuid] {
        &self.all
    }

    /// Shards that hold a user.
    pub(super) fn shard_count(&self) -> usize {
        self.by_shard.len()
    }

    pub(super) fn of_a_shard(&self, index: usize) -> &[Uuid] {
        &self.by_shard[index]
    }
}

/// One of the two sides: its servers, and a connection to each for our own questions.
struct Side {
    servers: LayoutServers,
    configs: Vec<Config>,
    clients: Vec<Client>,
}

impl Side {
    async fn start(layout: Layout, slots: &SlotMap, citus_shards: u32) -> anyhow::Result<Side> {
        let servers = LayoutServers::start(layout, Durability::Durable, 1, &[])
            .await
            .with_context(|| format!("layout {layout} did not start"))?;
        servers.create(DATABASE, slots, citus_shards).await?;
        let (mut configs, mut clients) = (Vec::new(), Vec::new());
        for node in servers.nodes() {
            let url = node.url(DATABASE);
            configs.push(config(&url, layout == Layout::Citus)?);
            clients.push(connect(&url).await?);
        }
        Ok(Side {
            servers,
            configs,
            clients,
        })
    }

    /// The client of the one server, or of the coordinator.
    fn first(&self) -> &Client {
        &self.clients[0]
    }

    async fn seed(&self, users: &[Uuid]) -> anyhow::Result<()> {
        let now = Timestamp::now();
        for users in users.chunks(SEED_ROWS) {
            self.first()
                .execute(include_str!("statements/seed.sql"), &[&users, &now])
                .await?;
        }
        for client in &self.clients {
            client.batch_execute("analyze orders").await?;
        }
        Ok(())
    }
}

/// Running servers with seeded tables.
pub(super) struct Ground {
    single: Side,
    citus: Side,
    pub(super) map: Arc<ShardMap>,
    pub(super) users: Arc<Users>,
    /// The workers, in the order of the map's nodes.
    owners: Vec<Config>,
}

impl Ground {
    /// Starts one Postgres, and Citus with a coordinator and two workers; `users` rows of `orders` in each.
    pub(super) async fn prepare(users: u32, citus_shards: u32) -> anyhow::Result<Ground> {
        for layout in [Layout::Single, Layout::Citus] {
            LayoutServers::available(layout)
                .context("owner routing is measured on Citus, against one Postgres")?;
        }
        // Neither layout is cut by slots; setting up a database asks for a map all the same.
        let slots = SlotMap::aligned(Epoch(1), TokenHash::Postgres, 1, &[ShardId(0)])?;
        let (single, citus) = futures_util::try_join!(
            Side::start(Layout::Single, &slots, citus_shards),
            Side::start(Layout::Citus, &slots, citus_shards)
        )?;
        let map = shardlane_citus::load(citus.first(), &TABLES, Epoch(1)).await?;
        let users = Users::new(users, &map);
        for side in [&single, &citus] {
            side.seed(users.all()).await?;
        }
        let owners = map
            .nodes()
            .iter()
            .map(|node| {
                let found = citus
                    .configs
                    .iter()
                    .find(|it| it.get_ports() == [node.port]);
                found
                    .cloned()
                    .context("the map names a node that we started")
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(
            owners.len() == citus.configs.len() - 1,
            "{citus_shards} shards do not reach every worker; set --citus-shards higher"
        );
        Ok(Ground {
            single,
            citus,
            map: Arc::new(map),
            users: Arc::new(users),
            owners,
        })
    }

    fn side(&self, path: Path) -> &Side {
        if path.is_citus() {
            &self.citus
        } else {
            &self.single
        }
    }

    /// Connections for so many clients: as many, rounded up so that the workers share them evenly. The same on
    /// every path.
    pub(super) fn connections(&self, clients: u32) -> u32 {
        clients.next_multiple_of(u32::try_from(self.owners.len()).unwrap_or(u32::MAX))
    }

    /// Prepared connections for a path.
    pub(super) async fn pools(
        &self,
        workload: Workload,
        path: Path,
        clients: u32,
    ) -> anyhow::Result<Pools> {
        let turns = || Choice::Turns(AtomicUsize::new(0));
        let (nodes, choice) = match path {
            Path::Single => (&self.single.configs[..], turns()),
            Path::Coordinator | Path::CoordinatorGrouped => (&self.citus.configs[..1], turns()),
            Path::AnyNode | Path::AnyNodeGrouped => (&self.owners[..], turns()),
            Path::Owner => (&self.owners[..], Choice::Owner(Arc::clone(&self.map))),
            Path::OwnerWatched => (&self.owners[..], Choice::Watched(self.watch().await?)),
        };
        let each = self.connections(clients) / u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        Pools::connect(nodes, choice, each, workload.statements())
            .await
            .with_context(|| format!("no connections for {}", path.as_str()))
    }

    /// A watch of the cluster that polls ten times as often as by default: a cell is short.
    pub(super) async fn watch(&self) -> anyhow::Result<Watch> {
        let mut options = WatchOptions::default();
        options.poll_interval /= 10;
        let coordinator = self.citus.configs[0].clone();
        Ok(Watch::start(coordinator, &TABLES, options).await?)
    }

    /// An empty `outbox`, and nothing of earlier cells left to be written out.
    pub(super) async fn clear(&self, path: Path) -> anyhow::Result<()> {
        let side = self.side(path);
        side.first().batch_execute("truncate outbox").await?;
        checkpoint(&side.servers).await
    }

    /// What writes of this workload add up to: rows of `outbox`, or versions of `orders`.
    pub(super) async fn written(&self, workload: Workload, path: Path) -> anyhow::Result<u64> {
        let query = match workload {
            Workload::Insert | Workload::Batch => "select count(*) from outbox",
            Workload::Read | Workload::ReadModifyWrite => "select sum(version)::bigint from orders",
        };
        let row = self.side(path).first().query_one(query, &[]).await?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
    }

    pub(super) fn server_cpu_seconds(&self, path: Path) -> f64 {
        cpu_seconds(&self.side(path).servers)
    }

    /// How often a node has turned to another one, so far; `None` without Citus.
    pub(super) async fn hops(&self, path: Path) -> anyhow::Result<Option<u64>> {
        if !path.is_citus() {
            return Ok(None);
        }
        let mut sum = 0;
        for client in &self.side(path).clients {
            let row = client
                .query_one(include_str!("statements/hops.sql"), &[])
                .await?;
            sum += row.get::<_, i64>(0);
        }
        Ok(Some(sum.unsigned_abs()))
    }

    /// Connections on all servers that serve the cell's clients: their own, and those between nodes.
    pub(super) async fn backends(&self, path: Path) -> anyhow::Result<u64> {
        let query = if path.is_citus() {
            include_str!("statements/citus_backends.sql")
        } else {
            include_str!("statements/backends.sql")
        };
        let row = self.side(path).first().query_one(query, &[]).await?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
    }

    pub(super) async fn versions(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let client = self.citus.first();
        let postgres = client.query_one("show server_version", &[]).await?;
        let citus = client.query_one("select citus_version()", &[]).await?;
        let citus: String = citus.get(0);
        // `Citus 13.2.2 on x86_64-pc-linux-gnu, compiled by ...`: the compiler is no part of the version.
        let citus = citus.split_whitespace().nth(1).unwrap_or("unknown");
        Ok(BTreeMap::from([
            ("shardlane".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("postgres".to_owned(), postgres.get(0)),
            ("citus".to_owned(), citus.to_owned()),
        ]))
    }
}
