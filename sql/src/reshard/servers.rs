//! The shards of a reshard: a connection each.

use std::collections::BTreeMap;

use shardlane_router::ShardId;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config};

use super::ReshardError;
use crate::applied::{Past, keep_past};
use crate::catalog::{Catalog, ShardEntry, read_catalog, write_catalog};
use crate::follow::{address, at, connect};
use crate::identity::{ShardIdentity, become_shard, read, verify};
use crate::session::describe;
use crate::store::parse;
use crate::{ErrorClass, SLOT_TABLES, SqlError};

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
            servers.insert(entry.shard, Server::connect(config).await?);
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
            if let Some(found) = read_catalog_if_any(&server.client).await?
                && found.epoch() > newest.epoch()
            {
                newest = found;
            }
        }
        Ok(newest)
    }

    /// Connects again to those whose connection is gone.
    pub(super) async fn reconnect(&mut self) -> Result<(), ReshardError> {
        for server in self.0.values_mut() {
            if server.client.is_closed() {
                *server = Server::connect(server.config.clone()).await?;
            }
        }
        Ok(())
    }

    /// Refuses to let a database join that holds rows, or the catalog of other shards.
    pub(super) async fn refuse_unless_empty(&self, entry: &ShardEntry) -> Result<(), ReshardError> {
        let server = self.of(entry.shard)?;
        let refused = || ReshardError::NotEmpty(describe(&server.config));
        if !server.is_empty().await? {
            return Err(refused());
        }
        let Some(theirs) = read_catalog_if_any(&server.client).await? else {
            return Ok(());
        };
        let epoch = i64::try_from(theirs.epoch().0).unwrap_or(i64::MAX);
        let query = "select document::text from shard_catalog where epoch = $1";
        for (shard, other) in self.all() {
            if shard == entry.shard {
                continue;
            }
            if let Ok(Some(row)) = other.client.query_opt(query, &[&epoch]).await
                && serde_json::from_str::<Catalog>(row.get(0)).is_ok_and(|ours| ours == theirs)
            {
                return Ok(());
            }
        }
        Err(refused())
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
            match write_catalog(&server.client, catalog).await {
                Err(error) if is_undefined_table(&error) => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// The one transaction in which a shard's slots change: its CHECKs, its identity and the catalog. `incoming` is what
    /// the sources of new slots remember of them.
    pub(super) async fn change(
        &mut self,
        shard: ShardId,
        catalog: &Catalog,
        incoming: &[Past],
    ) -> Result<(), ReshardError> {
        let entry = catalog
            .entry(shard)
            .ok_or(ReshardError::UnknownShard(shard))?;
        let identity = ShardIdentity::in_catalog(catalog, entry);
        let server = self.of_mut(shard)?;
        let mut tries = 0;
        loop {
            tries += 1;
            match server.change(&identity, catalog, incoming).await {
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

/// A joining database has no table yet.
async fn read_catalog_if_any(client: &Client) -> Result<Option<Catalog>, SqlError> {
    match read_catalog(client).await {
        Err(error) if is_undefined_table(&error) => Ok(None),
        result => result,
    }
}

fn is_undefined_table(error: &SqlError) -> bool {
    matches!(error, SqlError::Postgres(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE))
}

impl Server {
    async fn connect(config: Config) -> Result<Server, SqlError> {
        let client = connect(&config).await?;
        // What verify compares as text must not depend on a server's settings.
        client.batch_execute("set timezone = 'UTC'").await?;
        Ok(Server { config, client })
    }

    /// Whether it holds nothing, or only what a shard keeps that has left.
    async fn is_empty(&self) -> Result<bool, SqlError> {
        let tables = "select count(*), count(*) filter (where relname = 'shard_identity') from pg_class c \
                      where relkind in ('r', 'p') and relnamespace::regnamespace::text !~ '^(pg_|information_schema)' \
                      and not exists (select 1 from pg_depend where objid = c.oid and deptype = 'e')";
        let row = self.client.query_one(tables, &[]).await?;
        let (tables, identities): (i64, i64) = (row.get(0), row.get(1));
        if tables == 0 || identities == 0 {
            return Ok(tables == 0);
        }
        if read(&self.client)
            .await?
            .is_some_and(|identity| !identity.slots.is_empty())
        {
            return Ok(false);
        }
        let rows = SLOT_TABLES.map(|table| format!("exists (select 1 from {table})"));
        let query = format!("select {}", rows.join(" or "));
        Ok(!self.client.query_one(&query, &[]).await?.get::<_, bool>(0))
    }

    async fn change(
        &mut self,
        identity: &ShardIdentity,
        catalog: &Catalog,
        incoming: &[Past],
    ) -> Result<(), SqlError> {
        let transaction = self.client.transaction().await?;
        let wait = format!("set local lock_timeout = '{LOCK_WAIT}'");
        transaction.batch_execute(&wait).await?;
        keep_past(&transaction, incoming).await?;
        become_shard(&transaction, identity).await?;
        write_catalog(&transaction, catalog).await?;
        Ok(transaction.commit().await?)
    }
}
