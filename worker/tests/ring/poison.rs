//! What is no event, or none that may be applied, becomes one dead letter, and stops nothing.

use std::collections::BTreeMap;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use shardlane_domain::Source;
use shardlane_sql::Layout;

use crate::events::{at, decoded, order, order_json, users_of};
use crate::world::{Found, Ring, World, until, until_counts, until_done};

/// What it is, its key and its value.
type Poison<'a> = (&'static str, Option<&'a [u8]>, Option<&'a [u8]>);

/// What each dead letter says of its origin.
#[track_caller]
pub(crate) fn is_letter_of(
    letter: &Found,
    origin: &Found,
    topic: &str,
    class: &str,
    attempts: Option<&str>,
) {
    assert_eq!(letter.partition, origin.partition);
    assert_eq!((&letter.key, &letter.value), (&origin.key, &origin.value));
    assert_eq!(letter.timestamp, origin.timestamp);
    let kept = origin.headers.len();
    assert_eq!(
        letter.headers[..kept],
        origin.headers,
        "the original headers come first"
    );
    let (partition, offset) = (origin.partition.to_string(), origin.offset.to_string());
    let stage = if class == "malformed" {
        "VALUE_CONVERTER"
    } else {
        "TASK_PUT"
    };
    for (name, value) in [
        ("shardlane-origin-topic", topic),
        ("shardlane-origin-partition", &partition),
        ("shardlane-origin-offset", &offset),
        ("shardlane-error-class", class),
        ("__connect.errors.topic", topic),
        ("__connect.errors.partition", &partition),
        ("__connect.errors.offset", &offset),
        ("__connect.errors.connector.name", "shardlane"),
        ("__connect.errors.task.id", &partition),
        ("__connect.errors.stage", stage),
        ("__connect.errors.class.name", "shardlane_worker::lane"),
        ("__connect.errors.exception.class.name", class),
    ] {
        assert_eq!(letter.header(name), value, "{name} of {letter:?}");
    }
    let reason = letter.header("shardlane-reason");
    assert!(reason.len() > 10 && reason.len() <= 1_000, "{reason}");
    assert_eq!(letter.header("__connect.errors.exception.message"), reason);
    assert_eq!(
        letter.header("__connect.errors.exception.stacktrace"),
        format!("{class}: {reason}")
    );
    letter
        .header("shardlane-dead-at")
        .parse::<jiff::Timestamp>()
        .unwrap();
    let tried = letter.header("shardlane-attempts");
    match attempts {
        Some(attempts) => assert_eq!(tried, attempts),
        None => assert!(tried.parse::<u32>().unwrap() > 1, "{tried}"),
    }
}

