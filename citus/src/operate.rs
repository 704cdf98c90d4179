//! What an operator does to a cluster: move, split, isolate, rebalance, add a node, change a node's address.
//!
//! ```no_run
//! # async fn example(client: tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use shardlane_citus::operate::{Coordinator, Transfer};
//!
//! let coordinator = Coordinator::of(&client).await?;
//! let node = coordinator.add_node("worker-3", 5432).await?;
//! coordinator
//!     .rebalance(Transfer::Online, |progress| println!("{progress}"))
//!     .await?;
//! let hot_user = uuid::Uuid::from_u128(42);
//! coordinator.isolate_tenant("orders", hot_user, &node, Transfer::Online).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Each operation takes the whole colocation group along, and can be repeated: what is already so is left so.
//! A [`Watch`](crate::Watch) sees the change by itself.

mod error;
mod rebalance;

use std::time::{Duration, Instant};

use shardlane_router::{KeyRange, Node, RouteKey, ShardId, Token, TokenHash};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

pub use self::error::OperateError;
pub use self::rebalance::RebalanceProgress;

/// How long an operation may take unless [`Coordinator::with_time_max`] says otherwise.
const TIME_MAX: Duration = Duration::from_secs(600);

/// How often it is asked whether something has happened.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// What writers notice of a shard's way to another place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// By logical replication: writes wait for the last moment only. Needs `wal_level = logical` and a primary key; to
    /// split, also `citus` in `output_plugin_libraries` where Postgres has that setting.
    Online,
    /// Writes to the shard wait for as long as it takes to copy it.
    BlockWrites,
}

impl Transfer {
    fn mode(self) -> &'static str {
        match self {
            Transfer::Online => "force_logical",
            Transfer::BlockWrites => "block_writes",
        }
    }
}

/// A client of the coordinator that may change the cluster. It sets `statement_timeout` while it works, so lend it a
/// connection of its own.
#[derive(Clone, Copy)]
pub struct Coordinator<'a> {
    client: &'a Client,
    time_max: Duration,
}

impl<'a> Coordinator<'a> {
    /// Makes sure that `client` is connected to the coordinator.
    ///
    /// # Errors
    /// [`OperateError::NotCoordinator`]: a worker would do some of these things to its own metadata alone.
    pub async fn of(client: &'a Client) -> Result<Coordinator<'a>, OperateError> {
        let row = client
            .query_one("select groupid from pg_dist_local_group", &[])
            .await
            .map_err(OperateError::server("find the coordinator"))?;
        if row.get::<_, i32>(0) != 0 {
            return Err(OperateError::NotCoordinator);
        }
        Ok(Coordinator {
            client,
            time_max: TIME_MAX,
        })
    }

    /// Limits how long one operation may take; 10 minutes otherwise. It is undone when the time is over.
    #[must_use]
    pub fn with_time_max(self, time_max: Duration) -> Coordinator<'a> {
        Coordinator { time_max, ..self }
    }

    /// Moves a shard, and those that are colocated with it, to another node.
    ///
    /// # Errors
    /// [`OperateError`]; nothing has moved then.
    pub async fn move_shard(
        &self,
        shard: ShardId,
        to: &Node,
        transfer: Transfer,
    ) -> Result<(), OperateError> {
        let from = self.placement(shard).await?.node;
        if from.group == to.group {
            return Ok(());
        }
        self.run(
            "move a shard",
            "select citus_move_shard_placement($1, $2, $3, $4, $5, $6::text::citus.shard_transfer_mode)",
            &[
                &shard.0, &from.host, &i32::from(from.port), &to.host, &i32::from(to.port),
                &transfer.mode(),
            ],
        )
        .await
        .map(drop)
    }

