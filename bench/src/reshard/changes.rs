//! The changes, and who makes them.

use std::fmt;

use anyhow::{Context as _, bail};
use shardlane_citus::operate::{Coordinator, Transfer};
use shardlane_local::{Postgres, create_database};
use shardlane_router::{Epoch, RouteKey, ShardId, ShardMap};
use shardlane_sql::reshard::{Change as Wanted, Reshard, ReshardOptions};
use shardlane_sql::servers::{LayoutDatabase, LayoutServers};
use shardlane_sql::{Layout, SlotSet, TABLES};
use tokio_postgres::Client;
use uuid::Uuid;

use super::load::user;
use crate::lab::connect;

/// One change under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Manual shards: from so many to so many.
    Shards(usize, usize),
    /// Citus: a shard group to another node.
    Move,
    /// Citus: a node joins and gets its part.
    Rebalance,
    /// Citus: a shard group becomes two.
    Split,
    /// Citus: one user gets a shard of its own.
    IsolateTenant,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Shards(from, to) => write!(f, "{from}->{to}"),
            Change::Move => f.write_str("move"),
            Change::Rebalance => f.write_str("rebalance"),
            Change::Split => f.write_str("split"),
            Change::IsolateTenant => f.write_str("isolate-tenant"),
        }
    }
}

/// The changes of a layout in order.
pub(crate) fn of(layout: Layout, quick: bool) -> &'static [Change] {
    use Change::{IsolateTenant, Move, Rebalance, Shards, Split};
    match (layout, quick) {
        (Layout::Citus, true) => &[Move, Split],
        (Layout::Citus, false) => &[Move, Rebalance, Split, IsolateTenant],
        (_, true) => &[Shards(2, 3), Shards(3, 2)],
        // Not all four in one run: each copies what the load has written until then.
        (_, false) => &[Shards(2, 4), Shards(4, 2)],
    }
}

/// How many primaries the changes of manual shards need.
pub(crate) fn primaries(quick: bool) -> usize {
    let shards = of(Layout::Shards, quick).iter().map(|change| match change {
        Change::Shards(from, to) => *from.max(to),
        Change::Move | Change::Rebalance | Change::Split | Change::IsolateTenant => 0,
    });
    shards.max().unwrap_or(0)
}

/// The servers under the changes.
pub(crate) enum Ground<'a> {
    Shards(Box<Shards>),
    Citus(Box<Citus<'a>>),
}

pub(crate) struct Shards {
    reshard: Reshard,
    /// Of all shards that ever were.
    urls: Vec<String>,
    /// Primaries that hold no shard.
    spare_nodes: Vec<String>,
    made: usize,
}

pub(crate) struct Citus<'a> {
    servers: &'a LayoutServers,
    url: String,
    client: Client,
    /// Nodes that joined: they run for as long as this is there.
    joined: Vec<Postgres>,
}

impl<'a> Ground<'a> {
    pub(crate) async fn new(
        layout: Layout,
        servers: &'a LayoutServers,
        database: &LayoutDatabase,
    ) -> anyhow::Result<Ground<'a>> {
        let urls = database.urls().to_vec();
        if layout == Layout::Citus {
            return Ok(Ground::Citus(Box::new(Citus {
                servers,
                client: connect(&urls[0]).await?,
                url: urls[0].clone(),
                joined: Vec::new(),
            })));
        }
        let map = database.map().clone();
        let reshard = Reshard::connect(&urls, map, ReshardOptions::default()).await?;
        let nodes = servers.nodes();
        let spare = nodes.iter().skip(urls.len());
        Ok(Ground::Shards(Box::new(Shards {
            reshard,
            spare_nodes: spare.map(|node| node.url("")).collect(),
            urls,
            made: 0,
        })))
    }

    /// Makes a change. Back come the slots that moved, where only those may wait.
    pub(crate) async fn run(&mut self, change: &Change) -> anyhow::Result<Option<SlotSet>> {
        match (self, change) {
            (Ground::Shards(shards), Change::Shards(from, to)) => {
                shards.run(*from, *to).await.map(Some)
            }
            (Ground::Citus(citus), Change::Move) => citus.move_shard().await.map(|()| None),
            (Ground::Citus(citus), Change::Rebalance) => citus.rebalance().await.map(|()| None),
            (Ground::Citus(citus), Change::Split) => citus.split().await.map(|()| None),
            (Ground::Citus(citus), Change::IsolateTenant) => {
                citus.isolate(user(0)).await.map(|()| None)
            }
            (_, change) => bail!("{change} is no change of this layout"),
        }
    }

    /// Every database that may hold rows.
    pub(crate) async fn urls(&self) -> anyhow::Result<Vec<String>> {
        Ok(match self {
            Ground::Shards(shards) => shards.urls.clone(),
            // The coordinator reads every shard.
            Ground::Citus(citus) => vec![citus.url.clone()],
        })
    }

    /// Users whose rows lie on a shard that does not own them.
    pub(crate) async fn misplaced(&self) -> anyhow::Result<u64> {
        let Ground::Shards(shards) = self else {
            // Citus refuses to write a row anywhere else than where it looks for it.
            return Ok(0);
        };
        let catalog = shards.reshard.catalog().await?;
        let mut misplaced = 0;
        for url in &shards.urls {
            let client = connect(url).await?;
            let (owner, rows) = (
                client
                    .query_one("select shard_id from shard_identity", &[])
                    .await?,
                client
                    .query("select distinct user_id from order_events", &[])
                    .await?,
            );
            let owner = ShardId(owner.get(0));
            misplaced += rows
                .iter()
                .filter(|row| catalog.map.shard_for(&RouteKey::Uuid(row.get(0))) != owner)
                .count() as u64;
        }
        Ok(misplaced)
    }
}

