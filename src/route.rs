//! `shardlane route`: the way of one key.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use shardlane_router::{Epoch, KeyType, RouteKey, TokenHash, explain};
use tokio_postgres::NoTls;

use crate::migrate::read_map;

/// Explain where a key belongs: hash, token, slot, partition, shard, node
#[derive(Debug, Args)]
pub(crate) struct RouteArgs {
    /// The key
    key: String,
    /// Its type: uuid, int8 or text
    #[arg(long = "type", default_value_t = KeyType::Uuid)]
    key_type: KeyType,
    /// The hash: postgres or murmur3
    #[arg(long, conflicts_with = "map")]
    hash: Option<TokenHash>,
    /// Kafka partitions
    #[arg(long, default_value_t = 8)]
    partitions: u32,
    /// Manual shards
    #[arg(long, default_value_t = 2)]
    shards: usize,
    /// A slot map as JSON instead of the even one
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
    /// DSN of any Citus node: shard and node come from its metadata
    #[arg(long, value_name = "DSN")]
    citus: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl RouteArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let key = RouteKey::parse(self.key_type, &self.key)?;
        let slots = match (self.hash, self.map.as_deref()) {
            (Some(hash), _) => {
                let even = read_map(None, self.partitions, self.shards)?;
                shardlane_router::SlotMap::aligned(
                    even.epoch(),
                    hash,
                    self.partitions,
                    even.shards(),
                )?
            }
            (None, file) => read_map(file, self.partitions, self.shards)?,
        };
        let shards = match &self.citus {
            Some(url) => {
                let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
                tokio::spawn(connection);
                Some(shardlane_citus::load(&client, &shardlane_sql::TABLES, Epoch(1)).await?)
            }
            None => None,
        };
        let explanation = explain(slots.hash(), &key, Some(&slots), shards.as_ref())?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&explanation)?);
        } else {
            println!("{explanation}");
        }
        Ok(ExitCode::SUCCESS)
    }
}
