//! How rows get into a table fastest, on plain Postgres and through the owning node of a Citus cluster:
//! `unnest` of arrays, binary COPY into a temporary table and INSERT ... SELECT from there, and binary COPY straight
//! into the table. Answers which of them `shardlane-sql` uses; see docs/decisions.
//!
//! `cargo bench -p shardlane-bench --bench bulk_insert`

use std::pin::pin;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use jiff::Timestamp;
use shardlane_local::Durability;
use shardlane_router::{Epoch, KeyRange, RouteKey, ShardId, SlotMap, TokenHash};
use shardlane_sql::servers::LayoutServers;
use shardlane_sql::{Layout, TABLES};
use tokio::runtime::Runtime;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::{Json, ToSql, Type};
use tokio_postgres::{Client, NoTls, Statement};
use uuid::Uuid;

const ROWS: usize = 2_000;
const CITUS_SHARDS: u32 = 8;

#[derive(Clone, Copy)]
enum Table {
    /// Append-only, with a payload; no conflict can happen.
    Events,
    /// Narrow, ON CONFLICT DO NOTHING RETURNING.
    Inbox,
}

#[derive(Clone, Copy, PartialEq)]
enum Method {
    Unnest,
    CopyTemporary,
    CopyDirect,
}

impl Table {
    const fn name(self) -> &'static str {
        match self {
            Table::Events => "order_events",
            Table::Inbox => "inbox",
        }
    }

    const fn columns(self) -> &'static str {
        match self {
            Table::Events => {
                "user_id, order_id, event_id, status, outcome, version, occurred_at, received_at, payload"
            }
            Table::Inbox => "user_id, source, event_id, payload_hash, received_at",
        }
    }

    const fn types(self) -> &'static [Type] {
        match self {
            Table::Events => &[
                Type::UUID,
                Type::TEXT,
                Type::TEXT,
                Type::TEXT,
                Type::TEXT,
                Type::INT8,
                Type::TIMESTAMPTZ,
                Type::TIMESTAMPTZ,
                Type::JSON,
            ],
            Table::Inbox => &[
                Type::UUID,
                Type::TEXT,
                Type::TEXT,
                Type::UUID,
                Type::TIMESTAMPTZ,
            ],
        }
    }

    /// The statement that takes arrays, as `shardlane-sql` has it.
    fn unnest(self) -> String {
        let arrays: Vec<String> = self
            .types()
            .iter()
            .enumerate()
            .map(|(index, ty)| format!("${}::{}[]", index + 1, ty.name()))
            .collect();
        format!(
            "insert into {} ({}) select * from unnest({}) {}",
            self.name(),
            self.columns(),
            arrays.join(", "),
            self.conflict()
        )
    }

    const fn conflict(self) -> &'static str {
        match self {
            Table::Events => "",
            Table::Inbox => "on conflict do nothing returning user_id, source, event_id",
        }
    }
}

/// A batch as columns; each call has ids of its own.
struct Rows {
    users: Vec<Uuid>,
    orders: Vec<String>,
    events: Vec<String>,
    words: Vec<&'static str>,
    versions: Vec<i64>,
    times: Vec<Timestamp>,
    payloads: Vec<Json<serde_json::Value>>,
}

impl Rows {
    fn new(users: &[Uuid], batch: usize) -> Rows {
        let users: Vec<Uuid> = (0..ROWS).map(|row| users[row % users.len()]).collect();
        let payload = serde_json::json!({"provider_event_id": "evt", "note": "x".repeat(220)});
        Rows {
            orders: (0..ROWS)
                .map(|row| format!("ord-{batch:x}-{row:x}"))
                .collect(),
            events: (0..ROWS)
                .map(|row| format!("evt-{batch:x}-{row:x}"))
                .collect(),
            words: vec!["applied"; ROWS],
            versions: vec![1; ROWS],
            times: vec![Timestamp::UNIX_EPOCH; ROWS],
            payloads: (0..ROWS).map(|_| Json(payload.clone())).collect(),
            users,
        }
    }

    fn arrays(&self, table: Table) -> Vec<&(dyn ToSql + Sync)> {
        match table {
            Table::Events => vec![
                &self.users,
                &self.orders,
                &self.events,
                &self.words,
                &self.words,
                &self.versions,
                &self.times,
                &self.times,
                &self.payloads,
            ],
            Table::Inbox => vec![
                &self.users,
                &self.words,
                &self.events,
                &self.users,
                &self.times,
            ],
        }
    }

    fn row(&self, table: Table, row: usize) -> Vec<&(dyn ToSql + Sync)> {
        match table {
            Table::Events => vec![
                &self.users[row],
                &self.orders[row],
                &self.events[row],
                &self.words[row],
                &self.words[row],
                &self.versions[row],
                &self.times[row],
                &self.times[row],
                &self.payloads[row],
            ],
            Table::Inbox => vec![
                &self.users[row],
                &self.words[row],
                &self.events[row],
                &self.users[row],
                &self.times[row],
            ],
        }
    }
}

struct Bench {
    client: Client,
    unnest: Statement,
    drain: Option<Statement>,
    table: Table,
    method: Method,
}

