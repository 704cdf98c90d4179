//! Old inbox rows go, by one worker at a time, and nothing else does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shardlane_sql::testing::TestDb;
use shardlane_sql::{RetentionJob, RetentionSettings, Store};

use crate::events::{direct, order, users};
use crate::ground::{Ground, WAIT_MAX, apply, connect};

on_every_layout!(old_rows_go_and_young_ones_stay);

const OLD: i64 = 3_000;
const YOUNG: i64 = 1_000;
const KEEP: Duration = Duration::from_secs(7 * 24 * 60 * 60);

fn settings() -> RetentionSettings {
    RetentionSettings {
        window_pages: 4,
        pause: Duration::from_millis(1),
        look_interval: Duration::from_millis(50),
        ..RetentionSettings::new(KEEP)
    }
}

/// Rows of every user, old and young ones side by side.
async fn fill(db: &TestDb) {
    for url in db.urls() {
        let client = connect(url).await;
        // A manual shard's CHECK refuses foreign users, so each takes its own.
        let own: Option<String> = client
            .query_one(
                "select string_agg(pg_get_expr(conbin, conrelid), ' and ') from pg_constraint \
                 where conrelid = 'inbox'::regclass and contype = 'c'",
                &[],
            )
            .await
            .unwrap()
            .get(0);
        let own = own.unwrap_or_else(|| "true".to_owned());
        let insert = format!(
            "insert into inbox select user_id, 'orders', 'e' || g, user_id, \
                 now() - case when g % 4 = 0 then interval '6 days' else interval '8 days' end \
             from (select md5(g::text)::uuid as user_id, g from generate_series(1, {}) g) u where {own}",
            OLD + YOUNG
        );
        client.batch_execute(&insert).await.unwrap();
    }
}

async fn count(db: &TestDb, condition: &str) -> i64 {
    let mut rows = 0;
    for url in db.urls() {
        let query = format!("select count(*) from inbox where {condition}");
        rows += connect(url)
            .await
            .query_one(&query, &[])
            .await
            .unwrap()
            .get::<_, i64>(0);
    }
    rows
}

/// What a job did.
#[derive(Default)]
struct Counts {
    removed: AtomicU64,
    visits: AtomicU64,
}

fn start(store: &Store) -> (RetentionJob, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    let counter = Arc::clone(&counts);
    let job = store.retain_inbox(settings(), move |rows| {
        counter.removed.fetch_add(rows, Ordering::Relaxed);
        counter.visits.fetch_add(1, Ordering::Relaxed);
    });
    (job, counts)
}

async fn until_none_is_old(db: &TestDb) {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        let old = count(db, "received_at < now() - interval '7 days'").await;
        if old == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{old} old rows are left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn old_rows_go_and_young_ones_stay(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    fill(&db).await;
    assert_eq!(count(&db, "true").await, OLD + YOUNG);
    // Two workers, and one of them does it all, on each database.
    let stores = [db.store().await, db.store().await];
    let jobs = [start(&stores[0]), start(&stores[1])];
    // Meanwhile events are taken.
    for (number, user) in users(92, 20).into_iter().enumerate() {
        let event = order(user, &format!("new-{number}"), "o", "created", 1);
        let event = shardlane_domain::Event {
            received_at: jiff::Timestamp::now(),
            ..event
        };
        assert_eq!(
            apply(&stores[0], &direct([event])).await.unwrap().applied,
            1
        );
    }
    until_none_is_old(&db).await;
    assert_eq!(count(&db, "true").await, YOUNG + 20);
    let removed: Vec<u64> = jobs
        .iter()
        .map(|(_, counts)| counts.removed.load(Ordering::Relaxed))
        .collect();
    assert_eq!(
        removed.iter().sum::<u64>(),
        OLD.unsigned_abs(),
        "{removed:?}"
    );
    if db.urls().len() == 1 {
        let idle =
            |(_, counts): &(RetentionJob, Arc<Counts>)| counts.visits.load(Ordering::Relaxed) == 0;
        assert!(jobs.iter().any(idle), "one does it");
    }

    // Whoever takes over finds what has become old.
    drop(jobs);
    for url in db.urls() {
        let older = "update inbox set received_at = '2020-01-01' where received_at < now() - interval '5 days'";
        connect(url).await.batch_execute(older).await.unwrap();
    }
    let (job, counts) = start(&stores[1]);
    until_none_is_old(&db).await;
    assert_eq!(count(&db, "true").await, 20);
    assert_eq!(counts.removed.load(Ordering::Relaxed), YOUNG.unsigned_abs());
    drop(job);
}

/// Source and target of a move are compared row by row: until it has ended nobody else removes rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_reshard_is_waited_for() {
    let Some(db) = Ground::SHARDS.db().await else {
        return;
    };
    fill(&db).await;
    let home = db.client(0).await;
    home.batch_execute(
        "insert into reshard_journal (id, plan, done) values (gen_random_uuid(), '{}', 0)",
    )
    .await
    .unwrap();
    let (_job, counts) = start(&*db.store().await);
    // Long enough for some looks; it is the one thing here that cannot be waited for.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(counts.visits.load(Ordering::Relaxed), 0);
    assert_eq!(count(&db, "true").await, OLD + YOUNG);
    home.batch_execute("update reshard_journal set ended_at = now()")
        .await
        .unwrap();
    until_none_is_old(&db).await;
}
