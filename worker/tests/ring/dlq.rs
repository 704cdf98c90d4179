//! Dead letters as an operator meets them: listed, replayed through the front door, and known ever after.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use shardlane_domain::{
    DeadLetter, LetterFilter, LetterState, ReplayEnd, ReplayOptions, Replayed, Source,
};
use shardlane_sql::Layout;
use shardlane_worker::{DeadLetterLog, DlqError, TopicError, accepted_now};

use crate::events::{order, order_json, users_of};
use crate::poison::admin;
use crate::world::{PATIENCE, Ring, World, until, until_counts, until_done};

const LETTERS_MAX: usize = 100;

fn log_of(ring: &Ring) -> DeadLetterLog {
    DeadLetterLog::new(ring.bootstrap.clone(), ring.topics.clone())
}

fn filter(text: &str) -> LetterFilter {
    LetterFilter::parse([text], Timestamp::now()).unwrap()
}

async fn list(ring: &Ring, text: &str) -> Vec<DeadLetter> {
    let listing = log_of(ring).list(&filter(text), LETTERS_MAX).await.unwrap();
    assert_eq!(listing.matching, listing.letters.len());
    listing.letters
}

/// Replays letters, and returns how each ended.
async fn replay(ring: &Ring, letters: Vec<DeadLetter>, options: ReplayOptions) -> Vec<ReplayEnd> {
    let (log, publisher) = (log_of(ring), ring.publisher().await);
    let replayed = log.replay(letters, &publisher, &options).await.unwrap();
    replayed
        .into_iter()
        .map(|Replayed { end, .. }| end)
        .collect()
}

/// A record in a dead-letter topic that somebody else wrote.
async fn put_letter(
    ring: &Ring,
    producer: &FutureProducer,
    accepted: Timestamp,
    value: &str,
    headers: &[(&str, &str)],
) {
    let topic = ring.topics.dlq_of(Source::Orders);
    let headers = headers
        .iter()
        .fold(OwnedHeaders::new(), |owned, (key, value)| {
            owned.insert(Header {
                key,
                value: Some(*value),
            })
        });
    let record: FutureRecord<'_, str, str> = FutureRecord::to(&topic)
        .partition(2)
        .timestamp(accepted.as_millisecond())
        .headers(headers)
        .payload(value);
    let sent = producer.send(record, PATIENCE).await;
    sent.map_err(|(error, _)| error).unwrap();
}

