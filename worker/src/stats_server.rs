//! A worker over HTTP: `/livez`, `/readyz`, `/metrics`, `/stats`, `/lanes` and `/hot`, and a page of them at `/`. Off unless it
//! is asked for; it has no credentials, so only operators should reach it: `/hot` and the page name users.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use shardlane_domain::Source;
use shardlane_router::{PartitionId, RouteKey, ShardId, Slot};
use shardlane_sql::{PoolWaits, Routes, ServerDown};
use tokio::net::TcpListener;
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use crate::lane::Shared;
use crate::live::{self, LanesAnswer};
use crate::metrics::{
    RelayCollector, ShardCollector, TimePartitionCollector, WorkerCollector, metrics_answer,
    register_pools, register_process,
};
use crate::ops::{Probe, not_ready};
use crate::relay::{RelayCounts, RelayStats};
use crate::stats::Counts;
use crate::worker::WorkerView;

/// How long a shard or the broker may take to answer `/readyz`.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum StatsServerError {
    /// Somebody else has the port.
    #[error("{address} is in use; give --listen another port")]
    PortTaken {
        /// Where we wanted to listen.
        address: SocketAddr,
    },
    /// The address is not ours, or not allowed.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where we wanted to listen.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}

/// `GET /hot`: [`HotKeys`](crate::HotKeys) with where each key lives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HotAnswer {
    /// Events whose transaction has committed since the worker started.
    pub total: u64,
    /// The busiest slot's events over the mean of all 4096.
    pub skew: f64,
    /// By how much a user's count may be too high.
    pub users_error_max: u64,
    /// The busiest slots first.
    pub slots: Vec<HotSlot>,
    /// The busiest users first.
    pub users: Vec<HotUser>,
}

/// A busy slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HotSlot {
    /// Its number.
    pub slot: u16,
    /// Its events.
    pub events: u64,
    /// Its Kafka partition.
    pub partition: PartitionId,
    /// Its shard; on Citus each shard that has a part of it.
    pub shards: Vec<ShardId>,
}

/// A busy user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HotUser {
    /// The user.
    pub user: Uuid,
    /// The user's events.
    pub events: u64,
    /// The user's slot.
    pub slot: u16,
    /// The user's shard; none while the slot is frozen.
    pub shard: Option<ShardId>,
}

/// `GET /stats`.
#[derive(Debug, Clone, Serialize)]
struct StatsAnswer {
    #[serde(flatten)]
    counts: Counts,
    batch_p50_us: u64,
    batch_p99_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    relay: Option<RelayCounts>,
    in_flight_bytes: usize,
    in_flight_bytes_peak: usize,
    /// By topic.
    assignment: BTreeMap<String, Vec<i32>>,
    pools: Vec<PoolAnswer>,
}

/// A shard's pool of connections.
#[derive(Debug, Clone, Serialize)]
struct PoolAnswer {
    shard: ShardId,
    connections: u32,
    waited: u64,
    timed_out: u64,
    wait_ms: u128,
}

#[derive(Serialize)]
struct Status {
    status: &'static str,
}

/// What the answers are made of.
struct View {
    shared: Arc<Shared>,
    relay: Option<Arc<RelayStats>>,
    registry: Registry,
    probe: Probe,
}

impl View {
    fn new(
        shared: Arc<Shared>,
        relay: Option<Arc<RelayStats>>,
        time_partitions: TimePartitionCollector,
    ) -> View {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(WorkerCollector {
            stats: Arc::clone(&shared.stats),
            topics: shared.settings.topics.clone(),
        }));
        register_pools(&mut registry, &shared.store);
        registry.register_collector(Box::new(ShardCollector(Arc::clone(&shared))));
        registry.register_collector(Box::new(time_partitions));
        register_process(&mut registry);
        if let Some(relay) = &relay {
            registry.register_collector(Box::new(RelayCollector(Arc::clone(relay))));
        }
        View {
            shared,
            relay,
            registry,
            probe: Probe::new(PROBE_DEADLINE),
        }
    }
}

/// A server that has its address and does not answer yet.
pub struct StatsServer {
    listener: TcpListener,
    address: SocketAddr,
    relay: Option<Arc<RelayStats>>,
}

impl StatsServer {
    /// Takes the address.
    ///
    /// # Errors
    /// [`StatsServerError`].
    pub async fn bind(address: SocketAddr) -> Result<StatsServer, StatsServerError> {
        let refused = |source: std::io::Error| match source.kind() {
            ErrorKind::AddrInUse => StatsServerError::PortTaken { address },
            _ => StatsServerError::Listen { address, source },
        };
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(StatsServer {
            listener,
            address,
            relay: None,
        })
    }

    /// Answers about a relay too.
    #[must_use]
    pub fn with_relay(mut self, relay: Arc<RelayStats>) -> StatsServer {
        self.relay = Some(relay);
        self
    }