/// How many records ended, and how many of them as dead letters that no rule of the state machine made.
async fn outcomes(world: &World) -> (i64, i64) {
    let all = "select coalesce(sum(applied + duplicate + duplicate_with_different_payload + stale + illegal + parked \
               + dead_lettered), 0)::bigint from kafka_outcomes";
    let dead = "select coalesce(sum(dead_lettered), 0)::bigint from kafka_outcomes";
    let (all, dead) = (world.ask(all).await, world.ask(dead).await);
    (all.iter().sum(), dead.iter().sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_anywhere_in_a_batch_is_one_dead_letter() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let topic = ring.topics.of(Source::Orders);
    let producer = ring.foreign_producer();
    let users = users_of(&ring.map, 1, 30);
    let stranger = users_of(&ring.map, 2, 1)[0];
    let key = |index: usize| users[index].to_string();
    let good = |index: usize| order_json(users[index], "o1", "ord", "created", 1);
    let other = order_json(stranger, "o9", "ord", "created", 1);
    let no_user = key(0).replace('-', "?");
    let long_key = "k".repeat(5_000);
    let (k0, k1) = (key(0), key(1));
    let poisons: Vec<Poison<'_>> = vec![
        ("not JSON", Some(k0.as_bytes()), Some(b"\xff\x00 not JSON")),
        (
            "a field is missing",
            Some(k0.as_bytes()),
            Some(b"{\"order_id\":\"o\"}"),
        ),
        (
            "another user's key",
            Some(k1.as_bytes()),
            Some(other.as_bytes()),
        ),
        (
            "a key that is no user",
            Some(no_user.as_bytes()),
            Some(other.as_bytes()),
        ),
        (
            "a long key",
            Some(long_key.as_bytes()),
            Some(other.as_bytes()),
        ),
        ("no bytes", Some(k0.as_bytes()), Some(b"")),
        ("null", Some(k0.as_bytes()), None),
        ("nothing at all", None, None),
    ];
    // A batch for each kind: the first, a middle and the last record are poison.
    let mut next_good = 0;
    for (_, poison_key, value) in &poisons {
        for place in 0..5 {
            if place % 2 == 0 {
                ring.put(&producer, Source::Orders, 1, *poison_key, *value)
                    .await;
            } else {
                let (key, json) = (key(next_good), good(next_good));
                ring.put(
                    &producer,
                    Source::Orders,
                    1,
                    Some(key.as_bytes()),
                    Some(json.as_bytes()),
                )
                .await;
                next_good += 1;
            }
        }
    }
    let mut settings = ring.settings("");
    settings.batch_rows_max = 5;
    settings.batch_linger = std::time::Duration::from_secs(2);
    let worker = world.start(settings.clone()).await;
    let counts = until_done(&worker, 5 * poisons.len()).await;
    worker.stop().await.unwrap();
    assert_eq!(
        counts.batches, 8,
        "a batch was cut otherwise than meant: {counts:?}"
    );
    assert_eq!((counts.malformed, counts.applied), (24, 16), "{counts:?}");
    ring.everything_is_committed(&settings);
    assert_eq!(
        world
            .ask("select count(*) from orders")
            .await
            .iter()
            .sum::<i64>(),
        16
    );

    let origins = ring.read(&topic);
    let letters = ring.read(&ring.topics.dlq_of(Source::Orders));
    assert_eq!(letters.len(), 24);
    let poisoned: Vec<&Found> = origins
        .iter()
        .filter(|found| found.offset % 5 % 2 == 0)
        .collect();
    for (index, (letter, origin)) in letters.iter().zip(poisoned).enumerate() {
        is_letter_of(letter, origin, &topic, "malformed", Some("1"));
        assert_eq!(
            origin.value.as_deref(),
            poisons[index / 3].2,
            "{}",
            poisons[index / 3].0
        );
    }
    assert!(
        letters[6]
            .header("shardlane-reason")
            .contains("producers must key by user_id")
    );
    assert!(letters[15].header("shardlane-reason").contains("no value"));
    assert_eq!(ring.read(&ring.topics.dlq_of(Source::Chargebacks)), []);

    // Each record is counted once, also those that are no events and name nobody, and the fence covers them all.
    assert_eq!(outcomes(&world).await, (40, 24));
    let worker = world.start(ring.settings("again")).await;
    let counts = until_done(&worker, 5 * poisons.len()).await;
    worker.stop().await.unwrap();
    assert_eq!((counts.fenced, counts.malformed), (40, 0), "{counts:?}");
    assert_eq!(outcomes(&world).await, (40, 24));
    assert_eq!(ring.read(&ring.topics.dlq_of(Source::Orders)), letters);
}

