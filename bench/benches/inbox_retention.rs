//! How old inbox rows go: which way costs inserts, WAL and space least. Answers which of them `shardlane-sql` uses; see
//! docs/decisions/0010.
//!
//! Seven days of rows; then some days on which a day's rows are inserted and the oldest day's go, with a vacuum after
//! each. Not criterion: one pass has many figures, and bytes do not scatter.
//!
//! `cargo bench -p shardlane-bench --bench inbox_retention [-- --rows N]`, N rows a day

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use shardlane_local::{Postgres, PostgresOptions};
use tokio_postgres::{Client, NoTls};

const DAYS_KEPT: i64 = 7;
const DAYS_RUN: i64 = 5;
/// Rows of a batch of inserts, and of a batch of removals where the way has one.
const INSERT_ROWS: i64 = 500;
const REMOVE_ROWS: i64 = 4_500;
/// Pages of a window; holds about as many rows.
const WINDOW_PAGES: i64 = 64;

#[derive(Debug, Clone, Copy)]
enum Way {
    /// Windows of pages, no index: what the worker does.
    Pages,
    /// An index on the time, oldest first.
    Btree,
    /// A block-range index on the time.
    Brin,
    /// In the order of the key, as the primary key has it.
    Key,
    /// Two tables: one takes the inserts, both are asked, the older one is truncated.
    Generations,
}

impl Way {
    const ALL: [Way; 5] = [
        Way::Pages,
        Way::Btree,
        Way::Brin,
        Way::Key,
        Way::Generations,
    ];

    const fn name(self) -> &'static str {
        match self {
            Way::Pages => "windows of pages",
            Way::Btree => "btree (received_at)",
            Way::Brin => "brin (received_at)",
            Way::Key => "key order",
            Way::Generations => "two generations",
        }
    }

    /// What is set up beside the inbox.
    const fn set_up(self) -> &'static str {
        match self {
            Way::Pages | Way::Key => "",
            Way::Btree => "create index inbox_received on inbox (received_at)",
            Way::Brin => {
                "create index inbox_received on inbox using brin (received_at) \
                 with (pages_per_range = 16, autosummarize = on)"
            }
            Way::Generations => "create table older (like inbox including all)",
        }
    }

    /// A batch of `$1` rows of day `$2`, from row `$3` on. Random users, as in the real one.
    const fn insert(self) -> &'static str {
        match self {
            Way::Generations => {
                "insert into inbox select * from (select md5(($2::bigint * 1000000000 + g)::text)::uuid as user_id, \
                 'orders' as source, 'evt-' || g as event_id, gen_random_uuid(), timestamptz '2026-01-01' + $2::bigint * interval '1 day' \
                 + g * interval '1 ms' from generate_series($3::bigint, $3::bigint + $1::bigint - 1) g) n \
                 where not exists (select 1 from older o where (o.user_id, o.source, o.event_id) \
                 = (n.user_id, n.source, n.event_id)) on conflict do nothing"
            }
            Way::Pages | Way::Btree | Way::Brin | Way::Key => {
                "insert into inbox select md5(($2::bigint * 1000000000 + g)::text)::uuid, 'orders', 'evt-' || g, \
                 gen_random_uuid(), timestamptz '2026-01-01' + $2::bigint * interval '1 day' + g * interval '1 ms' \
                 from generate_series($3::bigint, $3::bigint + $1::bigint - 1) g on conflict do nothing"
            }
        }
    }
}

/// What one way came to.
struct Figures {
    insert_rows_s: f64,
    insert_wal: f64,
    remove_rows_s: f64,
    remove_wal: f64,
    beside_rows_s: f64,
    beside_ms_max: f64,
    bytes_before: i64,
    bytes_after: i64,
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|it| it != "--bench")
        .collect();
    let rows = match &arguments[..] {
        [] => 60_000,
        [name, rows] if name == "--rows" => rows.parse().context("--rows")?,
        other => bail!("unknown arguments {other:?}; expected --rows N"),
    };
    runtime.block_on(run(rows))
}

