//! The map that is read from a live Citus cluster, and what is refused.
//!
//! One cluster serves all tests; each has a database of its own.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shardlane_citus::{CitusError, load, self_test};
use shardlane_local::{CitusCluster, Durability, Postgres, create_database, require};
use shardlane_router::{Epoch, KeyType, RouteKey, ShardId, ShardMap, TokenHash};
use tokio::sync::{Mutex, OnceCell};
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

struct Cluster {
    cluster: &'static CitusCluster,
    database: &'static str,
    coordinator: Client,
}

/// A database `name` on the shared cluster, or a visible skip.
async fn cluster(name: &'static str) -> Option<Cluster> {
    static CLUSTER: OnceCell<CitusCluster> = OnceCell::const_new();
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
    require("citus")?;
    let start = async || {
        CitusCluster::start(2, Durability::Fast)
            .await
            .expect("Citus starts")
    };
    let cluster = CLUSTER.get_or_init(start).await;
    // Joining the nodes alters the roles, which all databases of a node share.
    let turn = ONE_AT_A_TIME.lock().await;
    cluster
        .create_database(name)
        .await
        .expect("the database is made on each node");
    drop(turn);
    let coordinator = connect(&cluster.coordinator_url(name)).await;
    Some(Cluster {
        cluster,
        database: name,
        coordinator,
    })
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .expect("the node answers");
    tokio::spawn(connection);
    client
}

