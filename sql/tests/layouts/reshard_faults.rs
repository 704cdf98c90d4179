//! Reshards that are killed, given up, damaged, held up or slowed down, while writers write.

use std::sync::Mutex;
use std::time::Duration;

use shardlane_router::{RouteKey, ShardId, TokenHash};
use shardlane_sql::reshard::{Change, Reshard, ReshardError, ReshardOptions, Step};
use shardlane_sql::testing::load::nothing_is_left;
use shardlane_sql::{SqlError, catalog_history};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::ground::connect;
use crate::reshard::{World, add, now, print};

/// Steps of 2 -> 3, as they are counted from 1.
const SECOND_CATCH_UP: usize = 6;
const SWITCH: usize = 11;

/// Runs, and dies at the moment at which step `deadly` is about to begin.
async fn dies_at(mut reshard: Reshard, change: &Change, deadly: usize) {
    let change = change.clone();
    let ended = tokio::spawn(async move {
        let progress = |_, number, _| assert!(number != deadly, "killed at {number}");
        reshard.run(&change, progress).await
    })
    .await;
    assert!(
        ended.is_err_and(|error| error.is_panic()),
        "it ended before step {deadly}"
    );
}

/// Gives up; whoever was killed may hold its lock for a moment longer.
async fn give_up(world: &World) -> Result<(), ReshardError> {
    loop {
        match world.reshard().await.abort().await {
            Err(ReshardError::Busy) => tokio::time::sleep(Duration::from_millis(20)).await,
            other => return other.map(|_| ()),
        }
    }
}

/// What a shard says of itself, and the CHECKs with which it holds to that.
async fn constitution(url: &str) -> (String, Vec<String>) {
    let client = connect(url).await;
    let row = client
        .query_one("select slots from shard_identity", &[])
        .await;
    let query = "select conname || ' ' || pg_get_constraintdef(oid) from pg_constraint \
                 where conname like '%owns_slot' order by 1";
    let checks = client.query(query, &[]).await.unwrap();
    let checks = checks.iter().map(|row| row.get(0)).collect();
    (row.unwrap().get(0), checks)
}

async fn rows(client: &Client, table: &str) -> i64 {
    let query = format!("select count(*) from {table}");
    client.query_one(&query, &[]).await.unwrap().get(0)
}

