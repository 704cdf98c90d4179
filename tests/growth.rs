//! Partitions grow while the built `shardlane` takes webhooks: killed, suspended, run again.

mod command;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Value, json};
use shardlane_local::{Kafka, KafkaOptions, Postgres, PostgresOptions, create_database, require};
use shardlane_router::{Epoch, KeyType, RouteKey, ShardId, SlotMap, TokenHash};

use crate::command::shardlane;

const PATIENCE: Duration = Duration::from_secs(90);

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = shardlane(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// A running command, whose words go to a file: a full pipe would stop it.
struct Running {
    child: Child,
    log: std::path::PathBuf,
}

impl Running {
    fn start(folder: &Path, name: &str, arguments: &[&str]) -> Running {
        let log = folder.join(name);
        let file = std::fs::File::create(&log).unwrap();
        let child = shardlane(arguments)
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Running { child, log }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    fn until_it_says(&mut self, word: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = std::fs::read_to_string(&self.log).unwrap();
            if said.contains(word) {
                return;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{ended:?}: {said}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn end(mut self, signal: &str) {
        self.signal(signal);
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended; what a failed test leaves must not stay.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Posts one step of an order. Gives the status and the body; 0 if nobody answers.
fn post(address: SocketAddr, user: &str, number: usize) -> (u16, Value) {
    let status = if number == 0 { "created" } else { "updated" };
    let body = json!({
        "provider_event_id": format!("e{number}"), "order_id": format!("o-{user}"), "user_id": user, "status": status,
        "created_at": "2026-11-01T10:00:00Z", "updated_at": format!("2026-11-01T10:{number:02}:00Z"),
    })
    .to_string();
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        write!(
            stream,
            "POST /webhooks/payments/orders HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let Ok(answer) = ask() else {
        return (0, Value::Null);
    };
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    if status == 503 {
        assert!(head.to_lowercase().contains("retry-after: "), "{head}");
    }
    (status, serde_json::from_str(body).unwrap())
}

/// Posts until it is accepted, and gives the partition.
fn accepted(address: SocketAddr, user: &str, number: usize) -> i64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match post(address, user, number) {
            (202, body) => return body["partition"].as_i64().unwrap(),
            (0 | 503, _) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => panic!("{other:?}"),
        }
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

fn map(partitions: u32) -> SlotMap {
    SlotMap::aligned(Epoch(1), TokenHash::Postgres, partitions, &[ShardId(0)]).unwrap()
}

fn partition(map: &SlotMap, user: &str) -> i64 {
    i64::from(
        map.partition_for(&RouteKey::parse(KeyType::Uuid, user).unwrap())
            .0,
    )
}

/// Waits until the workers' group has committed something: a growth asks for that.
fn until_committed(bootstrap: &str) {
    let asker: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "shardlane")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_range("orders.webhooks", 0, 3);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let committed = asker.committed_offsets(list.clone(), PATIENCE).unwrap();
        let offsets = committed.elements();
        if offsets
            .iter()
            .any(|it| matches!(it.offset(), Offset::Offset(_)))
        {
            return;
        }
        assert!(Instant::now() < deadline, "nothing is committed");
    }
}

#[test]
fn a_killed_growth_is_finished_and_a_suspended_ingest_misplaces_nothing() {
    let (Some(()), Some(())) = (require("postgres"), require("kafka")) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (kafka, postgres) = runtime.block_on(async {
        let kafka = Kafka::start(KafkaOptions::default()).await.unwrap();
        let postgres = Postgres::start(PostgresOptions::fast()).await.unwrap();
        create_database(&postgres.url("postgres"), "one")
            .await
            .unwrap();
        (kafka, postgres)
    });
    let (bootstrap, url) = (kafka.bootstrap(), postgres.url("one"));
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(run(&["migrate", "--layout", "single", &url]).0, Some(0));
    let create = ["topics", "create", "--kafka", &bootstrap];
    let (code, said, _) = run(&[&create[..], &["--partitions", "4"]].concat());
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("shardlane.map: epoch 1, 4 partitions"),
        "{said}"
    );

    let ingest = |name: &str, address: SocketAddr| {
        let listen = address.to_string();
        let mode = [
            "ingest",
            "--unsigned",
            "--mode",
            "kafka",
            "--kafka",
            &bootstrap,
            "--listen",
            &listen,
        ];
        Running::start(folder.path(), name, &mode)
    };
    let (first, second) = (free_address(), free_address());
    let (one, two) = (ingest("one", first), ingest("two", second));
    let worker = Running::start(
        folder.path(),
        "worker",
        &["worker", "--kafka", &bootstrap, "--database", &url],
    );
    let (before, after) = (map(4), map(4).plan_partitions(6).unwrap().map);
    let users = (0_u128..).map(|number| uuid_text(number + 1));
    let moving: Vec<String> = users
        .filter(|user| partition(&before, user) != partition(&after, user))
        .take(8)
        .collect();
    for user in &moving {
        assert_eq!(accepted(first, user, 0), partition(&before, user));
        assert_eq!(accepted(second, user, 1), partition(&before, user));
    }

    until_committed(&bootstrap);

    // The second ingest is suspended with the old map in its hands, and the growth dies when its slots are frozen.
    two.signal("-STOP");
    let grow = ["topics", "grow", "--kafka", &bootstrap, "--partitions", "6"];
    let mut killed = Running::start(folder.path(), "killed", &grow);
    killed.until_it_says("are frozen (epoch 2)");
    killed.end("-KILL");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (status, body) = post(first, &moving[0], 2);
        // For half a second it may not have heard of the freeze.
        if status == 503
            && body["detail"]
                .as_str()
                .unwrap()
                .contains("partitions are being added")
        {
            break;
        }
        assert!(Instant::now() < deadline, "{status} {body}");
    }
    let (code, _, sentence) = run(&["topics", "grow", "--kafka", &bootstrap, "--partitions", "7"]);
    assert_eq!(code, Some(2), "{sentence}");
    assert!(
        sentence.contains("a growth to 6 partitions was begun"),
        "{sentence}"
    );
    let (code, said, progress) = run(&grow);
    assert_eq!(code, Some(0), "{said}{progress}");
    assert!(said.contains("grown: epoch 3 has 6 partitions"), "{said}");
    assert!(
        progress.contains("an earlier run has begun it"),
        "{progress}"
    );

    for user in &moving {
        assert_eq!(accepted(first, user, 3), partition(&after, user));
    }
    two.signal("-CONT");
    for user in &moving {
        assert_eq!(accepted(second, user, 4), partition(&after, user));
    }

    // Who says something else than the topic is told so.
    for command in [
        &[
            "ingest",
            "--unsigned",
            "--mode",
            "kafka",
            "--kafka",
            &bootstrap,
            "--partitions",
            "4",
        ][..],
        &[
            "worker",
            "--kafka",
            &bootstrap,
            "--database",
            &url,
            "--partitions",
            "4",
        ][..],
    ] {
        let (code, _, sentence) = run(command);
        assert_eq!(code, Some(2), "{sentence}");
        assert!(
            sentence.contains("--partitions 4 contradicts topic shardlane.map"),
            "{sentence}"
        );
    }
    let (code, said, sentence) = run(&[&create[..], &["--partitions", "8"]].concat());
    assert_eq!(code, Some(1), "{sentence}");
    assert!(said.contains("epoch 3, 6 partitions"), "{said}");
    let (code, said, _) = run(&["topics", "grow", "--kafka", &bootstrap, "--abort"]);
    assert_eq!(code, Some(0));
    assert!(said.contains("nothing is frozen"), "{said}");

    let rows = runtime.block_on(in_order(&url, &moving));
    for (user, events) in moving.iter().zip(rows) {
        // The first user's third step may have been accepted before the freeze was heard of.
        assert!(
            events == "e0 e1 e3 e4" || events == "e0 e1 e2 e3 e4",
            "{user}: {events}"
        );
    }
    for running in [one, two, worker] {
        running.end("-TERM");
    }
    runtime.block_on(async {
        kafka.stop().await.unwrap();
        postgres.stop().await.unwrap();
    });
}

fn uuid_text(number: u128) -> String {
    let digits = format!("{:032x}", number << 64 | 0x8000_0000_0000_0000 | number);
    [0..8, 8..12, 12..16, 16..20, 20..32]
        .map(|part| &digits[part])
        .join("-")
}

/// Each user's events in the order of their application, once the last one is there.
async fn in_order(url: &str, users: &[String]) -> Vec<String> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let query = "select string_agg(event_id, ' ' order by version) from order_events where user_id::text = $1";
    let deadline = Instant::now() + PATIENCE;
    let mut rows = Vec::new();
    for user in users {
        loop {
            let row = client.query_one(query, &[user]).await.unwrap();
            let events: Option<String> = row.get(0);
            match events {
                Some(events) if events.ends_with("e4") => break rows.push(events),
                other => assert!(Instant::now() < deadline, "{user}: {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    rows
}

#[test]
fn a_hundred_partitions_are_no_error() {
    for command in [["topics", "create"], ["topics", "grow"]] {
        let (_, help, _) = run(&[&command[..], &["--help"]].concat());
        assert!(
            !help.contains("power of two") && help.contains("any number"),
            "{help}"
        );
    }
    let Some(()) = require("kafka") else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let kafka = runtime
        .block_on(Kafka::start(KafkaOptions::default()))
        .unwrap();
    let bootstrap = kafka.bootstrap();
    let create = [
        "topics",
        "create",
        "--kafka",
        &bootstrap,
        "--partitions",
        "100",
    ];
    let (code, said, note) = run(&create);
    assert_eq!(code, Some(0), "{note}");
    assert!(said.contains("epoch 1, 100 partitions"), "{said}");
    assert!(
        note.contains("100 partitions and 32 shards are not aligned"),
        "{note}"
    );
    assert!(note.contains("only dearer"), "{note}");
    // Half of them each.
    let (code, _, note) = run(&[&create[..], &["--shards", "2"]].concat());
    assert_eq!((code, note.as_str()), (Some(0), ""));

    // Ctrl-C leaves nothing frozen behind.
    let folder = tempfile::tempdir().unwrap();
    let grow = [
        "topics",
        "grow",
        "--kafka",
        &bootstrap,
        "--partitions",
        "128",
    ];
    let mut growth = Running::start(folder.path(), "grow", &grow);
    growth.until_it_says("are frozen (epoch 2)");
    growth.signal("-INT");
    growth.until_it_says("interrupted and taken back: epoch 3");
    assert_eq!(growth.child.wait().unwrap().code(), Some(2));
    let (code, said, progress) = run(&grow);
    assert_eq!(code, Some(0), "{progress}");
    assert!(said.contains("grown: epoch 5 has 128 partitions"), "{said}");
    runtime.block_on(kafka.stop()).unwrap();
}
