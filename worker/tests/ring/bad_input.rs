//! What a worker refuses, and what ends it: with an error that says why, in bounded time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shardlane_domain::Source;
use shardlane_sql::testing::unique;
use shardlane_sql::{Backend, Layout, SqlError, Store, StoreOptions};
use shardlane_worker::{
    Publisher, TopicError, TopicSet, Worker, WorkerError, WorkerSettings, create_topics,
    delete_topics,
};

use crate::events::{order, users_of};
use crate::world::{PATIENCE, World, until, until_done};

/// Starts a worker that must be refused.
async fn refusal(world: &World, settings: WorkerSettings) -> WorkerError {
    let store = world.db.store().await;
    match Worker::start(settings, store).await {
        Ok(_) => panic!("the worker started"),
        Err(error) => error,
    }
}

/// Waits until a worker ends by itself, and returns why.
async fn end(mut worker: Worker) -> WorkerError {
    tokio::time::timeout(PATIENCE, worker.failed())
        .await
        .expect("the worker ends");
    worker
        .stop()
        .await
        .expect_err("a worker that ended by itself has an error")
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_are_missing_or_do_not_fit_are_refused() {
    let Some(world) = World::new(Layout::Single).await else {
        return;
    };
    let ring = &world.ring;
    let connect = async |topics: TopicSet| {
        let (bootstrap, map) = (ring.bootstrap.clone(), Arc::new(ring.map.clone()));
        let publisher = move || Publisher::connect(&bootstrap, topics, map, PATIENCE).err();
        tokio::task::spawn_blocking(publisher)
            .await
            .unwrap()
            .expect("the publisher is refused")
    };

    let missing = TopicSet::with_prefix(&unique("missing"));
    let mut settings = ring.settings("");
    settings.topics = missing.clone();
    let error = refusal(&world, settings).await;
    let name = missing.of(Source::Orders);
    assert!(
        matches!(&error, WorkerError::Topic(TopicError::Missing(topic)) if *topic == name),
        "{error:?}"
    );
    assert_eq!(
        error.to_string(),
        format!("topic {name} does not exist; run `shardlane topics create`")
    );
    assert!(matches!(connect(missing).await, TopicError::Missing(_)));

    let narrow = TopicSet::with_prefix(&unique("narrow"));
    create_topics(&ring.bootstrap, &narrow, 3, 1, &[])
        .await
        .unwrap();
    let mut settings = ring.settings("");
    settings.topics = narrow.clone();
    let error = refusal(&world, settings).await;
    assert!(
        matches!(
            &error,
            WorkerError::Topic(TopicError::PartitionCount {
                found: 3,
                expected: 4,
                epoch: 1,
                ..
            })
        ),
        "{error:?}"
    );
    let sentence = error.to_string();
    assert!(sentence.contains("has 3 partitions"), "{sentence}");
    assert!(sentence.contains("places into 4"), "{sentence}");
    assert!(matches!(
        connect(narrow).await,
        TopicError::PartitionCount { .. }
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there_is_an_error_in_bounded_time() {
    let Some(world) = World::new(Layout::Single).await else {
        return;
    };
    // Free again at once: each connection is refused.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut settings = world.ring.settings("");
    settings.bootstrap = nobody.to_string();
    let began = Instant::now();
    let error = refusal(&world, settings).await;
    assert!(
        began.elapsed() < Duration::from_secs(40),
        "{:?}",
        began.elapsed()
    );
    assert!(
        matches!(&error, WorkerError::Topic(TopicError::Broker { .. })),
        "{error:?}"
    );
    assert!(error.to_string().contains(&nobody.to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_made_anew_is_noticed() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let user = users_of(&ring.map, 2, 1)[0];
    ring.publish(&[
        order(user, "o1", "ord", "created", 1),
        order(user, "o2", "ord", "updated", 2),
        order(user, "o3", "ord", "updated", 3),
    ])
    .await;
    let worker = world.start(ring.settings("first")).await;
    until_done(&worker, 3).await;
    worker.stop().await.unwrap();
    let before = world.digest().await;

    delete_topics(&ring.bootstrap, &ring.topics).await.unwrap();
    until("the topics are gone", async || {
        match refusal(&world, ring.settings("asks")).await {
            WorkerError::Topic(TopicError::Missing(_)) => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    ring.create(4).await;
    ring.publish(&[order(user, "o4", "ord", "success", 4)])
        .await;
    let settings = ring.settings("first");
    let error = end(world.start(settings.clone()).await).await;
    match &error {
        WorkerError::FenceBeyondLog {
            topic,
            partition,
            fence,
            end,
        } => {
            assert_eq!(*topic, ring.topics.of(Source::Orders));
            assert_eq!((*partition, *fence, *end), (2, 3, 1));
        }
        other => panic!("{other:?}"),
    }
    assert!(
        error.to_string().contains("deleted and made anew"),
        "{error}"
    );
    assert_eq!(world.digest().await, before);
    // The way out that the sentence names.
    world.execute("delete from kafka_fence").await;
    let worker = world.start(ring.settings("second")).await;
    let counts = until_done(&worker, 1).await;
    worker.stop().await.unwrap();
    assert_eq!((counts.applied, counts.fenced), (1, 0), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_refuses_for_good_ends_the_worker() {
    let Some(world) = World::new(Layout::Single).await else {
        return;
    };
    let ring = &world.ring;
    let role = unique("role");
    world
        .execute(&format!(
            "create role {role} login; grant select, insert, update, delete on all tables in schema public to {role}; \
             grant usage on all sequences in schema public to {role}"
        ))
        .await;
    let url = world.db.urls()[0].replace("//shardlane@", &format!("//{role}@"));
    assert_ne!(url, world.db.urls()[0]);
    let store = Store::connect(Backend::One { url }, StoreOptions::default())
        .await
        .unwrap();
    let settings = ring.settings("");
    let worker = Worker::start(settings.clone(), Arc::new(store))
        .await
        .unwrap();
    let stats = worker.stats();
    let user = users_of(&ring.map, 0, 1)[0];
    ring.publish(&[order(user, "o1", "ord", "created", 1)])
        .await;
    until_done(&worker, 1).await;
    world
        .execute(&format!("revoke insert on inbox from {role}"))
        .await;
    ring.publish(&[order(user, "o2", "ord", "updated", 2)])
        .await;
    let error = end(worker).await;
    assert!(
        matches!(&error, WorkerError::Sql(SqlError::Postgres(_))),
        "{error:?}"
    );
    assert!(error.to_string().contains("42501"), "{error}");
    assert_eq!((stats.counts().done, stats.counts().malformed), (1, 0));
    let offsets = ring.offsets(&settings);
    assert_eq!(
        offsets[&(Source::Orders, 0)],
        (1, 2),
        "nothing past the refused one is committed"
    );
    assert_eq!(ring.read(&ring.topics.dlq_of(Source::Orders)), []);

    world
        .execute(&format!("grant insert on inbox to {role}"))
        .await;
    let worker = world.start(settings.clone()).await;
    let counts = until_done(&worker, 1).await;
    worker.stop().await.unwrap();
    assert_eq!((counts.applied, counts.fenced), (1, 0), "{counts:?}");
    ring.everything_is_committed(&settings);
}

/// A worker that is dropped, with its runtime, in the middle of its work: no hang and no abort of the process.
#[test]
fn a_dropped_worker_and_runtime_end_quietly() {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let keeper = runtime();
    let Some(world) = keeper.block_on(World::new(Layout::Single)) else {
        return;
    };
    let users = users_of(&world.ring.map, 0, 40);
    keeper.block_on(async {
        let events: Vec<_> = users
            .iter()
            .map(|user| order(*user, "o1", "ord", "created", 1))
            .collect();
        world.ring.publish(&events).await;
        world.slow_down(0.05).await;
    });
    let mut settings = world.ring.settings("");
    settings.batch_rows_max = 2;
    let doomed = runtime();
    let worker = doomed.block_on(async {
        let worker = world.start(settings.clone()).await;
        until_done(&worker, 4).await;
        worker
    });
    drop(doomed);
    drop(worker);
    // Its partitions are free, and nothing is done twice.
    keeper.block_on(async {
        let worker = world.start(settings.clone()).await;
        until("all orders", async || {
            let rows: i64 = world.ask("select count(*) from orders").await.iter().sum();
            if rows == 40 {
                Ok(())
            } else {
                Err(format!("{rows} rows, {:?}", worker.stats().counts()))
            }
        })
        .await;
        worker.stop().await.unwrap();
        assert_eq!(world.ask("select count(*) from outbox").await, [40]);
    });
}