/// As after a crash between the dead letters and the commit: the letters are there twice, the outcomes once.
#[tokio::test(flavor = "multi_thread")]
async fn poison_whose_transaction_was_lost_is_counted_once() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let producer = ring.foreign_producer();
    let user = users_of(&ring.map, 1, 1)[0];
    ring.publish(&[order(user, "o1", "ord", "created", 1)])
        .await;
    for key in [Some(&b"nobody"[..]), None] {
        ring.put(&producer, Source::Orders, 1, key, Some(b"garbage"))
            .await;
    }
    // The count is the last statement before the commit, behind the dead letters.
    world
        .execute(
            "create function refuse() returns trigger language plpgsql as \
             $$begin raise exception 'later' using errcode = '40001'; end$$; \
             create trigger refuse before insert on kafka_outcomes for each row execute function refuse()",
        )
        .await;
    let settings = ring.settings("");
    let worker = world.start(settings.clone()).await;
    let dlq = ring.topics.dlq_of(Source::Orders);
    until("letters of two tries", async || {
        let letters = ring.read(&dlq).len();
        (letters >= 4)
            .then_some(())
            .ok_or_else(|| letters.to_string())
    })
    .await;
    worker.stop().await.unwrap();
    assert_eq!(outcomes(&world).await, (0, 0));
    assert_eq!(ring.offsets(&settings)[&(Source::Orders, 1)], (0, 3));

    world.execute("drop trigger refuse on kafka_outcomes").await;
    let worker = world.start(settings.clone()).await;
    let counts = until_done(&worker, 3).await;
    worker.stop().await.unwrap();
    assert_eq!((counts.applied, counts.malformed), (1, 2), "{counts:?}");
    assert_eq!(outcomes(&world).await, (3, 2));
    ring.everything_is_committed(&settings);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgres_refuses_is_found_by_halving() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let topic = ring.topics.of(Source::Orders);
    let producer = ring.foreign_producer();
    let users = users_of(&ring.map, 0, 24);
    let refused = [0, 9, 23];
    for (index, user) in users.iter().enumerate() {
        let mut json = order_json(*user, "o1", "ord", "created", 1);
        if refused.contains(&index) {
            // A time that the decoder knows and Postgres, which begins in 4713 BC, does not.
            json = json.replace(&at(0).to_string(), "-009000-01-01T00:00:00Z");
            assert!(json.contains("-009000"), "the test replaces nothing");
            decoded(Source::Orders, json.clone());
        }
        let key = user.to_string();
        ring.put(
            &producer,
            Source::Orders,
            0,
            Some(key.as_bytes()),
            Some(json.as_bytes()),
        )
        .await;
    }
    let settings = ring.settings("");
    let worker = world.start(settings.clone()).await;
    let counts = until_done(&worker, users.len()).await;
    worker.stop().await.unwrap();
    assert_eq!(
        (counts.malformed, counts.applied, counts.retries),
        (3, 21, 0),
        "{counts:?}"
    );
    ring.everything_is_committed(&settings);
    let origins = ring.read(&topic);
    let letters = ring.read(&ring.topics.dlq_of(Source::Orders));
    assert_eq!(letters.len(), 3);
    for (letter, offset) in letters.iter().zip(refused) {
        is_letter_of(letter, &origins[offset], &topic, "data", Some("1"));
        assert!(
            letter.header("shardlane-reason").contains("22008"),
            "{letter:?}"
        );
    }
    let orders = world.ask("select count(*) from orders").await;
    assert_eq!(orders, [21, 0]);
    // None of the refused is known to the inbox, and the order of the others is kept.
    assert_eq!(world.ask("select count(*) from inbox").await, [21, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_as_long_as_kafka_allows_is_a_dead_letter_too() {
    let Some(world) = World::new(Layout::Single).await else {
        return;
    };
    let ring = &world.ring;
    let producer = ring.foreign_producer();
    let user = users_of(&ring.map, 0, 1)[0];
    let key = user.to_string();
    // Broker's default limit: 1,048,588 bytes with everything.
    let long = "x".repeat(1_048_300);
    ring.put(
        &producer,
        Source::Orders,
        0,
        Some(key.as_bytes()),
        Some(long.as_bytes()),
    )
    .await;
    // The key stands in the reason, too.
    ring.put(&producer, Source::Orders, 0, Some(long.as_bytes()), None)
        .await;
    ring.publish(&[order(user, "o1", "ord", "created", 1)])
        .await;
    let settings = ring.settings("");
    let worker = world.start(settings.clone()).await;
    let counts = until_done(&worker, 3).await;
    worker.stop().await.unwrap();
    assert_eq!((counts.malformed, counts.applied), (2, 1), "{counts:?}");
    ring.everything_is_committed(&settings);
    let letters = ring.read(&ring.topics.dlq_of(Source::Orders));
    assert_eq!(letters.len(), 2);
    assert_eq!(letters[0].value.as_deref(), Some(long.as_bytes()));
    assert_eq!(letters[1].key.as_deref(), Some(long.as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_may_not_be_applied_are_dead_letters_of_their_class() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let topic = ring.topics.of(Source::Orders);
    let user = users_of(&ring.map, 3, 1)[0];
    let created = order(user, "o1", "ord", "created", 10);
    ring.publish(&[
        order(user, "early", "ord", "updated", 5),
        created.clone(),
        order(user, "o2", "ord", "success", 20),
        created.clone(),
        order(user, "late", "ord", "updated", 15),
        order(user, "after", "ord", "updated", 30),
        order(user, "o2", "ord", "failed", 20),
        // What waited is known.
        order(user, "early", "other", "created", 31),
        created,
        // The same bytes again, too: the database must not depend on what falls into one batch.
        order(user, "soon", "third", "updated", 5),
        order(user, "o3", "third", "created", 1),
        order(user, "soon", "third", "updated", 5),
    ])
    .await;
    let settings = ring.settings("");
    let worker = world.start(settings.clone()).await;
    let counts = until_done(&worker, 12).await;
    worker.stop().await.unwrap();
    assert_eq!(
        (
            counts.applied,
            counts.duplicates,
            counts.stale,
            counts.parked,
            counts.released,
            counts.illegal
        ),
        (3, 3, 1, 2, 2, 1),
        "{counts:?}"
    );
    assert_eq!(
        (counts.different_payload, counts.too_early, counts.malformed),
        (2, 0, 0),
        "{counts:?}"
    );
    ring.everything_is_committed(&settings);
    let origins = ring.read(&topic);
    let mut letters = ring.read(&ring.topics.dlq_of(Source::Orders));
    letters.sort_by_key(|letter| letter.header("shardlane-origin-offset").to_owned());
    let expected = [
        (5, "illegal"),
        (6, "duplicate_with_different_payload"),
        (7, "duplicate_with_different_payload"),
    ];
    assert_eq!(letters.len(), expected.len(), "{letters:?}");
    for (letter, (offset, class)) in letters.iter().zip(expected) {
        is_letter_of(letter, &origins[offset], &topic, class, Some("1"));
    }
    let client = world.db.client(world.server_of(user)).await;
    let row = client
        .query_one("select string_agg(order_id || ' ' || status || version, ', ' order by order_id) from orders", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, &str>(0), "ord success2, third updated2");
    // What was taken is known under the bytes that were taken; what was rejected is not known.
    let query = "select string_agg(event_id, ' ' order by event_id) from inbox";
    let row = client.query_one(query, &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "early late o1 o2 o3 soon");

    world.execute("truncate kafka_fence").await;
    let worker = world.start(ring.settings("again")).await;
    let counts = until_done(&worker, 12).await;
    worker.stop().await.unwrap();
    assert_eq!((counts.applied, counts.stale), (0, 0), "{counts:?}");
    assert_eq!(
        (counts.different_payload, counts.illegal, counts.duplicates),
        (2, 1, 9),
        "{counts:?}"
    );
}

pub(crate) fn admin(ring: &Ring) -> AdminClient<DefaultClientContext> {
    ClientConfig::new()
        .set("bootstrap.servers", &ring.bootstrap)
        .create()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_dead_letter_topic_is_waited_for() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let (topic, dlq) = (
        ring.topics.of(Source::Orders),
        ring.topics.dlq_of(Source::Orders),
    );
    admin(ring)
        .delete_topics(&[&dlq], &AdminOptions::new())
        .await
        .unwrap()[0]
        .as_ref()
        .unwrap();
    let users = users_of(&ring.map, 0, 2);
    let unharmed = users_of(&ring.map, 3, 1)[0];
    // Partition 0: what the state machine rejects; partition 1: what is no event; partition 3: nothing wrong.
    ring.publish(&[
        order(users[0], "o1", "ord", "created", 1),
        order(users[0], "again", "ord", "created", 2),
        order(users[0], "o2", "ord", "success", 3),
        order(unharmed, "o1", "ord", "created", 1),
        order(unharmed, "o2", "ord", "success", 2),
    ])
    .await;
    let producer = ring.foreign_producer();
    ring.put(&producer, Source::Orders, 1, None, Some(b"garbage"))
        .await;
    let settings = ring.settings("");
    let worker = world.start(settings.clone()).await;
    let counts = until_counts(&worker.stats(), "a try that failed", |counts| {
        counts.retries > 0 && counts.done >= 2
    })
    .await;
    assert_eq!(
        (counts.done, counts.illegal, counts.malformed),
        (2, 0, 0),
        "{counts:?}"
    );
    let offsets = ring.offsets(&settings);
    for (partition, expected) in [(0, (0, 3)), (1, (0, 1))] {
        assert_eq!(
            offsets[&(Source::Orders, partition)],
            expected,
            "{offsets:?}"
        );
    }
    // Nothing of the batch is in the database, not even what comes before the poison.
    let client = world.db.client(world.server_of(users[0])).await;
    let row = client
        .query_one(
            "select count(*) from inbox where user_id = $1",
            &[&users[0]],
        )
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 0);

    let again = NewTopic::new(&dlq, 4, TopicReplication::Fixed(1));
    until("the topic is made again", async || {
        // Its deletion may still be under way.
        let made = admin(ring)
            .create_topics([&again], &AdminOptions::new())
            .await
            .unwrap();
        made[0]
            .as_ref()
            .map(|_| ())
            .map_err(|(_, code)| code.to_string())
    })
    .await;
    let counts = until_done(&worker, 6).await;
    worker.stop().await.unwrap();
    assert_eq!(
        (counts.applied, counts.illegal, counts.malformed),
        (4, 1, 1),
        "{counts:?}"
    );
    ring.everything_is_committed(&settings);
    let origins = ring.read(&topic);
    // A try whose answer was late may have left a letter more, but never another one.
    let letters: BTreeMap<(i32, String), Found> = ring
        .read(&dlq)
        .into_iter()
        .map(|letter| {
            (
                (
                    letter.partition,
                    letter.header("shardlane-origin-offset").to_owned(),
                ),
                letter,
            )
        })
        .collect();
    let keys: Vec<_> = letters
        .keys()
        .map(|(partition, offset)| (*partition, offset.as_str()))
        .collect();
    assert_eq!(keys, [(0, "1"), (1, "0")]);
    let mut letters = letters.values();
    let rejected = origins
        .iter()
        .find(|found| (found.partition, found.offset) == (0, 1))
        .unwrap();
    is_letter_of(letters.next().unwrap(), rejected, &topic, "illegal", None);
    let garbage = origins.iter().find(|found| found.partition == 1).unwrap();
    is_letter_of(letters.next().unwrap(), garbage, &topic, "malformed", None);
}
