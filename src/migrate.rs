//! `shardlane migrate`: schema set-up.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use shardlane_router::{Epoch, ShardId, SlotMap, TokenHash};
use shardlane_sql::{Detail, Layout, migrate};

/// Bring databases to the newest schema of their layout; safe to repeat
#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// single, partman, shards or citus
    #[arg(long)]
    layout: Layout,
    /// DSNs: one, or one a shard in the order of the shards; for citus the coordinator's
    #[arg(required = true)]
    urls: Vec<String>,
    /// Kafka partitions of the map that cuts manual shards
    #[arg(long, default_value_t = 8)]
    partitions: u32,
    /// A map as JSON instead of the even one of epoch 1; see `shardlane map`
    #[arg(long, value_name = "FILE")]
    map: Option<std::path::PathBuf>,
    /// Shards of the Citus tables
    #[arg(long, default_value_t = 32)]
    citus_shards: u32,
}

impl MigrateArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        if self.layout == Layout::Shards {
            let map = read_map(self.map.as_deref(), self.partitions, self.urls.len())?;
            if map.shards().len() != self.urls.len() {
                bail!(
                    "the map has {} shards, but {} DSNs were given",
                    map.shards().len(),
                    self.urls.len()
                );
            }
            for (url, shard) in self.urls.iter().zip(map.shards()) {
                migrate(url, self.layout, Detail::Shard(&map, *shard)).await?;
                println!("shard {shard}: ready");
            }
            return Ok(ExitCode::SUCCESS);
        }
        let [url] = &self.urls[..] else {
            bail!(
                "layout {} takes one DSN, {} were given",
                self.layout,
                self.urls.len()
            );
        };
        let detail = match self.layout {
            Layout::Citus => Detail::CitusShards(self.citus_shards),
            Layout::Single | Layout::Partman | Layout::Shards => Detail::None,
        };
        migrate(url, self.layout, detail).await?;
        println!("{}: ready", self.layout);
        Ok(ExitCode::SUCCESS)
    }
}

/// The map in a file, or the even one of epoch 1 over `shards` shards.
pub(crate) fn read_map(
    file: Option<&std::path::Path>,
    partitions: u32,
    shards: usize,
) -> anyhow::Result<SlotMap> {
    let Some(path) = file else {
        let shards: Vec<ShardId> = (0..i64::try_from(shards)?).map(ShardId).collect();
        return Ok(SlotMap::aligned(
            Epoch(1),
            TokenHash::Postgres,
            partitions,
            &shards,
        )?);
    };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("the map {} cannot be read", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no slot map", path.display()))
}
