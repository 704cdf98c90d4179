//! What watches the system: rules that promtool takes and whose tests pass, a page for each alert, and no query of a rule or
//! a dashboard that asks for what nobody measures.

mod command;
mod running;

use std::collections::BTreeSet;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use shardlane_local::{Kafka, KafkaOptions, Postgres, PostgresOptions, create_database, require};

use crate::command::shardlane;
use crate::running::Running;

const PATIENCE: Duration = Duration::from_secs(90);
const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// A query, and where it stands.
#[derive(Debug, Clone)]
struct Query {
    place: String,
    text: String,
}

fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(Path::new(HERE).join(folder)).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|it| it == ending));
    paths.sort();
    assert!(!paths.is_empty(), "{folder} has no {ending}");
    paths
}

fn dashboard_queries() -> Vec<Query> {
    let mut queries = Vec::new();
    for path in files("compose/grafana/dashboards", "json") {
        let text = std::fs::read_to_string(&path).unwrap();
        let dashboard: Value = serde_json::from_str(&text).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().unwrap() {
                let title = &panel["title"];
                queries.push(Query {
                    place: format!("{}: {title}", path.display()),
                    text: target["expr"].as_str().unwrap().to_owned(),
                });
            }
        }
    }
    queries
}

/// The lines of all rules that begin so.
fn rule_lines(begin: &str) -> Vec<String> {
    let mut found = Vec::new();
    for path in files("compose/prometheus/rules", "yaml") {
        for line in std::fs::read_to_string(path).unwrap().lines() {
            if let Some(rest) = line.trim_start().strip_prefix(begin) {
                found.push(rest.trim().to_owned());
            }
        }
    }
    found
}

/// The words of a query that name metrics.
fn metrics_of(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    let words = text.split(|c| !is_part(c));
    let names = words.filter(|word| !word.contains(':'));
    names
        .filter(|word| word.starts_with("shardlane_") || word.starts_with("process_"))
        .map(|word| {
            let plain = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| word.strip_suffix(suffix));
            plain.unwrap_or(word).to_owned()
        })
        .collect()
}

fn promtool(arguments: &[&str]) {
    let said = Command::new("promtool")
        .args(arguments)
        .current_dir(Path::new(HERE).join("compose/prometheus"))
        .output()
        .unwrap();
    assert!(said.status.success(), "promtool {arguments:?}: {said:?}");
}

#[test]
fn rules_are_sound_and_their_tests_pass() {
    let Some(()) = require("promtool") else {
        return;
    };
    promtool(&["check", "config", "prometheus.yaml"]);
    promtool(&["check", "config", "laptop.yaml"]);
    promtool(&["test", "rules", "tests/alerts.yaml"]);
}

#[test]
fn each_alert_has_a_test_in_which_it_fires_and_a_page() {
    let alerts = rule_lines("- alert:");
    let pages = rule_lines("runbook:");
    assert!(!alerts.is_empty());
    assert_eq!(alerts.len(), pages.len(), "an alert without a runbook");
    for page in &pages {
        assert!(Path::new(HERE).join(page).is_file(), "{page} is missing");
    }
    let tests =
        std::fs::read_to_string(Path::new(HERE).join("compose/prometheus/tests/alerts.yaml"));
    let tests = tests.unwrap();
    let index = std::fs::read_to_string(Path::new(HERE).join("docs/how-to/alerts/README.md"));
    let index = index.unwrap();
    for alert in &alerts {
        assert!(
            tests.contains(&format!("- alertname: {alert}\n")),
            "{alert} never fires"
        );
        assert!(
            tests.contains(&format!("{{alertname: {alert}, ")),
            "{alert} has no test in which it does not fire"
        );
        assert!(
            index.contains(alert.as_str()),
            "{alert} is not in the index"
        );
    }
}

