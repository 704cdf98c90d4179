//! A Citus cluster: its own metadata, watched.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use shardlane_citus::{Watch, WatchOptions, node_config};
use shardlane_router::{Epoch, Node, ShardMap};
use tokio::sync::Mutex;
use tokio::sync::watch::Receiver;
use tokio_postgres::Config;

use super::{connect, pool_of, share_of};
use crate::routes::Routes;
use crate::session::Pool;
use crate::store::{Shared, StoreOptions, parse};
use crate::{CitusPath, SqlError, TABLES};

/// A watched cluster, and a pool a node.
pub(crate) struct Citus {
    watch: Watch,
    config: Config,
    path: CitusPath,
    options: StoreOptions,
    pools: Mutex<HashMap<Node, Arc<Pool>>>,
}

impl Citus {
    pub(super) async fn connect(
        coordinator: &str,
        path: CitusPath,
        options: StoreOptions,
    ) -> Result<(Routes, Citus), SqlError> {
        let config = parse(coordinator)?;
        let mut watching = WatchOptions::default();
        watching.poll_interval = options.poll_interval;
        let watch = Watch::start(config.clone(), &TABLES, watching).await?;
        let citus = Citus {
            watch,
            config,
            path,
            options,
            pools: Mutex::default(),
        };
        let routes = citus.routes(citus.watch.current(), false).await;
        Ok((routes, citus))
    }

    pub(super) async fn newer(
        &self,
        current: &ArcSwap<Routes>,
    ) -> Result<Option<Routes>, SqlError> {
        let map = self.watch.refresh().await?;
        Ok(self.after(current, map).await)
    }

    /// The coordinator's address.
    pub(crate) fn coordinator(&self) -> &Config {
        &self.config
    }

    pub(super) fn suspect(&self) {
        self.watch.suspect();
    }

    pub(super) fn changes(&self) -> Receiver<Arc<ShardMap>> {
        self.watch.subscribe()
    }

    /// The routes of `map`, if it is newer than the current one's.
    pub(crate) async fn after(
        &self,
        current: &ArcSwap<Routes>,
        map: Arc<ShardMap>,
    ) -> Option<Routes> {
        if map.epoch() <= current.load().epoch() {
            return None;
        }
        Some(self.routes(map, true).await)
    }

    /// Pools of nodes that stay are kept, those of new nodes warmed; those of nodes that left go with the last batch
    /// that holds them.
    async fn routes(&self, map: Arc<ShardMap>, warm: bool) -> Routes {
        let mut pools = self.pools.lock().await;
        if self.path == CitusPath::CoordinatorGrouped {
            let whole = self.options.connections_max;
            let coordinator = Node {
                group: 0,
                host: String::new(),
                port: 0,
            };
            let pool = pools
                .entry(coordinator)
                .or_insert_with(|| pool_of(self.config.clone(), None, whole, self.options));
            return Routes::ranges(map, |_| Arc::clone(pool)).by_coordinator();
        }
        let share = share_of(self.options.connections_max, map.nodes().len());
        pools.retain(|node, _| map.nodes().contains(node));
        for (index, node) in map.nodes().iter().enumerate() {
            if pools.contains_key(node) {
                continue;
            }
            let pool = pool_of(node_config(&self.config, node), None, share, self.options);
            let shard = map.shards().iter().find(|range| range.node == index);
            // At the start the store opens all of them, and says why one cannot be.
            if let (Some(range), true) = (shard, warm)
                && let Err(error) = pool.open(range.shard).await
            {
                tracing::warn!("node {node} has joined and does not answer yet: {error}");
            }
            pools.insert(node.clone(), pool);
        }
        let nodes: Vec<Arc<Pool>> = map
            .nodes()
            .iter()
            .map(|node| Arc::clone(&pools[node]))
            .collect();
        Routes::ranges(map, |node| Arc::clone(&nodes[node]))
    }
}

/// Takes each new map of the watch, for as long as the store lives.
pub(super) async fn follow(mut changes: Receiver<Arc<ShardMap>>, shared: Weak<Shared>) {
    while changes.changed().await.is_ok() {
        let map = Arc::clone(&changes.borrow_and_update());
        let Some(shared) = shared.upgrade() else {
            return;
        };
        shared.take(map).await;
    }
}

/// Refuses a cluster that cannot be routed to, for a path that does not route.
pub(super) async fn check(config: &Config) -> Result<(), SqlError> {
    let client = connect(config).await?;
    shardlane_citus::load(&client, &TABLES, Epoch(1)).await?;
    Ok(())
}
