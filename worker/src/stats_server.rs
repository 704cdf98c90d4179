//! A worker's counters over HTTP: `/livez`, `/stats` and `/hot`. Off unless it is asked for; it has no credentials, so
//! only operators should reach it: `/hot` names users.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use shardlane_router::{PartitionId, RouteKey, ShardId, Slot, SlotMap};
use shardlane_sql::{Routes, Store};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::relay::{RelayCounts, RelayStats};
use crate::stats::{Counts, Stats};

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
}

#[derive(Serialize)]
struct Alive {
    status: &'static str,
}

/// What the answers are made of.
struct View {
    stats: Arc<Stats>,
    store: Arc<Store>,
    map: SlotMap,
    relay: Option<Arc<RelayStats>>,
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
    pub async fn run(
        self,
        stats: Arc<Stats>,
        store: Arc<Store>,
        map: SlotMap,
    ) -> Result<(), StatsServerError> {
        let relay = self.relay;
        let view = Arc::new(View {
            stats,
            store,
            map,
            relay,
        });
        let app = Router::new()
            .route("/livez", get(async || Json(Alive { status: "alive" })))
            .route("/stats", get(stats_answer))
            .route("/hot", get(hot_answer))
            .with_state(view);
        let address = self.address;
        let served = axum::serve(self.listener, app).await;
        served.map_err(|source| StatsServerError::Listen { address, source })
    }
}

async fn stats_answer(State(view): State<Arc<View>>) -> Json<StatsAnswer> {
    let latency = view.stats.batch_latency_us();
    Json(StatsAnswer {
        counts: view.stats.counts(),
        batch_p50_us: latency.value_at_quantile(0.5),
        batch_p99_us: latency.value_at_quantile(0.99),
        relay: view.relay.as_ref().map(|relay| relay.counts()),
    })
}

async fn hot_answer(State(view): State<Arc<View>>) -> Json<HotAnswer> {
    let keys = view.stats.hot();
    let routes = view.store.routes();
    let slot = |(slot, events): &(Slot, u64)| HotSlot {
        slot: slot.number(),
        events: *events,
        partition: view.map.partition_of(*slot),
        shards: shards_of(&routes, *slot),
    };
    let user = |(user, events): &(Uuid, u64)| HotUser {
        user: *user,
        events: *events,
        slot: view
            .map
            .hash()
            .token(&RouteKey::Uuid(*user))
            .slot()
            .number(),
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

fn shards_of(routes: &Routes, slot: Slot) -> Vec<ShardId> {
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
