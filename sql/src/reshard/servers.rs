//! The shards of a reshard: a connection each.

use std::collections::BTreeMap;

use shardlane_router::ShardId;
use tokio_postgres::{Client, Config};

use super::ReshardError;
use crate::catalog::{Catalog, ShardEntry, read_catalog, write_catalog};
use crate::follow::{address, at, connect};
use crate::identity::{ShardIdentity, become_shard, verify};
use crate::session::describe;
use crate::store::parse;
use crate::{ErrorClass, SqlError};

/// How often a shard's locks are tried for. A batch holds them for milliseconds; while one waits for them the batches
/// behind it wait too, so each try is short.
pub(super) const LOCK_TRIES: u32 = 40;
const LOCK_WAIT: &str = "300ms";

/// One shard's database.
pub(super) struct Server {
    pub(super) config: Config,
    pub(super) client: Client,
}

/// The shards by number.
pub(super) struct Servers(BTreeMap<ShardId, Server>);

impl Servers {
    /// Connects to each shard: by its own DSN where one was given, else with the first one's credentials.
    pub(super) async fn connect(
        given: &[String],
        entries: impl Iterator<Item = &ShardEntry>,
    ) -> Result<Servers, ReshardError> {
        let given: Vec<Config> = given
            .iter()
            .map(|url| parse(url))
            .collect::<Result<_, _>>()?;
        let mut servers = BTreeMap::new();
        for entry in entries {
            let (host, port, database) = entry.address();
            let own = given
                .iter()
                .find(|config| address(config) == entry.address());
            let config = match (own, given.first()) {
                (Some(own), _) => own.clone(),
                (None, Some(first)) => at(first, &host, port, Some(&database)),
                (None, None) => {
                    return Err(SqlError::Settings("no database was given".to_owned()).into());
                }
            };
            let client = connect(&config).await?;
            // What verify compares as text must not depend on a server's settings.
            client.batch_execute("set timezone = 'UTC'").await?;
            servers.insert(entry.shard, Server { config, client });
        }
        Ok(Servers(servers))
    }

    pub(super) fn of(&self, shard: ShardId) -> Result<&Server, ReshardError> {
        self.0.get(&shard).ok_or(ReshardError::UnknownShard(shard))
    }

    pub(super) fn of_mut(&mut self, shard: ShardId) -> Result<&mut Server, ReshardError> {
        self.0
            .get_mut(&shard)
            .ok_or(ReshardError::UnknownShard(shard))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (ShardId, &Server)> {
        self.0.iter().map(|(shard, server)| (*shard, server))
    }

    /// The newest catalog that any of them holds, or `initial`.
    pub(super) async fn catalog(&self, initial: &Catalog) -> Result<Catalog, ReshardError> {
        let mut newest = initial.clone();
        for server in self.0.values() {
            // A joining database has no table yet.
            match read_catalog(&server.client).await {
                Ok(Some(found)) if found.epoch() > newest.epoch() => newest = found,
                Ok(_) => {}
                Err(SqlError::Postgres(error))
                    if error.code() == Some(&tokio_postgres::error::SqlState::UNDEFINED_TABLE) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(newest)
    }

    /// Before any slot has moved: each database is the shard that the map means.
    pub(super) async fn verify(&self, initial: &Catalog, given: usize) -> Result<(), ReshardError> {
        if initial.map.shards().len() != given {
            return Err(SqlError::Settings(format!(
                "the map has {} shards but {given} DSNs were given; give one a shard, in the order of the shards",
                initial.map.shards().len()
            ))
            .into());
        }
        for entry in &initial.shards {
            let server = self.of(entry.shard)?;
            let identity = ShardIdentity::in_catalog(initial, entry);
            verify(&server.client, &describe(&server.config), &identity).await?;
        }
        Ok(())
    }

    /// Writes a catalog that changes nobody's slots to all.
    pub(super) async fn announce(&self, catalog: &Catalog) -> Result<(), ReshardError> {
        for server in self.0.values() {
            write_catalog(&server.client, catalog).await?;
        }
        Ok(())
    }

    /// The one transaction in which a shard's slots change: its CHECKs, its identity and the catalog.
    pub(super) async fn change(
        &mut self,
        shard: ShardId,
        catalog: &Catalog,
    ) -> Result<(), ReshardError> {
        let entry = catalog
            .entry(shard)
            .ok_or(ReshardError::UnknownShard(shard))?;
        let identity = ShardIdentity::in_catalog(catalog, entry);
        let server = self.of_mut(shard)?;
        let mut tries = 0;
        loop {
            tries += 1;
            match server.change(&identity, catalog).await {
                // A lock was not to be had in time, or two wanted each other's.
                Err(error) if error.class() == ErrorClass::Transient && tries < LOCK_TRIES => {
                    tracing::debug!("shard {shard}: {error}; trying again");
                    tokio::time::sleep(std::time::Duration::from_millis(25)).await;
                }
                result => return Ok(result?),
            }
        }
    }
}

impl Server {
    async fn change(
        &mut self,
        identity: &ShardIdentity,
        catalog: &Catalog,
    ) -> Result<(), SqlError> {
        let transaction = self.client.transaction().await?;
        let wait = format!("set local lock_timeout = '{LOCK_WAIT}'");
        transaction.batch_execute(&wait).await?;
        become_shard(&transaction, identity).await?;
        write_catalog(&transaction, catalog).await?;
        Ok(transaction.commit().await?)
    }
}