#[test]
fn queries_ask_for_metrics_that_are_described() {
    let described = std::fs::read_to_string(Path::new(HERE).join("docs/metrics.md")).unwrap();
    let mut texts: Vec<Query> = dashboard_queries();
    for path in files("compose/prometheus/rules", "yaml") {
        texts.push(Query {
            place: path.display().to_string(),
            text: std::fs::read_to_string(&path).unwrap(),
        });
    }
    let recorded: BTreeSet<String> = rule_lines("- record:").into_iter().collect();
    for query in texts {
        for name in metrics_of(&query.text) {
            let is_described = described.contains(&format!("| `{name}` |"));
            assert!(is_described, "{name}: {}", query.place);
        }
        let words = query
            .text
            .split(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c)));
        for word in
            words.filter(|word| word.contains(":shardlane") || word.starts_with("shardlane:"))
        {
            assert!(
                recorded.contains(word),
                "{word} is recorded nowhere: {}",
                query.place
            );
        }
    }
}

impl Running {
    fn prometheus(folder: &Path, jobs: &[(&str, &Running)]) -> Running {
        let jobs: String = jobs
            .iter()
            .map(|(job, server)| {
                let target = &server.address;
                format!("  - job_name: {job}\n    static_configs: [{{targets: ['{target}']}}]\n")
            })
            .collect();
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{HERE}/compose/prometheus/rules/*.yaml']\nscrape_configs:\n{jobs}"
        );
        let file = folder.join("prometheus.yaml");
        std::fs::write(&file, config).unwrap();
        // It cannot be asked for a free port.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus comes with promtool");
        Running { process, address }
    }

    /// How many series a query has; `None`: Prometheus does not answer, or not to this.
    fn series(&self, query: &str) -> Option<usize> {
        let answer = ureq::get(format!("http://{}/api/v1/query", self.address))
            .query("query", query)
            .call();
        let answer: Value =
            serde_json::from_str(&answer.ok()?.body_mut().read_to_string().ok()?).ok()?;
        Some(answer["data"]["result"].as_array()?.len())
    }
}

/// Every query of dashboards and recording rules, and every metric of the alerts, as Prometheus is asked.
fn asked() -> Vec<Query> {
    let mut asked = dashboard_queries();
    for query in &mut asked {
        query.text = query.text.replace("$__rate_interval", "1m");
    }
    for name in rule_lines("- record:") {
        asked.push(Query {
            place: "rules".to_owned(),
            text: name,
        });
    }
    for path in files("compose/prometheus/rules", "yaml") {
        let text = std::fs::read_to_string(&path).unwrap();
        asked.extend(metrics_of(&text).into_iter().map(|name| Query {
            place: path.display().to_string(),
            text: format!("{{__name__=~\"{name}(_bucket)?\"}}"),
        }));
    }
    asked
}

#[test]
fn every_query_has_data_while_the_system_works() {
    let (Some(()), Some(()), Some(())) =
        (require("promtool"), require("partman"), require("kafka"))
    else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (postgres, kafka) = runtime.block_on(async {
        let mut options = PostgresOptions::fast();
        options.preload.push("pg_partman_bgw".to_owned());
        let postgres = Postgres::start(options).await.unwrap();
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
    let listen = "--listen=127.0.0.1:0";
    let worker = Running::start(&[
        "worker",
        "--layout",
        "partman",
        "--kafka",
        &bootstrap,
        "--database",
        &url,
        listen,
    ]);
    let ingest = Running::start(&[
        "ingest",
        "--unsigned",
        "--mode",
        "kafka",
        "--kafka",
        &bootstrap,
        listen,
    ]);
    let folder = tempfile::tempdir().unwrap();
    let prometheus = Running::prometheus(
        folder.path(),
        &[("shardlane-worker", &worker), ("shardlane-ingest", &ingest)],
    );

    let mut open = asked();
    let deadline = Instant::now() + PATIENCE;
    for event in 0.. {
        ingest.post_order(event, "550e8400-e29b-41d4-a716-446655440000", "created");
        ingest.post_order(event, "nobody", "created");
        open.retain(|query| {
            prometheus
                .series(&query.text)
                .is_none_or(|series| series == 0)
        });
        if open.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "these have no data: {open:#?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}
