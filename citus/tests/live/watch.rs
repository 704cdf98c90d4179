//! What the watch notices, and what it costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shardlane_citus::operate::Transfer;
use shardlane_citus::{CitusError, MapChange};
use shardlane_router::Epoch;

use crate::support::{NEVER, lab, options, other_node, run, until, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn a_move_arrives_by_itself_and_is_told() {
    let Some(lab) = lab("watch_move").await else {
        return;
    };
    let watch = lab.watch(options(Duration::from_millis(100))).await;
    let before = watch.current();
    assert_eq!(before.epoch(), Epoch(1));
    let shard = before.shards()[1];
    let (from, to) = (before.node_of(&shard).clone(), other_node(&before, 1));
    let coordinator = lab.coordinator().await;
    coordinator
        .move_shard(shard.shard, &to, Transfer::BlockWrites)
        .await
        .unwrap();

    let after = until(&watch, "the move", |map| map.epoch() == Epoch(2)).await;
    assert_eq!(after.node_of(&after.shards()[1]), &to);
    assert!(
        Arc::ptr_eq(&after, &watch.current()),
        "the channel and the snapshot are one"
    );
    assert!(Arc::ptr_eq(&after, &watch.peek()));
    lab.check(&after).await;

    let [diff] = &watch.diffs()[..] else {
        panic!("one diff: {:?}", watch.diffs())
    };
    let moved = MapChange::ShardMoved {
        shard: shard.shard,
        from: from.clone(),
        to: to.clone(),
    };
    assert_eq!(
        (diff.from, diff.to, &diff.changes[..]),
        (Epoch(1), Epoch(2), &[moved][..])
    );
    let line = format!("epoch 2: shard {} moved from {from} to {to}", shard.shard);
    assert_eq!(diff.to_string(), line);
    let json = serde_json::to_value(diff).unwrap();
    assert_eq!(json["changes"][0]["change"], "shard_moved");
    let stats = watch.stats();
    assert_eq!(
        (stats.refreshes, stats.changes, stats.failures),
        (2, 1, 0),
        "{stats:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_suspicions_are_a_handful_of_questions() {
    let Some(lab) = lab("watch_storm").await else {
        return;
    };
    // What the server saw, not what the watch says it did.
    run(
        &lab.client,
        "alter database watch_storm set log_statement = 'all'",
    )
    .await;
    let watch = lab.watch(options(NEVER)).await;
    let asked = || {
        let log = std::fs::read_to_string(lab.cluster.coordinator.log_path()).unwrap();
        log.matches("select md5(concat_ws('|',").count()
    };
    let before = asked();
    assert!(before > 0, "the log shows the digest query");

    let began = Instant::now();
    let callers = (0..10).map(|_| {
        let watch = Arc::clone(&watch);
        tokio::spawn(async move {
            for _ in 0..1_000 {
                watch.suspect();
                tokio::task::yield_now().await;
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    watch.refresh().await.unwrap();
    let gaps = began.elapsed().as_millis() / 100;
    let allowed = usize::try_from(gaps).unwrap() + 2;
    let seen = asked() - before;
    assert!(
        (1..=allowed).contains(&seen),
        "{seen} questions, {allowed} allowed"
    );
    let stats = watch.stats();
    assert_eq!(
        (stats.requests, stats.polls),
        (10_001, seen as u64),
        "{stats:?}"
    );
    assert_eq!(stats.refreshes, 1, "the map was not read again: {stats:?}");
    assert_eq!(watch.current().epoch(), Epoch(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_begins_after_the_call() {
    let Some(lab) = lab("watch_refresh").await else {
        return;
    };
    let watch = lab.watch(options(NEVER)).await;
    let coordinator = lab.coordinator().await;
    for turn in 2..8 {
        let map = watch.current();
        let (shard, to) = (map.shards()[0], other_node(&map, 0));
        // A refresh that began before the move must not be taken for the answer.
        watch.suspect();
        coordinator
            .move_shard(shard.shard, &to, Transfer::BlockWrites)
            .await
            .unwrap();
        let all = std::iter::repeat_with(|| watch.refresh()).take(20);
        for refreshed in futures(all).await {
            assert_eq!(refreshed.node_of(&refreshed.shards()[0]), &to);
            assert_eq!(refreshed.epoch(), Epoch(turn));
        }
    }
    let stats = watch.stats();
    assert!(
        stats.polls < 30,
        "twenty waiters share a refresh: {stats:?}"
    );
}

async fn futures<'a, F>(all: impl Iterator<Item = F>) -> Vec<Arc<shardlane_citus::ShardMap>>
where
    F: Future<Output = Result<Arc<shardlane_citus::ShardMap>, CitusError>> + 'a,
{
    let all = all.map(async |it| it.await.unwrap());
    futures_util::future::join_all(all).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_that_cannot_be_used_does_not_replace_one_that_can() {
    let Some(lab) = lab("watch_unusable").await else {
        return;
    };
    let watch = lab.watch(options(NEVER)).await;
    let before = watch.current();
    let shard = before.shards()[2].shard;
    let second = other_node(&before, 2).group;
    run(
        &lab.client,
        &format!("insert into pg_dist_placement (shardid, shardstate, shardlength, groupid) values ({shard}, 1, 0, {second})"),
    )
    .await;
    let error = watch.refresh().await.expect_err("two placements");
    let CitusError::Refresh(cause) = &error else {
        panic!("{error}")
    };
    assert!(
        matches!(**cause, CitusError::Replicated(it) if it == shard.0),
        "{cause}"
    );
    assert!(Arc::ptr_eq(&before, &watch.current()), "the old map stays");
    assert_eq!((watch.stats().failures, watch.stats().changes), (1, 0));

    run(
        &lab.client,
        &format!("delete from pg_dist_placement where shardid = {shard} and groupid = {second}"),
    )
    .await;
    let after = watch.refresh().await.expect("it works again");
    assert!(Arc::ptr_eq(&before, &after), "nothing has changed");
    assert!(watch.diffs().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_watch_ends_it() {
    let Some(lab) = lab("watch_drop").await else {
        return;
    };
    let watch = lab.watch(options(Duration::from_millis(50))).await;
    let sessions = async || -> i64 {
        let sql = "select count(*) from pg_stat_activity where datname = 'watch_drop' and application_name = 'under_test'";
        lab.client.query_one(sql, &[]).await.unwrap().get(0)
    };
    assert_eq!(sessions().await, 1, "one session a watch");
    let mut maps = watch.subscribe();
    drop(watch);
    assert!(maps.changed().await.is_err(), "the channel closes");
    wait_for("its session ends", async || sessions().await == 0).await;
}