impl Bench {
    async fn new(url: &str, table: Table, method: Method) -> Bench {
        let client = connect(url).await;
        let (name, columns) = (table.name(), table.columns());
        client
            .batch_execute(&format!("truncate {name}"))
            .await
            .expect("the table exists");
        let unnest = client
            .prepare(&table.unnest())
            .await
            .expect("the statement is valid");
        let mut drain = None;
        if method == Method::CopyTemporary {
            client
                .batch_execute(&format!(
                    "create temporary table staging as select {columns} from {name} with no data"
                ))
                .await
                .expect("a temporary table can be made");
            let text = format!(
                "insert into {name} ({columns}) select {columns} from staging {}",
                table.conflict()
            );
            drain = Some(client.prepare(&text).await.expect("the statement is valid"));
        }
        Bench {
            client,
            unnest,
            drain,
            table,
            method,
        }
    }

    async fn insert(&self, rows: &Rows) {
        let client = &self.client;
        client.batch_execute("begin").await.expect("begin");
        match (self.method, &self.drain) {
            (Method::Unnest, _) => {
                client
                    .query(&self.unnest, &rows.arrays(self.table))
                    .await
                    .expect("unnest");
            }
            (Method::CopyDirect, _) => self.copy(self.table.name(), rows).await,
            (Method::CopyTemporary, Some(drain)) => {
                self.copy("staging", rows).await;
                client
                    .query(drain, &[])
                    .await
                    .expect("insert from the staging table");
                client
                    .batch_execute("truncate staging")
                    .await
                    .expect("truncate");
            }
            (Method::CopyTemporary, None) => unreachable!("prepared with the method"),
        }
        client.batch_execute("commit").await.expect("commit");
    }

    async fn copy(&self, into: &str, rows: &Rows) {
        let text = format!(
            "copy {into} ({}) from stdin with (format binary)",
            self.table.columns()
        );
        let sink = self.client.copy_in(&text).await.expect("copy begins");
        let mut writer = pin!(BinaryCopyInWriter::new(sink, self.table.types()));
        for row in 0..ROWS {
            writer
                .as_mut()
                .write(&rows.row(self.table, row))
                .await
                .expect("a row is sent");
        }
        writer.finish().await.expect("copy ends");
    }
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .expect("the server answers");
    tokio::spawn(connection);
    client
}

/// Where a batch is sent, and users who live there.
async fn places(
    single: &LayoutServers,
    citus: Option<&LayoutServers>,
) -> Vec<(&'static str, String, Vec<Uuid>)> {
    let map = SlotMap::aligned(Epoch(1), TokenHash::Postgres, 8, &[ShardId(0)]).expect("a map");
    let plain = single
        .create("bulk", &map, CITUS_SHARDS)
        .await
        .expect("the schema is set up");
    let mut places = vec![(
        "postgres",
        plain.urls()[0].clone(),
        users_in(&KeyRange::FULL),
    )];
    if let Some(servers) = citus {
        let database = servers
            .create("bulk", &map, CITUS_SHARDS)
            .await
            .expect("the schema is set up");
        let coordinator = connect(&database.urls()[0]).await;
        let map = shardlane_citus::load(&coordinator, &TABLES, Epoch(1))
            .await
            .expect("a map");
        let shard = &map.shards()[0];
        let node = map.node_of(shard);
        let url = format!("postgres://shardlane@{}:{}/bulk", node.host, node.port);
        places.push(("citus owner", url, users_in(&shard.range)));
    }
    places
}

fn users_in(range: &KeyRange) -> Vec<Uuid> {
    (0_u128..)
        .map(|n| Uuid::from_u128(n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)))
        .filter(|user| range.contains(TokenHash::Postgres.token(&RouteKey::Uuid(*user))))
        .take(500)
        .collect()
}

fn bulk_insert(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let start = |layout| {
        if let Err(missing) = LayoutServers::available(layout) {
            eprintln!("skipped {layout}: {missing}");
            return None;
        }
        Some(
            runtime
                .block_on(LayoutServers::start(layout, Durability::Durable, 1, &[]))
                .expect("it starts"),
        )
    };
    let Some(single) = start(Layout::Single) else {
        return;
    };
    let citus = start(Layout::Citus);
    let places = runtime.block_on(places(&single, citus.as_ref()));
    let mut batch = 0;
    for table in [Table::Events, Table::Inbox] {
        let mut group = criterion.benchmark_group(table.name());
        group
            .throughput(Throughput::Elements(ROWS as u64))
            .sample_size(10)
            .warm_up_time(Duration::from_secs(1))
            .measurement_time(Duration::from_secs(4));
        for (place, url, users) in &places {
            for (name, method) in [
                ("unnest", Method::Unnest),
                ("copy to temporary", Method::CopyTemporary),
                ("copy direct", Method::CopyDirect),
            ] {
                let bench = runtime.block_on(Bench::new(url, table, method));
                group.bench_function(format!("{place}/{name}"), |bencher| {
                    bencher.iter_custom(|iterations| {
                        let mut took = Duration::ZERO;
                        for _ in 0..iterations {
                            batch += 1;
                            let rows = Rows::new(users, batch);
                            let started = Instant::now();
                            runtime.block_on(bench.insert(&rows));
                            took += started.elapsed();
                        }
                        took
                    });
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, bulk_insert);
criterion_main!(benches);
