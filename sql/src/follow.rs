//! Where routes come from, and how they stay true while shards move.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use rand::RngExt as _;
use shardlane_citus as citus;
use shardlane_router::{Epoch, SlotMap, TokenHash};
use tokio::sync::{Mutex, Notify};
use tokio::task::AbortHandle;
use tokio_postgres::config::Host;
use tokio_postgres::{Client, Config, NoTls};

use crate::catalog::{Catalog, ShardEntry, read_catalog};
use crate::identity::{IdentityError, ShardIdentity};
use crate::routes::Routes;
use crate::session::Pool;
use crate::store::{Backend, Shared, StoreOptions, parse};
use crate::{CitusPath, SqlError, TABLES};

/// How long one shard may take to say which catalog it has; the others' answers count meanwhile.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// How often is looked while slots are frozen: somebody waits for them.
const FROZEN_POLL: Duration = Duration::from_millis(20);
/// Suspicions within this time are one.
const SUSPECT_GAP: Duration = Duration::from_millis(20);

/// Where the routes of a store come from.
pub(crate) enum Source {
    /// They never change.
    Fixed,
    Shards(Box<Shards>),
}

/// Manual shards, whose catalog is in the shards.
pub(crate) struct Shards {
    /// What the reader was given: addresses with credentials.
    given: Vec<Config>,
    options: StoreOptions,
    looking: Mutex<Looking>,
    suspected: Arc<Notify>,
}

#[derive(Default)]
struct Looking {
    /// When the newest look began.
    began: Option<Instant>,
    /// Apart from the pools: they may be exhausted by the very batches that wait for news.
    clients: HashMap<Address, Client>,
    pools: HashMap<Address, Arc<Pool>>,
}

/// Host, port and database.
type Address = (String, u16, String);

impl Source {
    /// The first routes, and where the next ones come from.
    pub(crate) async fn connect(
        backend: Backend,
        options: StoreOptions,
    ) -> Result<(Routes, Source), SqlError> {
        match backend {
            Backend::One { url } => {
                let pool = pool_of(parse(&url)?, None, options.connections_max, options);
                Ok((Routes::one(pool), Source::Fixed))
            }
            Backend::Shards { urls, map } => {
                let shards = Shards::new(&urls, options)?;
                let catalog = shards.first_catalog(&urls, map).await?;
                let mut looking = shards.looking.lock().await;
                let pools = shards.pools_for(&mut looking, &catalog);
                drop(looking);
                Ok((
                    Routes::slots(0, catalog, pools),
                    Source::Shards(Box::new(shards)),
                ))
            }
            Backend::Citus { coordinator, path } => citus_routes(&coordinator, path, options).await,
        }
    }

    /// Routes that are newer than the current ones. Many callers at once cause one look.
    pub(crate) async fn newer(
        &self,
        current: &ArcSwap<Routes>,
    ) -> Result<Option<Routes>, SqlError> {
        match self {
            Source::Fixed => Ok(None),
            Source::Shards(shards) => shards.newer(current).await,
        }
    }

    /// Something failed that hints at a change: look soon.
    pub(crate) fn suspect(&self) {
        match self {
            Source::Fixed => {}
            Source::Shards(shards) => shards.suspected.notify_one(),
        }
    }

    /// Starts to look now and then, for as long as the store lives.
    pub(crate) fn follow(&self, shared: Weak<Shared>, interval: Duration) -> Option<AbortHandle> {
        let Source::Shards(shards) = self else {
            return None;
        };
        let suspected = Arc::clone(&shards.suspected);
        let task = tokio::spawn(async move {
            let mut frozen = false;
            loop {
                let pause = if frozen {
                    FROZEN_POLL
                } else {
                    // Jittered, so that workers that were started together do not ask together.
                    interval.mul_f64(rand::rng().random_range(0.8..1.2))
                };
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = suspected.notified() => tokio::time::sleep(SUSPECT_GAP).await,
                }
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                let seen = shared.routes.load().generation();
                shared.refresh(seen).await;
                frozen = shared.routes.load().has_frozen();
            }
        });
        Some(task.abort_handle())
    }
}

impl Shards {
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

    async fn newer(&self, current: &ArcSwap<Routes>) -> Result<Option<Routes>, SqlError> {
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
        Ok(Some(Routes::slots(routes.generation() + 1, newest, pools)))
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
            frozen: crate::SlotSet::empty(),
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

fn share_of(connections_max: u32, servers: usize) -> u32 {
    let servers = u32::try_from(servers).unwrap_or(u32::MAX).max(1);
    (connections_max / servers).max(1)
}

fn pool_of(
    config: Config,
    expected: Option<ShardIdentity>,
    connections_max: u32,
    options: StoreOptions,
) -> Arc<Pool> {
    Arc::new(Pool::new(
        config,
        expected,
        connections_max,
        options.connect_timeout,
    ))
}

/// Host, port and database of a DSN.
pub(crate) fn address(config: &Config) -> Address {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        Some(Host::Unix(path)) => path.display().to_string(),
        None => "localhost".to_owned(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let database = config
        .get_dbname()
        .or(config.get_user())
        .unwrap_or("postgres");
    (host, port, database.to_owned())
}

/// The credentials of one DSN at another address.
pub(crate) fn at(config: &Config, host: &str, port: u16, database: Option<&str>) -> Config {
    let mut node = Config::new();
    node.host(host).port(port).application_name("shardlane");
    if let Some(user) = config.get_user() {
        node.user(user);
    }
    if let Some(password) = config.get_password() {
        node.password(password);
    }
    if let Some(database) = database.or(config.get_dbname()) {
        node.dbname(database);
    }
    node
}

pub(crate) async fn connect(config: &Config) -> Result<Client, SqlError> {
    let (client, connection) = config.connect(NoTls).await?;
    // Its error, if any, is the next statement's too.
    tokio::spawn(connection);
    Ok(client)
}

async fn citus_routes(
    coordinator: &str,
    path: CitusPath,
    options: StoreOptions,
) -> Result<(Routes, Source), SqlError> {
    let config = parse(coordinator)?;
    let client = connect(&config).await?;
    let map = Arc::new(citus::load(&client, &TABLES, Epoch(1)).await?);
    let whole = |config| pool_of(config, None, options.connections_max, options);
    let routes = match path {
        CitusPath::Coordinator => Routes::one(whole(config)),
        CitusPath::CoordinatorGrouped => {
            let pool = whole(config);
            Routes::ranges(0, map, |_| Arc::clone(&pool))
        }
        CitusPath::Owner => {
            let share = share_of(options.connections_max, map.nodes().len());
            let pools: Vec<Arc<Pool>> = map
                .nodes()
                .iter()
                .map(|node| {
                    pool_of(
                        at(&config, &node.host, node.port, None),
                        None,
                        share,
                        options,
                    )
                })
                .collect();
            Routes::ranges(0, Arc::clone(&map), |node| Arc::clone(&pools[node]))
        }
    };
    Ok((routes, Source::Fixed))
}
