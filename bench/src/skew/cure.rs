//! What gives a hot user room, done to rows that are there: its neighbours go to the other server.

use anyhow::{Context, ensure};
use shardlane_citus::operate::{Coordinator, Transfer};
use shardlane_router::{Epoch, RouteKey, ShardId};
use shardlane_sql::reshard::{Change, Reshard, ReshardOptions};
use shardlane_sql::servers::LayoutDatabase;
use shardlane_sql::{Layout, SlotSet, TABLES};
use uuid::Uuid;

use crate::lab::connect;

/// Gives the tenant a server to itself.
///
/// # Errors
/// Where the layout has one server only, or a move fails.
pub(super) async fn cure(
    layout: Layout,
    database: &LayoutDatabase,
    tenant: Uuid,
) -> anyhow::Result<()> {
    match layout {
        Layout::Shards => move_neighbours(database, tenant).await,
        Layout::Citus => isolate(database, tenant).await,
        Layout::Single | Layout::Partman => anyhow::bail!("{layout} has one server"),
    }
}

/// Manual shards: all slots of the tenant's shard but its own go away.
async fn move_neighbours(database: &LayoutDatabase, tenant: Uuid) -> anyhow::Result<()> {
    let map = database.map();
    let hot = map.route(&RouteKey::Uuid(tenant));
    let to = map.shards().iter().find(|shard| **shard != hot.shard);
    let to: ShardId = *to.context("there is one shard only")?;
    let neighbours = SlotSet::of(|slot| map.shard_of(slot) == hot.shard && slot != hot.slot);
    let urls = database.urls().to_vec();
    let mut reshard = Reshard::connect(&urls, map.clone(), ReshardOptions::default()).await?;
    let change = Change {
        slots: Some((neighbours, to)),
        ..Change::default()
    };
    reshard.run(&change, |_, _, _| {}).await?;
    Ok(())
}

/// Citus: the tenant gets a shard of its own on the other node, and that node's other shards change places with it.
/// Isolation alone would only carry the load from one node to the other.
async fn isolate(database: &LayoutDatabase, tenant: Uuid) -> anyhow::Result<()> {
    let url = database.urls().first().context("a coordinator has a DSN")?;
    let client = connect(url).await?;
    let map = shardlane_citus::load(&client, &TABLES, Epoch(1)).await?;
    let home = map.route(&RouteKey::Uuid(tenant)).node;
    let nodes = map.nodes();
    let away = (0..nodes.len()).find(|node| *node != home);
    let away = away.context("the cluster has one node")?;
    let coordinator = Coordinator::of(&client).await?;
    // Nobody writes meanwhile, so nobody waits.
    let transfer = Transfer::BlockWrites;
    coordinator
        .isolate_tenant(TABLES[0], tenant, &nodes[away], transfer)
        .await?;
    for range in map.shards().iter().filter(|range| range.node == away) {
        coordinator
            .move_shard(range.shard, &nodes[home], transfer)
            .await?;
    }
    let after = shardlane_citus::load(&client, &TABLES, Epoch(2)).await?;
    let alone = after.route(&RouteKey::Uuid(tenant));
    ensure!(
        nodes[away].port == after.nodes()[alone.node].port,
        "the tenant is not where it was sent"
    );
    Ok(())
}
