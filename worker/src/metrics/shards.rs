//! Which shards answer.

use std::fmt::{self, Error};
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::sheet::Sheet;
use crate::lane::Shared;

pub(crate) struct ShardCollector(pub(crate) Arc<Shared>);

impl fmt::Debug for ShardCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardCollector").finish_non_exhaustive()
    }
}

impl Collector for ShardCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let now = Instant::now();
        let servers: Vec<_> = self
            .0
            .store
            .pool_waits()
            .into_iter()
            .map(|pool| {
                let is_away = |shard| self.0.breakers.is_away(shard, now);
                let up = !pool.shards.iter().copied().any(is_away);
                (pool.shard.to_string(), pool.server, up)
            })
            .collect();
        Sheet(encoder).gauge(
            "shardlane_shard_up",
            "1, or 0 where a shard did not answer when this worker last needed it.",
            servers.iter().map(|(shard, server, up)| {
                let labels = [("shard", &**shard), ("server", &**server)];
                (labels, i64::from(*up))
            }),
        )
    }
}
