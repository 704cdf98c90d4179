//! The dead letters of direct mode, on every layout.

use jiff::{SignedDuration, Timestamp};
use shardlane_domain::{LetterFilter, LetterState, Source};
use shardlane_sql::NewLetter;

use crate::events::{order, users};
use crate::ground::{Ground, connect};

on_every_layout!(a_letter_is_kept_whole_and_the_same_one_once);

fn letter(user: Option<uuid::Uuid>, payload: &'static [u8]) -> NewLetter {
    NewLetter {
        source: Source::Chargebacks,
        user_id: user,
        class: "illegal",
        reason: "refused,\0 for a reason".to_owned(),
        attempts: 2,
        received_at: order(uuid::Uuid::nil(), "e", "o", "created", 1).received_at,
        payload: payload.into(),
        headers: vec![
            ("webhook-id".to_owned(), "1".to_owned()),
            ("webhook-id".to_owned(), "2".to_owned()),
        ],
    }
}

async fn a_letter_is_kept_whole_and_the_same_one_once(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let everything = LetterFilter::default();
    let list = async || store.dead_letters(&everything, 100).await.unwrap().letters;
    assert_eq!(list().await, []);
    // No user, and users of every shard; bytes that are no text.
    let mut expected = Vec::new();
    let unknown = letter(None, b"\xff\0\x01 no JSON");
    expected.push(store.bury(&unknown).await.unwrap());
    let users = users(91, 6);
    let payloads: [&'static [u8]; 6] = [b"a", b"b", b"c", b"d", b"e", b""];
    for (user, payload) in users.iter().zip(payloads) {
        expected.push(store.bury(&letter(Some(*user), payload)).await.unwrap());
    }
    let letters = list().await;
    let mut ids: Vec<String> = letters.iter().map(|letter| letter.id.clone()).collect();
    ids.sort_unstable();
    let mut expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
    expected.sort_unstable();
    assert_eq!(ids, expected);

    let kept = letters
        .iter()
        .find(|letter| letter.user_id.is_none())
        .unwrap();
    assert_eq!(kept.id, unknown.id().to_string());
    assert_eq!(kept.payload.as_ref(), Some(&unknown.payload));
    assert_eq!(
        (kept.source, &*kept.class, kept.attempts),
        (Source::Chargebacks, "illegal", 2)
    );
    assert_eq!(kept.reason, "refused,\u{fffd} for a reason");
    assert_eq!(kept.received_at, unknown.received_at);
    let headers: Vec<_> = kept
        .headers
        .iter()
        .map(|(name, value)| (&**name, value.as_deref()))
        .collect();
    assert_eq!(
        headers,
        [("webhook-id", Some(&b"1"[..])), ("webhook-id", Some(b"2"))]
    );
    assert_eq!(kept.state, LetterState::Dead);
    let one = store.dead_letter(unknown.id()).await.unwrap();
    assert_eq!(one.as_ref(), Some(kept));

    // A replay is remembered, and forgotten when the same webhook dies again.
    let began = Timestamp::from_millisecond(Timestamp::now().as_millisecond()).unwrap();
    store.mark_replay(kept, began, None).await.unwrap();
    let one = store.dead_letter(unknown.id()).await.unwrap().unwrap();
    assert_eq!(one.state, LetterState::Replaying { at: began });
    store
        .mark_replay(kept, began, Some("applied"))
        .await
        .unwrap();
    let replayed = LetterFilter::parse(["state=replayed"], began).unwrap();
    let found = store.dead_letters(&replayed, 100).await.unwrap();
    assert_eq!((found.matching, &*found.letters[0].id), (1, &*kept.id));
    let later = NewLetter {
        class: "data",
        received_at: unknown.received_at + SignedDuration::from_secs(60),
        ..unknown.clone()
    };
    assert_eq!(store.bury(&later).await.unwrap(), unknown.id());
    let again = store.dead_letter(unknown.id()).await.unwrap().unwrap();
    assert_eq!(
        (&*again.class, again.attempts, &again.state),
        ("data", 4, &LetterState::Dead)
    );
    assert_eq!(
        again.received_at, unknown.received_at,
        "of the first delivery"
    );
    assert!(again.dead_at > kept.dead_at);
    assert_eq!(list().await.len(), 7);
    // The mark of a replay that ended after the letter's new death says nothing of that.
    store
        .mark_replay(kept, began, Some("applied"))
        .await
        .unwrap();
    let again = store.dead_letter(unknown.id()).await.unwrap().unwrap();
    assert_eq!(again.state, LetterState::Dead);

    let listing = store.dead_letters(&everything, 3).await.unwrap();
    assert_eq!((listing.letters.len(), listing.matching), (3, 7));
    // A letter with a user lies with its user.
    let mut rows = Vec::new();
    for url in db.urls() {
        let query = "select count(*) from dead_letters";
        rows.push(
            connect(url)
                .await
                .query_one(query, &[])
                .await
                .unwrap()
                .get::<_, i64>(0),
        );
    }
    assert_eq!(rows.iter().sum::<i64>(), 7);
    assert!(rows.iter().all(|rows| *rows > 0), "{rows:?}");
}
