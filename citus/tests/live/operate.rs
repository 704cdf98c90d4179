//! What an operator does, as the watch and Citus itself see it.

use std::time::Duration;

use shardlane_citus::MapChange;
use shardlane_citus::operate::{Coordinator, OperateError, Transfer};
use shardlane_router::{RouteKey, ShardId, Slot};
use uuid::Uuid;

use crate::support::{NEVER, connect, lab, options, other_node, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_split_and_an_isolation_are_searched_and_told() {
    let Some(lab) = lab("operate_split").await else {
        return;
    };
    let watch = lab.watch(options(NEVER)).await;
    let coordinator = lab.coordinator().await;
    let before = watch.current();
    let parent = before.shards()[0];
    let (here, there) = (before.node_of(&parent).clone(), other_node(&before, 0));
    // At a slot's border, and pieces of very different width.
    let point = Slot::new(7).unwrap().key_range().last();
    let error = coordinator
        .split_shard(parent.shard, &[point], &[&here, &there], Transfer::Online)
        .await
        .expect_err("a piece that stays would hang");
    assert!(matches!(error, OperateError::PieceStays(_)), "{error}");
    let pieces = coordinator
        .split_shard(
            parent.shard,
            &[point],
            &[&here, &there],
            Transfer::BlockWrites,
        )
        .await
        .unwrap();
    let map = watch.refresh().await.unwrap();
    assert_eq!(map.shards().len(), 5);
    assert_eq!([map.shards()[0].shard, map.shards()[1].shard], pieces[..]);
    assert_eq!(map.shards()[0].range.last(), point);
    assert_eq!(map.node_of(&map.shards()[1]), &there);
    lab.check(&map).await;
    let diffs = watch.diffs();
    let [MapChange::ShardSplit { shard, into }] = &diffs[0].changes[..] else {
        panic!("{diffs:?}")
    };
    assert_eq!(
        (*shard, into.iter().map(|it| it.shard).collect()),
        (parent.shard, pieces)
    );

    let tenant = Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0);
    let home = map.route(&RouteKey::Uuid(tenant));
    let to = map
        .nodes()
        .iter()
        .find(|it| **it != map.nodes()[home.node])
        .unwrap();
    for transfer in [Transfer::Online, Transfer::BlockWrites] {
        // The second time it is isolated already.
        let isolated = coordinator
            .isolate_tenant("events", tenant, to, transfer)
            .await
            .unwrap();
        let map = watch.refresh().await.unwrap();
        let route = map.route(&RouteKey::Uuid(tenant));
        assert_eq!((route.shard, &map.nodes()[route.node]), (isolated, to));
        let range = map.ranges_of(isolated).next().unwrap().range;
        assert_eq!((range.first(), range.last()), (route.token, route.token));
        assert_eq!(map.shards().len(), 7);
        lab.check(&map).await;
    }
    assert_eq!(watch.stats().changes, 2, "{:?}", watch.diffs());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_says_what_to_do() {
    let Some(lab) = lab("operate_refused").await else {
        return;
    };
    let worker = connect(&lab.cluster.workers[0].url(lab.database)).await;
    let error = Coordinator::of(&worker).await.err().expect("a worker");
    assert!(matches!(error, OperateError::NotCoordinator), "{error}");

    let coordinator = lab.coordinator().await;
    let map = lab.watch(options(NEVER)).await.current();
    let (shard, to) = (map.shards()[1], other_node(&map, 1));
    let error = coordinator
        .move_shard(ShardId(1), &to, Transfer::Online)
        .await
        .unwrap_err();
    assert!(
        matches!(error, OperateError::NoShard(ShardId(1))),
        "{error}"
    );
    let outside = map.shards()[3].range.first();
    let error = coordinator
        .split_shard(shard.shard, &[outside], &[&to, &to], Transfer::Online)
        .await
        .unwrap_err();
    assert!(matches!(error, OperateError::Points(_)), "{error}");

    // A lock that is never given back: the time is over, and nothing is left behind.
    let mut blocker = connect(&lab.cluster.coordinator_url(lab.database)).await;
    let held = blocker.transaction().await.unwrap();
    held.batch_execute("lock table events in access exclusive mode")
        .await
        .unwrap();
    let error = coordinator
        .with_time_max(Duration::from_millis(300))
        .move_shard(shard.shard, &to, Transfer::BlockWrites)
        .await
        .unwrap_err();
    assert!(matches!(error, OperateError::TimeOver(_)), "{error}");
    held.rollback().await.unwrap();
    coordinator
        .move_shard(shard.shard, &to, Transfer::BlockWrites)
        .await
        .expect("now it moves");
    let timeout = lab
        .client
        .query_one("show statement_timeout", &[])
        .await
        .unwrap();
    assert_eq!(
        timeout.get::<_, &str>(0),
        "0",
        "the session's own setting is back"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_added_takes_its_share() {
    let Some(lab) = lab("operate_rebalance").await else {
        return;
    };
    let watch = lab.watch(options(Duration::from_millis(200))).await;
    let spare = lab.cluster.start_spare_node(lab.database).await.unwrap();
    let coordinator = lab.coordinator().await;
    let node = coordinator
        .add_node(spare.host(), spare.port())
        .await
        .unwrap();
    assert_eq!(
        coordinator
            .add_node(spare.host(), spare.port())
            .await
            .unwrap(),
        node
    );
    let mut heard = Vec::new();
    coordinator
        .rebalance(Transfer::BlockWrites, |progress| {
            heard.push(progress.clone())
        })
        .await
        .unwrap();
    let last = heard.last().expect("it tells its progress");
    assert!(
        last.state == "finished" && last.moves_total >= 1,
        "{heard:?}"
    );
    assert_eq!(last.moves_done, last.moves_total, "{heard:?}");
    let map = until(&watch, "the new node", |map| map.nodes().contains(&node)).await;
    lab.check(&map).await;
    let changes: Vec<MapChange> = watch
        .diffs()
        .into_iter()
        .flat_map(|it| it.changes)
        .collect();
    assert!(
        changes.contains(&MapChange::NodeAdded { node: node.clone() }),
        "{changes:?}"
    );
    assert!(
        changes
            .iter()
            .any(|it| matches!(it, MapChange::ShardMoved { to, .. } if *to == node)),
        "{changes:?}"
    );
    let again = coordinator
        .start_rebalance(Transfer::BlockWrites)
        .await
        .unwrap();
    assert_eq!(again, None, "nothing is left to do");
}
