//! Manual shards: each knows its slots and refuses what is not its own.

use std::time::Duration;

use shardlane_router::{Epoch, RouteKey, ShardId, Slot, SlotMap, TokenHash, anchor_uuid};
use shardlane_sql::testing::{TEST_PARTITIONS, TestDb, test_map};
use shardlane_sql::{
    Backend, Detail, ErrorClass, IdentityError, Layout, MigrateError, SqlError, Store,
    StoreOptions, TABLES, migrate,
};
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use crate::events::{dispute, from_kafka, order, users};
use crate::ground::{Ground, OF_THE_SHARD, apply, connect};

async fn shards() -> Option<TestDb> {
    Ground::SHARDS.db().await
}

fn map_of(epoch: u64, hash: TokenHash, shards: &[ShardId]) -> SlotMap {
    SlotMap::aligned(Epoch(epoch), hash, TEST_PARTITIONS, shards).unwrap()
}

/// A user in this slot.
fn user_in(slot: u16) -> Uuid {
    anchor_uuid(TokenHash::Postgres, &Slot::new(slot).unwrap().key_range())
}

/// Copies one row of `table` to another user, past the store.
async fn copy_row_to(
    client: &tokio_postgres::Client,
    table: &str,
    user: Uuid,
) -> Result<u64, tokio_postgres::Error> {
    let sql = format!(
        "insert into {table}
         select (jsonb_populate_record(null::{table}, to_jsonb(t) || jsonb_build_object('user_id', $1::uuid))).*
         from {table} t limit 1"
    );
    client.execute(&sql, &[&user]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_refuses_a_foreign_users_row_in_every_table() {
    let Some(db) = shards().await else { return };
    let store = db.store().await;
    let events = users(51, 20).into_iter().flat_map(|user| {
        [
            order(user, "o", "e", "created", 1),
            dispute(user, "o", "d", "opened", 2),
            order(user, "never", "p", "updated", 3),
        ]
    });
    apply(&store, &from_kafka(events, "orders.webhooks", 0, 0))
        .await
        .unwrap();
    // The first and the last slot of each shard: an error of one in the CHECK shows here.
    for (shard, own, foreign) in [(0, [0, 2047], [2048, 4095]), (1, [2048, 4095], [0, 2047])] {
        let client = db.client(shard).await;
        for table in TABLES
            .into_iter()
            .filter(|table| !OF_THE_SHARD.contains(table))
        {
            for slot in foreign {
                let error = copy_row_to(&client, table, user_in(slot))
                    .await
                    .expect_err(&format!(
                        "shard {shard} took a row of slot {slot} into {table}"
                    ));
                assert_eq!(
                    error.code(),
                    Some(&SqlState::CHECK_VIOLATION),
                    "{table}, slot {slot}: {error:?}"
                );
                let constraint = error.as_db_error().and_then(|it| it.constraint());
                assert_eq!(constraint, Some(&*format!("{table}_owns_slot")));
                assert_eq!(
                    SqlError::from(error).class(),
                    ErrorClass::Data,
                    "the row is at fault"
                );
            }
            for slot in own {
                assert_eq!(
                    copy_row_to(&client, table, user_in(slot)).await.unwrap(),
                    1,
                    "{table} of shard {shard} has a row to copy"
                );
            }
        }
    }
}

/// Through the store: the wrong target is refused by the database, not only by our own routing.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_for_the_wrong_target_is_refused_whole() {
    let Some(db) = shards().await else { return };
    let store = db.store().await;
    let (ours, foreign) = (user_in(1), user_in(3000));
    assert_ne!(store.target_of(ours), store.target_of(foreign));
    let records = from_kafka(
        [
            order(ours, "o", "e", "created", 1),
            order(foreign, "o", "e", "created", 1),
        ],
        "orders.webhooks",
        0,
        0,
    );
    let before = crate::ground::digest_of(&db).await;
    let error = store
        .stage(store.target_of(ours).unwrap(), &records)
        .await
        .expect_err("one row is foreign");
    assert!(error.to_string().contains("owns_slot"), "{error}");
    assert_eq!(error.class(), ErrorClass::Rerouted);
    assert_eq!(crate::ground::digest_of(&db).await, before);
    assert!(store.fences().await.unwrap().is_empty());
}

async fn refusal(urls: &[String], map: SlotMap) -> SqlError {
    let backend = Backend::Shards {
        urls: urls.to_vec(),
        map,
    };
    let options = StoreOptions {
        connect_timeout: Duration::from_secs(10),
        ..StoreOptions::default()
    };
    let started = std::time::Instant::now();
    let error = Store::connect(backend, options)
        .await
        .err()
        .expect("these databases must be refused");
    assert_ne!(
        error.class(),
        ErrorClass::Transient,
        "waiting does not help: {error}"
    );
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "refused at once, not after the pool's time-out"
    );
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_that_are_not_what_the_map_says_are_refused() {
    let Some(db) = shards().await else { return };
    let (urls, map) = (db.urls(), db.database().map().clone());
    let [first, second] = urls else {
        panic!("two shards")
    };

    let swapped = [second.clone(), first.clone()];
    let error = refusal(&swapped, map.clone()).await;
    assert!(
        matches!(error, SqlError::Identity(IdentityError::Different { .. })),
        "{error}"
    );
    let sentence = error.to_string();
    for part in [
        "is shard 1",
        "means shard 0",
        "slots 2048-4095",
        "slots 0-2047",
        "check the order of the DSNs",
    ] {
        assert!(sentence.contains(part), "{part:?} is missing: {sentence}");
    }
    assert!(
        !sentence.contains("shardlane@"),
        "the DSN's user is nobody's business: {sentence}"
    );

    let error = refusal(urls, map_of(2, TokenHash::Postgres, map.shards())).await;
    let sentence = error.to_string();
    assert!(
        sentence.contains("of epoch 1") && sentence.contains("of epoch 2"),
        "{sentence}"
    );

    // The same shards, cut elsewhere.
    let shards: Vec<ShardId> = Slot::all()
        .map(|slot| ShardId(i64::from(slot.number() >= 1024)))
        .collect();
    let partitions = Slot::all()
        .map(|slot| map.partition_of(slot))
        .collect::<Vec<_>>();
    let cut = SlotMap::from_tables(Epoch(1), TokenHash::Postgres, &partitions, &shards).unwrap();
    let error = refusal(urls, cut).await;
    assert!(error.to_string().contains("slots 0-1023"), "{error}");

    let error = refusal(&[first.clone(), first.clone()], map.clone()).await;
    assert!(
        error
            .to_string()
            .contains("two shards have the same database"),
        "{error}"
    );
    // The same database under another name of the host: the identity tells.
    let alias = first.replace("127.0.0.1", "localhost");
    assert_ne!(alias, *first);
    let error = refusal(&[first.clone(), alias], map.clone()).await;
    assert!(
        matches!(error, SqlError::Identity(IdentityError::Different { .. })),
        "{error}"
    );

    let error = refusal(&urls[..1], map.clone()).await;
    assert!(
        error
            .to_string()
            .contains("the map has 2 shards but 1 DSNs were given"),
        "{error}"
    );

    let error = refusal(urls, map_of(1, TokenHash::Murmur3, map.shards())).await;
    assert!(
        matches!(
            error,
            SqlError::Identity(IdentityError::HashNotCheckable(_))
        ),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_identity_is_refused() {
    let Some(db) = shards().await else { return };
    let client = db.client(1).await;
    client
        .batch_execute("delete from shard_identity")
        .await
        .unwrap();
    let error = refusal(db.urls(), db.database().map().clone()).await;
    assert!(
        matches!(error, SqlError::Identity(IdentityError::Absent { .. })),
        "{error}"
    );
    client
        .batch_execute("drop table shard_identity")
        .await
        .unwrap();
    let error = refusal(db.urls(), db.database().map().clone()).await;
    assert!(
        matches!(error, SqlError::Identity(IdentityError::Absent { .. })),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains("shardlane migrate --layout shards"),
        "says what to do: {error}"
    );

    // A single's database, which has the tables but no identity.
    let Some(single) = Ground::SINGLE.db().await else {
        return;
    };
    let urls = [db.urls()[0].clone(), single.urls()[0].clone()];
    let error = refusal(&urls, db.database().map().clone()).await;
    assert!(
        matches!(error, SqlError::Identity(IdentityError::Absent { .. })),
        "{error}"
    );
}

/// A reshard under a running store: the connections that it makes later are refused as well, and told why.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_store_is_refused_when_the_shard_becomes_another_one() {
    let Some(db) = shards().await else {
        return;
    };
    let backend = Backend::Shards {
        urls: db.urls().to_vec(),
        map: db.database().map().clone(),
    };
    let options = StoreOptions {
        connect_timeout: Duration::from_secs(1),
        ..StoreOptions::default()
    };
    let store = Store::connect(backend, options).await.unwrap();
    let records = |id: &str| from_kafka([order(user_in(1), id, id, "created", 1)], id, 0, 0);
    apply(&store, &records("before")).await.unwrap();

    let client = db.client(0).await;
    let new_epoch = "update shard_identity set epoch = 2; \
                     select pg_terminate_backend(pid) from pg_stat_activity \
                     where datname = current_database() and pid <> pg_backend_pid()";
    client.batch_execute(new_epoch).await.unwrap();
    let mut errors = Vec::new();
    let refused = loop {
        let error = apply(&store, &records("after"))
            .await
            .expect_err("the shard has another epoch");
        if error.class() == ErrorClass::Rerouted {
            break error;
        }
        errors.push(error.to_string());
        assert!(errors.len() < 20, "only transient errors: {errors:?}");
    };
    let sentence = refused.to_string();
    assert!(
        sentence.contains("of epoch 2") && sentence.contains("of epoch 1"),
        "{sentence}"
    );
    // The other shard goes on.
    let other = from_kafka(
        [order(user_in(3000), "o", "e", "created", 1)],
        "other",
        0,
        0,
    );
    assert_eq!(apply(&store, &other).await.unwrap().applied, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_does_not_become_another_one_by_migrating() {
    let Some(db) = shards().await else { return };
    let (url, map) = (&db.urls()[0], test_map());
    let other_epoch = map_of(2, TokenHash::Postgres, map.shards());
    let murmur = map_of(1, TokenHash::Murmur3, map.shards());
    for (detail, what) in [
        (Detail::Shard(&map, ShardId(1)), "another shard"),
        (Detail::Shard(&other_epoch, ShardId(0)), "another epoch"),
        (
            Detail::Shard(&murmur, ShardId(0)),
            "a hash that no CHECK computes",
        ),
    ] {
        let error = migrate(url, Layout::Shards, detail).await.expect_err(what);
        assert!(
            matches!(error, MigrateError::Sql(SqlError::Identity(_))),
            "{what}: {error}"
        );
    }
    let row = connect(url)
        .await
        .query_one("select shard_id, epoch, slots from shard_identity", &[])
        .await
        .unwrap();
    assert_eq!(
        (
            row.get::<_, i64>(0),
            row.get::<_, i64>(1),
            row.get::<_, &str>(2)
        ),
        (0, 1, "0-2047")
    );
}

/// The CHECK is the database's own word on ownership: it agrees with the map on 10,000 users.
#[tokio::test(flavor = "multi_thread")]
async fn the_check_agrees_with_the_map_on_random_users() {
    let Some(db) = shards().await else { return };
    let map = db.database().map();
    let users = users(52, 10_000);
    for (index, shard) in map.shards().iter().enumerate() {
        let client = db.client(index).await;
        for table in TABLES
            .into_iter()
            .filter(|table| !OF_THE_SHARD.contains(table))
        {
            let check: String = client
                .query_one(
                    "select pg_get_expr(conbin, conrelid) from pg_constraint
                     where conname = $1 and conrelid = $2::text::regclass and convalidated",
                    &[&format!("{table}_owns_slot"), &table],
                )
                .await
                .unwrap_or_else(|error| panic!("{table} of shard {shard} has no CHECK: {error}"))
                .get(0);
            let sql = format!("select user_id, ({check}) from unnest($1::uuid[]) as t (user_id)");
            let rows = client.query(&sql, &[&users]).await.unwrap();
            assert_eq!(rows.len(), users.len());
            for row in rows {
                let (user, owned): (Uuid, bool) = (row.get(0), row.get(1));
                let ours = map.shard_for(&RouteKey::Uuid(user)) == *shard;
                assert_eq!(owned, ours, "{user} in {table} of shard {shard}: {check}");
            }
        }
    }
}
