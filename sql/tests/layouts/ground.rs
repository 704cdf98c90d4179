//! Where a test stands: a layout and, on Citus, a path; and what it asks of the database behind the store's back.

use std::time::{Duration, Instant};

use shardlane_router::{Epoch, ShardMap};
use shardlane_sql::testing::TestDb;
use shardlane_sql::{
    CitusPath, Digest, Layout, Record, Rejected, Report, SqlError, Store, TABLES, Target, digest,
};
use tokio_postgres::{Client, NoTls};

/// How long a condition may take to come true, on a busy machine.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(30);

/// A layout, with the path that batches take where it is Citus.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ground {
    pub(crate) layout: Layout,
    pub(crate) path: CitusPath,
}

impl Ground {
    pub(crate) const SINGLE: Ground = Ground::plain(Layout::Single);
    pub(crate) const PARTMAN: Ground = Ground::plain(Layout::Partman);
    pub(crate) const SHARDS: Ground = Ground::plain(Layout::Shards);
    pub(crate) const CITUS_OWNER: Ground = Ground::citus(CitusPath::Owner);
    pub(crate) const CITUS_COORDINATOR: Ground = Ground::citus(CitusPath::Coordinator);
    pub(crate) const CITUS_COORDINATOR_GROUPED: Ground =
        Ground::citus(CitusPath::CoordinatorGrouped);

    const fn plain(layout: Layout) -> Ground {
        Ground {
            layout,
            path: CitusPath::Owner,
        }
    }

    const fn citus(path: CitusPath) -> Ground {
        Ground {
            layout: Layout::Citus,
            path,
        }
    }

    /// A database of the test's own, or a visible skip.
    pub(crate) async fn db(self) -> Option<TestDb> {
        Some(TestDb::new(self.layout).await?.by(self.path))
    }
}

/// Takes records to their targets as a worker does: grouped, each group in order, one transaction a group.
/// Rejected indexes are those of `records`.
pub(crate) async fn apply(store: &Store, records: &[Record]) -> Result<Report, SqlError> {
    let mut total = Report::default();
    for (target, indexes, group) in by_target(store, records) {
        let report = store.stage(target, &group).await?.commit().await?;
        total.applied += report.applied;
        total.duplicates += report.duplicates;
        total.stale += report.stale;
        total.parked += report.parked;
        total.released += report.released;
        total.letters.extend(report.letters);
        total.outcomes.extend(report.outcomes);
        total.rows += report.rows;
        total
            .rejected
            .extend(report.rejected.into_iter().map(|it| Rejected {
                index: indexes[it.index],
                ..it
            }));
    }
    total.rejected.sort_by_key(|it| it.index);
    Ok(total)
}

pub(crate) fn by_target(
    store: &Store,
    records: &[Record],
) -> Vec<(Target, Vec<usize>, Vec<Record>)> {
    let mut groups: Vec<(Target, Vec<usize>, Vec<Record>)> = Vec::new();
    for (index, record) in records.iter().enumerate() {
        let target = store.target_of(record.event.user_id).unwrap();
        if !groups.iter().any(|(known, ..)| *known == target) {
            groups.push((target, Vec::new(), Vec::new()));
        }
        let group = groups
            .iter_mut()
            .find(|(known, ..)| *known == target)
            .unwrap();
        group.1.push(index);
        group.2.push(record.clone());
    }
    groups
}

/// The tables that belong to the shard, and not to a user's slot.
pub(crate) const OF_THE_SHARD: [&str; 2] = ["kafka_fence", "kafka_outcomes"];

/// The digest of everything that the layout holds.
pub(crate) async fn digest_of(db: &TestDb) -> Digest {
    digest(db.urls()).await.expect("the digest can be read")
}

pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .unwrap_or_else(|error| panic!("{url}: {error}"));
    tokio::spawn(connection);
    client
}

/// A DSN with another database name.
pub(crate) fn with_database(url: &str, name: &str) -> String {
    let (server, _) = url.rsplit_once('/').expect("a test DSN ends in /database");
    format!("{server}/{name}")
}

/// A DSN with another port.
pub(crate) fn with_port(url: &str, port: u16) -> String {
    let (server, database) = url.rsplit_once('/').expect("a test DSN ends in /database");
    let (host, _) = server.rsplit_once(':').expect("a test DSN has a port");
    format!("{host}:{port}/{database}")
}

/// The DSN of every node that holds rows: for Citus the workers too.
pub(crate) async fn node_urls(ground: Ground, db: &TestDb) -> Vec<String> {
    if ground.layout != Layout::Citus {
        return db.urls().to_vec();
    }
    let rows = db
        .client(0)
        .await
        .query("select nodeport from pg_dist_node order by 1", &[])
        .await;
    rows.unwrap()
        .iter()
        .map(|row| with_port(&db.urls()[0], u16::try_from(row.get::<_, i32>(0)).unwrap()))
        .collect()
}

/// The map of a Citus test database.
pub(crate) async fn citus_map(db: &TestDb) -> ShardMap {
    shardlane_citus::load(&db.client(0).await, &TABLES, Epoch(1))
        .await
        .expect("the map loads")
}

/// Waits until a session of this database waits for a lock on some node, or `done` says that nobody will.
pub(crate) async fn wait_until_blocked(nodes: &[String], done: impl Fn() -> bool) -> bool {
    let mut clients = Vec::new();
    for url in nodes {
        clients.push(connect(url).await);
    }
    let asked = "select count(*) from pg_stat_activity \
                 where datname = current_database() and wait_event_type = 'Lock'";
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        for client in &clients {
            let blocked: i64 = client.query_one(asked, &[]).await.unwrap().get(0);
            if blocked > 0 {
                return true;
            }
        }
        if done() {
            return false;
        }
        assert!(
            Instant::now() < deadline,
            "nobody waited for a lock within {WAIT_MAX:?}, and nobody ended"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
