//! What direct mode refuses for good is kept, and can be replayed.

use axum::Router;
use serde_json::json;
use shardlane_domain::{DeadLetter, LetterFilter, LetterState, ReplayEnd, ReplayOptions};
use shardlane_ingest::{IngestSettings, Mode, replay, router};
use shardlane_sql::testing::TestDb;
use shardlane_sql::{Layout, Store};
use std::sync::Arc;
use uuid::Uuid;

use crate::support::{CHARGEBACKS, ORDERS, order, post, send, unsigned};

struct World {
    _db: TestDb,
    client: tokio_postgres::Client,
    store: Arc<Store>,
    app: Router,
}

impl World {
    async fn new(keep_undecodable: bool) -> Option<World> {
        let db = TestDb::new(Layout::Single).await?;
        let store = db.store().await;
        let settings = IngestSettings {
            keep_undecodable,
            ..unsigned()
        };
        Some(World {
            app: router(Mode::Direct(Arc::clone(&store)), &settings),
            client: db.client(0).await,
            store,
            _db: db,
        })
    }

    async fn letters(&self) -> Vec<DeadLetter> {
        let everything = LetterFilter::default();
        self.store
            .dead_letters(&everything, 100)
            .await
            .unwrap()
            .letters
    }

    async fn replay(&self, options: ReplayOptions) -> Vec<ReplayEnd> {
        let letters = self.letters().await;
        let replayed = replay(&self.store, letters, &options).await.unwrap();
        replayed.into_iter().map(|replayed| replayed.end).collect()
    }

    async fn execute(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_event_is_one_letter_however_often_it_comes() {
    let Some(world) = World::new(false).await else {
        return;
    };
    let user = Uuid::now_v7();
    for (event, status) in [("e-1", "created"), ("e-2", "success")] {
        send(&world.app, post(ORDERS, order(user, event, status, 10)))
            .await
            .is(200, &json!({"status": "applied"}));
    }
    let body = order(user, "e-3", "failed", 30);
    for _ in 0..2 {
        let mut request = post(ORDERS, body.clone());
        let headers = request.headers_mut();
        headers.insert("webhook-id", "msg_1".parse().unwrap());
        headers.insert("cookie", "secret".parse().unwrap());
        send(&world.app, request)
            .await
            .is_problem(409, "illegal-transition");
    }
    let letters = world.letters().await;
    let [letter] = &letters[..] else {
        panic!("{letters:?}")
    };
    assert_eq!((&*letter.class, letter.attempts), ("illegal", 2));
    assert_eq!(letter.user_id, Some(user));
    assert_eq!(letter.payload.as_deref(), Some(body.as_bytes()));
    assert!(
        letter.reason.contains("success does not take failed"),
        "{}",
        letter.reason
    );
    let names: Vec<&str> = letter.headers.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["content-type", "webhook-id"], "and no cookie");
    // It is still illegal, and the letter says so.
    let ends = world.replay(ReplayOptions::default()).await;
    assert!(
        matches!(&ends[..], [ReplayEnd::Refused(why)] if why.contains("illegal")),
        "{ends:?}"
    );
    let letters = world.letters().await;
    assert_eq!(
        (letters[0].attempts, &letters[0].state),
        (3, &LetterState::Dead)
    );
}

/// The whole way: refused by the database -> letter -> mended -> replayed -> row; again -> a duplicate.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_is_replayed_into_a_row_and_again_into_a_duplicate() {
    let Some(world) = World::new(false).await else {
        return;
    };
    world
        .execute(
            "create function refuse() returns trigger language plpgsql as \
             'begin raise exception using errcode = ''23514'', message = ''not this one''; end'; \
             create trigger refuse before insert on orders for each row execute function refuse()",
        )
        .await;
    let body = order(Uuid::now_v7(), "e-1", "created", 10);
    send(&world.app, post(ORDERS, body.clone()))
        .await
        .is_problem(422, "unstorable-event");
    let letters = world.letters().await;
    assert_eq!((letters.len(), &*letters[0].class), (1, "data"));
    assert!(
        letters[0].reason.contains("not this one"),
        "{}",
        letters[0].reason
    );
    let dry_run = ReplayOptions {
        dry_run: true,
        ..ReplayOptions::default()
    };
    assert_eq!(world.replay(dry_run).await, [ReplayEnd::WouldTake]);
    assert_eq!(world.letters().await, letters);

    world.execute("drop trigger refuse on orders").await;
    let taken = |as_what: &str| [ReplayEnd::Taken(as_what.to_owned())];
    assert_eq!(
        world.replay(ReplayOptions::default()).await,
        taken("applied")
    );
    let query = "select e.received_at = d.received_at and e.payload::text = convert_from(d.payload, 'UTF8') \
                 from order_events e, dead_letters d";
    let row = world.client.query_one(query, &[]).await.unwrap();
    assert!(
        row.get::<_, bool>(0),
        "bytes and time of acceptance are the letter's"
    );
    let state = &world.letters().await[0].state;
    assert!(
        matches!(state, LetterState::Replayed { to, .. } if to == "applied"),
        "{state:?}"
    );
    assert_eq!(
        world.replay(ReplayOptions::default()).await,
        [ReplayEnd::ReplayedBefore]
    );
    let again = ReplayOptions {
        again: true,
        ..ReplayOptions::default()
    };
    assert_eq!(world.replay(again).await, taken("duplicate"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_event_are_kept_only_where_senders_are_known() {
    for keep in [false, true] {
        let Some(world) = World::new(keep).await else {
            return;
        };
        let body = b"\xff{".to_vec();
        let reply = send(&world.app, post(CHARGEBACKS, body.clone())).await;
        reply.is_problem(400, "malformed-json");
        let letters = world.letters().await;
        assert_eq!(letters.len(), usize::from(keep));
        if keep {
            assert_eq!(letters[0].payload.as_deref(), Some(&body[..]));
            assert_eq!(
                (&*letters[0].class, letters[0].user_id),
                ("malformed", None)
            );
            let ends = world.replay(ReplayOptions::default()).await;
            assert!(matches!(&ends[..], [ReplayEnd::Malformed(_)]), "{ends:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_letter_can_be_kept_the_sender_must_send_again() {
    let Some(world) = World::new(true).await else {
        return;
    };
    let user = Uuid::now_v7();
    for (event, status) in [("e-1", "created"), ("e-2", "success")] {
        send(&world.app, post(ORDERS, order(user, event, status, 10)))
            .await
            .is(200, &json!({"status": "applied"}));
    }
    world
        .execute("alter table dead_letters rename to gone")
        .await;
    for body in [order(user, "e-3", "failed", 30), "{".to_owned()] {
        send(&world.app, post(ORDERS, body.clone()))
            .await
            .is_problem(503, "unavailable");
    }
}