    /// Cuts a shard, and those that are colocated with it, after each of `points`; the pieces go to `nodes`, one more
    /// than there are points. A slot's border is `slot.key_range().last()`. Gives the new shards in order.
    ///
    /// Online, each piece must go to another node than the shard's own: with Citus 13 a piece that stays never
    /// catches up once a row is updated (citus issue 6790), and the split would hang until its time is over.
    ///
    /// # Errors
    /// [`OperateError`]; the shard is as it was.
    pub async fn split_shard(
        &self,
        shard: ShardId,
        points: &[Token],
        nodes: &[&Node],
        transfer: Transfer,
    ) -> Result<Vec<ShardId>, OperateError> {
        let whole = self.placement(shard).await?;
        whole.range.split_after(points)?;
        if nodes.len() != points.len() + 1 {
            return Err(OperateError::PieceCount {
                pieces: points.len() + 1,
                nodes: nodes.len(),
            });
        }
        if transfer == Transfer::Online && nodes.iter().any(|it| it.group == whole.node.group) {
            return Err(OperateError::PieceStays(whole.node));
        }
        let mut node_ids = Vec::with_capacity(nodes.len());
        for node in nodes {
            node_ids.push(self.node_id(node).await?);
        }
        let points: Vec<String> = points.iter().map(|it| it.hash_i32().to_string()).collect();
        self.run(
            "split a shard",
            "select citus_split_shard_by_split_points($1, $2, $3, $4::text::citus.shard_transfer_mode)",
            &[&shard.0, &points, &node_ids, &transfer.mode()],
        )
        .await?;
        self.shards_within(&whole).await
    }

    /// Gives a tenant's hash value a shard of its own on `to`, and tells that shard. Another tenant with the same hash,
    /// one in 2^32, comes along.
    ///
    /// Online, the rest of the old shard goes to `to` as well (see [`Coordinator::split_shard`]); move it back
    /// afterwards. While writes are blocked, the rest stays where it is.
    ///
    /// # Errors
    /// [`OperateError`]; the shard is as it was, or isolated already if only the last move failed.
    pub async fn isolate_tenant(
        &self,
        table: &str,
        tenant: Uuid,
        to: &Node,
        transfer: Transfer,
    ) -> Result<ShardId, OperateError> {
        let token = TokenHash::Postgres.token(&RouteKey::Uuid(tenant));
        let rows = self
            .ask(
                "find the tenant's shard",
                "select get_shard_id_for_distribution_column($1::text::regclass, $2::uuid)",
                &[&table, &tenant],
            )
            .await?;
        let shard = ShardId(rows.first().map(|row| row.get(0)).unwrap_or_default());
        let placement = self.placement(shard).await?;
        let (first, last) = (placement.range.first(), placement.range.last());
        if !placement.range.contains(token) {
            return Err(OperateError::NotUuid(table.to_owned()));
        }
        if first == last {
            self.move_shard(shard, to, transfer).await?;
            return Ok(shard);
        }
        let rest = match transfer {
            Transfer::Online => to,
            Transfer::BlockWrites => &placement.node,
        };
        let (mut points, mut nodes) = (Vec::new(), Vec::new());
        if first < token {
            points.push(Token::new(token.value() - 1));
            nodes.push(rest);
        }
        let piece = nodes.len();
        nodes.push(to);
        if token < last {
            points.push(token);
            nodes.push(rest);
        }
        if transfer == Transfer::Online && to.group == placement.node.group {
            return Err(OperateError::PieceStays(placement.node));
        }
        let shards = self.split_shard(shard, &points, &nodes, transfer).await?;
        shards
            .get(piece)
            .copied()
            .ok_or(OperateError::NoShard(shard))
    }

    /// Adds a node, or finds it if it is one already, and waits until all nodes know it. It holds no shard yet.
    ///
    /// # Errors
    /// [`OperateError`].
    pub async fn add_node(&self, host: &str, port: u16) -> Result<Node, OperateError> {
        let what = "add a node";
        let port_number = i32::from(port);
        self.run(
            what,
            "select citus_add_node($1, $2)",
            &[&host, &port_number],
        )
        .await?;
        self.wait_until_synced().await?;
        let found = "select groupid from pg_dist_node where nodename = $1 and nodeport = $2";
        let rows = self.ask(what, found, &[&host, &port_number]).await?;
        let row = rows.first().ok_or(OperateError::MetadataBehind)?;
        Ok(Node {
            group: row.get(0),
            host: host.to_owned(),
            port,
        })
    }

