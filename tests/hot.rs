//! A worker that answers, and `shardlane status` that asks it.

mod command;

use std::io::{BufRead, BufReader};
use std::process::{Child, Output, Stdio};

use serde_json::Value;
use shardlane_local::{Kafka, KafkaOptions, Postgres, PostgresOptions, create_database, require};

use crate::command::shardlane;

fn run(arguments: &[&str]) -> Output {
    shardlane(arguments).output().unwrap()
}

/// Ends with the test, whatever becomes of it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn status_asks_workers_what_they_are_busy_with() {
    let (Some(()), Some(())) = (require("postgres"), require("kafka")) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (postgres, kafka) = runtime.block_on(async {
        let postgres = Postgres::start(PostgresOptions::fast()).await.unwrap();
        create_database(&postgres.url("postgres"), "one")
            .await
            .unwrap();
        (
            postgres,
            Kafka::start(KafkaOptions::default()).await.unwrap(),
        )
    });
    let (url, bootstrap) = (postgres.url("one"), kafka.bootstrap());
    for arguments in [
        &["migrate", "--layout", "single", &url][..],
        &["topics", "create", "--kafka", &bootstrap],
    ] {
        let done = run(arguments);
        assert!(done.status.success(), "{done:?}");
    }
    let arguments = [
        "worker",
        "--database",
        &url,
        "--kafka",
        &bootstrap,
        "--listen",
        "127.0.0.1:0",
    ];
    let mut worker = Running(
        shardlane(&arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut lines = BufReader::new(worker.0.stderr.take().unwrap()).lines();
    let address = lines
        .by_ref()
        .map_while(Result::ok)
        .find_map(|line| line.split_once("http://").map(|(_, it)| it.to_owned()))
        .expect("the worker says where it answers");
    // It goes on talking, and would die of a closed pipe.
    std::thread::spawn(move || lines.for_each(drop));

    let answer = run(&[
        "status", "--worker", &address, "--worker", &address, "--json",
    ]);
    assert_eq!(answer.status.code(), Some(0), "{answer:?}");
    let answer: Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(answer["total"], 0);
    assert_eq!(answer["slots"], Value::Array(Vec::new()));
    let url = format!("http://{address}/");
    let text = run(&["status", "--worker", &url]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for part in ["0 events", "slot", "partition", "shard", "user", "share"] {
        assert!(text.contains(part), "{part}: {text}");
    }

    // Another worker cannot have the address, and says so before it does anything.
    let taken = run(&["worker", "--kafka", &bootstrap, "--listen", &address]);
    let sentence = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert_eq!(taken.status.code(), Some(2), "{sentence}");
    assert!(sentence.contains("is in use"), "{sentence}");
    drop(worker);
    let gone = run(&["status", "--worker", &address]);
    let sentence = String::from_utf8_lossy(&gone.stderr).into_owned();
    assert_eq!(gone.status.code(), Some(2), "{sentence}");
    assert!(sentence.contains("--listen"), "{sentence}");
}