async fn run(rows: i64) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header([
        "way",
        "insert rows/s",
        "WAL B/row",
        "remove rows/s",
        "WAL B/row with vacuum",
        "inserts beside, rows/s",
        "slowest batch beside, ms",
        "MB before",
        "MB after",
    ]);
    for way in Way::ALL {
        let figures = measure(way, rows).await?;
        let megabytes = |bytes: i64| format!("{:.1}", bytes as f64 / 1e6);
        table.add_row([
            way.name().to_owned(),
            format!("{:.0}", figures.insert_rows_s),
            format!("{:.0}", figures.insert_wal),
            format!("{:.0}", figures.remove_rows_s),
            format!("{:.0}", figures.remove_wal),
            format!("{:.0}", figures.beside_rows_s),
            format!("{:.0}", figures.beside_ms_max),
            megabytes(figures.bytes_before),
            megabytes(figures.bytes_after),
        ]);
        // Each way takes a while; what is measured is shown.
        println!("{rows} rows a day, {DAYS_KEPT} days kept, {DAYS_RUN} days run");
        println!("{table}");
    }
    Ok(())
}

async fn measure(way: Way, rows: i64) -> anyhow::Result<Figures> {
    let settings = [
        // Vacuum and checkpoints come when we say so: a figure must not depend on whose turn it was.
        ("autovacuum", "off"),
        ("checkpoint_timeout", "1h"),
        ("max_wal_size", "20GB"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec();
    let server = Postgres::start(PostgresOptions {
        settings,
        ..PostgresOptions::default()
    })
    .await?;
    let client = connect(&server).await?;
    client
        .batch_execute(
            "create table inbox (user_id uuid not null, source text not null, event_id text not null, \
             payload_hash uuid not null, received_at timestamptz not null, primary key (user_id, source, event_id))",
        )
        .await?;
    client.batch_execute(way.set_up()).await?;
    for day in 0..DAYS_KEPT {
        insert_day(&client, way, day, rows).await?;
        if day == DAYS_KEPT / 2 {
            rotate_if(&client, way).await?;
        }
    }
    client.batch_execute("vacuum analyze").await?;
    let bytes_before = bytes(&client).await?;

    let (mut inserting, mut insert_wal) = (Duration::ZERO, 0);
    let (mut removing, mut remove_wal, mut removed) = (Duration::ZERO, 0, 0);
    for day in DAYS_KEPT..DAYS_KEPT + DAYS_RUN {
        let (began, lsn) = (Instant::now(), wal(&client).await?);
        insert_day(&client, way, day, rows).await?;
        inserting += began.elapsed();
        insert_wal += wal(&client).await? - lsn;
        let (began, lsn) = (Instant::now(), wal(&client).await?);
        removed += remove(&client, way, day - DAYS_KEPT + 1).await?;
        removing += began.elapsed();
        client.batch_execute("vacuum").await?;
        remove_wal += wal(&client).await? - lsn;
    }
    let bytes_after = bytes(&client).await?;

    // One more day, removed while somebody inserts the next one.
    let day = DAYS_KEPT + DAYS_RUN;
    insert_day(&client, way, day, rows).await?;
    let writer = connect(&server).await?;
    let statement = writer.prepare(way.insert()).await?;
    let removal = async {
        let done = remove(&client, way, day - DAYS_KEPT + 1).await;
        (done, Instant::now())
    };
    let began = Instant::now();
    let mut removal = std::pin::pin!(removal);
    let (mut batches, mut slowest) = (0, Duration::ZERO);
    let ended = loop {
        let batch = Instant::now();
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
            [&INSERT_ROWS, &(day + 1), &(batches * INSERT_ROWS)];
        let mut insert = std::pin::pin!(writer.execute(&statement, &params));
        let ended = tokio::select! {
            inserted = &mut insert => { inserted?; None }
            (done, at) = &mut removal => { done?; insert.await?; Some(at) }
        };
        batches += 1;
        slowest = slowest.max(batch.elapsed());
        if let Some(at) = ended {
            break at;
        }
    };
    let beside = ended.duration_since(began).as_secs_f64();
    let total = (DAYS_RUN * rows) as f64;
    server.stop().await?;
    Ok(Figures {
        insert_rows_s: total / inserting.as_secs_f64(),
        insert_wal: insert_wal as f64 / total,
        remove_rows_s: removed as f64 / removing.as_secs_f64(),
        remove_wal: remove_wal as f64 / removed.max(1) as f64,
        beside_rows_s: (batches * INSERT_ROWS) as f64 / beside,
        beside_ms_max: slowest.as_secs_f64() * 1e3,
        bytes_before,
        bytes_after,
    })
}

async fn connect(server: &Postgres) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(&server.url("postgres"), NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn insert_day(client: &Client, way: Way, day: i64, rows: i64) -> anyhow::Result<()> {
    let statement = client.prepare(way.insert()).await?;
    for first in (0..rows).step_by(usize::try_from(INSERT_ROWS)?) {
        client
            .execute(&statement, &[&INSERT_ROWS, &day, &first])
            .await?;
    }
    Ok(())
}

/// The younger table becomes the older one. Nothing but the older one is lost, and for a moment nobody may write.
async fn rotate_if(client: &Client, way: Way) -> anyhow::Result<()> {
    if matches!(way, Way::Generations) {
        client
            .batch_execute(
                "begin; lock table inbox, older in access exclusive mode; truncate older; \
                 alter table older rename to spare; alter table inbox rename to older; \
                 alter table spare rename to inbox; commit",
            )
            .await?;
    }
    Ok(())
}

/// Removes what is older than day `before`. Returns how many rows went.
async fn remove(client: &Client, way: Way, before: i64) -> anyhow::Result<i64> {
    let mut removed = 0;
    let cutoff = format!("timestamptz '2026-01-01' + {before} * interval '1 day'");
    match way {
        Way::Pages => {
            let pages: i64 = client
                .query_one("select pg_relation_size('inbox') / 8192", &[])
                .await?
                .get(0);
            let statement = client
                .prepare(
                    &include_str!("../../sql/src/statements/retain_inbox.sql")
                        .replace("$3", &cutoff),
                )
                .await?;
            for page in (0..pages).step_by(usize::try_from(WINDOW_PAGES)?) {
                let (from, to) = (
                    format!("({page},0)"),
                    format!("({},0)", page + WINDOW_PAGES),
                );
                removed += i64::try_from(client.execute(&statement, &[&from, &to]).await?)?;
            }
        }
        Way::Btree | Way::Brin => {
            let order = if matches!(way, Way::Btree) {
                "order by received_at"
            } else {
                ""
            };
            let statement = client
                .prepare(&format!(
                    "delete from inbox where ctid = any(array(select ctid from inbox where received_at < {cutoff} \
                     {order} limit {REMOVE_ROWS} for update skip locked))"
                ))
                .await?;
            loop {
                let rows = i64::try_from(client.execute(&statement, &[]).await?)?;
                removed += rows;
                if rows < REMOVE_ROWS {
                    break;
                }
            }
        }
        Way::Key => {
            let statement = client
                .prepare(&format!(
                    "with w as materialized (select ctid as place, * from inbox \
                       where (user_id, source, event_id) > ($1::uuid, $2::text, $3::text) \
                       order by user_id, source, event_id limit {REMOVE_ROWS}), \
                     gone as (delete from inbox where ctid = any(array(select place from w \
                       where received_at < {cutoff})) returning 1) \
                     select user_id, source, event_id, (select count(*) from gone) from w \
                     order by user_id desc, source desc, event_id desc limit 1"
                ))
                .await?;
            let (mut user, mut source, mut event) =
                (uuid::Uuid::nil(), String::new(), String::new());
            while let Some(row) = client
                .query_opt(&statement, &[&user, &source, &event])
                .await?
            {
                (user, source, event) = (row.get(0), row.get(1), row.get(2));
                removed += row.get::<_, i64>(3);
            }
        }
        Way::Generations => {
            // Rows live for one to two generations, so one rotates when its youngest row is old enough.
            let ask = format!(
                "select count(*), coalesce(bool_and(received_at < {cutoff}), false) from older"
            );
            let row = client.query_one(&ask, &[]).await?;
            if row.get(1) {
                removed = row.get(0);
                rotate_if(client, way).await?;
            }
        }
    }
    Ok(removed)
}

async fn wal(client: &Client) -> anyhow::Result<i64> {
    let query = "select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint";
    Ok(client.query_one(query, &[]).await?.get(0))
}

async fn bytes(client: &Client) -> anyhow::Result<i64> {
    let query = "select sum(pg_total_relation_size(oid))::bigint from pg_class where relname in ('inbox', 'older')";
    Ok(client.query_one(query, &[]).await?.get(0))
}
