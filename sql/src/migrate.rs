//! Schema set-up, one list of refinery migrations a layout.

use refinery::{Migration, Runner};
use shardlane_router::{ShardId, SlotMap};
use tokio_postgres::{Client, Config, NoTls};

use crate::{Layout, ShardIdentity, SqlError, identity};

mod core {
    refinery::embed_migrations!("migrations/core");
}
mod plain {
    refinery::embed_migrations!("migrations/plain");
}
mod partman {
    refinery::embed_migrations!("migrations/partman");
}
mod shards {
    refinery::embed_migrations!("migrations/shards");
}
mod citus {
    refinery::embed_migrations!("migrations/citus");
}

/// refinery takes no lock of its own: two runs at once would both create the tables. The number is arbitrary and
/// names this lock only.
const MIGRATION_LOCK: i64 = 0x7368_6172_646c; // "shardl"

/// Why a schema could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Connection, lock or identity.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// A migration failed; those before it are kept, itself is rolled back.
    #[error("a migration of layout {layout} failed and was rolled back: {}", innermost(.source))]
    Migration {
        /// The layout.
        layout: Layout,
        /// refinery's error.
        #[source]
        source: Box<refinery::Error>,
    },
}

fn innermost(error: &refinery::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// What a layout needs to know beside its name.
#[derive(Debug, Clone, Copy)]
pub enum Detail<'a> {
    /// Nothing.
    None,
    /// Which shard of which map this database is.
    Shard(&'a SlotMap, ShardId),
    /// How many shards the Citus tables are cut into.
    CitusShards(u32),
}

/// Brings one database (for Citus: the coordinator's) to the newest schema of its layout. Safe to repeat and to
/// run from two places at once.
///
/// # Errors
/// [`MigrateError`]; a failed migration leaves the schema as it was before that migration.
pub async fn migrate(url: &str, layout: Layout, detail: Detail<'_>) -> Result<(), MigrateError> {
    migrate_config(&crate::store::parse(url)?, layout, detail).await
}

pub(crate) async fn migrate_config(
    config: &Config,
    layout: Layout,
    detail: Detail<'_>,
) -> Result<(), MigrateError> {
    let (mut client, connection) = config.connect(NoTls).await.map_err(SqlError::from)?;
    let driver = tokio::spawn(connection);
    let result = locked(&mut client, config, layout, detail).await;
    drop(client);
    // The driver ends when the client is gone; its error, if any, was already the result's.
    driver.await.ok();
    result
}

async fn locked(
    client: &mut Client,
    config: &Config,
    layout: Layout,
    detail: Detail<'_>,
) -> Result<(), MigrateError> {
    // The lock goes with the session, so no error path has to release it.
    client
        .execute("select pg_advisory_lock($1)", &[&MIGRATION_LOCK])
        .await
        .map_err(SqlError::from)?;
    if let Detail::CitusShards(count) = detail {
        client
            .batch_execute(&format!("set citus.shard_count = {count}"))
            .await
            .map_err(SqlError::from)?;
    }
    runner(layout)
        .run_async(client)
        .await
        .map_err(|source| MigrateError::Migration {
            layout,
            source: Box::new(source),
        })?;
    if let Detail::Shard(map, shard) = detail {
        let transaction = client.transaction().await.map_err(SqlError::from)?;
        let identity = ShardIdentity::of(map, shard);
        identity::install(&transaction, &crate::session::describe(config), &identity).await?;
        transaction.commit().await.map_err(SqlError::from)?;
    }
    Ok(())
}

fn runner(layout: Layout) -> Runner {
    let lists: &[fn() -> Runner] = match layout {
        Layout::Single => &[core::migrations::runner, plain::migrations::runner],
        Layout::Partman => &[core::migrations::runner, partman::migrations::runner],
        Layout::Shards => &[
            core::migrations::runner,
            plain::migrations::runner,
            shards::migrations::runner,
        ],
        Layout::Citus => &[
            core::migrations::runner,
            plain::migrations::runner,
            citus::migrations::runner,
        ],
    };
    let migrations: Vec<Migration> = lists
        .iter()
        .flat_map(|list| list().get_migrations().clone())
        .collect();
    let mut runner = Runner::new(&migrations);
    runner.set_migration_table_name(format!("shardlane_schema_{layout}"));
    runner
}