/// The whole way: refused by the database -> letter -> mended -> replayed -> row; replayed again -> a duplicate.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_is_replayed_into_a_row_and_again_into_a_duplicate() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let topic = ring.topics.of(Source::Orders);
    world
        .execute(
            "create function refuse() returns trigger language plpgsql as \
             'begin raise exception using errcode = ''23514'', message = ''not this one''; end'; \
             create trigger refuse before insert on orders for each row \
             when (new.order_id = 'bad') execute function refuse()",
        )
        .await;
    let user = users_of(&ring.map, 1, 1)[0];
    let bad = order(user, "bad-1", "bad", "created", 1);
    ring.publish(&[order(user, "good-1", "good", "created", 1), bad.clone()])
        .await;
    let worker = world.start(ring.settings("")).await;
    until_done(&worker, 2).await;

    let letters = list(ring, "").await;
    let [letter] = &letters[..] else {
        panic!("{letters:?}")
    };
    assert_eq!(
        letter.id,
        format!("{}/1/0", ring.topics.dlq_of(Source::Orders))
    );
    assert_eq!((&*letter.class, letter.user_id), ("data", Some(user)));
    assert!(letter.reason.contains("not this one"), "{}", letter.reason);
    assert_eq!(letter.payload.as_ref(), Some(&bad.payload));
    assert_eq!(letter.received_at, bad.received_at);
    assert_eq!(
        letter.origin.as_ref().unwrap().to_string(),
        format!("{topic}/1/1")
    );
    assert_eq!(letter.state, LetterState::Dead);
    assert_eq!(log_of(ring).letter(&letter.id).await.unwrap(), *letter);
    assert_eq!(list(ring, "class=illegal").await, []);
    assert_eq!(
        list(ring, &format!("class=data,user={user}")).await,
        letters
    );

    // Looked at, and nothing done.
    let dry_run = ReplayOptions {
        dry_run: true,
        ..ReplayOptions::default()
    };
    assert_eq!(
        replay(ring, letters.clone(), dry_run).await,
        [ReplayEnd::WouldTake]
    );
    assert_eq!(ring.read(&topic).len(), 2);
    assert_eq!(list(ring, "state=dead").await, letters);

    world.execute("drop trigger refuse on orders").await;
    let to = format!("{topic}/1/2");
    let ends = replay(ring, letters.clone(), ReplayOptions::default()).await;
    assert_eq!(ends, [ReplayEnd::Taken(to.clone())]);
    let counts = until_done(&worker, 3).await;
    assert_eq!((counts.applied, counts.duplicates), (2, 0), "{counts:?}");
    let client = world.db.client(world.server_of(user)).await;
    let query = "select received_at, (select count(*) from order_events where order_id = 'bad') \
                 from order_events where order_id = 'bad'";
    let row = client.query_one(query, &[]).await.unwrap();
    assert_eq!(
        row.get::<_, Timestamp>(0),
        bad.received_at,
        "the time of acceptance is kept"
    );
    let replayed = &ring.read(&topic)[2];
    assert_eq!(replayed.header("shardlane-replayed-from"), letter.id);
    assert!(replayed.timestamp.unwrap() > bad.received_at.as_millisecond());

    // Known ever after; and asked for all the same, the inbox knows it.
    let letters = list(ring, "state=replayed").await;
    assert!(
        matches!(&letters[0].state, LetterState::Replayed { to: place, .. } if *place == to),
        "{letters:?}"
    );
    assert_eq!(list(ring, "state=dead").await, []);
    let ends = replay(ring, letters.clone(), ReplayOptions::default()).await;
    assert_eq!(ends, [ReplayEnd::ReplayedBefore]);
    let again = ReplayOptions {
        again: true,
        ..ReplayOptions::default()
    };
    assert_eq!(
        replay(ring, letters, again).await,
        [ReplayEnd::Taken(format!("{topic}/1/3"))]
    );
    let counts = until_done(&worker, 4).await;
    assert_eq!((counts.applied, counts.duplicates), (2, 1), "{counts:?}");
    assert_eq!(
        client.query_one(query, &[]).await.unwrap().get::<_, i64>(1),
        1
    );
    assert_eq!(list(ring, "").await.len(), 1, "no new letter");

    // An inbox that has forgotten it: refused all the same.
    world
        .execute("delete from inbox where event_id = 'bad-1'")
        .await;
    replay(ring, list(ring, "").await, again).await;
    let counts = until_done(&worker, 5).await;
    worker.stop().await.unwrap();
    assert_eq!((counts.applied, counts.stale), (2, 0), "{counts:?}");
    assert_eq!(list(ring, "state=dead").await.len(), 1, "it has died again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_still_no_event_is_told_and_what_only_had_a_foreign_key_is_taken() {
    let Some(world) = World::new(Layout::Single).await else {
        return;
    };
    let ring = &world.ring;
    let producer = ring.foreign_producer();
    let users = users_of(&ring.map, 0, 2);
    let json = order_json(users[0], "o1", "ord", "created", 1);
    let (foreign, garbage) = (users[1].to_string(), b"\xff no JSON".to_vec());
    for value in [json.as_bytes(), &garbage[..]] {
        ring.put(
            &producer,
            Source::Orders,
            0,
            Some(foreign.as_bytes()),
            Some(value),
        )
        .await;
    }
    let worker = world.start(ring.settings("")).await;
    until_done(&worker, 2).await;
    let letters = list(ring, "class=malformed").await;
    assert_eq!(letters.len(), 2, "{letters:?}");
    let mut ends = replay(ring, letters, ReplayOptions::default()).await;
    ends.sort_by_key(|end| matches!(end, ReplayEnd::Malformed(_)));
    let [ReplayEnd::Taken(_), ReplayEnd::Malformed(why)] = &ends[..] else {
        panic!("{ends:?}")
    };
    assert!(why.contains("UTF-8"), "{why}");
    let counts = until_counts(&worker.stats(), "the replay", |counts| counts.done == 3).await;
    worker.stop().await.unwrap();
    assert_eq!(counts.applied, 1, "{counts:?}");
    let records = ring.read(&ring.topics.of(Source::Orders));
    assert_eq!(records.len(), 3, "the garbage was not published");
    let replayed = records.iter().find(|found| found.offset == 2).unwrap();
    assert_eq!(replayed.key, Some(users[0].to_string().into_bytes()));
    assert_eq!(replayed.header("traceparent"), "00-abc");
    let twice = replayed.headers.iter().filter(|(name, _)| name == "twice");
    assert_eq!(twice.count(), 2, "repeated headers are kept");
    // The publisher's own, and not beside its producer's.
    assert!(
        replayed.header("ce_id").starts_with("orders/"),
        "{replayed:?}"
    );
    assert!(
        replayed
            .headers
            .iter()
            .all(|(name, _)| !name.starts_with("__connect") && name != "shardlane-reason"),
        "{replayed:?}"
    );
    // The garbage is where it was, byte for byte.
    let left = list(ring, "state=dead").await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].payload.as_deref(), Some(&garbage[..]));
}

