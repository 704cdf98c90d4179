//! Records that lie in partitions where they do not belong.

use std::collections::BTreeMap;

use shardlane_domain::Source;
use shardlane_router::{Epoch, SlotMap};
use shardlane_sql::audit::Severity;
use shardlane_worker::{TopicAudit, TopicFinding, audit_topics};

use crate::events::{partition_of, user, users_of, walks};
use crate::world::Ring;

async fn found(ring: &Ring, map: &SlotMap, records_max: Option<u64>) -> Vec<TopicFinding> {
    let audit = TopicAudit {
        bootstrap: ring.bootstrap.clone(),
        topics: ring.topics.clone(),
        map: map.clone(),
        records_max,
    };
    tokio::task::spawn_blocking(move || audit_topics(&audit))
        .await
        .unwrap()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_producers_records_are_found_and_ours_are_not() {
    let Some(ring) = Ring::new().await else {
        return;
    };
    ring.publish(&walks((0..40).map(user))).await;
    assert_eq!(found(&ring, &ring.map, None).await, []);

    let producer = ring.foreign_producer();
    let strangers: Vec<String> = users_of(&ring.map, 1, 7)
        .into_iter()
        .chain(users_of(&ring.map, 3, 2))
        .map(|user| user.to_string())
        .collect();
    let mut offsets = Vec::new();
    for key in &strangers {
        let key = Some(key.as_bytes());
        offsets.push(
            ring.put(&producer, Source::Orders, 2, key, Some(b"{}"))
                .await,
        );
    }
    let mut unkeyed = Vec::new();
    for key in [None, Some(&b"42"[..]), Some(b"")] {
        unkeyed.push(
            ring.put(&producer, Source::Orders, 0, key, Some(b"{}"))
                .await,
        );
    }
    let topic = ring.topics.of(Source::Orders);
    let foreign = TopicFinding::ForeignRecords {
        topic: topic.clone(),
        partition: 2,
        records: 9,
        belong_to: BTreeMap::from([(1, 7), (3, 2)]),
        offsets: offsets[..5].to_vec(),
    };
    let without_key = TopicFinding::UnkeyedRecords {
        topic: topic.clone(),
        partition: 0,
        records: 3,
        offsets: unkeyed.clone(),
    };
    let all = [without_key, foreign];
    assert_eq!(found(&ring, &ring.map, None).await, all);
    assert!(all.iter().all(|it| it.severity() == Severity::Damage));
    assert_eq!(found(&ring, &ring.map, Some(1_000_000)).await, all);
    // The newest two of each partition.
    let newest = [
        TopicFinding::UnkeyedRecords {
            topic: topic.clone(),
            partition: 0,
            records: 2,
            offsets: unkeyed[1..].to_vec(),
        },
        TopicFinding::ForeignRecords {
            topic,
            partition: 2,
            records: 2,
            belong_to: BTreeMap::from([(3, 2)]),
            offsets: offsets[7..].to_vec(),
        },
    ];
    assert_eq!(found(&ring, &ring.map, Some(2)).await, newest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_of_another_count_finds_partitions_and_what_the_older_one_placed() {
    let Some(ring) = Ring::new().await else {
        return;
    };
    let users: Vec<_> = (0..40).map(user).collect();
    ring.publish(&walks(users.iter().copied())).await;
    let two = SlotMap::aligned(Epoch(2), ring.map.hash(), 2, ring.map.shards()).unwrap();
    let findings = found(&ring, &two, None).await;
    let displaced = users
        .iter()
        .filter(|user| partition_of(&two, **user) != partition_of(&ring.map, **user))
        .count() as u64;
    assert!(displaced > 0);
    let (mut extra, mut older) = (0, 0);
    for finding in &findings {
        match finding {
            TopicFinding::ExtraPartitions {
                found: 4,
                expected: 2,
                ..
            } => extra += 1,
            TopicFinding::RecordsOfOlderEpoch { records, .. } => {
                assert_eq!(finding.severity(), Severity::Information);
                older += records;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(extra, Source::ALL.len());
    // Six records a user, over both topics.
    assert_eq!(older, 6 * displaced);

    let eight = SlotMap::aligned(Epoch(1), ring.map.hash(), 8, ring.map.shards()).unwrap();
    let findings = found(&ring, &eight, None).await;
    let missing = |it: &&TopicFinding| {
        matches!(
            it,
            TopicFinding::MissingPartitions {
                found: 4,
                expected: 8,
                ..
            }
        )
    };
    assert_eq!(findings.iter().filter(missing).count(), Source::ALL.len());
}
