//! Shows the way of keys: `cargo run -p shardlane-router --example explain -- uuid KEY...`
//!
//! The maps are made up here: 16 partitions, 2 manual shards, 32 Citus shards on 2 workers.

use std::error::Error;

use shardlane_router::{
    Epoch, KeyType, Node, RouteKey, ShardId, ShardMap, SlotMap, TokenHash, explain,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let key_type: KeyType = arguments.next().unwrap_or("uuid".to_owned()).parse()?;
    let mut keys: Vec<String> = arguments.collect();
    if keys.is_empty() && key_type == KeyType::Uuid {
        keys.push("550e8400-e29b-41d4-a716-446655440000".to_owned());
    }

    let hash = TokenHash::Postgres;
    let slots = SlotMap::aligned(Epoch(1), hash, 16, &[ShardId(0), ShardId(1)])?;
    let workers = ["worker-1", "worker-2"].into_iter().zip(1..);
    let nodes = workers
        .map(|(host, group)| Node {
            group,
            host: host.to_owned(),
            port: 5432,
        })
        .collect();
    let shards = ShardMap::uniform(Epoch(1), hash, key_type, nodes, ShardId(102_008), 32)?;

    for text in keys {
        let key = RouteKey::parse(key_type, &text)?;
        println!("{}\n", explain(hash, &key, Some(&slots), Some(&shards))?);
    }
    Ok(())
}
