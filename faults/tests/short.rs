//! The short form of the fault suite: some faults, and whether the oracle can find anything at all.

use std::path::Path;

use shardlane_faults::lab::Lab;
use shardlane_faults::oracle::{Rules, Verdict, Wrong, judge};
use shardlane_faults::scenario::{Run, Sizes, Stage, named};
use shardlane_local::require;
use tokio::sync::{Mutex, MutexGuard, OnceCell};

const SHORT: Sizes = Sizes {
    events: 1_500,
    rate: 500.0,
    users: 50,
    strikes: 1,
    ..Sizes::QUICK
};

/// The servers, which end with the process, for one test at a time: faults strike servers, too.
async fn lab() -> Option<(&'static Lab, MutexGuard<'static, ()>)> {
    static LAB: OnceCell<Lab> = OnceCell::const_new();
    static TURN: Mutex<()> = Mutex::const_new(());
    require("postgres")?;
    require("kafka")?;
    let turn = TURN.lock().await;
    let start = async || {
        let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults");
        Lab::start(Path::new(env!("CARGO_BIN_EXE_faults")), &logs)
            .await
            .expect("the servers start")
    };
    Some((LAB.get_or_init(start).await, turn))
}

async fn strikes_and_hurts_nobody(fault: &str) {
    let Some((lab, _turn)) = lab().await else {
        return;
    };
    let run = Run {
        lab,
        seed: 1,
        sizes: SHORT,
        mutant: None,
    };
    let outcome = named(fault)
        .expect("a fault of this name")
        .run(run)
        .await
        .expect("the fault strikes, and passes");
    let verdict = outcome.verdict;
    assert!(verdict.events >= 1_500, "{}", verdict.events);
    assert!(verdict.findings.is_empty(), "{}", verdict.describe(20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_worker_is_killed_within_a_transaction() {
    strikes_and_hurts_nobody("kill").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_primary_crashes() {
    strikes_and_hurts_nobody("postgres-immediate").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn commits_are_cut_from_their_answers() {
    strikes_and_hurts_nobody("connections-cut").await;
}

/// What somebody does to the databases behind the workers' backs, and what the oracle calls it.
const DAMAGE: [(&str, Wrong, &str); 9] = [
    (
        "a row is gone",
        Wrong::Lost,
        "delete from order_events where ctid in (select ctid from order_events where outcome = 'applied' limit 1)",
    ),
    (
        "a row is there twice",
        Wrong::Twice,
        "insert into order_events select user_id, order_id, event_id, status, outcome, version, occurred_at, \
         received_at + '1 hour', payload from order_events limit 1",
    ),
    (
        "two rows have changed places",
        Wrong::OutOfOrder,
        "update order_events set version = 3 - version where version in (1, 2) and (user_id, order_id) in \
         (select user_id, order_id from order_events where version = 2 and outcome = 'applied' limit 1)",
    ),
    (
        "a state is another",
        Wrong::Other,
        "update orders set amount_minor = amount_minor + 1 where ctid in (select ctid from orders limit 1)",
    ),
    (
        "the front door's time is another",
        Wrong::Other,
        "update order_events set received_at = received_at + '1 ms' where ctid in (select ctid from order_events limit 1)",
    ),
    (
        "an outbox row is gone",
        Wrong::Other,
        "delete from outbox where ctid in (select ctid from outbox limit 1)",
    ),
    (
        "an inbox row is gone",
        Wrong::Other,
        "delete from inbox where ctid in (select ctid from inbox limit 1)",
    ),
    (
        "the directory does not know an order",
        Wrong::Other,
        "delete from order_directory where ctid in (select ctid from order_directory limit 1)",
    ),
    (
        "a fence is behind the offset",
        Wrong::Other,
        "update kafka_fence set next_offset = next_offset - 1",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_oracle_sees_what_is_damaged() {
    let Some((lab, _turn)) = lab().await else {
        return;
    };
    let run = Run {
        lab,
        seed: 2,
        sizes: SHORT,
        mutant: None,
    };
    let mut stage = Stage::begin(run, "damage", 1).await.unwrap();
    let load = stage.load.take().expect("users send");
    let mut sent = load.stop_at(SHORT.events).await.unwrap();
    stage.world.drain(&mut stage.crew).await.unwrap();
    stage.dismiss().await.unwrap();
    let clean = judge(&stage.world, &sent, Rules::default()).await.unwrap();
    assert!(clean.findings.is_empty(), "{}", clean.describe(20));

    let client = stage.world.client(0).await.unwrap();
    for (what, wrong, sql) in DAMAGE {
        let tables = "inbox, kafka_fence, orders, outbox, order_directory, order_events";
        let copies: Vec<(String, String)> = tables
            .split(", ")
            .map(|table| (table.to_owned(), format!("kept_{table}")))
            .collect();
        for (table, kept) in &copies {
            let keep = format!("create table {kept} as table {table}");
            client.batch_execute(&keep).await.unwrap();
        }
        let rows = client.execute(sql, &[]).await.unwrap();
        assert!(rows > 0, "{what}: the test damages nothing");
        let verdict = judge(&stage.world, &sent, Rules::default()).await.unwrap();
        found(&verdict, wrong, what);
        for (table, kept) in &copies {
            let back =
                format!("truncate {table}; insert into {table} table {kept}; drop table {kept}");
            client.batch_execute(&back).await.unwrap();
        }
    }

    // A webhook that was acknowledged, and is nowhere.
    let mut lost = sent[0].clone();
    lost.webhook.payload = bytes::Bytes::from_static(b"{}");
    sent.push(lost);
    let verdict = judge(&stage.world, &sent, Rules::default()).await.unwrap();
    found(&verdict, Wrong::Lost, "an acknowledged webhook is nowhere");
    stage.world.finish().await.unwrap();
}

#[track_caller]
fn found(verdict: &Verdict, wrong: Wrong, what: &str) {
    assert!(verdict.count(wrong) > 0, "{what}: {}", verdict.describe(5));
}

#[cfg(feature = "mutants")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn planted_defects_are_found() {
    use shardlane_faults::planted::hunt;
    use shardlane_sql::mutants::Mutant;
    let Some((lab, _turn)) = lab().await else {
        return;
    };
    for mutant in [Mutant::FenceOutside, Mutant::MemoryInbox] {
        let hunt = hunt(lab, mutant, 1).await;
        assert!(hunt.caught, "{}: {}", mutant.name(), hunt.how);
    }
}