/// Another tool's letter has Kafka Connect's headers; a copy is not a second letter; an old one is left alone.
#[tokio::test(flavor = "multi_thread")]
async fn copies_are_one_letter_and_old_ones_wait_to_be_asked_for() {
    let Some(world) = World::new(Layout::Single).await else {
        return;
    };
    let ring = &world.ring;
    let producer = ring.foreign_producer();
    let user = users_of(&ring.map, 2, 1)[0];
    let accepted = accepted_now() - SignedDuration::from_hours(60);
    let json = order_json(user, "o1", "ord", "created", 1);
    let headers = [
        ("__connect.errors.topic", "orders.webhooks"),
        ("__connect.errors.partition", "2"),
        ("__connect.errors.offset", "7"),
        ("__connect.errors.exception.class.name", "org.example.Bad"),
        ("__connect.errors.exception.message", "no such table"),
    ];
    put_letter(ring, &producer, accepted, &json, &headers).await;
    put_letter(ring, &producer, accepted, &json, &headers).await;
    let letters = list(ring, "class=org.example.Bad").await;
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letters[0].reason, "no such table");
    assert_eq!(
        letters[0].user_id,
        Some(user),
        "from the payload: there is no key"
    );
    assert_eq!(letters[0].origin.as_ref().unwrap().offset, 7);

    let ends = replay(ring, letters.clone(), ReplayOptions::default()).await;
    assert!(matches!(&ends[..], [ReplayEnd::TooOld(_)]), "{ends:?}");
    let asked = ReplayOptions {
        window: Duration::from_secs(61 * 60 * 60),
        ..ReplayOptions::default()
    };
    let ends = replay(ring, letters, asked).await;
    assert!(matches!(&ends[..], [ReplayEnd::Taken(_)]), "{ends:?}");
    let worker = world.start(ring.settings("")).await;
    until_done(&worker, 1).await;
    worker.stop().await.unwrap();
    let client = world.db.client(0).await;
    let query = "select received_at from inbox";
    let row = client.query_one(query, &[]).await.unwrap();
    assert_eq!(row.get::<_, Timestamp>(0), accepted);
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_name_nothing_are_refused() {
    let Some(ring) = Ring::new().await else {
        return;
    };
    let dlq = ring.topics.dlq_of(Source::Orders);
    for id in [
        "",
        "17",
        "orders.webhooks/0/0",
        &format!("{dlq}/0"),
        &format!("{dlq}/x/1"),
    ] {
        let error = log_of(&ring).letter(id).await.unwrap_err();
        assert!(matches!(&error, DlqError::BadId { .. }), "{id}: {error}");
        assert!(
            error.to_string().contains(&format!("{dlq}/0/17")),
            "{error}"
        );
    }
    for id in [
        format!("{dlq}/0/0"),
        format!("{dlq}/99/0"),
        format!("{dlq}/-1/0"),
    ] {
        let error = log_of(&ring).letter(&id).await.unwrap_err();
        assert!(matches!(&error, DlqError::Missing(_)), "{id}: {error}");
    }
}