impl Cluster {
    async fn run(&self, sql: &str) {
        self.coordinator
            .batch_execute(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Two colocated tables `t` and `u`, cut into so many shards.
    async fn tables(&self, shards: u32) {
        self.run(&format!(
            "create table t (user_id uuid primary key, n int);
             create table u (user_id uuid primary key, n int);
             set citus.shard_count = {shards};"
        ))
        .await;
        self.run("select create_distributed_table('t', 'user_id', colocate_with => 'none')")
            .await;
        self.run("select create_distributed_table('u', 'user_id', colocate_with => 't')")
            .await;
    }

    async fn load(&self, tables: &[&str]) -> Result<ShardMap, CitusError> {
        load(&self.coordinator, tables, Epoch(7)).await
    }

    async fn worker(&self, index: usize) -> Client {
        connect(&self.cluster.workers[index].url(self.database)).await
    }

    /// Compares the map with Citus's own answer for 10,000 random keys and the ends of each range.
    async fn check_against_citus(&self, map: &ShardMap) {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let mut keys: Vec<Uuid> = (0..10_000)
            .map(|_| Uuid::from_bytes(rng.random()))
            .collect();
        for shard in map.shards() {
            for token in [shard.range.first(), shard.range.last()] {
                let one = shardlane_router::KeyRange::new(token, token).unwrap();
                keys.push(shardlane_router::anchor_uuid(TokenHash::Postgres, &one));
            }
        }
        let rows = self
            .coordinator
            .query(
                "select k, get_shard_id_for_distribution_column('t', k) from unnest($1::uuid[]) as k",
                &[&keys],
            )
            .await
            .unwrap();
        assert_eq!(rows.len(), keys.len());
        for row in rows {
            let (key, theirs): (Uuid, i64) = (row.get(0), row.get(1));
            let ours = map.route(&RouteKey::Uuid(key));
            assert_eq!(
                ours.shard,
                ShardId(theirs),
                "the shard of {key}, whose hash is {}",
                ours.token.hash_i32()
            );
        }
    }

    /// Compares the map's nodes with where the rows are: every row is found on the node that the map names.
    async fn check_nodes(&self, map: &ShardMap) {
        let mut rng = ChaCha8Rng::seed_from_u64(10);
        let keys: Vec<Uuid> = (0..500).map(|_| Uuid::from_bytes(rng.random())).collect();
        self.coordinator
            .execute(
                "insert into t select k, 1 from unnest($1::uuid[]) k on conflict do nothing",
                &[&keys],
            )
            .await
            .unwrap();
        let rows = self
            .coordinator
            .query(
                "select s.nodeport, r.result from run_command_on_placements('t',
                     'select string_agg(user_id::text, '','') from %s') r
                 join citus_shards s on s.shardid = r.shardid and s.table_name = 't'::regclass
                                    and s.nodeport = r.nodeport",
                &[],
            )
            .await
            .unwrap();
        let mut seen = 0;
        for row in rows {
            let port: i32 = row.get(0);
            for key in row
                .get::<_, Option<&str>>(1)
                .unwrap_or_default()
                .split(',')
                .filter(|it| !it.is_empty())
            {
                let route = map.route(&RouteKey::Uuid(key.parse().unwrap()));
                assert_eq!(
                    i32::from(map.nodes()[route.node].port),
                    port,
                    "the node of {key}"
                );
                seen += 1;
            }
        }
        assert!(
            seen >= keys.len(),
            "{seen} rows of {} were looked at",
            keys.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_map_is_citus_own_for_any_shard_count() {
    for (name, shards) in [("one", 1), ("four", 4), ("seven", 7), ("thirtytwo", 32)] {
        let Some(cluster) = cluster(name).await else {
            return;
        };
        cluster.tables(shards).await;
        let map = cluster.load(&["t", "u"]).await.unwrap();
        assert_eq!(
            (map.shards().len(), map.epoch()),
            (shards as usize, Epoch(7))
        );
        assert_eq!(
            (map.hash(), map.key_type()),
            (TokenHash::Postgres, KeyType::Uuid)
        );
        assert_eq!(
            map.nodes().len(),
            if shards == 1 { 1 } else { 2 },
            "nodes that hold a shard of {shards}"
        );
        cluster.check_against_citus(&map).await;
        cluster.check_nodes(&map).await;
        // The router's own formula for a new table, for what it is worth before anything was split.
        let first = map.shards()[0].shard;
        let uniform = ShardMap::uniform(
            Epoch(7),
            TokenHash::Postgres,
            KeyType::Uuid,
            map.nodes().to_vec(),
            first,
            shards,
        )
        .unwrap();
        let ranges = |map: &ShardMap| {
            map.shards()
                .iter()
                .map(|it| (it.shard, it.range))
                .collect::<Vec<_>>()
        };
        assert_eq!(ranges(&map), ranges(&uniform));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_tells_the_same_map_as_the_coordinator() {
    let Some(cluster) = cluster("from_worker").await else {
        return;
    };
    cluster.tables(8).await;
    let map = cluster.load(&["t", "u"]).await.unwrap();
    for index in 0..2 {
        let theirs = load(&cluster.worker(index).await, &["t", "u"], Epoch(7))
            .await
            .unwrap();
        assert_eq!(
            theirs,
            map,
            "worker {index}: {:?} {:?}",
            theirs.shards(),
            map.shards()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_are_not_uniform_are_loaded_right() {
    let Some(cluster) = cluster("not_uniform").await else {
        return;
    };
    cluster.tables(4).await;
    let before = cluster.load(&["t", "u"]).await.unwrap();
    cluster.check_nodes(&before).await;
    let nodes = cluster
        .coordinator
        .query("select nodeid from pg_dist_node where groupid > 0", &[])
        .await
        .unwrap();
    let nodes: Vec<i32> = nodes.iter().map(|row| row.get(0)).collect();

    // Three pieces of very different width, on both nodes.
    let parent = before.shards()[1];
    let (first, last) = parent.range.hash_bounds();
    cluster
        .run(&format!(
            "select citus_split_shard_by_split_points({}, array['{}', '{}'], array[{}, {}, {}], 'block_writes')",
            parent.shard, first + 12_345, last - 1, nodes[0], nodes[1], nodes[0]
        ))
        .await;
    let split = cluster.load(&["t", "u"]).await.unwrap();
    assert_eq!(split.shards().len(), 6);
    assert_eq!(
        split.shards()[1].range.hash_bounds(),
        (first, first + 12_345)
    );
    assert_eq!(
        split.shards()[2].range.hash_bounds(),
        (first + 12_346, last - 1)
    );
    assert_eq!(split.shards()[3].range.hash_bounds(), (last, last));
    assert!(
        split.shards().iter().all(|it| it.shard != parent.shard),
        "the parent is gone"
    );
    cluster.check_against_citus(&split).await;
    cluster.check_nodes(&split).await;

    // One hash value alone.
    let tenant = Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0);
    let isolated: i64 = cluster
        .coordinator
        .query_one(
            &format!("select isolate_tenant_to_new_shard('t', '{tenant}'::uuid, 'CASCADE', 'block_writes')"),
            &[],
        )
        .await
        .unwrap()
        .get(0);
    let map = cluster.load(&["t", "u"]).await.unwrap();
    let route = map.route(&RouteKey::Uuid(tenant));
    assert_eq!(route.shard, ShardId(isolated));
    let range = map.ranges_of(route.shard).next().unwrap().range;
    assert_eq!(
        (range.first(), range.last()),
        (route.token, route.token),
        "it holds one token"
    );
    cluster.check_against_citus(&map).await;
    cluster.check_nodes(&map).await;
    let theirs = load(&cluster.worker(1).await, &["t", "u"], Epoch(7))
        .await
        .unwrap();
    assert_eq!(theirs, map, "a worker's metadata");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_changes_the_node_and_nothing_else() {
    let Some(cluster) = cluster("moved").await else {
        return;
    };
    cluster.tables(4).await;
    let before = cluster.load(&["t"]).await.unwrap();
    let shard = before.shards()[2];
    let from = before.node_of(&shard).port;
    let to = before
        .nodes()
        .iter()
        .map(|it| it.port)
        .find(|it| *it != from)
        .unwrap();
    cluster
        .run(&format!(
            "select citus_move_shard_placement({}, '127.0.0.1', {from}, '127.0.0.1', {to}, 'block_writes')",
            shard.shard
        ))
        .await;
    let after = cluster.load(&["t"]).await.unwrap();
    for (old, new) in before.shards().iter().zip(after.shards()) {
        assert_eq!((old.shard, old.range), (new.shard, new.range));
        let expected = if old.shard == shard.shard {
            to
        } else {
            before.node_of(old).port
        };
        assert_eq!(
            after.node_of(new).port,
            expected,
            "the node of shard {}",
            old.shard
        );
    }
    cluster.check_nodes(&after).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_routed_is_refused_by_name() {
    let Some(cluster) = cluster("refused").await else {
        return;
    };
    cluster.tables(4).await;
    cluster
        .run(
            "create table plain (user_id uuid primary key);
             create table by_text (user_id text primary key);
             create table by_int (user_id bigint primary key);
             create table reference (user_id uuid primary key);
             create table apart (user_id uuid primary key);
             create table twice (user_id uuid primary key);",
        )
        .await;
    for statement in [
        "select create_distributed_table('by_text', 'user_id')",
        "select create_distributed_table('by_int', 'user_id')",
        "select create_reference_table('reference')",
        "select create_distributed_table('apart', 'user_id', colocate_with => 'none')",
        "set citus.shard_replication_factor = 2",
        "select create_distributed_table('twice', 'user_id', colocate_with => 'none')",
    ] {
        cluster.run(statement).await;
    }

    let refused = async |tables: &[&str]| cluster.load(tables).await.expect_err("must be refused");
    let error = refused(&["t", "plain"]).await;
    assert!(
        matches!(&error, CitusError::Table { table, .. } if table == "plain"),
        "{error}"
    );
    assert!(error.to_string().contains("is not distributed"), "{error}");
    assert!(
        error
            .to_string()
            .contains("shardlane migrate --layout citus"),
        "says what to do: {error}"
    );
    let error = refused(&["t", "nowhere"]).await;
    assert!(
        error.to_string().contains("table nowhere does not exist"),
        "{error}"
    );
    let error = refused(&["reference"]).await;
    assert!(
        error.to_string().contains("is not distributed by hash"),
        "{error}"
    );
    let error = refused(&[]).await;
    assert!(
        matches!(error, CitusError::Table { .. }),
        "no table at all: {error}"
    );

    for (table, ty) in [("by_text", "text"), ("by_int", "bigint")] {
        let error = refused(&[table]).await;
        let CitusError::ColumnType { column, found, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!((column.as_str(), found.as_str()), ("user_id", ty));
        assert!(matches!(
            refused(&["t", table]).await,
            CitusError::ColumnType { .. }
        ));
    }

    let error = refused(&["t", "u", "apart"]).await;
    let CitusError::NotColocated { first, second } = &error else {
        panic!("{error}")
    };
    assert_eq!((first.as_str(), second.as_str()), ("t", "apart"));

    let error = refused(&["twice"]).await;
    assert!(matches!(error, CitusError::Replicated(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_citus_is_no_cluster() {
    let Some(cluster) = cluster("with_citus").await else {
        return;
    };
    let node: &Postgres = &cluster.cluster.coordinator;
    create_database(&node.url("postgres"), "without_citus")
        .await
        .unwrap();
    let client = connect(&node.url("without_citus")).await;
    let error = load(&client, &["t"], Epoch(1))
        .await
        .expect_err("no metadata");
    assert!(matches!(error, CitusError::Metadata(_)), "{error}");
    assert!(
        std::error::Error::source(&error).is_some(),
        "the server's own words are kept"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_self_test_notices_a_map_that_is_wrong() {
    let Some(cluster) = cluster("self_test").await else {
        return;
    };
    cluster.tables(4).await;
    let map = cluster.load(&["t"]).await.unwrap();
    self_test(&cluster.coordinator, "t", &map)
        .await
        .expect("the loaded map passes");

    let first = map.shards()[0].shard;
    let uniform = |hash, count| {
        ShardMap::uniform(
            Epoch(7),
            hash,
            KeyType::Uuid,
            map.nodes().to_vec(),
            first,
            count,
        )
        .unwrap()
    };
    self_test(&cluster.coordinator, "t", &uniform(TokenHash::Postgres, 4))
        .await
        .expect("the same map");
    for (wrong, what) in [
        (uniform(TokenHash::Murmur3, 4), "another hash"),
        (uniform(TokenHash::Postgres, 5), "other ranges"),
    ] {
        let error = self_test(&cluster.coordinator, "t", &wrong)
            .await
            .expect_err(what);
        let CitusError::SelfTest { key, server, ours } = error else {
            panic!("{what}: {error}")
        };
        assert_ne!(server, ours);
        assert_eq!(wrong.route(&RouteKey::Uuid(key)).shard.0, ours, "{what}");
        assert_eq!(map.route(&RouteKey::Uuid(key)).shard.0, server, "{what}");
    }
}
