//! `/metrics` of real processes: what docs/metrics.md says, neither more nor less, and what promtool takes.

mod command;
mod running;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use shardlane_local::{Kafka, KafkaOptions, Postgres, PostgresOptions, create_database, require};

use crate::command::shardlane;
use crate::running::Running;

const PATIENCE: Duration = Duration::from_secs(60);

impl Running {
    fn get(&self, path: &str, accept: &str) -> (String, String) {
        let url = format!("http://{}{path}", self.address);
        let mut answer = ureq::get(&url).header("accept", accept).call().unwrap();
        let kind = answer.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        (kind, answer.body_mut().read_to_string().unwrap())
    }

    fn metrics(&self) -> Metrics {
        let (kind, text) = self.get("/metrics", "*/*");
        assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
        let (kind, open) = self.get("/metrics", "application/openmetrics-text; version=1.0.0");
        assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"));
        assert!(open.ends_with("# EOF\n"));
        Metrics { text }
    }
}

struct Metrics {
    text: String,
}

/// Type and labels of a metric.
type Described = (String, BTreeSet<String>);

impl Metrics {
    /// The values whose line begins so.
    fn values(&self, begin: &str) -> Vec<f64> {
        let lines = self.text.lines().filter(|line| line.starts_with(begin));
        lines
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect()
    }

    fn sum(&self, begin: &str) -> f64 {
        self.values(begin).iter().sum()
    }

    fn described(&self) -> BTreeMap<String, Described> {
        let mut described = BTreeMap::new();
        for line in self.text.lines() {
            let Some((name, kind)) = line
                .strip_prefix("# TYPE ")
                .and_then(|line| line.split_once(' '))
            else {
                continue;
            };
            let labels = self.labels_of(name);
            let before = described.insert(name.to_owned(), (kind.to_owned(), labels));
            assert_eq!(before, None, "{name} is described twice");
        }
        described
    }

    /// The labels of all samples of a metric; `le` is the histogram's own.
    fn labels_of(&self, name: &str) -> BTreeSet<String> {
        let samples = self.text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let rest = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| rest.strip_prefix(suffix))
                .unwrap_or(rest);
            rest.strip_prefix('{')?.split_once('}')
        });
        let names = samples.flat_map(|(labels, _)| labels.split("\",").collect::<Vec<_>>());
        names
            .filter_map(|label| Some(label.split_once('=')?.0.to_owned()))
            .filter(|label| label != "le")
            .collect()
    }
}

/// The rows of the page's tables.
fn documented() -> BTreeMap<String, Described> {
    let page = include_str!("../docs/metrics.md");
    let rows = page
        .lines()
        .filter(|line| line.starts_with("| `shardlane_") || line.starts_with("| `process_"));
    // What stands behind a label's colon are its values.
    let labels = |cell: &str| -> BTreeSet<String> {
        let names = cell.split(';').filter_map(|part| part.split(':').next());
        names
            .flat_map(|names| names.split('`').skip(1).step_by(2))
            .map(str::to_owned)
            .collect()
    };
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, name, kind, labelled, meaning, ..] = cells[..] else {
            panic!("{row}")
        };
        assert!(!meaning.is_empty(), "{row}");
        (
            name.trim_matches('`').to_owned(),
            (kind.to_owned(), labels(labelled)),
        )
    })
    .collect()
}

