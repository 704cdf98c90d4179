//! A worker says which user and slot it is busy with.

use shardlane_domain::Source;
use shardlane_router::RouteKey;
use shardlane_sql::Layout;
use shardlane_worker::{HotAnswer, StatsServer, StatsServerError};

use crate::events::{order, partition_of, user};
use crate::world::{World, until_done};

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_a_third_of_all_events_is_named_with_its_slot() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let hot = user(4_000);
    // 30 % are one user's; the others are 70 users with two each.
    let mut events = vec![order(hot, "h0", "ord", "created", 1)];
    events.extend((1..60).map(|n| order(hot, &format!("h{n}"), "ord", "updated", 1 + n)));
    for other in (0..70).map(user) {
        events.push(order(other, "o0", "ord", "created", 1));
        events.push(order(other, "o1", "ord", "updated", 2));
    }
    let total = events.len() as u64;
    assert_eq!(total, 200);
    ring.publish(&events).await;
    let worker = world.start(ring.settings("hot")).await;
    until_done(&worker, events.len()).await;

    let slot = ring.map.hash().token(&RouteKey::Uuid(hot)).slot();
    let keys = worker.stats().hot();
    assert_eq!((keys.total, keys.users_error_max), (total, 0));
    assert_eq!(keys.users[0], (hot, 60));
    assert_eq!(keys.users[1].1, 2);
    assert_eq!(keys.slots[0].0, slot);
    assert!((60..70).contains(&keys.slots[0].1), "{:?}", keys.slots[0]);
    assert_eq!(keys.skew, keys.slots[0].1 as f64 / (total as f64 / 4096.0));

    let server = StatsServer::bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let address = server.address();
    let taken = StatsServer::bind(address).await.err().unwrap();
    assert!(
        matches!(taken, StatsServerError::PortTaken { .. }),
        "{taken}"
    );
    let serving = tokio::spawn(server.run(worker.view()));
    let get = async |path: &str| {
        let url = format!("http://{address}{path}");
        let body = tokio::task::spawn_blocking(move || {
            let mut response = ureq::get(&url).call().unwrap();
            response.body_mut().read_to_string().unwrap()
        });
        body.await.unwrap()
    };
    assert_eq!(get("/livez").await, r#"{"status":"alive"}"#);
    let stats: serde_json::Value = serde_json::from_str(&get("/stats").await).unwrap();
    assert_eq!(stats["applied"], total);
    assert!(stats["batch_p99_us"].as_u64() >= stats["batch_p50_us"].as_u64());
    let answer: HotAnswer = serde_json::from_str(&get("/hot").await).unwrap();
    assert_eq!((answer.total, answer.skew), (total, keys.skew));
    let (first, shard) = (&answer.slots[0], ring.map.shard_of(slot));
    assert_eq!(first.slot, slot.number());
    assert_eq!(first.partition.0, partition_of(&ring.map, hot));
    assert_eq!(first.shards, [shard]);
    let named = &answer.users[0];
    assert_eq!((named.user, named.events), (hot, 60));
    assert_eq!((named.slot, named.shard), (slot.number(), Some(shard)));
    serving.abort();
    worker.stop().await.unwrap();

    // A replay commits no batch, so it counts nobody.
    let again = world.start(ring.settings("again")).await;
    until_done(&again, events.len()).await;
    assert_eq!(again.stats().hot().total, 0);
    again.stop().await.unwrap();
    assert_eq!(ring.read(&ring.topics.dlq_of(Source::Orders)), []);
}
