//! Manual shards: their catalog, asked of the shards themselves.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use shardlane_router::{SlotMap, TokenHash};
use tokio::sync::{Mutex, Notify};
use tokio_postgres::{Client, Config};

use super::{Address, address, at, connect, pool_of, share_of};
use crate::catalog::{Catalog, ShardEntry, read_catalog};
use crate::identity::{IdentityError, ShardIdentity};
use crate::routes::Routes;
use crate::session::Pool;
use crate::store::{StoreOptions, parse};
use crate::{SlotSet, SqlError};

/// How long one shard may take to say which catalog it has; the others' answers count meanwhile.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// Manual shards, whose catalog is in the shards.
pub(crate) struct Shards {
    /// What the reader was given: addresses with credentials.
    given: Vec<Config>,
    options: StoreOptions,
    looking: Mutex<Looking>,
    pub(super) suspected: Arc<Notify>,
}

#[derive(Default)]
struct Looking {
    /// When the newest look began.
    began: Option<Instant>,
    /// Apart from the pools: they may be exhausted by the very batches that wait for news.
    clients: HashMap<Address, Client>,
    pools: HashMap<Address, Arc<Pool>>,
}

impl Shards {
    /// Connects to whom the DSNs and the shards' own catalog name.
    pub(super) async fn connect(
        urls: &[String],
        map: SlotMap,
        options: StoreOptions,
    ) -> Result<(Routes, Shards), SqlError> {
        let shards = Shards::new(urls, options)?;
        let catalog = shards.first_catalog(urls, map).await?;
        let pools = shards.pools_for(&mut *shards.looking.lock().await, &catalog);
        Ok((Routes::slots(catalog, pools), shards))
    }

    fn new(urls: &[String], options: StoreOptions) -> Result<Shards, SqlError> {
        let given = urls
            .iter()
            .map(|url| parse(url))
            .collect::<Result<Vec<_>, _>>()?;
        let mut addresses: Vec<Address> = given.iter().map(address).collect();
        addresses.sort_unstable();
        if let Some(pair) = addresses.windows(2).find(|pair| pair[0] == pair[1]) {
            let (host, port, database) = &pair[0];
            return Err(SqlError::Settings(format!(
                "two shards have the same database {host}:{port}/{database}; each shard needs its own"
            )));
        }
        Ok(Shards {
            given,
            options,
            looking: Mutex::default(),
            suspected: Arc::default(),
        })
    }

    /// The newest catalog of the given databases, or the one of the map where no slot has ever moved.
    async fn first_catalog(&self, urls: &[String], map: SlotMap) -> Result<Catalog, SqlError> {
        let mut looking = self.looking.lock().await;
        let addresses: Vec<Address> = self.given.iter().map(address).collect();
        let found = self.look(&mut looking, &addresses).await;
        let newest = found.into_iter().filter_map(Result::ok).flatten();
        if let Some(catalog) = newest.max_by_key(Catalog::epoch) {
            if catalog.map.shards() != map.shards() {
                tracing::info!(
                    epoch = catalog.epoch().0,
                    "slots have moved: the shards' catalog replaces the map"
                );
            }
            return Ok(catalog);
        }
        let shards = map.shards();
        if urls.len() != shards.len() {
            return Err(SqlError::Settings(format!(
                "the map has {} shards but {} DSNs were given; give one a shard, in the order of the shards",
                shards.len(),
                urls.len()
            )));
        }
        if map.hash() != TokenHash::Postgres {
            return Err(IdentityError::HashNotCheckable(map.hash().id().to_owned()).into());
        }
        Ok(Catalog::first(map, addresses))
    }

