//! The servers of the reads experiment, and their rows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use anyhow::Context;
use futures_util::future::try_join_all;
use shardlane_local::Durability;
use shardlane_router::{Epoch, RouteKey, ShardId, ShardMap, SlotMap, TokenHash};
use shardlane_sql::Layout;
use shardlane_sql::servers::LayoutServers;
use tokio_postgres::{Client, Config};
use uuid::Uuid;

use super::ReadsSettings;
use super::data::Data;
use super::question::{Path, Question};
use crate::lab::{self, connect};
use crate::pools::{Choice, Pools, config};
use crate::results::Skipped;

const DATABASE: &str = "reads";
/// Users whose rows one statement inserts.
const SEED_USERS: usize = 500;
const TABLES: [&str; 2] = ["orders", "order_events"];

pub(super) struct Ground {
    pub(super) data: Arc<Data>,
    places: Vec<Place>,
    pub(super) skipped: Vec<Skipped>,
}

/// A layout with its rows.
struct Place {
    servers: LayoutServers,
    /// Of the one server, of the manual shards in their order, or of the coordinator and then the workers in the order
    /// of the map.
    configs: Vec<Config>,
    clients: Vec<Client>,
    slots: SlotMap,
    /// Where the layout is Citus.
    map: Option<Arc<ShardMap>>,
}

impl Ground {
    pub(super) async fn prepare(
        settings: &ReadsSettings,
        say: impl Fn(&str),
    ) -> anyhow::Result<Ground> {
        let data = Arc::new(Data::new(settings, jiff::Timestamp::now())?);
        let mut ground = Ground {
            data,
            places: Vec::new(),
            skipped: Vec::new(),
        };
        for layout in &settings.layouts {
            if let Err(missing) = LayoutServers::available(*layout) {
                ground.skipped.push(Skipped {
                    layout: layout.to_string(),
                    reason: missing.to_string(),
                });
                continue;
            }
            say(&format!(
                "{layout}: writing the rows of {} users",
                settings.users
            ));
            let place = Place::start(*layout, settings, &ground.data).await;
            ground
                .places
                .push(place.with_context(|| format!("layout {layout}"))?);
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

    pub(super) fn cpu_seconds(&self, layout: Layout) -> anyhow::Result<f64> {
        Ok(lab::cpu_seconds(&self.place(layout)?.servers))
    }

    /// Prepared connections: as many in all as there are clients, except where each read takes one to every server.
    pub(super) async fn pools(
        &self,
        layout: Layout,
        path: Path,
        question: Question,
        clients: u32,
    ) -> anyhow::Result<Pools> {
        let place = self.place(layout)?;
        let turns = || Choice::Turns(AtomicUsize::new(0));
        let (nodes, choice) = match (path, &place.map) {
            (Path::OneServer | Path::Coordinator, _) => (&place.configs[..1], turns()),
            (Path::AnyNode, _) => (&place.configs[1..], turns()),
            (Path::Owner, Some(map)) => (&place.configs[1..], Choice::Owner(Arc::clone(map))),
            (Path::Owner, None) => (&place.configs[..], Choice::Shard(place.slots.clone())),
            (Path::ScatterGather, _) => (&place.configs[..], turns()),
        };
        let each = match path {
            Path::ScatterGather => clients,
            _ => clients.div_ceil(u32::try_from(nodes.len())?),
        };
        Pools::connect(nodes, choice, each, question.statements())
            .await
            .with_context(|| format!("no connections for {layout} {}", path.as_str()))
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
    async fn start(layout: Layout, settings: &ReadsSettings, data: &Data) -> anyhow::Result<Place> {
        let count = match layout {
            Layout::Shards => settings.shards,
            _ => 1,
        };
        let shards: Vec<ShardId> = (0..i64::from(count)).map(ShardId).collect();
        let partitions = settings.shards.next_power_of_two();
        let slots = SlotMap::aligned(Epoch(1), TokenHash::Postgres, partitions, &shards)?;
        let servers = LayoutServers::start(layout, Durability::Durable, shards.len(), &[]).await?;
        let database = servers
            .create(DATABASE, &slots, settings.citus_shards)
            .await?;
        let mut urls = database.urls().to_vec();
        let mut clients = try_join_all(urls.iter().map(|url| connect(url))).await?;
        let mut map = None;
        if layout == Layout::Citus {
            let found = shardlane_citus::load(&clients[0], &TABLES, Epoch(1)).await?;
            for node in found.nodes() {
                let server = servers
                    .nodes()
                    .into_iter()
                    .find(|server| server.port() == node.port);
                let server = server.context("the map names a node that we started")?;
                urls.push(server.url(DATABASE));
            }
            map = Some(Arc::new(found));
        }
        let configs = urls.iter().map(|url| config(url, false));
        let configs = configs.collect::<anyhow::Result<Vec<_>>>()?;
        seed(&clients, &slots, data).await?;
        for url in &urls[clients.len()..] {
            clients.push(connect(url).await?);
        }
        // On Citus the coordinator's reaches the shards.
        for client in clients.iter().take(shards.len()) {
            for table in ["orders", "order_directory", "order_events"] {
                client
                    .batch_execute(&format!("vacuum analyze {table}"))
                    .await?;
            }
        }
        lab::checkpoint(&servers).await?;
        Ok(Place {
            servers,
            configs,
            clients,
            slots,
            map,
        })
    }
}

/// Writes each user's rows to its shard; all of them to the only client where there is one.
async fn seed(clients: &[Client], slots: &SlotMap, data: &Data) -> anyhow::Result<()> {
    let mut users: Vec<Vec<(Uuid, i64)>> = vec![Vec::new(); clients.len()];
    for (user, number) in data.users.iter().zip(0..) {
        let shard = usize::try_from(slots.shard_for(&RouteKey::Uuid(*user)).0)?;
        users[shard].push((*user, number));
    }
    let (orders, events) = (
        i64::try_from(data.orders_a_user)?,
        i64::try_from(data.events_an_order)?,
    );
    let all = i64::try_from(data.users.len())?;
    let write = async |client: &Client, users: Vec<(Uuid, i64)>| -> anyhow::Result<()> {
        for users in users.chunks(SEED_USERS) {
            let (users, numbers): (Vec<Uuid>, Vec<i64>) = users.iter().copied().unzip();
            client
                .execute(
                    include_str!("statements/seed_orders.sql"),
                    &[&users, &numbers, &orders, &events, &data.began],
                )
                .await?;
            client
                .execute(
                    include_str!("statements/seed_directory.sql"),
                    &[&users, &numbers, &orders],
                )
                .await?;
            client
                .execute(
                    include_str!("statements/seed_events.sql"),
                    &[
                        &users,
                        &numbers,
                        &orders,
                        &events,
                        &data.began,
                        &data.step_us,
                        &all,
                    ],
                )
                .await?;
        }
        Ok(())
    };
    try_join_all(
        clients
            .iter()
            .zip(users)
            .map(|(client, users)| write(client, users)),
    )
    .await?;
    Ok(())
}