async fn killed_and_given_up(steps: impl IntoIterator<Item = usize>) {
    let Some(world) = World::new(1).await else {
        return;
    };
    let change = add(&world.spares);
    let before = [
        constitution(&world.db.urls()[0]).await,
        constitution(&world.db.urls()[1]).await,
    ];
    for deadly in steps {
        dies_at(world.reshard().await, &change, deadly).await;
        let error = loop {
            match world.reshard().await.run(&change, print).await {
                Err(ReshardError::Busy) => tokio::time::sleep(Duration::from_millis(20)).await,
                other => break other.unwrap_err(),
            }
        };
        assert!(
            matches!(error, ReshardError::UnderWay { joining: 1, .. }),
            "{error}"
        );
        give_up(&world).await.unwrap();
        world.writers.go_on().await;
        for (url, before) in world.db.urls().iter().zip(&before) {
            assert_eq!(&constitution(url).await, before, "after step {deadly}");
        }
        let spare = connect(&world.spares[0]).await;
        if deadly > 1 {
            for table in ["inbox", "orders", "order_events", "outbox"] {
                assert_eq!(rows(&spare, table).await, 0, "{table} after step {deadly}");
            }
        }
        nothing_is_left(&world.urls()).await;
        let reshard = world.reshard().await;
        assert!(reshard.journal().await.unwrap().is_none());
        assert_eq!(reshard.catalog().await.unwrap().shards.len(), 2);
    }
    // The database that has joined and left so often can still join.
    world.reshard().await.run(&change, print).await.unwrap();
    world.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn given_up_before_the_freeze_all_is_as_it_was() {
    killed_and_given_up(1..=7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn given_up_after_the_freeze_all_is_as_it_was() {
    killed_and_given_up(8..=SWITCH).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn once_slots_are_taken_there_is_no_way_back() {
    let Some(world) = World::new(1).await else {
        return;
    };
    dies_at(world.reshard().await, &add(&world.spares), SWITCH + 1).await;
    let error = give_up(&world).await.unwrap_err();
    assert!(
        matches!(error, ReshardError::Switched(ShardId(2))),
        "{error}"
    );
    assert!(error.to_string().contains("finish with"), "{error}");
    let mut reshard = world.reshard().await;
    reshard.run(&Change::default(), print).await.unwrap();
    world.check().await;
}

/// It says that this table differs, and all is as before it began to freeze.
async fn assert_differs(
    world: &World,
    reshard: &Reshard,
    error: ReshardError,
    damaged: &'static str,
    owner: Uuid,
) {
    let ReshardError::Different { table, slot, .. } = error else {
        panic!("{error}")
    };
    let expected = TokenHash::Postgres.token(&RouteKey::Uuid(owner)).slot();
    assert_eq!((table, slot), (damaged, expected));
    let catalog = reshard.catalog().await.unwrap();
    assert!(catalog.frozen.is_empty());
    assert_eq!(catalog.pace, None);
    assert!(catalog.owned(ShardId(2)).is_empty());
    world.writers.go_on().await;
}

/// Executes SQL on the joining database that returns the user whose row it damages.
fn damage(world: &World, sql: &str) -> Uuid {
    now(async {
        let row = connect(&world.spares[0]).await.query_one(sql, &[]).await;
        row.unwrap().get(0)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_damaged_on_its_way_is_found() {
    let Some(world) = World::new(1).await else {
        return;
    };
    let mut owner = None;
    let progress = |step, number, steps| {
        print(step, number, steps);
        if matches!(step, Step::Compare { .. }) {
            let sql = "update inbox set received_at = received_at + interval '1 s' \
                       where ctid = (select min(ctid) from inbox) returning user_id";
            owner = Some(damage(&world, sql));
        }
    };
    let mut reshard = world.reshard().await;
    let error = reshard.run(&add(&world.spares), progress).await;
    let error = error.unwrap_err();
    assert_differs(&world, &reshard, error, "inbox", owner.unwrap()).await;
    give_up(&world).await.unwrap();
    nothing_is_left(&world.urls()).await;
    reshard.run(&add(&world.spares), print).await.unwrap();
    world.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_lost_after_the_comparison_is_found() {
    let Some(world) = World::new(1).await else {
        return;
    };
    let mut owner = None;
    let progress = |step, number, steps| {
        print(step, number, steps);
        if number == SECOND_CATCH_UP {
            now(world.writers.go_on());
        }
        if matches!(step, Step::Verify { .. }) {
            let sql = "delete from order_events where event_id || user_id = (select event_id || user_id \
                       from order_events order by age(xmin) limit 1) returning user_id";
            owner = Some(damage(&world, sql));
        }
    };
    let mut reshard = world.reshard().await;
    let error = reshard.run(&add(&world.spares), progress).await;
    let (error, owner) = (error.unwrap_err(), owner.unwrap());
    assert_differs(&world, &reshard, error, "order_events", owner).await;
    // It is not forgotten: the next run compares all.
    let error = reshard.run(&Change::default(), print).await.unwrap_err();
    assert_differs(&world, &reshard, error, "order_events", owner).await;
    give_up(&world).await.unwrap();
    reshard.run(&add(&world.spares), print).await.unwrap();
    world.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stall_that_cannot_be_kept_freezes_nothing() {
    let Some(world) = World::new(1).await else {
        return;
    };
    let mut reshard = world
        .reshard_with(ReshardOptions {
            stall_max: Duration::from_millis(1),
            catch_up_max: Duration::from_secs(1),
            ..ReshardOptions::default()
        })
        .await;
    let error = reshard.run(&add(&world.spares), print).await.unwrap_err();
    assert!(
        matches!(
            error,
            ReshardError::Lagging { to: ShardId(2), .. }
                | ReshardError::Stalled { to: ShardId(2), .. }
        ),
        "{error}"
    );
    let catalog = reshard.catalog().await.unwrap();
    assert!(catalog.frozen.is_empty() && catalog.pace.is_none());
    world.writers.go_on().await;
    drop(reshard);
    let mut reshard = world.reshard().await;
    reshard.run(&Change::default(), print).await.unwrap();
    world.check().await;
}

/// While `sql` holds a lock on one of the databases from this step on, the slots stall for no longer than they may.
async fn held_up(world: &World, at: Step, url: &str, sql: &str) {
    let mut reshard = world
        .reshard_with(ReshardOptions {
            tries_max: 1,
            ..ReshardOptions::default()
        })
        .await;
    let (holder, began) = (connect(url).await, Mutex::new(None));
    let change = match reshard.journal().await.unwrap() {
        Some(_) => Change::default(),
        None => add(&world.spares),
    };
    let progress = |step, number, steps| {
        print(step, number, steps);
        if step == at {
            *began.lock().unwrap() = Some(std::time::Instant::now());
            now(holder.batch_execute(sql)).unwrap();
        }
    };
    let error = reshard.run(&change, progress).await.unwrap_err();
    let took = began.lock().unwrap().unwrap().elapsed();
    holder.batch_execute("rollback").await.unwrap();
    assert!(
        matches!(error, ReshardError::Stalled { to: ShardId(2), .. }),
        "{error}"
    );
    // 2 s, and what a busy machine takes to thaw.
    assert!(took < Duration::from_secs(6), "{took:?} at {at}");
    let catalog = reshard.catalog().await.unwrap();
    assert!(catalog.frozen.is_empty() && catalog.pace.is_none());
    assert!(catalog.owned(ShardId(2)).is_empty());
    world.writers.go_on().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_holds_it_up_does_not_stall_the_slots() {
    let Some(world) = World::new(1).await else {
        return;
    };
    let (from, to) = (ShardId(1), ShardId(2));
    let (source, target) = (&world.db.urls()[1], &world.spares[0]);
    let lock = "begin; lock table orders in row exclusive mode";
    held_up(&world, Step::Freeze { from, to }, source, lock).await;
    held_up(&world, Step::Switch { to }, target, lock).await;
    let gate = "begin; lock table reshard_marker in share row exclusive mode";
    held_up(&world, Step::Drain { to }, target, gate).await;
    let gate = "begin; lock table inbox in access exclusive mode";
    held_up(&world, Step::Verify { to }, target, gate).await;
    let mut reshard = world.reshard().await;
    reshard.run(&Change::default(), print).await.unwrap();
    world.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_behind_the_freeze_thaws_too() {
    let Some(world) = World::new(1).await else {
        return;
    };
    let mut reshard = world.reshard().await;
    let progress = |step, number, steps| {
        print(step, number, steps);
        if matches!(step, Step::Drain { .. }) {
            let sql = "select count(pg_terminate_backend(pid, 10000)) from pg_stat_activity \
                       where datname = current_database() and pid <> pg_backend_pid() \
                       and backend_type = 'client backend'";
            now(async {
                let spare = connect(&world.spares[0]).await;
                let ended: i64 = spare.query_one(sql, &[]).await.unwrap().get(0);
                assert!(ended > 0);
            });
        }
    };
    let error = reshard.run(&add(&world.spares), progress).await;
    let error = error.unwrap_err();
    assert!(
        matches!(error, ReshardError::Sql(SqlError::Postgres(_))),
        "{error}"
    );
    assert!(
        world
            .reshard()
            .await
            .catalog()
            .await
            .unwrap()
            .frozen
            .is_empty()
    );
    world.writers.go_on().await;
    drop(reshard);
    let mut reshard = world.reshard().await;
    reshard.run(&Change::default(), print).await.unwrap();
    world.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_are_asked_to_hold_back_for_a_target_that_lags() {
    let Some(world) = World::new(1).await else {
        return;
    };
    let mut reshard = world
        .reshard_with(ReshardOptions {
            stall_max: Duration::from_millis(400),
            catch_up_max: Duration::from_secs(5),
            ..ReshardOptions::default()
        })
        .await;
    let slow = "create function slow() returns trigger language plpgsql as \
                'begin perform pg_sleep(0.2); return new; end'; \
                create trigger slow before insert on reshard_marker for each row execute function slow(); \
                alter table reshard_marker enable always trigger slow";
    let progress = |step, number, steps| {
        print(step, number, steps);
        if number == 4 {
            now(async {
                let spare = connect(&world.spares[0]).await;
                spare.batch_execute(slow).await.unwrap();
            });
        }
    };
    let error = reshard.run(&add(&world.spares), progress).await;
    let error = error.unwrap_err();
    assert!(matches!(error, ReshardError::Lagging { .. }), "{error}");
    assert_eq!(reshard.catalog().await.unwrap().pace, None);
    let history = catalog_history(&world.urls()).await.unwrap();
    let shares: Vec<u8> = history
        .iter()
        .filter_map(|version| version.pace.as_ref())
        .map(|pace| pace.share)
        .collect();
    assert_eq!(shares, [50, 25, 12, 6, 5]);
    let spare = connect(&world.spares[0]).await;
    let fast = "drop trigger slow on reshard_marker";
    spare.batch_execute(fast).await.unwrap();
    world.writers.go_on().await;
    drop(reshard);
    let mut reshard = world.reshard().await;
    reshard.run(&Change::default(), print).await.unwrap();
    world.check().await;
}