    /// The address, with the port that the system gave for port 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers about a worker, for as long as the future lives.
    ///
    /// # Errors
    /// None so far: axum waits out what the listener refuses.
    pub async fn run(self, worker: WorkerView) -> Result<(), StatsServerError> {
        let time_partitions = TimePartitionCollector::default();
        let follow = time_partitions
            .clone()
            .follow(Arc::clone(&worker.shared.store));
        let app = Router::new()
            .route("/livez", get(async || Json(Status { status: "alive" })))
            .route("/readyz", get(ready_answer))
            .route(
                "/metrics",
                get(async |State(view): State<Arc<View>>, asked: HeaderMap| {
                    metrics_answer(&view.registry, &asked)
                }),
            )
            .route("/stats", get(stats_answer))
            .route("/hot", get(hot_answer))
            .route(
                "/lanes",
                get(async |State(view): State<Arc<View>>| Json(LanesAnswer::now(&view.shared))),
            )
            .merge(live::routes())
            .with_state(Arc::new(View::new(
                worker.shared,
                self.relay,
                time_partitions,
            )));
        let address = self.address;
        let served = tokio::select! {
            served = axum::serve(self.listener, app) => served,
            never = follow => match never {},
        };
        served.map_err(|source| StatsServerError::Listen { address, source })
    }
}

/// Asks all shards and the broker at once, for one asker at a time.
async fn ready_answer(State(view): State<Arc<View>>) -> Response {
    let Some(turn) = view.probe.turn().await else {
        let detail = "the question before is not answered yet; ask less often";
        return not_ready(detail.into(), &[]).into_response();
    };
    let deadline = view.probe.deadline();
    let shards = view.shared.store.servers_down(deadline);
    let (down, broker) = tokio::join!(
        shards,
        broker_down(Arc::clone(&view.shared), deadline, turn)
    );
    let mut failing: Vec<String> = down
        .iter()
        .flat_map(|down| &down.shards)
        .map(named)
        .collect();
    let mut sentences: Vec<String> = down.iter().map(sentence).collect();
    if let Some(error) = broker {
        failing.push("kafka".to_owned());
        sentences.push(format!("Kafka does not answer: {error}"));
    }
    if failing.is_empty() {
        return Json(Status { status: "ready" }).into_response();
    }
    let detail = sentences.join("; ");
    tracing::warn!("not ready: {detail}");
    not_ready(detail.into(), &failing).into_response()
}

fn named(shard: &ShardId) -> String {
    format!("shard {shard}")
}

fn sentence(down: &ServerDown) -> String {
    let shards: Vec<String> = down.shards.iter().map(named).collect();
    let (shards, server, error) = (shards.join(", "), &down.server, &down.error);
    format!("{shards} ({server}) does not answer: {error}")
}

/// The turn is given back when the blocked thread is free, whatever becomes of the asker.
async fn broker_down(
    shared: Arc<Shared>,
    deadline: Duration,
    turn: OwnedSemaphorePermit,
) -> Option<String> {
    let topic = shared.settings.topics.of(Source::Orders);
    let ask = tokio::task::spawn_blocking(move || {
        let answer = shared.dead_letters.ping(&topic, deadline);
        drop(turn);
        answer
    });
    match ask.await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

async fn stats_answer(State(view): State<Arc<View>>) -> Json<StatsAnswer> {
    let stats = &view.shared.stats;
    let latency = stats.batch_latency_us();
    let (in_flight_bytes, in_flight_bytes_peak) = stats.in_flight_bytes();
    let pool = |waits: PoolWaits| PoolAnswer {
        shard: waits.shard,
        connections: waits.connections,
        waited: waits.waited,
        timed_out: waits.timed_out,
        wait_ms: waits.wait.as_millis(),
    };
    Json(StatsAnswer {
        counts: stats.counts(),
        batch_p50_us: latency.value_at_quantile(0.5),
        batch_p99_us: latency.value_at_quantile(0.99),
        relay: view.relay.as_ref().map(|relay| relay.counts()),
        in_flight_bytes,
        in_flight_bytes_peak,
        assignment: stats.assignment(),
        pools: view
            .shared
            .store
            .pool_waits()
            .into_iter()
            .map(pool)
            .collect(),
    })
}

async fn hot_answer(State(view): State<Arc<View>>) -> Json<HotAnswer> {
    let keys = view.shared.stats.hot();
    let routes = view.shared.store.routes();
    let snapshot = view.shared.settings.map.snapshot();
    let map = snapshot.document.map();
    let slot = |(slot, events): &(Slot, u64)| HotSlot {
        slot: slot.number(),
        events: *events,
        partition: map.partition_of(*slot),
        shards: shards_of(&routes, *slot),
    };
    let user = |(user, events): &(Uuid, u64)| HotUser {
        user: *user,
        events: *events,
        slot: map.hash().token(&RouteKey::Uuid(*user)).slot().number(),
        shard: routes.target_of(*user).map(|target| target.shard()),
    };
    Json(HotAnswer {
        total: keys.total,
        skew: keys.skew,
        users_error_max: keys.users_error_max,
        slots: keys.slots.iter().map(slot).collect(),
        users: keys.users.iter().map(user).collect(),
    })
}

pub(crate) fn shards_of(routes: &Routes, slot: Slot) -> Vec<ShardId> {
    if let Some(catalog) = routes.catalog() {
        return vec![catalog.map.shard_of(slot)];
    }
    let Some(map) = routes.shard_map() else {
        return routes.targets().map(|target| target.shard()).collect();
    };
    let shards = map.shards().iter();
    shards
        .filter(|shard| shard.range.overlaps(&slot.key_range()))
        .map(|shard| shard.shard)
        .collect()
}
