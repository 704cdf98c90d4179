//! The schema of each layout, and that it can be set up twice and from two places.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use shardlane_domain::Event;
use shardlane_sql::testing::{TEST_CITUS_SHARDS, TestDb};
use shardlane_sql::{Detail, Layout, MigrateError, TABLES, migrate};

use crate::apply::stream;
use crate::events::{direct, dispute, order, users};
use crate::ground::{Ground, apply, connect, digest_of, with_database};
use crate::model::Model;

macro_rules! on_every_schema {
    ($($test:ident),+ $(,)?) => { $(
        mod $test {
            use crate::ground::Ground;

            #[tokio::test(flavor = "multi_thread")]
            async fn single() {
                super::$test(Ground::SINGLE).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn partman() {
                super::$test(Ground::PARTMAN).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn shards() {
                super::$test(Ground::SHARDS).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn citus() {
                super::$test(Ground::CITUS_OWNER).await;
            }
        }
    )+ };
}

on_every_schema!(
    migrating_again_changes_nothing,
    two_migrations_at_once_are_harmless,
    every_unique_key_contains_the_user,
    every_table_is_known,
);

async fn migrate_all(ground: Ground, db: &TestDb) -> Result<(), MigrateError> {
    for (index, url) in db.urls().iter().enumerate() {
        let map = db.database().map();
        let detail = match ground.layout {
            Layout::Single | Layout::Partman => Detail::None,
            Layout::Shards => Detail::Shard(map, map.shards()[index]),
            Layout::Citus => Detail::CitusShards(TEST_CITUS_SHARDS),
        };
        migrate(url, ground.layout, detail).await?;
    }
    Ok(())
}

/// The schema as text: every column, key, constraint and index of every table.
async fn schema_of(db: &TestDb) -> Vec<String> {
    let mut schema = Vec::new();
    for url in db.urls() {
        let rows = connect(url)
            .await
            .query(
                "select format('%s.%s %s', attrelid::regclass, attname, format_type(atttypid, atttypmod))
                 from pg_attribute join pg_class c on c.oid = attrelid
                 where c.relnamespace = 'public'::regnamespace and attnum > 0 and c.relkind in ('r', 'p')
                 union all
                 select format('%s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
                 from pg_constraint where connamespace = 'public'::regnamespace
                 union all
                 select indexdef from pg_indexes where schemaname = 'public'
                 order by 1",
                &[],
            )
            .await
            .unwrap();
        schema.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    }
    schema
}

async fn migrating_again_changes_nothing(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    apply(&*db.store().await, &direct(stream(61)))
        .await
        .unwrap();
    let (schema, rows) = (schema_of(&db).await, digest_of(&db).await);
    assert!(schema.len() > 60, "the test sees the schema: {schema:?}");
    for _ in 0..2 {
        migrate_all(ground, &db).await.unwrap();
    }
    assert_eq!(schema_of(&db).await, schema, "the schema changed");
    assert_eq!(digest_of(&db).await, rows, "rows changed");
    for url in db.urls() {
        // One history a layout, so that another layout on this database is not taken for an upgrade.
        let sql = format!(
            "select version, name from shardlane_schema_{} order by version",
            ground.layout
        );
        let history = connect(url).await.query(&sql, &[]).await.unwrap();
        let history: Vec<(i32, &str)> =
            history.iter().map(|row| (row.get(0), row.get(1))).collect();
        let expected: &[(i32, &str)] = match ground.layout {
            Layout::Single | Layout::Partman => &[(1, "core_tables"), (2, "event_tables")],
            Layout::Shards => &[(1, "core_tables"), (2, "event_tables"), (3, "identity")],
            Layout::Citus => &[(1, "core_tables"), (2, "event_tables"), (3, "distribute")],
        };
        assert_eq!(history, expected);
    }
    let other = if ground.layout == Layout::Single {
        Layout::Partman
    } else {
        Layout::Single
    };
    let error = migrate(&db.urls()[0], other, Detail::None)
        .await
        .expect_err("another layout is no upgrade");
    assert!(
        error.to_string().contains("already exists"),
        "says why: {error}"
    );
    assert_eq!(
        schema_of(&db).await.len(),
        schema.len() + history_columns(&db, other).await,
        "and changes nothing"
    );
    assert_eq!(digest_of(&db).await, rows, "rows changed");
}

/// refinery makes its history table before the first migration, so a refused layout leaves an empty one.
async fn history_columns(db: &TestDb, layout: Layout) -> usize {
    let table = format!("shardlane_schema_{layout}");
    let schema = schema_of(db).await;
    schema.iter().filter(|line| line.contains(&table)).count()
}

/// On an empty database, where both would create everything.
async fn two_migrations_at_once_are_harmless(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let schema = schema_of(&db).await;
    for url in db.urls() {
        let client = connect(url).await;
        for table in TABLES {
            client
                .batch_execute(&format!("drop table {table} cascade"))
                .await
                .unwrap();
        }
        let rest = format!(
            "drop table shardlane_schema_{}; drop table dead_letters; drop table if exists shard_identity, shard_catalog, shard_past, reshard_journal, reshard_marker; \
             drop schema if exists partman cascade",
            ground.layout
        );
        client.batch_execute(&rest).await.unwrap();
    }
    assert!(
        schema_of(&db).await.is_empty(),
        "the test starts from nothing"
    );
    let (first, second) = tokio::join!(migrate_all(ground, &db), migrate_all(ground, &db));
    first
        .and(second)
        .expect("one waits for the other and finds nothing to do");
    assert_eq!(schema_of(&db).await, schema);
    let mut model = Model::default();
    let events = stream(62);
    events.iter().for_each(|event| model.take(event));
    apply(&*db.store().await, &direct(events)).await.unwrap();
    model.check(&db).await;
}

async fn every_unique_key_contains_the_user(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    for url in db.urls() {
        let rows = connect(url)
            .await
            .query(
                "select c.relname::text, i.indexrelid::regclass::text,
                        array(select a.attname::text from pg_attribute a
                              where a.attrelid = i.indrelid and a.attnum = any(i.indkey))
                 from pg_index i join pg_class c on c.oid = i.indrelid
                 where i.indisunique and c.relnamespace = 'public'::regnamespace
                   and c.relname !~ '^(shard_|reshard_|shardlane_schema_|dead_letters)'",
                &[],
            )
            .await
            .unwrap();
        let mut seen = BTreeSet::new();
        for row in rows {
            let (table, index, columns): (String, String, Vec<String>) =
                (row.get(0), row.get(1), row.get(2));
            assert!(
                columns.iter().any(|it| it == "user_id"),
                "{index} of {table} is unique over {columns:?}"
            );
            if ["order_events", "dispute_events"]
                .iter()
                .any(|log| table.starts_with(log))
            {
                assert!(
                    columns.iter().any(|it| it == "received_at"),
                    "{index} could not be time-partitioned"
                );
            }
            seen.insert(table);
        }
        for table in TABLES {
            assert!(seen.contains(table), "{table} has no unique key at all");
        }
    }
}

/// [`TABLES`] is what gets CHECKs, colocation and fences; a table that it forgets would get none.
async fn every_table_is_known(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    for url in db.urls() {
        let rows = connect(url)
            .await
            .query(
                "select relname::text from pg_class
                 where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and not relispartition
                   and relname !~ '^(shard_|reshard_|shardlane_schema_|dead_letters)'",
                &[],
            )
            .await
            .unwrap();
        let found: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(
            found,
            TABLES.map(str::to_owned).into(),
            "tables of {}",
            ground.layout
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_several_days_go_to_a_time_partition_each() {
    const DAYS: i64 = 5;
    let Some(db) = Ground::PARTMAN.db().await else {
        return;
    };
    let store = db.store().await;
    let mut events = Vec::new();
    let mut days = BTreeSet::new();
    for (day, user) in (0..DAYS).zip(users(63, 5)) {
        // From three days ago until tomorrow.
        let received_at = Timestamp::now() + SignedDuration::from_hours(24 * (day - 3));
        days.insert(received_at.strftime("%Y-%m-%d").to_string());
        for event in [
            order(user, "o", "e", "created", 1),
            dispute(user, "o", "d", "opened", 2),
        ] {
            events.push(Event {
                received_at,
                ..event
            });
        }
    }
    let records = direct(events);
    let report = apply(&store, &records).await.unwrap();
    assert_eq!(report.applied, records.len(), "{report:?}");
    // A redelivery carries the same received_at and meets the same time partition.
    assert_eq!(
        apply(&store, &records).await.unwrap().duplicates,
        records.len()
    );

    let client = db.client(0).await;
    for table in ["order_events", "dispute_events"] {
        let rows = client
            .query(
                &format!(
                    "select c.relname::text, count(*),
                            min(to_char(received_at at time zone 'UTC', 'YYYY-MM-DD')),
                            pg_get_expr(c.relpartbound, c.oid)
                     from {table} log join pg_class c on c.oid = log.tableoid group by c.oid"
                ),
                &[],
            )
            .await
            .unwrap();
        let found: BTreeSet<String> = rows.iter().map(|row| row.get(2)).collect();
        assert_eq!(
            rows.len(),
            days.len(),
            "a time partition of {table} for each day"
        );
        assert_eq!(found, days, "{table}");
        for row in rows {
            let (partition, bound): (String, String) = (row.get(0), row.get(3));
            assert_eq!(row.get::<_, i64>(1), 1, "{partition} holds one day's row");
            assert!(
                bound.starts_with("FOR VALUES FROM"),
                "{partition} is {bound}: rows fell into the default"
            );
        }
        // Both logs' partitions are kept by pg_partman, with days on both sides of today.
        let parts: i64 = client
            .query_one(
                "select count(*) from pg_inherits i join pg_class c on c.oid = i.inhrelid
                 where i.inhparent = $1::text::regclass and pg_get_expr(c.relpartbound, c.oid) <> 'DEFAULT'",
                &[&table],
            )
            .await
            .unwrap()
            .get(0);
        assert!(parts >= 9, "{table} has {parts} time partitions");
        let parent = format!("public.{table}");
        let configured: i64 = client
            .query_one(
                "select count(*) from partman.part_config where parent_table = $1",
                &[&parent],
            )
            .await
            .unwrap()
            .get(0);
        assert_eq!(configured, 1, "pg_partman does not keep {parent}");
    }
}

/// The lock must not outlive a failed run, and a failure must not leave half a schema.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_migration_leaves_nothing_and_can_be_repeated() {
    let Some(db) = Ground::SINGLE.db().await else {
        return;
    };
    let name = shardlane_sql::testing::unique("half");
    shardlane_local::create_database(&db.urls()[0], &name)
        .await
        .unwrap();
    let url = with_database(&db.urls()[0], &name);
    let client = connect(&url).await;
    // Stands in the way of the second migration.
    client
        .batch_execute("create table dispute_events (x int)")
        .await
        .unwrap();
    let error = migrate(&url, Layout::Single, Detail::None)
        .await
        .expect_err("a table is in the way");
    assert!(error.to_string().contains("dispute_events"), "{error}");
    let found: Option<String> = client
        .query_one("select to_regclass('order_events')::text", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(found, None, "the failed migration left a table");
    client
        .batch_execute("drop table dispute_events")
        .await
        .unwrap();
    migrate(&url, Layout::Single, Detail::None).await.unwrap();
}
