//! A Citus cluster as a client sees it: who holds which range of the hash, while that changes.
//!
//! [`Watch`] keeps a [`ShardMap`] true while shards move and split and nodes come and go. A caller sends a statement
//! **on the logical table** to the node that owns the user. If the map is stale, that node forwards the statement:
//! a hint that costs a hop, never an error.
//!
//! ```no_run
//! use shardlane_citus::{Watch, WatchOptions, node_config};
//! use shardlane_router::RouteKey;
//! use tokio_postgres::{Config, NoTls};
//! use uuid::Uuid;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let coordinator: Config = "postgres://app@coordinator:5432/shop".parse()?;
//! let watch = Watch::start(coordinator.clone(), &["orders"], WatchOptions::default()).await?;
//!
//! let user = Uuid::from_u128(42);
//! let map = watch.current();
//! let owner = &map.nodes()[map.route(&RouteKey::Uuid(user)).node];
//!
//! // A real writer keeps a pool a node and follows `watch.subscribe()`: see `examples/writer.rs`.
//! let (client, connection) = node_config(&coordinator, owner).connect(NoTls).await?;
//! tokio::spawn(connection);
//! let written = client
//!     .execute("insert into orders (user_id) values ($1) on conflict do nothing", &[&user])
//!     .await;
//! if let Err(error) = &written
//!     && shardlane_citus::is_placement_error(error)
//! {
//!     watch.refresh().await?; // then route anew, and repeat the transaction
//! }
//! # Ok(())
//! # }
//! ```
//!
//! - [`load`]: the map once, with no task behind it.
//! - [`watch`]: the map kept true, each change told as a [`MapDiff`].
//! - [`operate`]: what an operator does: move, split, isolate, rebalance, change a node's address.
//!
//! # Invariants
//!
//! - This crate never names a physical shard table (`inbox_102008`): after a move, a row written there is lost.
//! - It never routes without the self-test, and never guesses: what it does not understand is a [`CitusError`].
//! - A map that cannot be used never replaces one that can, and an epoch never goes back.
//! - Readers of the map neither lock nor wait, whatever the cluster does.
//!
//! Absent: pools, retries of a caller's statements, and how to choose between two placements of one shard.
//!
//! Source of the mapping: Citus's `pg_dist_partition`, `pg_dist_shard`, `pg_dist_placement` and `pg_dist_node`,
//! as its documentation describes them.

mod diff;
mod error;
mod load;
mod node;
pub mod operate;
mod placement_error;
pub mod watch;

pub use diff::{MapChange, MapDiff};
pub use error::CitusError;
pub use load::{load, self_test};
pub use node::node_config;
pub use placement_error::is_placement_error;
#[doc(no_inline)]
pub use shardlane_router::ShardMap;
pub use watch::{Watch, WatchOptions, WatchStats};

/// The README's example, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
