//! Databases and topics of their own for tests. One Postgres, one Citus cluster and one Kafka broker serve all
//! tests of a process; they end with the process.

pub mod load;

use std::sync::Arc;

use shardlane_local::{
    CitusCluster, CitusOptions, Durability, Kafka, KafkaOptions, Postgres, PostgresOptions,
};
use shardlane_router::{Epoch, ShardId, SlotMap, TokenHash};
use tokio::sync::{Mutex, OnceCell};
use uuid::Uuid;

use crate::migrate::{Detail, migrate};
use crate::servers::{LayoutDatabase, LayoutServers};
use crate::{CitusPath, Layout, Store, StoreOptions};

/// Kafka partitions of [`test_map`].
pub const TEST_PARTITIONS: u32 = 4;
/// Citus shards of a test database.
pub const TEST_CITUS_SHARDS: u32 = 4;

/// Two manual shards, four partitions, aligned.
pub fn test_map() -> SlotMap {
    SlotMap::aligned(
        Epoch(1),
        TokenHash::Postgres,
        TEST_PARTITIONS,
        &[ShardId(0), ShardId(1)],
    )
    .expect("four partitions and two shards are a map")
}

/// A name that no other test has.
pub fn unique(stem: &str) -> String {
    format!("{stem}_{}", Uuid::now_v7().simple())
}

async fn postgres() -> &'static Postgres {
    static SERVER: OnceCell<Postgres> = OnceCell::const_new();
    let start = async || {
        let preload = vec!["pg_stat_statements".to_owned()];
        let settings = [
            ("pg_stat_statements.track", "top"),
            // All tests' statements at once: an entry that is evicted takes its count along.
            ("pg_stat_statements.max", "50000"),
            // Tests that reshard run side by side on this server, which is source and target of them all.
            ("max_replication_slots", "64"),
            ("max_wal_senders", "64"),
            ("max_logical_replication_workers", "48"),
            ("max_worker_processes", "64"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        Postgres::start(PostgresOptions {
            preload,
            settings,
            ..PostgresOptions::fast()
        })
        .await
        .expect("Postgres starts")
    };
    SERVER.get_or_init(start).await
}

async fn citus() -> &'static CitusCluster {
    static CLUSTER: OnceCell<CitusCluster> = OnceCell::const_new();
    let start = async || {
        // Citus runs a background worker a database and node, which among other things ends deadlocks between
        // nodes. Postgres's own limit of 8 would leave some of the tests that run side by side without one.
        let settings = vec![("max_worker_processes".to_owned(), "64".to_owned())];
        let options = CitusOptions {
            durability: Durability::Fast,
            settings,
            ..CitusOptions::default()
        };
        CitusCluster::start_with(options)
            .await
            .expect("Citus starts")
    };
    CLUSTER.get_or_init(start).await
}

/// Makes a database on the shared cluster, one at a time: joining the nodes alters the roles, which all databases
/// of a node share, and two at once fail with "tuple concurrently updated".
async fn citus_database(name: &str) -> &'static CitusCluster {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
    let cluster = citus().await;
    let _turn = ONE_AT_A_TIME.lock().await;
    cluster
        .create_database(name)
        .await
        .expect("the database is made on each node");
    cluster
}

/// The shared broker's bootstrap servers, or a visible skip.
pub async fn kafka() -> Option<String> {
    static BROKER: OnceCell<Kafka> = OnceCell::const_new();
    shardlane_local::require("kafka")?;
    let start = async || {
        Kafka::start(KafkaOptions::default())
            .await
            .expect("Kafka starts")
    };
    Some(BROKER.get_or_init(start).await.bootstrap())
}

/// An empty database on the shared Postgres: a shard that can join. `None` where Postgres is not installed.
pub async fn spare_database() -> Option<String> {
    shardlane_local::require("postgres")?;
    let (server, name) = (postgres().await, unique("spare"));
    shardlane_local::create_database(&server.url("postgres"), &name)
        .await
        .expect("the database is made");
    Some(server.url(&name))
}

/// A database of a test's own, in one layout. Its stores live no longer than it: on Citus it is dropped.
pub struct TestDb {
    database: LayoutDatabase,
    path: CitusPath,
    /// Its name, where it is on the shared Citus cluster.
    on_citus: Option<String>,
}

impl TestDb {
    /// Makes one, or skips visibly where the layout cannot run here.
    pub async fn new(layout: Layout) -> Option<TestDb> {
        let requirement = match layout {
            Layout::Single | Layout::Shards => "postgres",
            Layout::Partman => "partman",
            Layout::Citus => "citus",
        };
        shardlane_local::require(requirement)?;
        LayoutServers::available(layout).ok()?;
        let (name, map) = (unique("test"), test_map());
        let database = if layout == Layout::Citus {
            let cluster = citus_database(&name).await;
            let url = cluster.coordinator_url(&name);
            let detail = Detail::CitusShards(TEST_CITUS_SHARDS);
            migrate(&url, layout, detail)
                .await
                .expect("the schema is set up");
            LayoutDatabase::on_citus(url, map)
        } else {
            LayoutDatabase::create(layout, &[postgres().await], &name, &map)
                .await
                .expect("the database is made")
        };
        let on_citus = (layout == Layout::Citus).then_some(name);
        Some(TestDb {
            database,
            path: CitusPath::Owner,
            on_citus,
        })
    }

    /// The same database by another way; matters on Citus only.
    #[must_use]
    pub fn by(mut self, path: CitusPath) -> TestDb {
        self.path = path;
        self
    }

    /// A store on this database.
    pub async fn store(&self) -> Arc<Store> {
        let backend = self.database.backend(self.path);
        Arc::new(
            Store::connect(backend, StoreOptions::default())
                .await
                .expect("the store connects"),
        )
    }

    /// The DSNs: one, or one a manual shard; for Citus the coordinator's.
    pub fn urls(&self) -> &[String] {
        self.database.urls()
    }

    /// The database as the lab knows it.
    pub fn database(&self) -> &LayoutDatabase {
        &self.database
    }

    /// A client of one of the [`TestDb::urls`].
    pub async fn client(&self, index: usize) -> tokio_postgres::Client {
        let (client, connection) =
            tokio_postgres::connect(&self.urls()[index], tokio_postgres::NoTls)
                .await
                .expect("the test's own database answers");
        tokio::spawn(connection);
        client
    }
}

impl Drop for TestDb {
    /// A Citus database keeps a background worker and connections on each node for as long as it is there; those of
    /// some dozens of tests would use up the nodes. A plain database costs nothing, and goes with the process.
    fn drop(&mut self) {
        let Some(name) = self.on_citus.take() else {
            return;
        };
        // A destructor cannot wait for a future, but it can wait for a thread that does.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                citus()
                    .await
                    .drop_database(&name)
                    .await
                    .map_err(std::io::Error::other)
            })
        });
        if let Ok(Err(error)) = dropping.join() {
            eprintln!("a test's Citus database stays: {error}");
        }
    }
}
