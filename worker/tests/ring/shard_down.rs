//! A shard that is down stops its own partitions only.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shardlane_domain::Source;
use shardlane_local::{Postgres, PostgresOptions, create_database, require};
use shardlane_router::{PartitionId, RouteKey};
use shardlane_sql::{Backend, Detail, Layout, SqlError, Store, StoreOptions, migrate};
use shardlane_worker::{Lag, StatsServer, Worker};
use tokio_postgres::NoTls;
use uuid::Uuid;

use crate::events::{order, partition_of, user};
use crate::world::{Ring, until, until_counts};

async fn orders(url: &str) -> i64 {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
        .query_one("select count(*) from order_events", &[])
        .await
        .unwrap()
        .get(0)
}

/// What `/readyz` answers.
async fn readiness(address: SocketAddr) -> (u16, serde_json::Value) {
    let ask = move || {
        let asked = ureq::get(format!("http://{address}/readyz"))
            .config()
            .http_status_as_error(false)
            .build()
            .call();
        let mut answer = asked.unwrap();
        let body = answer.body_mut().read_to_string().unwrap();
        (
            answer.status().as_u16(),
            serde_json::from_str(&body).unwrap(),
        )
    };
    tokio::task::spawn_blocking(ask).await.unwrap()
}

/// A primary for each shard, with their DSNs.
async fn two_shards(ring: &Ring) -> ([Postgres; 2], Vec<String>) {
    let servers = [
        Postgres::start(PostgresOptions::fast()).await.unwrap(),
        Postgres::start(PostgresOptions::fast()).await.unwrap(),
    ];
    let mut urls = Vec::new();
    for (server, shard) in servers.iter().zip(ring.map.shards()) {
        create_database(&server.url("postgres"), "ring")
            .await
            .unwrap();
        urls.push(server.url("ring"));
        migrate(
            &server.url("ring"),
            Layout::Shards,
            Detail::Shard(&ring.map, *shard),
        )
        .await
        .unwrap();
    }
    (servers, urls)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_starts_while_a_shard_is_down_and_takes_it_up_when_it_is_back() {
    let Some(()) = require("postgres") else {
        return;
    };
    let Some(ring) = Ring::new().await else {
        return;
    };
    let (servers, urls) = two_shards(&ring).await;
    servers[1].kill().await.unwrap();
    let connect = async |urls: &[&String]| {
        let backend = Backend::Shards {
            urls: urls.iter().map(|url| (*url).clone()).collect(),
            map: ring.map.clone(),
        };
        let options = StoreOptions {
            connect_timeout: Duration::from_secs(1),
            ..StoreOptions::default()
        };
        Store::connect(backend, options).await
    };
    // The one that answers is the other shard.
    let error = connect(&[&urls[1], &urls[0]]).await.err().unwrap();
    assert!(matches!(error, SqlError::Identity(_)), "{error}");
    let store = connect(&[&urls[0], &urls[1]]).await.unwrap();
    let worker = Worker::start(ring.settings(""), Arc::new(store)).await;
    let worker = worker.unwrap();
    let users: Vec<Uuid> = (0..60).map(user).collect();
    let events: Vec<_> = users
        .iter()
        .map(|user| order(*user, "o1", "ord", "created", 1))
        .collect();
    ring.publish(&events).await;
    let is_up = |user: &&Uuid| ring.map.shard_for(&RouteKey::Uuid(**user)) == ring.map.shards()[0];
    let up = users.iter().filter(is_up).count();
    let stats = worker.stats();
    until_counts(&stats, "the shard that is up", |counts| {
        counts.applied == up as u64 && counts.outages > 0
    })
    .await;
    servers[1].restart().await.unwrap();
    let counts = until_counts(&stats, "both shards", |counts| counts.applied == 60).await;
    assert_eq!(counts.done, 60, "{counts:?}");
    worker.stop().await.unwrap();
    for server in &servers {
        server.kill().await.unwrap();
    }
    let error = connect(&[&urls[0], &urls[1]]).await.err().unwrap();
    assert!(error.is_outage(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_down_stops_its_own_partitions_only() {
    let Some(()) = require("postgres") else {
        return;
    };
    let Some(ring) = Ring::new().await else {
        return;
    };
    let (servers, urls) = two_shards(&ring).await;
    let backend = Backend::Shards {
        urls: urls.clone(),
        map: ring.map.clone(),
    };
    let options = StoreOptions {
        connect_timeout: Duration::from_secs(1),
        ..StoreOptions::default()
    };
    let store = Arc::new(Store::connect(backend, options).await.unwrap());
    let mut settings = ring.settings("");
    // Small, so that the lanes of the shard that is down are soon full.
    settings.batch_rows_max = 5;
    // Shorter than the outage: a lane that waits for its shard is no reason to make a consumer anew.
    settings.stall_max = Duration::from_secs(1);
    let worker = Worker::start(settings.clone(), store).await.unwrap();
    let stats = worker.stats();
    let server = StatsServer::bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let address = server.address();
    let serving = tokio::spawn(server.run(worker.view()));
    assert_eq!(readiness(address).await.0, 200);

    let users: Vec<Uuid> = (0..100).map(user).collect();
    let of = |shard: usize| {
        let partitions = ring.map.partitions_of(ring.map.shards()[shard]);
        let own = |user: &&Uuid| partitions.contains(&PartitionId(partition_of(&ring.map, **user)));
        users.iter().filter(own).count()
    };
    let (up, down) = (of(0), of(1));
    assert!(up >= 40 && down >= 40, "{up} {down}");
    let round = async |event: &str, status: &str, second: i64| {
        let events: Vec<_> = users
            .iter()
            .map(|user| order(*user, event, "ord", status, second))
            .collect();
        ring.publish(&events).await;
    };
    let began = Instant::now();
    round("o1", "created", 1).await;
    until_counts(&stats, "both shards", |counts| counts.done == 100).await;
    let both_up = began.elapsed();

    // Offsets are committed behind the worker's back; the last ones may still be on their way.
    until("all is committed", async || {
        let offsets = ring.offsets(&settings);
        let done = offsets.values().all(|(committed, end)| committed == end);
        done.then_some(()).ok_or_else(|| format!("{offsets:?}"))
    })
    .await;
    servers[1].kill().await.unwrap();
    let down_since = Instant::now();
    let committed_before = ring.offsets(&settings);
    for (number, event) in ["o2", "o3"].into_iter().enumerate() {
        let began = Instant::now();
        round(event, "updated", 2 + i64::try_from(number).unwrap()).await;
        let expected = (number + 2) * up;
        until("the shard that is up goes on", async || {
            let rows = orders(&urls[0]).await;
            if rows == i64::try_from(expected).unwrap() {
                Ok(())
            } else {
                Err(format!("{rows} rows, {:?}", stats.counts()))
            }
        })
        .await;
        // The poller waits for a lane that is full. If it did for those that wait for their shard, each of their
        // records would cost the others as much.
        let took = began.elapsed();
        let most = both_up * 2 + Duration::from_secs(1);
        assert!(
            took < most,
            "{took:?} while one is down, {both_up:?} before"
        );
    }
    let counts = until_counts(&stats, "a pause", |counts| {
        counts.pauses > 0 && counts.retries > 0
    })
    .await;
    assert_eq!(counts.done, (100 + 2 * up) as u64, "{counts:?}");
    let (status, problem) = readiness(address).await;
    let shard = ring.map.shards()[1];
    assert_eq!(status, 503, "{problem}");
    assert_eq!(problem["type"], "urn:shardlane:problem:not-ready");
    assert_eq!(
        problem["failing"],
        serde_json::json!([format!("shard {shard}")])
    );
    let port = servers[1].port().to_string();
    assert!(
        problem["detail"].as_str().unwrap().contains(&port),
        "{problem}"
    );
    // What is behind is what the shard that is down should have; the events were accepted some time ago.
    let partitions = ring.map.partitions_of(shard);
    until("the lag is seen", async || {
        let lags = stats.lags();
        let behind = lags.iter().filter(|lag| lag.records > Some(0));
        let held_up = |lag: &&Lag| partitions.contains(&PartitionId(lag.partition));
        let (records, foreign) = behind.clone().fold((0, 0), |(own, foreign), lag| {
            let records = lag.records.unwrap_or(0);
            if held_up(&lag) {
                (own + records, foreign)
            } else {
                (own, foreign + records)
            }
        });
        let old = behind.filter(|lag| lag.seconds > Some(0.0)).count();
        // The last of them came while their partitions stood still.
        if records == 2 * down as u64 && foreign == 0 && old > 0 {
            Ok(())
        } else {
            Err(format!("{lags:?}"))
        }
    })
    .await;
    let committed = ring.offsets(&settings);
    for partition in ring.map.partitions_of(ring.map.shards()[1]) {
        let key = (Source::Orders, partition.0);
        assert_eq!(committed[&key].0, committed_before[&key].0, "{committed:?}");
        assert!(committed[&key].0 < committed[&key].1, "{committed:?}");
    }

    // Several times what the watchdog waits, to see that it does not.
    let outage = Duration::from_secs(5);
    tokio::time::sleep(outage.saturating_sub(down_since.elapsed())).await;
    let counts = stats.counts();
    // One lane at a time asks whether the shard is back, each second at last; every lane alone would each 200 ms.
    let asked_most = 20 + down_since.elapsed().as_secs();
    assert!((2..asked_most).contains(&counts.retries), "{counts:?}");
    assert_eq!(counts.rebuilds, 0, "{counts:?}");
    servers[1].restart().await.unwrap();
    let back = Instant::now();
    let counts = until_counts(&stats, "the shard is back", |counts| counts.done == 300).await;
    assert!(
        back.elapsed() < Duration::from_secs(5),
        "{:?}",
        back.elapsed()
    );
    assert_eq!(readiness(address).await.0, 200);
    serving.abort();
    round("o4", "success", 4).await;
    until_counts(&stats, "business as usual", |counts| counts.done == 400).await;
    worker.stop().await.unwrap();
    assert_eq!(
        (
            counts.stale,
            counts.malformed,
            counts.parked,
            counts.illegal
        ),
        (0, 0, 0, 0),
        "{counts:?}"
    );
    ring.everything_is_committed(&settings);
    assert_eq!(orders(&urls[0]).await, i64::try_from(4 * up).unwrap());
    assert_eq!(orders(&urls[1]).await, i64::try_from(4 * down).unwrap());
}
