//! The page of a worker, in a browser without a window: what it shows while all is well, and while a shard is away.

mod command;
mod running;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use shardlane_local::{Kafka, KafkaOptions, Postgres, PostgresOptions, create_database, require};

use crate::command::shardlane;
use crate::running::Running;

const PATIENCE: Duration = Duration::from_secs(90);

impl Running {
    /// The page after it has asked a few times.
    fn page(&self) -> String {
        let profile = tempfile::tempdir().unwrap();
        let Output { stdout, stderr, .. } = Command::new("chromium")
            // The sandbox refuses root, and this page is ours.
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--enable-logging=stderr",
            ])
            .args(["--virtual-time-budget=7000", "--dump-dom"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!("http://{}/", self.address))
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&stderr);
        // A script that failed, or something that the policy refused.
        assert!(!stderr.contains("CONSOLE"), "{stderr}");
        String::from_utf8_lossy(&stdout).into_owned()
    }

    #[track_caller]
    fn until_page_has(&self, parts: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let page = self.page();
            let missing: Vec<&&str> = parts.iter().filter(|part| !page.contains(**part)).collect();
            if missing.is_empty() {
                return page;
            }
            assert!(Instant::now() < deadline, "{missing:?} is not in:\n{page}");
        }
    }
}

async fn shard() -> (Postgres, String) {
    let postgres = Postgres::start(PostgresOptions::fast()).await.unwrap();
    create_database(&postgres.url("postgres"), "shard")
        .await
        .unwrap();
    let url = postgres.url("shard");
    (postgres, url)
}

fn server_of(url: &str) -> &str {
    url.rsplit_once('@').unwrap().1
}

#[test]
fn the_page_shows_lanes_and_a_shard_that_is_away() {
    let (Some(()), Some(()), Some(())) =
        (require("postgres"), require("kafka"), require("chromium"))
    else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (kafka, (_first, first_url), (second, second_url)) = runtime.block_on(async {
        let kafka = Kafka::start(KafkaOptions::default()).await.unwrap();
        (kafka, shard().await, shard().await)
    });
    let (bootstrap, urls) = (kafka.bootstrap(), format!("{first_url},{second_url}"));
    for arguments in [
        &["migrate", "--layout", "shards", &first_url, &second_url][..],
        &["topics", "create", "--kafka", &bootstrap],
    ] {
        let done = shardlane(arguments).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }
    let listen = "--listen=127.0.0.1:0";
    let (kafka_flag, database) = (format!("--kafka={bootstrap}"), format!("--database={urls}"));
    let worker = Running::start(&["worker", "--layout=shards", &kafka_flag, &database, listen]);
    let ingest = Running::start(&["ingest", "--unsigned", "--mode=kafka", &kafka_flag, listen]);

    let web = shardlane(&["status", "--web", &worker.address])
        .output()
        .unwrap();
    let address = format!("http://{}/\n", worker.address);
    assert_eq!(String::from_utf8_lossy(&web.stdout), address, "{web:?}");
    let nobody = shardlane(&["status", "--web", "127.0.0.1:9"])
        .output()
        .unwrap();
    assert_eq!(nobody.status.code(), Some(2));

    let post = |event: usize| {
        let user = uuid::Uuid::from_u128(event as u128).to_string();
        assert_eq!(ingest.post_order(event, &user, "created"), 202);
    };
    (0..50).for_each(post);
    let page = worker.until_page_has(&[
        "All nodes answer",
        "group shardlane, map epoch 1",
        "<dt>owner hits</dt><dd>100.0 %</dd>",
        "<td>orders 7</td><td>1</td>",
        server_of(&first_url),
        server_of(&second_url),
        "<td class=\"mono\">00000000-0000-0000-0000-0000000000",
    ]);
    assert_eq!(page.matches("class=\"flows\"").count(), 16, "{page}");

    runtime.block_on(second.kill()).unwrap();
    (50..100).for_each(post);
    let page = worker.until_page_has(&["1 of 2 nodes: no answer", "<td class=\"bad\">waits</td>"]);
    // Its own lanes only.
    assert!(page.matches(">waits<").count() <= 8, "{page}");
    assert!(page.contains("does not answer"), "{page}");

    runtime.block_on(second.restart()).unwrap();
    let page = worker.until_page_has(&["All nodes answer", "<dt>lag, records</dt><dd>0</dd>"]);
    assert!(!page.contains("waits"), "{page}");
}