    /// Says that a node is reached at another address now, and waits until all nodes know it. The server must be there:
    /// the other nodes connect to it. Transactions that are open on the node are waited for.
    ///
    /// # Errors
    /// [`OperateError`].
    pub async fn change_address(
        &self,
        node: &Node,
        host: &str,
        port: u16,
    ) -> Result<Node, OperateError> {
        let id = self.node_id(node).await?;
        self.run(
            "change a node's address",
            "select citus_update_node($1, $2, $3)",
            &[&id, &host, &i32::from(port)],
        )
        .await?;
        self.wait_until_synced().await?;
        Ok(Node {
            group: node.group,
            host: host.to_owned(),
            port,
        })
    }

    /// Citus tells the nodes of a change in the background; until then they refuse DDL and tell old addresses.
    async fn wait_until_synced(&self) -> Result<(), OperateError> {
        let deadline = Instant::now() + self.time_max;
        let behind =
            "select from pg_dist_node where isactive and not (hasmetadata and metadatasynced)";
        while !self
            .ask("see whether the nodes know", behind, &[])
            .await?
            .is_empty()
        {
            if Instant::now() > deadline {
                return Err(OperateError::MetadataBehind);
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        Ok(())
    }

    async fn node_id(&self, node: &Node) -> Result<i32, OperateError> {
        let sql = "select nodeid from pg_dist_node where groupid = $1 and noderole = 'primary'";
        let rows = self.ask("find a node", sql, &[&node.group]).await?;
        let row = rows.first();
        row.map(|row| row.get(0))
            .ok_or_else(|| OperateError::NoNode(node.clone()))
    }

    async fn placement(&self, shard: ShardId) -> Result<Placement, OperateError> {
        let sql = include_str!("sql/placement.sql");
        let rows = self.ask("find a shard", sql, &[&shard.0]).await?;
        let row = rows.first().ok_or(OperateError::NoShard(shard))?;
        let port: i32 = row.get(5);
        Ok(Placement {
            table: row.get(0),
            range: KeyRange::from_hash_bounds(row.get(1), row.get(2))?,
            node: Node {
                group: row.get(3),
                host: row.get(4),
                port: u16::try_from(port).unwrap_or_default(),
            },
        })
    }

    async fn shards_within(&self, whole: &Placement) -> Result<Vec<ShardId>, OperateError> {
        let (first, last) = whole.range.hash_bounds();
        let sql = "select shardid from pg_dist_shard where logicalrelid = $1::oid
                   and shardminvalue::integer >= $2 and shardmaxvalue::integer <= $3
                   order by shardminvalue::integer";
        let rows = self
            .ask("find the pieces", sql, &[&whole.table, &first, &last])
            .await?;
        Ok(rows.iter().map(|row| ShardId(row.get(0))).collect())
    }

    /// A short question.
    async fn ask(
        &self,
        what: &'static str,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, OperateError> {
        let asked = self.client.query(sql, params).await;
        asked.map_err(OperateError::server(what))
    }

    /// A long operation, with its time; what it leaves behind when it fails is removed.
    async fn run(
        &self,
        what: &'static str,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, OperateError> {
        let limit = self
            .time_max
            .as_millis()
            .clamp(1, 2_147_483_647)
            .to_string();
        let set = "select set_config('statement_timeout', $1, false)";
        self.ask(what, set, &[&limit]).await?;
        let done = self.ask(what, sql, params).await;
        let reset = self.client.batch_execute("reset statement_timeout").await;
        if done.is_err() && !self.client.is_closed() {
            // Best effort: Citus's own maintenance does it later.
            let clean = "call citus_cleanup_orphaned_resources()";
            if let Err(error) = self.client.batch_execute(clean).await {
                tracing::debug!(%error, "what a failed operation left is not removed yet");
            }
        }
        let rows = done?;
        reset.map_err(OperateError::server(what))?;
        Ok(rows)
    }
}

/// Where a shard is.
struct Placement {
    /// The oid of its table.
    table: u32,
    range: KeyRange,
    node: Node,
}
