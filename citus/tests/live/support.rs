//! A database on a cluster, and how to wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shardlane_citus::operate::Coordinator;
use shardlane_citus::{ShardMap, Watch, WatchOptions};
use shardlane_local::{CitusCluster, CitusOptions, Durability, require};
use shardlane_router::{Node, RouteKey, ShardId};
use tokio::sync::{Mutex, OnceCell};
use tokio_postgres::{Client, Config, NoTls};
use uuid::Uuid;

/// Longer than anything here takes, shorter than patience.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than a test, so that only a request makes the watch ask.
pub(crate) const NEVER: Duration = Duration::from_secs(3600);

pub(crate) struct Lab {
    pub(crate) cluster: &'static CitusCluster,
    pub(crate) database: &'static str,
    pub(crate) client: Client,
}

/// A database `name` on the shared cluster, with the table `events` in 4 shards and `u` beside it; or a visible skip.
pub(crate) async fn lab(name: &'static str) -> Option<Lab> {
    static CLUSTER: OnceCell<CitusCluster> = OnceCell::const_new();
    require("citus")?;
    let cluster = CLUSTER.get_or_init(start_cluster).await;
    Some(lab_on(cluster, name).await)
}

/// As [`lab`], on a cluster that the test may hurt.
pub(crate) async fn lab_of_its_own(name: &'static str) -> Option<Lab> {
    require("citus")?;
    // Leaked, as a static would be: the servers end with the process.
    let cluster: &'static CitusCluster = Box::leak(Box::new(start_cluster().await));
    Some(lab_on(cluster, name).await)
}

async fn start_cluster() -> CitusCluster {
    let options = CitusOptions {
        durability: Durability::Fast,
        ..CitusOptions::default()
    };
    CitusCluster::start_with(options)
        .await
        .expect("Citus starts")
}

async fn lab_on(cluster: &'static CitusCluster, database: &'static str) -> Lab {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
    // Joining the nodes alters the roles, which all databases of a node share.
    let turn = ONE_AT_A_TIME.lock().await;
    cluster
        .create_database(database)
        .await
        .expect("the database is made on each node");
    drop(turn);
    let client = connect(&cluster.coordinator_url(database)).await;
    for sql in [
        "create table events (user_id uuid, event_id bigint, primary key (user_id, event_id))",
        "create table u (user_id uuid primary key, n bigint)",
        "set citus.shard_count = 4",
        "select create_distributed_table('events', 'user_id', colocate_with => 'none')",
        "select create_distributed_table('u', 'user_id', colocate_with => 'events')",
    ] {
        run(&client, sql).await;
    }
    Lab {
        cluster,
        database,
        client,
    }
}

pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .expect("the node answers");
    tokio::spawn(connection);
    client
}

pub(crate) async fn run(client: &Client, sql: &str) {
    let done = client.batch_execute(sql).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

pub(crate) fn options(poll_interval: Duration) -> WatchOptions {
    let mut options = WatchOptions::default();
    options.poll_interval = poll_interval;
    options
}

impl Lab {
    pub(crate) fn config(&self) -> Config {
        let mut config: Config = self.cluster.coordinator_url(self.database).parse().unwrap();
        config.application_name("under_test");
        config
    }

    pub(crate) async fn watch(&self, options: WatchOptions) -> Arc<Watch> {
        let watch = Watch::start(self.config(), &["events", "u"], options).await;
        Arc::new(watch.expect("the watch starts"))
    }

    pub(crate) async fn coordinator(&self) -> Coordinator<'_> {
        let coordinator = Coordinator::of(&self.client).await.unwrap();
        coordinator.with_time_max(PATIENCE)
    }

    /// Compares the map with Citus's own answer, and with the nodes that Citus names.
    pub(crate) async fn check(&self, map: &ShardMap) {
        let keys: Vec<Uuid> = (0..1_000)
            .map(|_| Uuid::from_bytes(rand::random()))
            .collect();
        let rows = self
            .client
            .query(
                "select k, s.shardid, s.nodeport from unnest($1::uuid[]) k
                 join citus_shards s on s.shardid = get_shard_id_for_distribution_column('events', k)",
                &[&keys],
            )
            .await
            .unwrap();
        assert_eq!(rows.len(), keys.len());
        for row in rows {
            let (key, shard, port): (Uuid, i64, i32) = (row.get(0), row.get(1), row.get(2));
            let ours = map.route(&RouteKey::Uuid(key));
            assert_eq!(ours.shard, ShardId(shard), "the shard of {key}");
            assert_eq!(
                i32::from(map.nodes()[ours.node].port),
                port,
                "the node of {key}"
            );
        }
    }
}

/// The node that does not hold the map's range `index`.
pub(crate) fn other_node(map: &ShardMap, index: usize) -> Node {
    let mine = map.node_of(&map.shards()[index]);
    let other = map.nodes().iter().find(|node| *node != mine);
    other.expect("two nodes").clone()
}

/// Waits until the watch has a map that `is` so.
pub(crate) async fn until(
    watch: &Watch,
    what: &str,
    is: impl Fn(&ShardMap) -> bool,
) -> Arc<ShardMap> {
    let mut maps = watch.subscribe();
    let found = tokio::time::timeout(PATIENCE, maps.wait_for(|map| is(map))).await;
    let map = found
        .unwrap_or_else(|_| panic!("{what}: still {watch:?}"))
        .expect("the watch runs");
    Arc::clone(&map)
}

/// Waits until `is` is true.
pub(crate) async fn wait_for(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is().await {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
