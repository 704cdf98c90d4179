//! How applied events leave the database: a table that a relay empties, against `pg_logical_emit_message` and logical
//! decoding, against nothing at all. The writers are `shardlane-sql`'s own transactions; in the other two ways a rule
//! replaces what is inserted into `outbox`. docs/decisions/0009 says what was made of the figures.
//!
//! `cargo bench -p shardlane-bench --bench outbox`, some minutes; OUTBOX_EVENTS sets how many events a cell writes.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use procfs::process::Process;
use shardlane_domain::{Event, Source};
use shardlane_local::{Postgres, PostgresOptions, create_database};
use shardlane_sql::{Backend, Detail, Layout, OutboxSession, Record, Store, StoreOptions, migrate};
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

const WRITERS: usize = 2;
const BATCH: usize = 500;
const ROUNDS: usize = 3;
const RELAY_ROWS: u32 = 2_000;
const PREFIX: &str = "shardlane-outbox";

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Nothing,
    Table,
    Message,
}

/// Of one cell.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    /// Events a second while the writers wrote.
    rate: f64,
    /// CPU of the whole server an event, from the first write to the last event that left.
    server_us: f64,
    /// Of it the server process that serves the relay.
    relay_us: f64,
    /// Written an event.
    wal_bytes: f64,
    /// Events a second of a relay that begins when all are written.
    drain_rate: f64,
    /// What such a backlog holds an event: the table, or WAL that cannot be recycled.
    held_bytes: f64,
    /// The table when all have left.
    table_kib: f64,
    dead_rows: f64,
}

type Figure = fn(&Figures) -> f64;

