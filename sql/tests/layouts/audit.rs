//! The audit finds what was planted, repairs what is safe, touches nothing else, and is silent where all is well.

use shardlane_router::{Epoch, ShardId};
use shardlane_sql::audit::{
    AuditError, Finding, LeftoverKind, Repair, Repaired, Severity, inspect, repair,
};
use shardlane_sql::reshard::{Change, Reshard, ReshardOptions, Step};
use shardlane_sql::testing::{TestDb, spare_database, test_map, unique};
use shardlane_sql::{Backend, CitusPath, Layout};
use tokio::sync::oneshot;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::events::{direct, dispute, from_kafka, order, users};
use crate::ground::{apply, citus_map, connect, digest_of, with_port};

/// Tables that hold rows of a user, one each of what [`filled`] writes.
const TABLES: [&str; 8] = [
    "inbox",
    "parked",
    "orders",
    "disputes",
    "order_events",
    "dispute_events",
    "outbox",
    "order_directory",
];

/// A database with an order, a dispute and an event that waits for each of 40 users, and with fences.
async fn filled(layout: Layout) -> Option<TestDb> {
    let db = TestDb::new(layout).await?;
    let events = users(31, 40).into_iter().flat_map(|user| {
        [
            order(user, "o", "e", "created", 1),
            dispute(user, "o", "d", "opened", 2),
            order(user, "never", "p", "updated", 3),
        ]
    });
    let records = from_kafka(events, "orders.webhooks", 0, 0);
    let store = db.store().await;
    apply(&store, &records).await.unwrap();
    Some(db)
}

fn backend(db: &TestDb) -> Backend {
    db.database().backend(CitusPath::Owner)
}

async fn findings(db: &TestDb) -> Vec<Finding> {
    inspect(&backend(db)).await.unwrap()
}

async fn repaired(db: &TestDb) -> Repaired {
    repair(&backend(db)).await.unwrap()
}

/// A user of shard 1 with rows there.
async fn user_of_second(db: &TestDb) -> Uuid {
    let query = "select user_id from orders order by 1 limit 1";
    db.client(1)
        .await
        .query_one(query, &[])
        .await
        .unwrap()
        .get(0)
}

async fn execute(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap();
}

async fn drop_checks(client: &Client) {
    for table in TABLES {
        let drop = format!("alter table {table} drop constraint {table}_owns_slot");
        execute(client, &drop).await;
    }
}

/// Copies a user's rows as they are, whatever the target thinks of it.
async fn copy_rows(from: &Client, to: &Client, user: Uuid) {
    for table in TABLES {
        let select = format!("select t::text from {table} t where user_id = $1");
        let rows = from.query(&select, &[&user]).await.unwrap();
        let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert!(!rows.is_empty(), "{table}");
        let insert =
            format!("insert into {table} select (row::{table}).* from unnest($1::text[]) as row");
        to.execute(&insert, &[&rows]).await.unwrap();
    }
}

async fn delete_rows(client: &Client, user: Uuid) {
    for table in TABLES {
        let delete = format!("delete from {table} where user_id = $1");
        client.execute(&delete, &[&user]).await.unwrap();
    }
}

/// What is said of foreign rows in shard 0: one of a user of shard 1 in each table, more in inbox and outbox.
fn foreign(user: Uuid) -> Vec<Finding> {
    let finding = |table| Finding::ForeignRows {
        table,
        shard: ShardId(0),
        owner: ShardId(1),
        rows: match table {
            "inbox" => 3,
            "outbox" => 2,
            _ => 1,
        },
        users: vec![user],
    };
    TABLES.into_iter().map(finding).collect()
}

fn constraint(table: &str) -> String {
    format!("{table}_owns_slot")
}