impl Shards {
    async fn run(&mut self, from: usize, to: usize) -> anyhow::Result<SlotSet> {
        let mut wanted = Wanted::default();
        for node in self.spare_nodes.iter().take(to.saturating_sub(from)) {
            self.made += 1;
            let name = format!("joined_{}", self.made);
            create_database(&format!("{node}postgres"), &name).await?;
            wanted.add.push(format!("{node}{name}"));
        }
        let catalog = self.reshard.catalog().await?;
        let leaving = catalog.shards.iter().rev().take(from.saturating_sub(to));
        wanted.remove = leaving.map(|entry| entry.shard).collect();
        self.urls.extend(wanted.add.iter().cloned());
        let started = std::time::Instant::now();
        let plan = self
            .reshard
            .run(&wanted, |step, number, steps| {
                eprintln!(
                    "  {:6.2} {number}/{steps} {step}",
                    started.elapsed().as_secs_f64()
                );
            })
            .await?;
        let moves = plan.moves.iter().map(|moved| &moved.slots);
        Ok(moves.fold(SlotSet::empty(), |all, slots| all.union(slots)))
    }
}

impl Citus<'_> {
    async fn map(&self) -> anyhow::Result<ShardMap> {
        Ok(shardlane_citus::load(&self.client, &TABLES, Epoch(1)).await?)
    }

    async fn move_shard(&self) -> anyhow::Result<()> {
        let map = self.map().await?;
        let (shard, to) = elsewhere(&map, 0)?;
        let coordinator = Coordinator::of(&self.client).await?;
        Ok(coordinator.move_shard(shard, to, Transfer::Online).await?)
    }

    async fn rebalance(&mut self) -> anyhow::Result<()> {
        let cluster = self.servers.citus().context("the layout is citus")?;
        let (_, database) = self.url.rsplit_once('/').context("a DSN with a database")?;
        let node = cluster.start_spare_node(database).await?;
        let coordinator = Coordinator::of(&self.client).await?;
        coordinator.add_node(node.host(), node.port()).await?;
        self.joined.push(node);
        Ok(coordinator.rebalance(Transfer::Online, |_| {}).await?)
    }

    async fn split(&self) -> anyhow::Result<()> {
        let map = self.map().await?;
        let (shard, to) = elsewhere(&map, 1)?;
        let range = map.shards()[1].range;
        let middle = range.first().value() + (range.last().value() - range.first().value()) / 2;
        let points = [shardlane_router::Token::new(middle)];
        let coordinator = Coordinator::of(&self.client).await?;
        let pieces = coordinator
            .split_shard(shard, &points, &[to, to], Transfer::Online)
            .await?;
        anyhow::ensure!(
            pieces.len() == 2,
            "the shard became {} pieces",
            pieces.len()
        );
        Ok(())
    }

    async fn isolate(&self, tenant: Uuid) -> anyhow::Result<()> {
        let map = self.map().await?;
        let owner = map.route(&RouteKey::Uuid(tenant));
        let mut others = map.nodes().iter().enumerate();
        let (_, to) = others
            .rfind(|(index, _)| *index != owner.node)
            .context("the cluster has one node")?;
        let coordinator = Coordinator::of(&self.client).await?;
        coordinator
            .isolate_tenant(TABLES[0], tenant, to, Transfer::Online)
            .await?;
        Ok(())
    }
}

/// The shard of a range, and a node that does not hold it.
fn elsewhere(map: &ShardMap, range: usize) -> anyhow::Result<(ShardId, &shardlane_router::Node)> {
    let found = map
        .shards()
        .get(range)
        .context("the table has too few shards")?;
    let mut others = map.nodes().iter().enumerate();
    let (_, to) = others
        .find(|(index, _)| *index != found.node)
        .context("the cluster has one node")?;
    Ok((found.shard, to))
}
