//! Arguments that name a layout's databases.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use clap::Args;
use shardlane_router::SlotMap;
use shardlane_sql::{Backend, CitusPath, Layout, Store, StoreOptions};

use crate::migrate::read_map;

#[derive(Debug, Args)]
pub(crate) struct BackendArgs {
    /// single, partman, shards or citus
    #[arg(long, default_value = "single")]
    layout: Layout,
    /// DSN of the database; repeat it for each shard, in the order of the shards; for citus the coordinator's
    #[arg(
        long = "database",
        env = "SHARDLANE_DATABASE",
        value_delimiter = ',',
        value_name = "DSN"
    )]
    databases: Vec<String>,
    /// Connections over all servers
    #[arg(long, default_value_t = 8)]
    connections: u32,
}

#[derive(Debug, Args)]
pub(crate) struct MapArgs {
    /// Kafka partitions of each topic
    #[arg(long, default_value_t = 8)]
    partitions: u32,
    /// A slot map as JSON instead of the even one of epoch 1
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
}

impl MapArgs {
    pub(crate) fn read(&self, shards: usize) -> anyhow::Result<SlotMap> {
        read_map(self.map.as_deref(), self.partitions, shards)
    }
}

impl BackendArgs {
    /// How many manual shards there are: 1 where the layout has none.
    pub(crate) fn shards(&self) -> usize {
        if self.layout == Layout::Shards {
            self.databases.len().max(1)
        } else {
            1
        }
    }

    /// What the arguments name.
    pub(crate) fn backend(&self, map: &SlotMap) -> anyhow::Result<Backend> {
        Ok(match (self.layout, &self.databases[..]) {
            (_, []) => bail!("no database is named; give --database DSN or set SHARDLANE_DATABASE"),
            (Layout::Shards, urls) => Backend::Shards {
                urls: urls.to_vec(),
                map: map.clone(),
            },
            (Layout::Single | Layout::Partman, [url]) => Backend::One { url: url.clone() },
            (Layout::Citus, [url]) => Backend::Citus {
                coordinator: url.clone(),
                path: CitusPath::Owner,
            },
            (layout, urls) => bail!(
                "layout {layout} takes one database, {} were given",
                urls.len()
            ),
        })
    }

    pub(crate) async fn connect(&self, map: &SlotMap) -> anyhow::Result<Arc<Store>> {
        let backend = self.backend(map)?;
        let options = StoreOptions {
            connections_max: self.connections,
            ..StoreOptions::default()
        };
        Ok(Arc::new(Store::connect(backend, options).await?))
    }
}