/// Nothing is skipped: the partition waits for the topic, others go on, and then there is exactly one letter. The new
/// topic gives the old one's offsets out again, and what is remembered of the old one's letters is not the new one's.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_topic_that_is_gone_is_waited_for_and_made_anew_has_its_own_letters() {
    let Some(world) = World::new(Layout::Single).await else {
        return;
    };
    let ring = &world.ring;
    let dlq = ring.topics.dlq_of(Source::Orders);
    let users = users_of(&ring.map, 1, 3);
    let unharmed = users_of(&ring.map, 2, 1)[0];
    let illegal = |user| {
        [
            order(user, "o1", "ord", "created", 1),
            order(user, "o2", "ord", "success", 2),
            order(user, "o3", "ord", "failed", 3),
        ]
    };
    ring.publish(&illegal(users[0])).await;
    let settings = ring.settings("");
    let worker = world.start(settings.clone()).await;
    until_done(&worker, 3).await;
    let first = list(ring, "class=illegal").await;
    assert_eq!(first.len(), 1, "{first:?}");
    replay(ring, first.clone(), ReplayOptions::default()).await;
    until_done(&worker, 4).await;
    assert_eq!(list(ring, "state=replayed").await.len(), 1);
    // Illegal again: a letter of its own, which names the first.
    let second = list(ring, "state=dead").await;
    let from = second[0]
        .headers
        .iter()
        .find(|(name, _)| name == "shardlane-replayed-from");
    assert_eq!(from.unwrap().1.as_deref(), Some(first[0].id.as_bytes()));

    let admin = admin(ring);
    let deleted = admin
        .delete_topics(&[&dlq], &AdminOptions::new())
        .await
        .unwrap();
    deleted[0].as_ref().unwrap();
    until("the topic is gone", async || {
        match log_of(ring).list(&filter(""), 1).await {
            Err(DlqError::Topic(TopicError::Missing(_))) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let [created, success, failed] = illegal(users[1]);
    ring.publish(&[created, success]).await;
    until_done(&worker, 6).await;
    let retries = worker.stats().counts().retries;
    ring.publish(&[failed]).await;
    ring.publish(&[order(users[2], "o1", "ord", "created", 1)])
        .await;
    ring.publish(&[order(unharmed, "o1", "ord", "created", 1)])
        .await;
    let counts = until_counts(
        &worker.stats(),
        "the others, and a try that failed",
        |counts| counts.done >= 7 && counts.retries > retries,
    )
    .await;
    assert_eq!(counts.done, 7, "the partition waits: {counts:?}");
    let (committed, end) = ring.offsets(&settings)[&(Source::Orders, 1)];
    assert!(committed <= 6 && end == 8, "{committed} of {end}");

    let again = NewTopic::new(&dlq, 4, TopicReplication::Fixed(1));
    until("the topic is made again", async || {
        let made = admin
            .create_topics([&again], &AdminOptions::new())
            .await
            .unwrap();
        made[0]
            .as_ref()
            .map(drop)
            .map_err(|(_, code)| code.to_string())
    })
    .await;
    let counts = until_done(&worker, 9).await;
    worker.stop().await.unwrap();
    assert_eq!(counts.illegal, 3, "{counts:?}");
    ring.everything_is_committed(&settings);
    let letters = list(ring, "").await;
    assert_eq!(letters.len(), 1, "exactly one: {letters:?}");
    assert_eq!(letters[0].user_id, Some(users[1]));
    assert_eq!(letters[0].id, first[0].id, "the offsets begin anew");
    assert_eq!(letters[0].state, LetterState::Dead);
}