    pub(super) async fn newer(
        &self,
        current: &ArcSwap<Routes>,
    ) -> Result<Option<Routes>, SqlError> {
        let asked = Instant::now();
        let mut looking = self.looking.lock().await;
        if looking.began.is_some_and(|began| began >= asked) {
            return Ok(None);
        }
        looking.began = Some(Instant::now());
        let routes = current.load();
        let Some(known) = routes.catalog() else {
            return Ok(None);
        };
        let addresses: Vec<Address> = known.shards.iter().map(ShardEntry::address).collect();
        let mut newest: Option<Catalog> = None;
        for answer in self.look(&mut looking, &addresses).await {
            match answer {
                Ok(Some(found))
                    if newest
                        .as_ref()
                        .is_none_or(|best| found.epoch() > best.epoch()) =>
                {
                    newest = Some(found);
                }
                Ok(_) => {}
                Err(error) => tracing::debug!("a shard does not tell its catalog: {error}"),
            }
        }
        let Some(newest) = newest.filter(|newest| newest.epoch() > known.epoch()) else {
            return Ok(None);
        };
        tracing::info!(epoch = newest.epoch().0, frozen = %newest.frozen, "the shards' catalog changed:\n{}", diff(known, &newest));
        let pools = self.pools_for(&mut looking, &newest);
        for (entry, pool) in newest.shards.iter().zip(&pools) {
            if known.entry(entry.shard).is_none()
                && let Err(error) = pool.open(entry.shard).await
            {
                // The first batch tries again, and waits if it must.
                tracing::warn!(
                    "shard {} has joined and does not answer yet: {error}",
                    entry.shard
                );
            }
        }
        Ok(Some(Routes::slots(newest, pools)))
    }

    /// Asks each address for its catalog, all at once.
    async fn look(
        &self,
        looking: &mut Looking,
        addresses: &[Address],
    ) -> Vec<Result<Option<Catalog>, SqlError>> {
        let asks = addresses.iter().map(|address| {
            let client = looking.clients.remove(address);
            let config = self.config_of(address);
            async move {
                let ask = async {
                    let client = match client.filter(|client| !client.is_closed()) {
                        Some(client) => client,
                        None => connect(&config).await?,
                    };
                    Ok::<_, SqlError>((read_catalog(&client).await, client))
                };
                match tokio::time::timeout(LOOK_MAX, ask).await {
                    Ok(Ok((catalog, client))) => (catalog, Some(client)),
                    Ok(Err(error)) => (Err(error), None),
                    Err(_) => (
                        Err(SqlError::Settings("no answer in time".to_owned())),
                        None,
                    ),
                }
            }
        });
        let answers = join_all(asks).await;
        let mut catalogs = Vec::with_capacity(answers.len());
        for (address, (catalog, client)) in addresses.iter().zip(answers) {
            if let Some(client) = client {
                looking.clients.insert(address.clone(), client);
            }
            catalogs.push(catalog);
        }
        catalogs
    }

    /// The pools of the catalog's shards: those that are there already, told who their shard is now, and new ones.
    fn pools_for(&self, looking: &mut Looking, catalog: &Catalog) -> Vec<Arc<Pool>> {
        let share = share_of(self.options.connections_max, catalog.shards.len());
        let pools: Vec<Arc<Pool>> = catalog
            .shards
            .iter()
            .map(|entry| {
                let identity = ShardIdentity::in_catalog(catalog, entry);
                let address = entry.address();
                if let Some(pool) = looking.pools.get(&address) {
                    pool.expect(identity);
                    return Arc::clone(pool);
                }
                let pool = pool_of(
                    self.config_of(&address),
                    Some(identity),
                    share,
                    self.options,
                );
                looking.pools.insert(address, Arc::clone(&pool));
                pool
            })
            .collect();
        // Shards that left: their pool goes with the last batch that holds it.
        looking
            .pools
            .retain(|_, pool| pools.iter().any(|kept| Arc::ptr_eq(kept, pool)));
        pools
    }

    /// The given DSN of an address, or the first one's credentials at that address.
    fn config_of(&self, wanted: &Address) -> Config {
        let given = self.given.iter().find(|config| address(config) == *wanted);
        let (host, port, database) = wanted;
        given
            .cloned()
            .unwrap_or_else(|| at(&self.given[0], host, *port, Some(database)))
    }
}

impl Catalog {
    /// The catalog of shards whose slots have never moved. `addresses` are in the order of the map's shards.
    pub(crate) fn first(map: SlotMap, addresses: Vec<Address>) -> Catalog {
        let shards = map
            .shards()
            .iter()
            .zip(addresses)
            .map(|(shard, (host, port, database))| ShardEntry {
                shard: *shard,
                epoch: map.epoch(),
                host,
                port,
                database,
            })
            .collect();
        Catalog {
            map,
            frozen: SlotSet::empty(),
            pace: None,
            shards,
        }
    }
}

impl ShardEntry {
    /// Host, port and database.
    pub(crate) fn address(&self) -> Address {
        (self.host.clone(), self.port, self.database.clone())
    }
}

fn diff(old: &Catalog, new: &Catalog) -> String {
    old.map
        .diff(&new.map)
        .map_or_else(|error| error.to_string(), |diff| diff.to_string())
}