#[tokio::main]
async fn main() {
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let events = std::env::var("OUTBOX_EVENTS").map_or(10_000, |text| text.parse().unwrap());
    let settings = [("wal_level", "logical"), ("autovacuum_naptime", "1s")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let options = PostgresOptions {
        settings: settings.to_vec(),
        ..PostgresOptions::default()
    };
    let server = Postgres::start(options).await.unwrap();
    let ways = [Way::Nothing, Way::Table, Way::Message];
    let mut all = vec![Vec::new(); ways.len()];
    // Interleaved, so that a machine that grows slower is unfair to nobody. The first round warms up.
    for round in 0..=ROUNDS {
        for (way, all) in ways.iter().zip(&mut all) {
            eprintln!("round {round} of {ROUNDS}: {way:?}");
            let mut figures = cell(&server, *way, true, events).await;
            let backlog = cell(&server, *way, false, events).await;
            (figures.drain_rate, figures.held_bytes) = (backlog.drain_rate, backlog.held_bytes);
            if round > 0 {
                all.push(figures);
            }
        }
    }
    print(&ways, &all, events);
}

fn print(ways: &[Way], all: &[Vec<Figures>], events: usize) {
    println!(
        "{events} events a cell, batches of {BATCH}, {WRITERS} writers; medians of {ROUNDS} rounds"
    );
    let columns: [(&str, Figure); 8] = [
        ("written events/s", |it| it.rate),
        ("server CPU us/event", |it| it.server_us),
        ("  of it relay's backend", |it| it.relay_us),
        ("WAL bytes/event", |it| it.wal_bytes),
        ("drained events/s", |it| it.drain_rate),
        ("held by a backlog, bytes/event", |it| it.held_bytes),
        ("outbox afterwards, KiB", |it| it.table_kib),
        ("dead rows afterwards", |it| it.dead_rows),
    ];
    print!("{:<32}", "");
    ways.iter()
        .for_each(|way| print!("{:>12}", format!("{way:?}")));
    println!("{:>16}", "Table/Message");
    for (name, get) in columns {
        print!("{name:<32}");
        let medians: Vec<f64> = all.iter().map(|figures| median(figures, get)).collect();
        medians.iter().for_each(|value| print!("{value:>12.1}"));
        println!("{:>16.2}", medians[1] / medians[2]);
    }
}

fn median(figures: &[Figures], get: Figure) -> f64 {
    let mut values: Vec<f64> = figures.iter().map(get).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One way in a database of its own, with a relay at work or with one that begins when all is written.
async fn cell(server: &Postgres, way: Way, live: bool, events: usize) -> Figures {
    let name = format!("outbox_{}", Uuid::now_v7().simple());
    create_database(&server.url("postgres"), &name)
        .await
        .unwrap();
    let url = server.url(&name);
    migrate(&url, Layout::Single, Detail::None).await.unwrap();
    let client = connect(&url).await;
    client.batch_execute(way.set_up()).await.unwrap();
    if way == Way::Message {
        let slot = "select pg_create_logical_replication_slot($1, 'pgoutput')";
        client.execute(slot, &[&name]).await.unwrap();
    }
    let store = Store::connect(Backend::One { url: url.clone() }, StoreOptions::default());
    let store = store.await.unwrap();
    let batches = batches(events);
    client.batch_execute("checkpoint").await.unwrap();

    let (cpu, wal) = (server.cpu_seconds(), lsn(&client).await);
    let mut relay = None;
    if live {
        relay = Relay::start(way, &store, &url, &name).await;
    }
    let began = Instant::now();
    let lanes = batches.chunks(batches.len().div_ceil(WRITERS));
    let lanes = lanes.map(|lane| write(store.clone(), lane.to_vec()));
    futures_util::future::join_all(lanes).await;
    let rate = events as f64 / began.elapsed().as_secs_f64();
    let wal = lsn(&client).await - wal;
    let size = "select pg_total_relation_size('outbox')::float8";
    let mut figures = Figures {
        rate,
        wal_bytes: wal / events as f64,
        held_bytes: match way {
            Way::Nothing => 0.0,
            Way::Table => number(&client, size).await / events as f64,
            Way::Message => wal / events as f64,
        },
        ..Figures::default()
    };
    let draining = Instant::now();
    if relay.is_none() {
        relay = Relay::start(way, &store, &url, &name).await;
    }
    if let Some(relay) = relay {
        let (cpu, until) = relay.stop(&client, events).await;
        figures.relay_us = cpu * 1e6 / events as f64;
        figures.drain_rate = events as f64 / (until - draining).as_secs_f64();
    }
    figures.server_us = (server.cpu_seconds() - cpu) * 1e6 / events as f64;
    // What autovacuum does in two of its rounds is part of the way.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    figures.table_kib = number(&client, size).await / 1024.0;
    let dead = "select n_dead_tup::float8 from pg_stat_user_tables where relname = 'outbox'";
    figures.dead_rows = number(&client, dead).await;
    if way == Way::Message {
        let drop = "select pg_drop_replication_slot($1)";
        client.execute(drop, &[&name]).await.unwrap();
    }
    figures
}

impl Way {
    const fn set_up(self) -> &'static str {
        match self {
            Way::Nothing => "create rule nothing as on insert to outbox do instead nothing",
            Way::Table => "",
            Way::Message => {
                "create publication feed; \
                 create rule message as on insert to outbox do instead \
                 select pg_logical_emit_message(true, 'shardlane-outbox', concat_ws(chr(31), new.user_id, new.source, \
                     new.event_id, new.order_id, new.kind, new.version, new.status, new.state, new.received_at))"
            }
        }
    }
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn number(client: &Client, query: &str) -> f64 {
    client.query_one(query, &[]).await.unwrap().get(0)
}

async fn lsn(client: &Client) -> f64 {
    number(
        client,
        "select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::float8",
    )
    .await
}

/// New orders of new users.
fn batches(events: usize) -> Vec<Vec<Record>> {
    let event = |number: usize| {
        let user = Uuid::new_v4();
        let at = Timestamp::from_second(1_790_000_000).unwrap();
        let payload = serde_json::json!({
            "provider_event_id": format!("evt_{number:012}"), "order_id": format!("order-{number:012}"),
            "user_id": user, "status": "created", "created_at": at, "updated_at": at,
            "meta": {"amount": "12.34", "currency": "EUR", "note": "x".repeat(120)},
        });
        let event = Event::decode(Source::Orders, Bytes::from(payload.to_string()), at);
        Record {
            event: event.unwrap(),
            origin: None,
        }
    };
    let all: Vec<Record> = (0..events).map(event).collect();
    all.chunks(BATCH).map(<[Record]>::to_vec).collect()
}

async fn write(store: Store, batches: Vec<Vec<Record>>) {
    for batch in batches {
        let target = store.target_of(batch[0].event.user_id).unwrap();
        let report = store.stage(target, &batch).await.unwrap().commit().await;
        assert_eq!(report.unwrap().applied, batch.len());
    }
}

/// Who takes the events out, and gives them to nobody.
enum Relay {
    Table {
        pid: i32,
        stop: Arc<AtomicBool>,
        task: tokio::task::JoinHandle<usize>,
    },
    Message {
        child: Child,
        slot: String,
        output: tempfile::NamedTempFile,
    },
}

impl Relay {
    async fn start(way: Way, store: &Store, url: &str, slot: &str) -> Option<Relay> {
        match way {
            Way::Nothing => None,
            Way::Table => {
                let mut session = store.outboxes()[0].connect().await.unwrap();
                assert!(session.try_lead().await.unwrap());
                let client = connect(url).await;
                let query = "select pid from pg_stat_activity where application_name = 'shardlane relay' \
                             and datname = current_database()";
                let pid = client.query_one(query, &[]).await.unwrap().get(0);
                let stop = Arc::new(AtomicBool::new(false));
                let task = tokio::spawn(empty(session, Arc::clone(&stop)));
                Some(Relay::Table { pid, stop, task })
            }
            Way::Message => {
                let output = tempfile::NamedTempFile::new().unwrap();
                // The streaming protocol, acknowledged as it goes.
                let child = Command::new("pg_recvlogical")
                    .args(["--dbname", url, "--slot", slot, "--start", "--file"])
                    .arg(output.path())
                    .args(["--status-interval", "1", "--fsync-interval", "1"])
                    .args(["-o", "proto_version=1", "-o", "publication_names=feed"])
                    .args(["-o", "messages=true"])
                    .stdin(Stdio::null())
                    // It complains about being interrupted.
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("pg_recvlogical is installed");
                let slot = slot.to_owned();
                Some(Relay::Message {
                    child,
                    slot,
                    output,
                })
            }
        }
    }

    /// Waits until all events have left: the CPU seconds of the server process that served it, and when that was.
    async fn stop(self, client: &Client, events: usize) -> (f64, Instant) {
        match self {
            Relay::Table { pid, stop, task } => {
                let count = "select count(*)::float8 from (select 1 from outbox limit 1) x";
                while number(client, count).await > 0.0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                let served = (cpu_seconds(pid), Instant::now());
                stop.store(true, Ordering::Relaxed);
                assert_eq!(task.await.unwrap(), events);
                served
            }
            Relay::Message {
                mut child,
                slot,
                output,
            } => {
                let sent = "select pid, sent_lsn >= $2::text::pg_lsn from pg_stat_replication \
                            join pg_replication_slots on active_pid = pid where slot_name = $1";
                let end: String = client
                    .query_one("select pg_current_wal_lsn()::text", &[])
                    .await
                    .unwrap()
                    .get(0);
                let pid: i32 = loop {
                    if let Some(row) = client.query_opt(sent, &[&slot, &end]).await.unwrap()
                        && row.get::<_, Option<bool>>(1) == Some(true)
                    {
                        break row.get(0);
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                };
                let served = (cpu_seconds(pid), Instant::now());
                // Sent is not yet written down.
                while messages_in(output.path()) < events {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                let mut interrupt = Command::new("kill");
                interrupt.arg("-INT").arg(child.id().to_string());
                assert!(interrupt.status().unwrap().success());
                child.wait().unwrap();
                assert_eq!(messages_in(output.path()), events);
                served
            }
        }
    }
}

fn messages_in(file: &std::path::Path) -> usize {
    let bytes = std::fs::read(file).unwrap();
    let messages = bytes.windows(PREFIX.len());
    messages.filter(|it| *it == PREFIX.as_bytes()).count()
}

async fn empty(mut session: OutboxSession, stop: Arc<AtomicBool>) -> usize {
    let (mut rows, mut taken) = (Vec::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        rows = session.take(&rows, RELAY_ROWS).await.unwrap();
        taken += rows.len();
        if rows.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    taken
}

fn cpu_seconds(pid: i32) -> f64 {
    let stat = Process::new(pid).unwrap().stat().unwrap();
    (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64
}
