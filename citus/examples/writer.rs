//! A writer that sends each row to the node that owns its user, and goes on while shards move and nodes change.
//!
//! ```text
//! create table events (user_id uuid, event_id bigint, primary key (user_id, event_id));
//! select create_distributed_table('events', 'user_id');
//!
//! cargo run -p shardlane-citus --example writer -- postgres://user@coordinator:5432/database
//! ```

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bb8_postgres::PostgresConnectionManager;
use shardlane_citus::{ShardMap, Watch, WatchOptions, is_placement_error, node_config};
use shardlane_router::{Node, RouteKey};
use tokio::task::JoinHandle;
use tokio_postgres::{Config, NoTls};
use uuid::Uuid;

type Pool = bb8::Pool<PostgresConnectionManager<NoTls>>;
type PoolError = bb8::RunError<tokio_postgres::Error>;

/// How long a write is tried again while the cluster changes.
const WRITE_TIME_MAX: Duration = Duration::from_secs(30);
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// Writes to whichever node owns a user.
pub(crate) struct Writer {
    watch: Arc<Watch>,
    pools: Arc<Pools>,
    follower: JoinHandle<()>,
}

impl Writer {
    /// Connects to the nodes that hold shards, and follows the watch from then on.
    pub(crate) async fn start(config: Config, watch: Arc<Watch>) -> Writer {
        let mut maps = watch.subscribe();
        let pools = Arc::new(Pools::new(config));
        let first = maps.borrow_and_update().clone();
        pools.follow(&first).await;
        let followed = Arc::clone(&pools);
        let follower = tokio::spawn(async move {
            while maps.changed().await.is_ok() {
                let map = maps.borrow_and_update().clone();
                followed.follow(&map).await;
            }
        });
        Writer {
            watch,
            pools,
            follower,
        }
    }

    /// Writes one event, once, however often it is tried.
    pub(crate) async fn write(&self, user: Uuid, event: i64) -> Result<(), PoolError> {
        let deadline = Instant::now() + WRITE_TIME_MAX;
        loop {
            match self.try_write(user, event).await {
                Err(error) if is_worth_a_retry(&error) && Instant::now() < deadline => {
                    // A failed refresh leaves the old map, which is still the best there is.
                    self.watch.refresh().await.ok();
                    tokio::time::sleep(RETRY_DELAY).await;
                }
                done => return done,
            }
        }
    }

    async fn try_write(&self, user: Uuid, event: i64) -> Result<(), PoolError> {
        let map = self.watch.current();
        let owner = &map.nodes()[map.route(&RouteKey::Uuid(user)).node];
        let pool = self.pools.of(owner);
        let client = pool.get().await?;
        // The logical table, never the shard's own: if the map is stale, the node forwards the row.
        let sql = "insert into events (user_id, event_id) values ($1, $2) on conflict do nothing";
        client.execute(sql, &[&user, &event]).await?;
        Ok(())
    }

    /// The nodes that there are connections to.
    pub(crate) fn nodes(&self) -> Vec<Node> {
        let pools = self.pools.read();
        pools.keys().cloned().collect()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// A pool a node.
struct Pools {
    config: Config,
    by_node: RwLock<Arc<HashMap<Node, Pool>>>,
}

impl Pools {
    fn new(config: Config) -> Pools {
        Pools {
            config,
            by_node: RwLock::default(),
        }
    }

    fn read(&self) -> Arc<HashMap<Node, Pool>> {
        Arc::clone(&self.by_node.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The node's pool. A map may be seen before its pools are warm; then a cold one serves.
    fn of(&self, node: &Node) -> Pool {
        self.read()
            .get(node)
            .cloned()
            .unwrap_or_else(|| self.cold(node))
    }

    /// Warms a pool for each node that is new. Pools of nodes that left are dropped: what is borrowed is given back
    /// first, what is idle is closed.
    async fn follow(&self, map: &ShardMap) {
        let old = self.read();
        let mut pools = HashMap::new();
        for node in map.nodes() {
            let pool = match old.get(node) {
                Some(pool) => pool.clone(),
                None => self.cold(node),
            };
            // One connection at least. If that fails, writers will see the error and retry.
            if !old.contains_key(node)
                && let Err(error) = pool.get().await
            {
                eprintln!("{node}: {error}");
            }
            pools.insert(node.clone(), pool);
        }
        *self.by_node.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(pools);
    }

    fn cold(&self, node: &Node) -> Pool {
        let there = node_config(&self.config, node);
        bb8::Pool::builder()
            .max_size(8)
            .connection_timeout(Duration::from_secs(2))
            .test_on_check_out(false) // a dead connection costs a retry, not a round trip for each write
            .build_unchecked(PostgresConnectionManager::new(there, NoTls))
    }
}

fn is_worth_a_retry(error: &PoolError) -> bool {
    match error {
        bb8::RunError::User(error) => is_placement_error(error),
        bb8::RunError::TimedOut => true,
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args()
        .nth(1)
        .ok_or("the coordinator's URL is missing")?;
    let config: Config = url.parse()?;
    let watch = Watch::start(config.clone(), &["events"], WatchOptions::default()).await?;
    let watch = Arc::new(watch);
    let writer = Writer::start(config, Arc::clone(&watch)).await;
    let mut shown = 0;
    for event in 0..100_000 {
        writer.write(Uuid::from_u128(event), 1).await?;
        for diff in watch.diffs().iter().filter(|diff| diff.to.0 > shown) {
            println!("{diff}");
        }
        shown = watch.current().epoch().0;
    }
    println!(
        "written: 100,000 events to {} nodes; {:?}",
        writer.nodes().len(),
        watch.stats()
    );
    Ok(())
}
