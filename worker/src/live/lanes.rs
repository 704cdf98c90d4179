//! `GET /lanes`: partitions, the shards that they lead to, and the servers that hold those.

use std::collections::BTreeSet;
use std::time::Instant;

use serde::Serialize;
use shardlane_router::{PartitionId, ShardId, Slot};

use crate::lag::Lag;
use crate::lane::Shared;
use crate::stats_server::shards_of;

/// The whole answer.
#[derive(Debug, Serialize)]
pub(crate) struct LanesAnswer {
    group: String,
    /// Of the map that places records.
    epoch: u64,
    /// All of them, whoever has their lanes.
    partitions: Vec<PartitionAnswer>,
    /// This worker's.
    lanes: Vec<LaneAnswer>,
    servers: Vec<ServerAnswer>,
}

#[derive(Debug, Serialize)]
struct PartitionAnswer {
    partition: PartitionId,
    /// That hold its users.
    shards: BTreeSet<ShardId>,
}

#[derive(Debug, Serialize)]
struct LaneAnswer {
    topic: String,
    partition: i32,
    /// All before this offset is done; none until something is.
    done: Option<i64>,
    lag_records: Option<u64>,
    lag_seconds: Option<f64>,
    /// Its lane holds records and took none for a second.
    stands: bool,
}

#[derive(Debug, Serialize)]
struct ServerAnswer {
    server: String,
    shards: Vec<ShardId>,
    /// False: a shard on it did not answer when this worker last needed it.
    up: bool,
    connections: u32,
    connections_in_use: u32,
    connections_max: u32,
}

impl LanesAnswer {
    pub(crate) fn now(shared: &Shared) -> LanesAnswer {
        let snapshot = shared.settings.map.snapshot();
        LanesAnswer {
            group: shared.settings.group.clone(),
            epoch: snapshot.document.map().epoch().0,
            partitions: partitions(shared),
            lanes: shared.stats.lags().into_iter().map(lane).collect(),
            servers: servers(shared),
        }
    }
}

fn partitions(shared: &Shared) -> Vec<PartitionAnswer> {
    let snapshot = shared.settings.map.snapshot();
    let map = snapshot.document.map();
    let routes = shared.store.routes();
    let mut shards = vec![BTreeSet::new(); map.partition_count() as usize];
    for slot in Slot::all() {
        let partition = usize::try_from(map.partition_of(slot).0).unwrap_or(usize::MAX);
        if let Some(shards) = shards.get_mut(partition) {
            shards.extend(shards_of(&routes, slot));
        }
    }
    let numbers = (0..).map(PartitionId);
    numbers
        .zip(shards)
        .map(|(partition, shards)| PartitionAnswer { partition, shards })
        .collect()
}

fn lane(lag: Lag) -> LaneAnswer {
    LaneAnswer {
        topic: lag.topic.to_string(),
        partition: lag.partition,
        done: lag.done,
        lag_records: lag.records,
        lag_seconds: lag.seconds,
        stands: lag.stands,
    }
}

fn servers(shared: &Shared) -> Vec<ServerAnswer> {
    let now = Instant::now();
    let is_away = |shard: &ShardId| shared.breakers.is_away(*shard, now);
    let pools = shared.store.pool_waits().into_iter();
    pools
        .map(|pool| ServerAnswer {
            up: !pool.shards.iter().any(is_away),
            server: pool.server,
            shards: pool.shards,
            connections: pool.connections,
            connections_in_use: pool.connections - pool.idle,
            connections_max: pool.connections_max,
        })
        .collect()
}