#[track_caller]
fn same(found: &[Finding], expected: &[Finding]) {
    let missing: Vec<_> = expected.iter().filter(|it| !found.contains(it)).collect();
    let more: Vec<_> = found.iter().filter(|it| !expected.contains(it)).collect();
    assert!(
        missing.is_empty() && more.is_empty(),
        "missing: {missing:?}, too many: {more:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_layout_reports_nothing() {
    for layout in Layout::ALL {
        let Some(db) = filled(layout).await else {
            continue;
        };
        same(&findings(&db).await, &[]);
        assert_eq!(repaired(&db).await, Repaired::default(), "{layout}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_on_a_shard_without_checks_are_deleted_and_the_checks_are_back() {
    let Some(db) = filled(Layout::Shards).await else {
        return;
    };
    let (first, second) = (db.client(0).await, db.client(1).await);
    let (before, user) = (digest_of(&db).await, user_of_second(&db).await);
    drop_checks(&first).await;
    copy_rows(&second, &first, user).await;

    let mut expected = foreign(user);
    expected.extend(TABLES.map(|table| Finding::CheckMissing {
        shard: ShardId(0),
        constraint: constraint(table),
    }));
    let found = findings(&db).await;
    same(&found, &expected);
    assert!(found.iter().all(|it| it.severity() == Severity::Damage));

    let done = repaired(&db).await;
    same(&done.left, &[]);
    let mut repairs = vec![
        Repair::ChecksRestored { shard: ShardId(0) },
        Repair::CopiesDeleted {
            shard: ShardId(0),
            owner: ShardId(1),
            rows: 11,
        },
    ];
    repairs.extend(TABLES.map(|table| Repair::CheckValidated {
        shard: ShardId(0),
        constraint: constraint(table),
    }));
    repairs.sort_by_key(|it| format!("{it:?}"));
    let mut said = done.repairs;
    said.sort_by_key(|it| format!("{it:?}"));
    assert_eq!(said, repairs);
    assert_eq!(digest_of(&db).await, before);
    same(&findings(&db).await, &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_whom_the_owner_has_nothing_is_moved_byte_for_byte() {
    let Some(db) = filled(Layout::Shards).await else {
        return;
    };
    let (first, second) = (db.client(0).await, db.client(1).await);
    let (before, user) = (digest_of(&db).await, user_of_second(&db).await);
    drop_checks(&first).await;
    copy_rows(&second, &first, user).await;
    delete_rows(&second, user).await;
    let done = repaired(&db).await;
    same(&done.left, &[]);
    let moved = Repair::UsersMoved {
        shard: ShardId(0),
        owner: ShardId(1),
        users: 1,
        rows: 11,
    };
    assert!(done.repairs.contains(&moved), "{:?}", done.repairs);
    assert_eq!(digest_of(&db).await, before);
    let query = "select count(*) from orders where user_id = $1";
    for (client, rows) in [(&first, 0), (&second, 1)] {
        let row = client.query_one(query, &[&user]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), rows);
    }
}

/// The owner's order is another than the foreign one: the copies beside it go, it stays, on both shards.
#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_is_reported_and_never_touched() {
    let Some(db) = filled(Layout::Shards).await else {
        return;
    };
    let (first, second) = (db.client(0).await, db.client(1).await);
    let user = user_of_second(&db).await;
    drop_checks(&first).await;
    copy_rows(&second, &first, user).await;
    let newer = format!("update orders set version = version + 1 where user_id = '{user}'");
    execute(&second, &newer).await;
    // A row that the owner does not have at all is in conflict too: it has others of this user.
    let more = format!("insert into order_directory values ('another', '{user}')");
    execute(&first, &more).await;
    let versions = async || {
        let query = "select version, (select count(*) from order_directory where user_id = $1) \
                     from orders where user_id = $1";
        let mut versions = Vec::new();
        for client in [&first, &second] {
            let row = client.query_one(query, &[&user]).await.unwrap();
            versions.push((row.get::<_, i64>(0), row.get::<_, i64>(1)));
        }
        versions
    };
    assert_eq!(versions().await, [(1, 2), (2, 1)]);

    let left = |table| Finding::ConflictingRows {
        table,
        shard: ShardId(0),
        owner: ShardId(1),
        rows: 1,
        users: vec![user],
    };
    let not_valid = |table| Finding::CheckNotValid {
        shard: ShardId(0),
        constraint: constraint(table),
    };
    let expected = [
        left("orders"),
        left("order_directory"),
        not_valid("orders"),
        not_valid("order_directory"),
    ];
    for _ in 0..2 {
        same(&repaired(&db).await.left, &expected);
        assert_eq!(versions().await, [(1, 1), (2, 1)]);
    }
}

/// A batch that brings the user to the owner is under way: moving waits for it, and then sees that the owner has rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_not_moved_past_a_batch_that_is_under_way() {
    let Some(db) = filled(Layout::Shards).await else {
        return;
    };
    let (first, second) = (db.client(0).await, db.client(1).await);
    let user = user_of_second(&db).await;
    drop_checks(&first).await;
    copy_rows(&second, &first, user).await;
    delete_rows(&second, user).await;
    let store = db.store().await;
    let records = direct([order(user, "another", "new", "created", 1)]);
    let target = store.target_of(user).unwrap();
    let staged = store.stage(target, &records).await.unwrap();
    let refused = repair(&backend(&db)).await.unwrap_err();
    assert!(refused.to_string().contains("lock timeout"), "{refused}");
    staged.commit().await.unwrap();
    let left = repaired(&db).await.left;
    let is_conflict = |it: &&Finding| matches!(it, Finding::ConflictingRows { .. });
    assert_eq!(left.iter().filter(is_conflict).count(), TABLES.len());
    let rows = "select count(*) from orders where user_id = $1";
    for client in [&first, &second] {
        let row = client.query_one(rows, &[&user]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_that_are_not_valid_or_admit_others_are_put_right() {
    let Some(db) = filled(Layout::Shards).await else {
        return;
    };
    let client = db.client(1).await;
    let slot = "((uuid_hash(user_id)::bigint + 2147483648) >> 20)";
    let replace = |table: &str, condition: &str| {
        format!(
            "alter table {table} drop constraint {table}_owns_slot, \
             add constraint {table}_owns_slot check ({condition}) not valid"
        )
    };
    let own = format!("{slot} between 2048 and 4095");
    execute(&client, &replace("inbox", &own)).await;
    let shard = ShardId(1);
    let not_valid = Finding::CheckNotValid {
        shard,
        constraint: constraint("inbox"),
    };
    same(&findings(&db).await, std::slice::from_ref(&not_valid));
    let done = repaired(&db).await;
    assert_eq!(
        done.repairs,
        [Repair::CheckValidated {
            shard,
            constraint: constraint("inbox")
        }]
    );
    same(&done.left, &[]);

    let other = format!("{slot} between 2040 and 4094");
    execute(&client, &replace("orders", &other)).await;
    execute(
        &client,
        "alter table kafka_fence drop constraint kafka_fence_epoch",
    )
    .await;
    let differs = Finding::CheckDiffers {
        shard,
        constraint: constraint("orders"),
        admits: "2040-4094".parse().unwrap(),
        expected: "2048-4095".parse().unwrap(),
    };
    let missing = Finding::CheckMissing {
        shard,
        constraint: "kafka_fence_epoch".to_owned(),
    };
    same(&findings(&db).await, &[differs, missing]);
    let done = repaired(&db).await;
    assert!(done.repairs.contains(&Repair::ChecksRestored { shard }));
    same(&done.left, &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn identities_that_differ_leave_slots_with_two_owners_or_none() {
    let Some(db) = filled(Layout::Shards).await else {
        return;
    };
    let (first, second) = (db.client(0).await, db.client(1).await);
    execute(
        &first,
        "update shard_identity set slots = '0-2040,2042-2047'",
    )
    .await;
    execute(
        &second,
        "update shard_identity set slots = '7-7,2048-4095', epoch = 3",
    )
    .await;
    let found = findings(&db).await;
    let hash = shardlane_router::TokenHash::Postgres.id();
    let differs = |shard, found: &str, expected: &str| Finding::IdentityDiffers {
        shard: ShardId(shard),
        found: format!("shard {shard} of {found} by {hash}"),
        expected: format!("shard {shard} of {expected} by {hash}"),
    };
    let expected = [
        differs(
            0,
            "epoch 1 with slots 0-2040,2042-2047",
            "epoch 1 with slots 0-2047",
        ),
        differs(
            1,
            "epoch 3 with slots 7-7,2048-4095",
            "epoch 1 with slots 2048-4095",
        ),
        Finding::SlotsWithoutOwner {
            slots: "2041-2041".parse().unwrap(),
        },
        Finding::SlotsOfTwoShards {
            slots: "7-7".parse().unwrap(),
            shards: vec![ShardId(0), ShardId(1)],
        },
    ];
    same(&found, &expected);
    // Who is right is not known, so nothing is done: not even about rows that lie wrong by the catalog.
    let user = user_of_second(&db).await;
    drop_checks(&first).await;
    copy_rows(&second, &first, user).await;
    assert_eq!(repaired(&db).await.repairs, []);

    execute(&first, "delete from shard_identity").await;
    let found = findings(&db).await;
    let is_missing =
        |it: &&Finding| matches!(it, Finding::IdentityMissing { shard, .. } if shard.0 == 0);
    assert_eq!(found.iter().filter(is_missing).count(), 1, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_ahead_of_its_shard_is_reported() {
    let Some(db) = filled(Layout::Shards).await else {
        return;
    };
    let plant = "insert into kafka_fence values \
                 ('00000000-0000-0000-0000-000000000000', 'other.webhooks', 2, 5, 0, 9)";
    execute(&db.client(1).await, plant).await;
    let expected = Finding::FenceAhead {
        shard: ShardId(1),
        topic: "other.webhooks".to_owned(),
        partition: 2,
        epoch: Epoch(5),
        shard_epoch: Epoch(1),
    };
    same(&findings(&db).await, std::slice::from_ref(&expected));
    assert_eq!(repaired(&db).await.left, [expected]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_reshard_left_behind_is_dropped() {
    for layout in [Layout::Single, Layout::Shards] {
        let Some(db) = filled(layout).await else {
            continue;
        };
        let client = db.client(0).await;
        let (slot, link) = (unique("shardlane"), unique("shardlane"));
        let foreign = unique("elsewhere");
        execute(
            &client,
            &format!(
                "create publication {link} for table orders; create publication {foreign} for table orders; \
                 create subscription {link} connection 'host=127.0.0.1 port=1' publication {link} \
                 with (connect = false, enabled = false)"
            ),
        )
        .await;
        let create = "select pg_create_logical_replication_slot($1, 'pgoutput')";
        client.execute(create, &[&slot]).await.unwrap();

        let found = findings(&db).await;
        let mut names: Vec<(LeftoverKind, &str)> = Vec::new();
        for finding in &found {
            let Finding::Leftover {
                object,
                name,
                retained_wal_bytes,
                active,
                ..
            } = finding
            else {
                panic!("{finding:?}")
            };
            assert!(!active);
            let is_slot = *object == LeftoverKind::ReplicationSlot;
            assert_eq!(retained_wal_bytes.is_some(), is_slot);
            names.push((*object, name));
        }
        names.sort_unstable();
        let expected = [
            (LeftoverKind::Subscription, &*link),
            (LeftoverKind::ReplicationSlot, &slot),
            (LeftoverKind::Publication, &link),
        ];
        assert_eq!(names, expected, "{layout}");
        let done = repaired(&db).await;
        assert_eq!(done.repairs.len(), 3, "{layout}: {:?}", done.repairs);
        same(&done.left, &[]);
        let row = client
            .query_one("select pubname::text from pg_publication", &[])
            .await;
        assert_eq!(
            row.unwrap().get::<_, &str>(0),
            foreign,
            "others' stay theirs"
        );
    }
}

/// Stopped in the middle, when its copies and frozen slots look like damage; then finished.
#[tokio::test(flavor = "multi_thread")]
async fn a_reshard_is_no_damage_while_it_runs_and_leaves_none() {
    for stop_at in [
        Step::CatchUp { to: ShardId(2) },
        Step::Drain { to: ShardId(2) },
        Step::Detach,
        Step::Finish,
    ] {
        let Some(db) = filled(Layout::Shards).await else {
            return;
        };
        let Some(spare) = spare_database().await else {
            return;
        };
        let mut urls = db.urls().to_vec();
        urls.push(spare.clone());
        let (options, change) = (
            ReshardOptions::default(),
            Change {
                add: vec![spare],
                remove: Vec::new(),
                ..Change::default()
            },
        );
        let mut reshard = Reshard::connect(db.urls(), test_map(), options)
            .await
            .unwrap();
        let (stop, stopped) = oneshot::channel();
        let mut stop = Some(stop);
        let run = reshard.run(&change, |step, _, _| {
            if step == stop_at {
                stop.take().unwrap().send(()).unwrap();
            }
        });
        tokio::select! {
            biased;
            stopped = stopped => stopped.unwrap(),
            result = run => panic!("{stop_at} was not reached: {result:?}"),
        }
        drop(reshard);
        let all = Backend::Shards {
            urls: urls.clone(),
            map: test_map(),
        };
        let found = inspect(&all).await.unwrap();
        let is_told = |it: &Finding| matches!(it, Finding::ReshardUnderWay { .. });
        assert!(found.iter().any(is_told), "{found:?}");
        assert!(
            found
                .iter()
                .all(|it| it.severity() == Severity::Information),
            "at {stop_at}: {found:?}"
        );
        let refused = repair(&all).await.unwrap_err();
        assert!(matches!(refused, AuditError::ReshardUnderWay), "{refused}");

        let mut reshard = Reshard::connect(&urls, test_map(), options).await.unwrap();
        reshard.run(&Change::default(), |_, _, _| ()).await.unwrap();
        same(&inspect(&all).await.unwrap(), &[]);
        // By the DSNs of before: the third shard is found through the catalog.
        same(&findings(&db).await, &[]);

        let last = connect(&urls[2]).await;
        execute(
            &last,
            "delete from shard_catalog where epoch = (select max(epoch) from shard_catalog)",
        )
        .await;
        let found = inspect(&all).await.unwrap();
        assert!(
            matches!(&found[..], [Finding::CatalogBehind { shard: ShardId(2), epoch: Some(old), newest }] if old < newest),
            "{found:?}"
        );
        execute(&last, "delete from shard_catalog").await;
        let found = inspect(&all).await.unwrap();
        assert!(
            matches!(
                &found[..],
                [Finding::CatalogBehind {
                    shard: ShardId(2),
                    epoch: None,
                    ..
                }]
            ),
            "{found:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn citus_rows_outside_their_shards_range_are_found() {
    let Some(db) = filled(Layout::Citus).await else {
        return;
    };
    let map = citus_map(&db).await;
    let admin = db.client(0).await;
    let (from, to) = (&map.shards()[0], &map.shards()[1]);
    let user = users(31, 40)
        .into_iter()
        .find(|user| {
            let key = shardlane_router::RouteKey::Uuid(*user);
            map.route(&key).shard == from.shard
        })
        .unwrap();
    let port = map.node_of(to).port;
    let node = connect(&with_port(&db.urls()[0], port)).await;
    execute(
        &node,
        &format!(
            "set citus.enable_manual_changes_to_shards = on; \
             insert into inbox_{} values ('{user}', 'orders', 'lost', '{user}', now())",
            to.shard
        ),
    )
    .await;
    let hidden = "select count(*) from inbox where event_id = 'lost'";
    let by_user = format!("{hidden} and user_id = '{user}'");
    let row = admin.query_one(&by_user, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 0, "the row is invisible");
    let expected = Finding::CitusForeignRows {
        table: "inbox".to_owned(),
        shard: to.shard,
        node: format!("127.0.0.1:{port}"),
        rows: 1,
        users: vec![user],
    };
    same(&findings(&db).await, std::slice::from_ref(&expected));
    let done = repaired(&db).await;
    assert_eq!((done.repairs, done.left), (Vec::new(), vec![expected]));
}

#[tokio::test(flavor = "multi_thread")]
async fn citus_tables_that_drifted_are_found() {
    let Some(db) = filled(Layout::Citus).await else {
        return;
    };
    let admin = db.client(0).await;
    execute(&admin, "select undistribute_table('outbox')").await;
    execute(
        &admin,
        "select alter_distributed_table('disputes', shard_count := 2, cascade_to_colocated := false)",
    )
    .await;
    // The metadata says that a shard of orders is where it is not.
    execute(
        &admin,
        "update pg_dist_placement set groupid = (select max(groupid) from pg_dist_node) + \
             (select min(groupid) from pg_dist_node where groupid > 0) - groupid \
         where shardid = (select min(shardid) from pg_dist_shard where logicalrelid = 'orders'::regclass)",
    )
    .await;
    let found = findings(&db).await;
    let is_told = |told: &dyn Fn(&Finding) -> bool| found.iter().filter(|it| told(it)).count();
    let told = [
        is_told(&|it| matches!(it, Finding::CitusTable { table, .. } if table == "outbox")),
        is_told(&|it| matches!(it, Finding::CitusColocation { table, .. } if table == "disputes")),
        is_told(&|it| {
            matches!(it, Finding::CitusRanges { table, only_here, only_there, .. }
                if table == "disputes" && only_here.len() == 2 && only_there.len() == 4)
        }),
        is_told(&|it| matches!(it, Finding::CitusPlacement { table, .. } if table == "orders")),
        is_told(&|it| matches!(it, Finding::CitusShardMissing { table, .. } if table == "orders")),
    ];
    assert_eq!(told, [1; 5], "{found:?}");
    assert_eq!(found.len(), 5, "{found:?}");
    assert_eq!(repaired(&db).await.left, found);
}
