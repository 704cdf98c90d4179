//! The examples that need a server, run against one, and the golden vectors asked of one.

use serde::Deserialize;
use shardlane_local::{Postgres, PostgresOptions, create_database};
use shardlane_router::{Epoch, ShardId, SlotMap, TokenHash};
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

#[path = "../examples/manual_shards.rs"]
#[allow(dead_code, reason = "`main` is for `cargo run --example`")]
mod manual_shards;

#[cfg(feature = "rdkafka")]
#[path = "../examples/kafka_producer.rs"]
#[allow(dead_code, reason = "`main` is for `cargo run --example`")]
mod kafka_producer;

async fn start_postgres() -> Option<Postgres> {
    shardlane_local::require("postgres")?;
    Some(Postgres::start(PostgresOptions::fast()).await.unwrap())
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test]
async fn manual_shards_hold_their_own_users_and_refuse_others() {
    let Some(server) = start_postgres().await else {
        return;
    };
    let mut dsns = Vec::new();
    for name in ["shard_0", "shard_1"] {
        create_database(&server.url("postgres"), name)
            .await
            .unwrap();
        dsns.push(server.url(name));
    }

    let report = manual_shards::run(&dsns).await.unwrap();
    assert_eq!(
        manual_shards::run(&dsns).await.unwrap(),
        report,
        "a second run changes nothing"
    );

    let ids = [ShardId(0), ShardId(1)];
    let map = &SlotMap::aligned(Epoch(1), TokenHash::Postgres, 1, &ids).unwrap();
    let of_shard = |shard| {
        let users = (0..100).map(Uuid::from_u128);
        users.filter(move |user| map.shard_for(&(*user).into()) == ShardId(shard))
    };
    for (shard, dsn) in (0..).zip(&dsns) {
        let rows = connect(dsn)
            .await
            .query(
                "select user_id from shardlane_example_users order by 1",
                &[],
            )
            .await
            .unwrap();
        let found: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(found, of_shard(shard).collect::<Vec<_>>(), "shard {shard}");
        let held = format!("shard {shard} holds {} of the users\n", found.len());
        assert!(report.contains(&held), "{report}");
    }
    let user = Uuid::from_u128(42);
    let owner = if of_shard(0).any(|id| id == user) {
        0
    } else {
        1
    };
    let read = format!("{user} is \"user 42\", on shard {owner}\n");
    assert!(report.contains(&read), "{report}");
    let refused = format!("shard {} refuses that user's row\n", 1 - owner);
    assert!(report.ends_with(&refused), "{report}");
}

#[tokio::test]
async fn two_dsns_of_one_database_are_found_out() {
    let Some(server) = start_postgres().await else {
        return;
    };
    let dsns = [server.url("postgres"), server.url("postgres")];
    let error = manual_shards::run(&dsns).await.unwrap_err();
    let error = error.downcast_ref::<tokio_postgres::Error>().unwrap();
    assert_eq!(
        error.code(),
        Some(&tokio_postgres::error::SqlState::CHECK_VIOLATION)
    );
}

#[tokio::test]
async fn without_a_dsn_there_is_an_error_that_says_so() {
    let error = manual_shards::run(&[]).await.unwrap_err();
    assert!(
        error.to_string().contains("give one DSN a shard"),
        "{error}"
    );
}

#[cfg(feature = "rdkafka")]
#[tokio::test]
async fn both_ways_into_kafka_place_alike_and_by_the_map() {
    let broker = rdkafka::mocking::MockCluster::new(1).unwrap();
    broker.create_topic("orders", 8, 1).unwrap();
    // More than the map knows: the additional ones stay empty.
    broker.create_topic("grown", 64, 1).unwrap();
    let map = SlotMap::aligned(Epoch(1), TokenHash::Postgres, 8, &[ShardId(0)]).unwrap();
    let expected: kafka_producer::Placed = (0..20)
        .map(Uuid::from_u128)
        .map(|user| (user.to_string(), map.partition_for(&user.into()).0))
        .collect();
    for topic in ["orders", "grown"] {
        let bootstrap = broker.bootstrap_servers();
        let (by_record, by_partitioner) = kafka_producer::run(&bootstrap, topic).await.unwrap();
        assert_eq!(by_record, expected, "{topic}");
        assert_eq!(by_partitioner, expected, "{topic}");
    }
}

#[cfg(feature = "rdkafka")]
#[tokio::test]
async fn a_topic_with_fewer_partitions_than_the_map_is_refused() {
    let broker = rdkafka::mocking::MockCluster::new(1).unwrap();
    broker.create_topic("small", 4, 1).unwrap();
    let refused = kafka_producer::run(&broker.bootstrap_servers(), "small").await;
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("has 4 partitions and the map 8"), "{error}");
}

#[derive(Deserialize)]
struct File {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    hash: String,
    key_type: String,
    key: String,
    hash_i32: i32,
    slot: u16,
}

#[tokio::test]
async fn a_live_postgres_agrees_with_every_golden_vector() {
    let Some(server) = start_postgres().await else {
        return;
    };
    let client = connect(&server.url("postgres")).await;
    let file: File = serde_json::from_str(include_str!("../vectors.json")).unwrap();
    let by_postgres = file.vectors.iter().filter(|v| v.hash == "pg-lookup3-1");
    let mut asked = 0;
    for vector in by_postgres {
        let function = match vector.key_type.as_str() {
            "uuid" => "uuid_hash($1::text::uuid)",
            "int8" => "hashint8($1::text::int8)",
            "text" => "hashtext($1::text)",
            other => panic!("{other}"),
        };
        let statement = format!("select {function}, (({function}::int8 + 2147483648) >> 20)::int4");
        let row = client.query_one(&statement, &[&vector.key]).await.unwrap();
        let name = format!("{} {:?}", vector.key_type, vector.key);
        assert_eq!(row.get::<_, i32>(0), vector.hash_i32, "{name}");
        assert_eq!(row.get::<_, i32>(1), i32::from(vector.slot), "{name}");
        asked += 1;
    }
    assert!(asked > 80, "{asked}");
}
