//! The pools of a store: how they are used, and who waits for them.

use std::fmt::{self, Error};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use shardlane_sql::{PoolWaits, Store};

use super::sheet::Sheet;

pub(super) struct PoolCollector(pub(super) Store);

impl fmt::Debug for PoolCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolCollector").finish_non_exhaustive()
    }
}

impl Collector for PoolCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut sheet = Sheet(encoder);
        let pools: Vec<(String, PoolWaits)> = self
            .0
            .pool_waits()
            .into_iter()
            .map(|pool| (pool.shard.to_string(), pool))
            .collect();
        let each = |value: fn(&PoolWaits) -> u64| {
            pools.iter().map(move |(shard, pool)| {
                let labels = [("shard", &**shard), ("server", &*pool.server)];
                (labels, value(pool))
            })
        };
        sheet.gauge(
            "shardlane_pool_connections",
            "Connections to a server, by whether somebody uses them.",
            pools.iter().flat_map(|(shard, pool)| {
                let idle = i64::from(pool.idle);
                let in_use = i64::from(pool.connections) - idle;
                [("idle", idle), ("in_use", in_use)].map(|(state, count)| {
                    let server = ("server", &*pool.server);
                    ([("shard", &**shard), server, ("state", state)], count)
                })
            }),
        )?;
        sheet.gauge(
            "shardlane_pool_connections_limit",
            "As many connections to a server as there may be.",
            each(|pool| u64::from(pool.connections_max)),
        )?;
        sheet.counter(
            "shardlane_pool_waits",
            "Times that somebody had to wait for a connection and got one.",
            each(|pool| pool.waited),
        )?;
        sheet.counter(
            "shardlane_pool_timeouts",
            "Times that somebody waited for a connection in vain.",
            each(|pool| pool.timed_out),
        )?;
        sheet.counter(
            "shardlane_pool_wait_seconds",
            "How long all have waited for connections, in sum.",
            pools.iter().map(|(shard, pool)| {
                let labels = [("shard", &**shard), ("server", &*pool.server)];
                (labels, pool.wait.as_secs_f64())
            }),
        )?;
        sheet.counter(
            "shardlane_statements",
            "Statements sent to a server.",
            each(|pool| pool.statements),
        )
    }
}
