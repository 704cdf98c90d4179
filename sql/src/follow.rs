//! Where routes come from, and how they stay true while shards move.

mod citus;
mod shards;

use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use rand::RngExt as _;
use shardlane_citus::node_config;
use shardlane_router::{Node, ShardId};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio_postgres::config::Host;
use tokio_postgres::{Client, Config, NoTls};

use self::citus::Citus;
use self::shards::Shards;
use crate::identity::ShardIdentity;
use crate::routes::Routes;
use crate::session::Pool;
use crate::store::{Backend, Shared, StoreOptions, parse};
use crate::{CitusPath, SqlError};

/// How often is looked while slots are frozen: somebody waits for them.
const FROZEN_POLL: Duration = Duration::from_millis(20);
/// Suspicions within this time are one.
const SUSPECT_GAP: Duration = Duration::from_millis(20);

/// Where the routes of a store come from.
pub(crate) enum Source {
    /// They never change.
    Fixed,
    Shards(Box<Shards>),
    Citus(Box<Citus>),
}

/// Host, port and database.
pub(crate) type Address = (String, u16, String);

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
                let (routes, shards) = Shards::connect(&urls, map, options).await?;
                Ok((routes, Source::Shards(Box::new(shards))))
            }
            Backend::Citus {
                coordinator,
                path: CitusPath::Coordinator,
            } => {
                let config = parse(&coordinator)?;
                citus::check(&config).await?;
                let pool = pool_of(config, None, options.connections_max, options);
                Ok((Routes::one(pool).by_coordinator(), Source::Fixed))
            }
            Backend::Citus { coordinator, path } => {
                let (routes, citus) = Citus::connect(&coordinator, path, options).await?;
                Ok((routes, Source::Citus(Box::new(citus))))
            }
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
            Source::Citus(citus) => citus.newer(current).await,
        }
    }

    /// Each database once; of a Citus cluster the coordinator's, which sees all shards.
    pub(crate) fn databases(&self, routes: &Routes) -> Vec<(ShardId, Config)> {
        match self {
            Source::Citus(citus) => vec![(ShardId(0), citus.coordinator().clone())],
            Source::Fixed | Source::Shards(_) => routes
                .lanes()
                .iter()
                .map(|lane| (lane.target.shard, lane.pool.config().clone()))
                .collect(),
        }
    }

    /// Something failed that hints at a change: look soon.
    pub(crate) fn suspect(&self) {
        match self {
            Source::Fixed => {}
            Source::Shards(shards) => shards.suspected.notify_one(),
            Source::Citus(citus) => citus.suspect(),
        }
    }

    /// Starts to look now and then, for as long as the store lives.
    pub(crate) fn follow(&self, shared: Weak<Shared>, interval: Duration) -> Option<AbortHandle> {
        let task = match self {
            Source::Fixed => return None,
            Source::Citus(citus) => tokio::spawn(citus::follow(citus.changes(), shared)),
            Source::Shards(shards) => tokio::spawn(follow_shards(
                Arc::clone(&shards.suspected),
                shared,
                interval,
            )),
        };
        Some(task.abort_handle())
    }
}

/// Looks for a newer catalog now and then, often while slots are frozen, and at once after a suspicion.
async fn follow_shards(suspected: Arc<Notify>, shared: Weak<Shared>, interval: Duration) {
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
        let seen = shared.routes.load().epoch();
        shared.refresh(seen).await;
        frozen = shared.routes.load().has_frozen();
    }
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

/// The settings of one DSN at another address.
pub(crate) fn at(config: &Config, host: &str, port: u16, database: Option<&str>) -> Config {
    let address = Node {
        group: 0,
        host: host.to_owned(),
        port,
    };
    let mut there = node_config(config, &address);
    if let Some(database) = database {
        there.dbname(database);
    }
    there
}

pub(crate) async fn connect(config: &Config) -> Result<Client, SqlError> {
    let (client, connection) = config.connect(NoTls).await?;
    // Its error, if any, is the next statement's too.
    tokio::spawn(connection);
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_address_keeps_the_settings() {
        let dsn = "postgres://me:secret@first:1/shop?sslmode=require&connect_timeout=3";
        let there = at(&dsn.parse().unwrap(), "second", 2, Some("other"));
        assert_eq!(there.get_hosts(), [Host::Tcp("second".to_owned())]);
        assert_eq!(
            (there.get_ports(), there.get_dbname()),
            (&[2][..], Some("other"))
        );
        assert_eq!(
            (there.get_user(), there.get_password()),
            (Some("me"), Some(&b"secret"[..]))
        );
        assert_eq!(
            there.get_ssl_mode(),
            tokio_postgres::config::SslMode::Require
        );
        assert_eq!(there.get_connect_timeout(), Some(&Duration::from_secs(3)));
    }
}