#[test]
fn docs_and_servers_name_the_same_metrics() {
    let (Some(()), Some(())) = (require("partman"), require("kafka")) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (postgres, kafka) = runtime.block_on(async {
        let postgres = Postgres::start(PostgresOptions::fast()).await.unwrap();
        create_database(&postgres.url("postgres"), "one")
            .await
            .unwrap();
        let kafka = Kafka::start(KafkaOptions::default()).await.unwrap();
        (postgres, kafka)
    });
    let (url, bootstrap) = (postgres.url("one"), kafka.bootstrap());
    for arguments in [
        &["migrate", "--layout", "partman", &url][..],
        &["topics", "create", "--kafka", &bootstrap],
    ] {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let done = shardlane(arguments).output().unwrap();
            if done.status.success() {
                break;
            }
            // A broker that has just started may not have heard of a topic that it has made.
            assert!(Instant::now() < deadline, "{done:?}");
        }
    }
    let port = ["--listen", "127.0.0.1:0"];
    let database = ["--database", &*url];
    let broker = ["--kafka", &*bootstrap];
    let with = |first: &[&'static str], rest: &[[&str; 2]]| {
        let rest = rest.iter().flatten().map(ToString::to_string);
        first
            .iter()
            .map(ToString::to_string)
            .chain(rest)
            .collect::<Vec<String>>()
    };
    let start = |arguments: Vec<String>| {
        Running::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let worker = start(with(
        &["worker", "--layout", "partman"],
        &[broker, database, port],
    ));
    let ingest = start(with(
        &["ingest", "--unsigned", "--mode", "kafka"],
        &[broker, port],
    ));
    let direct = start(with(
        &["ingest", "--unsigned", "--mode", "direct"],
        &[database, port],
    ));

    let created = |door: &Running, user| door.post_order(1, user, "created");
    assert_eq!(
        created(&ingest, "550e8400-e29b-41d4-a716-446655440000"),
        202
    );
    assert_eq!(
        created(&direct, "550e8400-e29b-41d4-a716-446655440001"),
        200
    );
    assert_eq!(created(&ingest, "nobody"), 422);
    let applied = r#"shardlane_events_total{topic="orders.webhooks",outcome="applied"}"#;
    let deadline = Instant::now() + PATIENCE;
    let of_worker = loop {
        let metrics = worker.metrics();
        let lag = metrics.values("shardlane_lag_records{");
        // All partitions are known, and nothing is left.
        if metrics.sum(applied) == 1.0 && lag.len() == 16 && lag.iter().all(|lag| *lag == 0.0) {
            break metrics;
        }
        assert!(Instant::now() < deadline, "{}", metrics.text);
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(of_worker.sum("shardlane_batches_total{way=\"owner\"}"), 1.0);
    assert_eq!(of_worker.sum("shardlane_batches_total"), 1.0);
    assert_eq!(of_worker.sum("shardlane_batch_rows_sum"), 1.0);
    assert_eq!(
        of_worker.sum("shardlane_batch_rows_bucket{le=\"1.0\"}"),
        1.0
    );
    assert_eq!(of_worker.sum("shardlane_batch_seconds_count"), 1.0);
    assert!(of_worker.sum("shardlane_rows_written_total") > 3.0);
    assert!(of_worker.sum("shardlane_statements_total") > 6.0);
    assert_eq!(of_worker.sum("shardlane_lag_seconds"), 0.0);
    assert_eq!(of_worker.values("shardlane_shard_up{"), [1.0]);
    let ahead = of_worker.values("shardlane_time_partitions_ahead_seconds{");
    // Of two logs; today's and four more.
    assert!(
        ahead.len() == 2 && ahead.iter().all(|it| *it > 3e5),
        "{ahead:?}"
    );
    assert!(of_worker.sum("process_resident_memory_bytes") > 1e6);
    assert_eq!(of_worker.sum("shardlane_pool_connections_limit"), 8.0);
    assert!(of_worker.sum("shardlane_pool_connections{") >= 1.0);

    let of_ingest = ingest.metrics();
    let orders = r#"shardlane_http_requests_total{route="/webhooks/payments/orders",status="#;
    assert_eq!(of_ingest.sum(&format!("{orders}\"2xx\"")), 1.0);
    assert_eq!(of_ingest.sum(&format!("{orders}\"4xx\"")), 1.0);
    assert_eq!(
        of_ingest.sum(r#"shardlane_http_refused_total{reason="invalid-event"}"#),
        1.0
    );
    let accepted = r#"shardlane_accept_seconds_count{mode="kafka",result="durable"}"#;
    assert_eq!(of_ingest.sum(accepted), 1.0);
    // The one that asks.
    assert_eq!(of_ingest.sum("shardlane_http_requests_in_flight"), 1.0);
    assert_eq!(direct.metrics().sum("shardlane_dead_letters_total"), 0.0);
    // Another payload under an id that was used.
    assert_eq!(
        direct.post_order(1, "550e8400-e29b-41d4-a716-446655440001", "updated"),
        409
    );
    let of_direct = direct.metrics();
    let letters = r#"shardlane_dead_letters_total{topic="orders.webhooks",class="duplicate_with_different_payload"}"#;
    assert_eq!(of_direct.sum(letters), 1.0);

    let servers = [&of_worker, &of_ingest, &of_direct];
    let mut served: BTreeMap<String, Described> = BTreeMap::new();
    for metrics in servers {
        for (name, (kind, labels)) in metrics.described() {
            let (known, all) = served
                .entry(name)
                .or_insert((kind.clone(), BTreeSet::new()));
            assert_eq!(*known, kind);
            all.extend(labels);
        }
    }
    assert_eq!(served, documented());

    let health = |url: &str| shardlane(&["health", url]).output().unwrap();
    let well = health(&worker.address);
    assert_eq!(well.status.code(), Some(0), "{well:?}");
    assert_eq!(well.stdout, b"{\"status\":\"ready\"}\n");
    let unknown = health(&format!("http://{}/nowhere", worker.address));
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
    assert_eq!(health("127.0.0.1:9").status.code(), Some(2));

    if let Some(()) = require("promtool") {
        for metrics in servers {
            check(&metrics.text);
        }
    }
}

/// What promtool says of a text: nothing.
fn check(text: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = promtool.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    let said = promtool.wait_with_output().unwrap();
    assert!(said.status.success(), "{said:?}\n{text}");
}
