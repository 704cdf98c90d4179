//! The inbox remembers for longer than anything can come again, and no longer.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use shardlane_domain::Source;
use shardlane_sql::testing::unique;
use shardlane_sql::{Layout, RetentionSettings};
use shardlane_worker::{
    TopicError, TopicRetention, TopicSet, Worker, WorkerError, WorkerSettings, create_topics,
    set_retention,
};

use crate::world::{World, until_counts};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn keeping(mut settings: WorkerSettings, keep: Duration) -> WorkerSettings {
    settings.inbox_retention = Some(RetentionSettings {
        look_interval: Duration::from_millis(50),
        ..RetentionSettings::new(keep)
    });
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inbox_that_forgets_before_its_topics_is_refused() {
    let Some(world) = World::new(Layout::Single).await else {
        return;
    };
    let ring = &world.ring;
    let refused = async |settings: WorkerSettings| {
        let store = world.db.store().await;
        match Worker::start(settings, store).await {
            Ok(_) => panic!("the worker started"),
            Err(WorkerError::Topic(error @ TopicError::OutlivesInbox { .. })) => error.to_string(),
            Err(other) => panic!("{other}"),
        }
    };
    // Topics keep 3 days and a segment of one; letters are replayed for 2.
    let sentence = refused(keeping(ring.settings(""), 6 * DAY)).await;
    for part in [
        "orders.webhooks",
        "345600s",
        "172800s",
        "518400s",
        "--inbox-retention",
        "retention.ms",
    ] {
        assert!(sentence.contains(part), "{part}: {sentence}");
    }
    let mut longer_window = keeping(ring.settings(""), 7 * DAY);
    longer_window.replay_window = 3 * DAY;
    refused(longer_window).await;

    let endless = TopicSet::with_prefix(&unique("endless"));
    let config = [("retention.ms", "-1"), ("max.message.bytes", "123456")];
    create_topics(&ring.bootstrap, &endless, 4, 1, &config)
        .await
        .unwrap();
    let mut settings = keeping(ring.settings(""), 700 * DAY);
    settings.topics = endless.clone();
    let sentence = refused(settings.clone()).await;
    assert!(sentence.contains("again for ever"), "{sentence}");

    let short = TopicRetention {
        retention: DAY,
        segment: DAY / 4,
    };
    set_retention(&ring.bootstrap, &endless, short)
        .await
        .unwrap();
    let sentence = refused(keeping(settings, 3 * DAY)).await;
    assert!(sentence.contains("108000s"), "{sentence}");
    assert_eq!(
        setting(&ring.bootstrap, &endless, "max.message.bytes").await,
        "123456"
    );
}

/// A setting of the orders' topic.
async fn setting(bootstrap: &str, topics: &TopicSet, name: &str) -> String {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()
        .unwrap();
    let topic = topics.of(Source::Orders);
    let asked = [ResourceSpecifier::Topic(&topic)];
    let answers = admin.describe_configs(&asked, &AdminOptions::new()).await;
    let config = answers.unwrap().remove(0).unwrap();
    config.get(name).unwrap().value.clone().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn old_rows_go_while_the_worker_runs_and_are_counted() {
    let Some(world) = World::new(Layout::Single).await else {
        return;
    };
    world
        .execute(
            "insert into inbox select gen_random_uuid(), 'orders', 'e' || g, gen_random_uuid(), \
             now() - interval '1 day' * (g % 10) - interval '1 hour' from generate_series(1, 1000) g",
        )
        .await;
    // The house's own topics and the default of 7 days fit each other.
    let worker = world.start(keeping(world.ring.settings(""), 7 * DAY)).await;
    let counts = until_counts(&worker.stats(), "old rows", |counts| {
        counts.inbox_removed == 300
    })
    .await;
    assert!(counts.inbox_visits > 0, "{counts:?}");
    worker.stop().await.unwrap();
    assert_eq!(world.ask("select count(*) from inbox").await, [700]);
}
