//! The servers of the scatter experiment, and their rows.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use futures_util::future::try_join_all;
use shardlane_local::Durability;
use shardlane_sql::Layout;
use shardlane_sql::servers::LayoutServers;
use tokio_postgres::Client;

use super::ScatterSettings;
use super::gather::Row;
use super::question::Question;
use crate::lab::{self, connect};
use crate::results::Skipped;

const DATABASE: &str = "scatter";
pub(super) const CITUS_SHARDS: u32 = 16;
pub(super) const ORDERS_A_DISPUTE: u64 = 10;
const ORDERS_A_USER: u64 = 20;
const ORDERS_A_CARD: u64 = 3;

pub(super) struct Ground {
    places: Vec<Place>,
    pub(super) skipped: Vec<Skipped>,
}

/// A layout, and a session with each server that is asked.
struct Place {
    servers: LayoutServers,
    clients: Vec<Client>,
}

/// An answer, and how many rows came over the wire for it.
pub(super) struct Asked {
    pub(super) answer: Vec<Row>,
    pub(super) fetched: f64,
}

impl Ground {
    pub(super) async fn prepare(
        settings: &ScatterSettings,
        say: impl Fn(&str),
    ) -> anyhow::Result<Ground> {
        let mut ground = Ground {
            places: Vec::new(),
            skipped: Vec::new(),
        };
        for layout in &settings.layouts {
            if *layout == Layout::Partman {
                bail!("time partitions do not matter here: choose from single, shards, citus");
            }
            if let Err(missing) = LayoutServers::available(*layout) {
                ground.skipped.push(Skipped {
                    layout: layout.to_string(),
                    reason: missing.to_string(),
                });
                continue;
            }
            say(&format!("{layout}: writing {} orders", settings.orders));
            let place = Place::start(*layout, settings)
                .await
                .with_context(|| format!("layout {layout}"))?;
            ground.places.push(place);
        }
        Ok(ground)
    }

    pub(super) fn layouts(&self) -> impl Iterator<Item = Layout> {
        self.places.iter().map(|place| place.servers.layout())
    }

    fn place(&self, layout: Layout) -> anyhow::Result<&Place> {
        let mut places = self.places.iter();
        let found = places.find(|place| place.servers.layout() == layout);
        found.with_context(|| format!("layout {layout} does not run"))
    }

    pub(super) fn cpu_seconds(&self, layout: Layout) -> f64 {
        self.place(layout)
            .map_or(0.0, |place| lab::cpu_seconds(&place.servers))
    }

    /// Asks all servers of a layout at once.
    #[expect(clippy::cast_precision_loss, reason = "rows of an answer")]
    pub(super) async fn ask(&self, layout: Layout, question: Question) -> anyhow::Result<Asked> {
        let place = self.place(layout)?;
        let sql = question.sql(place.clients.len() == 1);
        let asked = place.clients.iter().map(|client| client.query(sql, &[]));
        let parts: Vec<Vec<Row>> = try_join_all(asked)
            .await?
            .into_iter()
            .map(|rows| {
                let rows = rows.iter();
                rows.map(|row| (row.get(0), row.get(1), row.get(2)))
                    .collect()
            })
            .collect();
        let fetched = parts.iter().map(Vec::len).sum::<usize>() as f64;
        let answer = match parts.len() {
            1 => parts.into_iter().flatten().collect(),
            _ => question.gather().whole(parts),
        };
        Ok(Asked { answer, fetched })
    }

    pub(super) async fn versions(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut versions = BTreeMap::new();
        for place in &self.places {
            versions.extend(lab::versions_of(&place.clients[0]).await?);
        }
        Ok(versions)
    }
}

impl Place {
    async fn start(layout: Layout, settings: &ScatterSettings) -> anyhow::Result<Place> {
        let shards = usize::try_from(settings.shards)?;
        let servers = LayoutServers::start(layout, Durability::Durable, shards, &[]).await?;
        let urls = match servers.citus() {
            Some(cluster) => {
                cluster.create_database(DATABASE).await?;
                vec![cluster.coordinator_url(DATABASE)]
            }
            None => {
                let mut urls = Vec::new();
                for node in servers.nodes() {
                    shardlane_local::create_database(&node.url("postgres"), DATABASE).await?;
                    urls.push(node.url(DATABASE));
                }
                urls
            }
        };
        let clients = try_join_all(urls.iter().map(|url| connect(url))).await?;
        let count = clients.len();
        let filled = clients
            .iter()
            .enumerate()
            .map(|(index, client)| fill(client, layout, (index, count), settings.orders));
        try_join_all(filled).await?;
        lab::checkpoint(&servers).await?;
        Ok(Place { servers, clients })
    }
}

/// Writes the users' rows that belong to one of `count` servers. Which users those are does not matter to the questions,
/// as long as each user is on one server: a hash of the user says so, as everywhere in the house.
async fn fill(
    client: &Client,
    layout: Layout,
    (index, count): (usize, usize),
    orders: u64,
) -> anyhow::Result<()> {
    client
        .batch_execute(
            "create table orders (user_id uuid not null, order_id bigint not null, card text not null, \
             amount_minor bigint not null, currency text not null, created_at timestamptz not null, \
             primary key (user_id, order_id)); \
             create table disputes (user_id uuid not null, order_id bigint not null, status text not null, \
             reason text not null, primary key (user_id, order_id))",
        )
        .await?;
    if layout == Layout::Citus {
        client
            .batch_execute(&format!(
                "set citus.shard_count = {CITUS_SHARDS}; set citus.shard_replication_factor = 1; \
                 select create_distributed_table('orders', 'user_id'); \
                 select create_distributed_table('disputes', 'user_id', colocate_with => 'orders')"
            ))
            .await?;
    }
    let users = (orders / ORDERS_A_USER).max(1);
    let cards = (orders / ORDERS_A_CARD).max(1);
    let user =
        format!("md5('user-' || (hashint8extended(i, 1) & 1152921504606846975) % {users})::uuid");
    let here = format!("(uuid_hash_extended(user_id, 0) & 1073741823) % {count} = {index}");
    client
        .batch_execute(&format!(
            "insert into orders select user_id, i, \
             'card-' || (hashint8extended(i, 2) & 1152921504606846975) % {cards}, \
             hashint8extended(i, 3) & 65535, (array['EUR', 'USD', 'GBP', 'JPY'])[1 + (hashint8extended(i, 4) & 3)], \
             timestamptz '2026-01-01 00:00:00+00' + i * interval '1 second' \
             from (select i, {user} as user_id from generate_series(0, {orders} - 1) i) as made where {here}; \
             insert into disputes select user_id, i, (array['open', 'won', 'lost', 'closed'])[1 + (hashint8extended(i, 5) & 3)], \
             (array['fraud', 'duplicate', 'not_received', 'other'])[1 + (hashint8extended(i, 6) & 3)] \
             from (select i, {user} as user_id from generate_series(0, {orders} - 1, {ORDERS_A_DISPUTE}) i) as made where {here}"
        ))
        .await?;
    client.batch_execute("vacuum analyze orders").await?;
    client.batch_execute("vacuum analyze disputes").await?;
    Ok(())
}
