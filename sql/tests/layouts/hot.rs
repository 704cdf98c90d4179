//! A hot user gets a Citus shard of its own while writers write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use shardlane_router::{RouteKey, TokenHash};
use shardlane_sql::audit::inspect;
use shardlane_sql::{ErrorClass, Record, Store};
use uuid::Uuid;

use crate::events::{order, users};
use crate::ground::{Ground, WAIT_MAX, citus_map};

/// Writes one event of a user, through whatever passes.
async fn write(store: &Store, user: Uuid, round: u64) {
    let status = if round == 0 { "created" } else { "updated" };
    let second = i64::try_from(round).unwrap();
    let record = Record {
        event: order(user, "o", &format!("e{round}"), status, 1 + second),
        origin: None,
    };
    loop {
        let routes = store.routes();
        let target = routes.target_of(user).unwrap();
        let error = match store.stage(target, std::slice::from_ref(&record)).await {
            Ok(staged) => match staged.commit().await {
                Ok(report) => {
                    assert_eq!(report.applied + report.duplicates, 1, "{report:?}");
                    return;
                }
                Err(error) => error,
            },
            Err(error) => error,
        };
        assert!(
            matches!(error.class(), ErrorClass::Transient | ErrorClass::Rerouted),
            "{error}"
        );
        store.refresh(routes.epoch()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_isolated_under_load_and_nothing_is_lost() {
    let Some(db) = Ground::CITUS_OWNER.db().await else {
        return;
    };
    let store = db.store().await;
    let users = users(71, 20);
    let hot = users[0];
    let stop = Arc::new(AtomicBool::new(false));
    let rounds: Arc<Vec<AtomicU64>> = Arc::new(users.iter().map(|_| AtomicU64::new(0)).collect());
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (store, users) = (Arc::clone(&store), users.clone());
            let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    for index in (writer..users.len()).step_by(4) {
                        // The first writer has the hot user, and writes it more often.
                        let times = if index == 0 { 5 } else { 1 };
                        for _ in 0..times {
                            let round = rounds[index].load(Ordering::Relaxed);
                            write(&store, users[index], round).await;
                            rounds[index].store(round + 1, Ordering::Relaxed);
                        }
                    }
                }
            })
        })
        .collect();
    let everyone_wrote = async |more: u64| {
        let before: Vec<u64> = rounds.iter().map(|it| it.load(Ordering::Relaxed)).collect();
        let wrote = async {
            while rounds
                .iter()
                .zip(&before)
                .any(|(now, before)| now.load(Ordering::Relaxed) < before + more)
            {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(WAIT_MAX, wrote)
            .await
            .expect("each user's writer goes on");
    };
    everyone_wrote(3).await;

    let admin = db.client(0).await;
    let before = citus_map(&db).await;
    // The mode that each installation can do; writers of the shard wait for it.
    let isolate = format!(
        "select isolate_tenant_to_new_shard('inbox', '{hot}'::uuid, 'CASCADE', shard_transfer_mode => 'block_writes')"
    );
    let isolated: i64 = admin.query_one(&isolate, &[]).await.unwrap().get(0);
    everyone_wrote(3).await;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }

    let after = citus_map(&db).await;
    assert_eq!(after.shards().len(), before.shards().len() + 2);
    let route = after.route(&RouteKey::Uuid(hot));
    assert_eq!(route.shard.0, isolated);
    let range = &after.shard_for(route.token).range;
    let hash = TokenHash::Postgres.token(&RouteKey::Uuid(hot)).hash_i32();
    assert_eq!(range.hash_bounds(), (hash, hash), "a shard of one hash");
    for (user, rounds) in users.iter().zip(rounds.iter()) {
        let written = i64::try_from(rounds.load(Ordering::Relaxed)).unwrap();
        let query = "select (select version from orders where user_id = $1), \
                     (select count(*) from order_events where user_id = $1), \
                     (select count(*) from inbox where user_id = $1), \
                     (select count(*) from (select version, lag(version) over (order by occurred_at) as last \
                      from order_events where user_id = $1) t where version <= last)";
        let row = admin.query_one(query, &[user]).await.unwrap();
        let (version, events, inbox, disordered): (i64, i64, i64, i64) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        assert_eq!(
            (version, events, inbox, disordered),
            (written, written, written, 0),
            "{user}"
        );
    }
    let backend = db.database().backend(shardlane_sql::CitusPath::Owner);
    assert_eq!(inspect(&backend).await.unwrap(), []);
}
