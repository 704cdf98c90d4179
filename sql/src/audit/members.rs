//! The manual shards of an audit: a connection each, and what each says of itself.

use shardlane_router::{Epoch, ShardId, SlotMap};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config};

use super::AuditError;
use crate::catalog::{Catalog, ShardEntry, read_catalog};
use crate::follow::{address, at, connect};
use crate::identity::{self, ShardIdentity};
use crate::reshard::{Journal, RESHARD_LOCK};
use crate::session::describe;
use crate::store::parse;
use crate::{IdentityError, SqlError};

/// What is compared as text must not depend on a server's settings.
pub(super) const AS_TEXT: &str = "set timezone = 'UTC'; set datestyle = 'ISO'";

/// One shard.
pub(super) struct Member {
    pub(super) shard: ShardId,
    pub(super) config: Config,
    /// host:port/name.
    pub(super) database: String,
    pub(super) client: Client,
    /// The newest document that it holds itself.
    pub(super) catalog: Option<Catalog>,
    pub(super) identity: Option<ShardIdentity>,
    /// What the newest catalog says that it is.
    pub(super) expected: ShardIdentity,
}

impl Member {
    /// Whether the shard and the newest catalog agree on what it takes.
    pub(super) fn is_agreed(&self) -> bool {
        self.identity.as_ref() == Some(&self.expected)
    }
}

/// All of them, by the newest catalog.
pub(super) struct Members {
    pub(super) list: Vec<Member>,
    pub(super) catalog: Catalog,
    pub(super) journal: Option<Journal>,
    /// Databases that were given and are no shards.
    pub(super) unlisted: Vec<String>,
}

impl Members {
    /// Connects to each shard of the newest catalog: by its own DSN where one was given, else with the first one's
    /// credentials. `map` says who owns what if no slot has ever moved.
    pub(super) async fn connect(urls: &[String], map: &SlotMap) -> Result<Members, AuditError> {
        let given = urls
            .iter()
            .map(|url| parse(url))
            .collect::<Result<Vec<Config>, _>>()?;
        let mut newest: Option<Catalog> = None;
        let mut journal = None;
        for config in &given {
            let client = connect(config).await?;
            let found = catalog_of(&client, config).await?;
            if found.as_ref().map(Catalog::epoch) > newest.as_ref().map(Catalog::epoch) {
                newest = found;
            }
            journal = journal.or(Journal::open(&client).await?);
        }
        let catalog = match newest {
            Some(newest) => newest,
            None => first_catalog(&given, map)?,
        };
        let mut list = Vec::new();
        for entry in &catalog.shards {
            let member = member(&given, &catalog, entry).await?;
            // The journal may be in a shard that was not given.
            journal = journal.or(Journal::open(&member.client).await?);
            list.push(member);
        }
        let is_listed = |config: &&Config| {
            let address = address(config);
            catalog.shards.iter().any(|it| it.address() == address)
        };
        let unlisted = given.iter().filter(|config| !is_listed(config));
        Ok(Members {
            unlisted: unlisted.map(describe).collect(),
            list,
            catalog,
            journal,
        })
    }

    pub(super) fn of(&self, shard: ShardId) -> Option<&Member> {
        self.list.iter().find(|member| member.shard == shard)
    }

    /// Whether slots stand where they stood, so that what was seen fits together.
    pub(super) async fn is_unmoved(&self) -> Result<bool, AuditError> {
        let mut newest: Option<Epoch> = None;
        let mut under_way = false;
        for member in &self.list {
            let catalog = read_catalog(&member.client).await?;
            newest = newest.max(catalog.map(|catalog| catalog.epoch()));
            under_way |= Journal::open(&member.client).await?.is_some();
        }
        let is_same = newest.is_none_or(|epoch| epoch == self.catalog.epoch());
        Ok(is_same && under_way == self.journal.is_some())
    }

    /// From here on no reshard does a step. The lock goes with the connection.
    pub(super) async fn hold_still(&mut self) -> Result<(), AuditError> {
        let Some(home) = self.list.first() else {
            return Ok(());
        };
        let query = "select pg_try_advisory_lock($1)";
        let row = home.client.query_one(query, &[&RESHARD_LOCK]).await?;
        if !row.get::<_, bool>(0) || self.journal.is_some() || !self.is_unmoved().await? {
            return Err(AuditError::ReshardUnderWay);
        }
        Ok(())
    }
}

/// The catalog before any slot has moved.
fn first_catalog(given: &[Config], map: &SlotMap) -> Result<Catalog, SqlError> {
    let (databases, shards) = (given.len(), map.shards().len());
    if databases != shards {
        return Err(SqlError::Settings(format!(
            "the map has {shards} shards but {databases} DSNs were given; give one a shard, in the order of the shards"
        )));
    }
    Ok(Catalog::first(
        map.clone(),
        given.iter().map(address).collect(),
    ))
}

async fn member(
    given: &[Config],
    catalog: &Catalog,
    entry: &ShardEntry,
) -> Result<Member, AuditError> {
    let own = given
        .iter()
        .find(|config| address(config) == entry.address());
    let (host, port, database) = entry.address();
    let config = own
        .cloned()
        .unwrap_or_else(|| at(&given[0], &host, port, Some(&database)));
    let client = connect(&config).await?;
    client.batch_execute(AS_TEXT).await?;
    Ok(Member {
        shard: entry.shard,
        database: describe(&config),
        catalog: catalog_of(&client, &config).await?,
        identity: identity::read(&client).await?,
        expected: ShardIdentity::in_catalog(catalog, entry),
        client,
        config,
    })
}

async fn catalog_of(client: &Client, config: &Config) -> Result<Option<Catalog>, SqlError> {
    match read_catalog(client).await {
        Err(SqlError::Postgres(error)) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
            let database = describe(config);
            Err(IdentityError::Absent { database }.into())
        }
        result => result,
    }
}
