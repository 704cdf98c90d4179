//! `--log-format json`: what a program that reads the log gets.

mod command;

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStderr, Stdio};

use serde_json::Value;
use shardlane_local::{Postgres, PostgresOptions, create_database, require};

use crate::command::shardlane;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const USER: &str = "550e8400-e29b-41d4-a716-446655440000";

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The next line of this kind.
fn until(lines: &mut Lines<BufReader<ChildStderr>>, wanted: impl Fn(&Value) -> bool) -> Value {
    let parsed = lines
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str(&line).ok());
    parsed
        .into_iter()
        .find(wanted)
        .expect("the log has the line")
}

#[test]
fn a_line_says_event_user_shard_and_trace() {
    let Some(()) = require("postgres") else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let postgres = runtime.block_on(async {
        let postgres = Postgres::start(PostgresOptions::fast()).await.unwrap();
        create_database(&postgres.url("postgres"), "one")
            .await
            .unwrap();
        postgres
    });
    let url = postgres.url("one");
    let done = shardlane(&["migrate", "--layout", "single", &url])
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let mut ingest = Running(
        shardlane(&[
            "ingest",
            "--unsigned",
            "--mode=direct",
            "--listen=127.0.0.1:0",
            "--database",
            &url,
        ])
        .env("SHARDLANE_LOG_FORMAT", "json")
        .env(
            "RUST_LOG",
            "warn,tower_http=debug,shardlane_sql=trace,tokio_postgres=debug",
        )
        .stderr(Stdio::piped())
        .spawn()
        .unwrap(),
    );
    let mut lines = BufReader::new(ingest.0.stderr.take().unwrap()).lines();
    let address = lines.by_ref().map_while(Result::ok).find_map(|line| {
        let (_, address) = line.split_once(" on http://")?;
        Some(address.split(';').next()?.to_owned())
    });
    let address = address.expect("the server says where it answers");
    let body = format!(
        r#"{{"provider_event_id":"e-1","order_id":"o-1","user_id":"{USER}","status":"created",
        "created_at":"2026-11-01T10:00:00Z","updated_at":"2026-11-01T10:00:00Z","meta":{{}}}}"#
    );
    let sent = ureq::post(format!("http://{address}/webhooks/payments/orders"))
        .header("content-type", "application/json")
        .header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"))
        .send(body);
    assert_eq!(sent.unwrap().status(), 200);

    // The statement that the database was sent.
    let statement = until(&mut lines, |line| line["shard"] == "0");
    assert_eq!(statement["span"], "stage", "{statement}");
    let answered = until(&mut lines, |line| {
        line["message"] == "finished processing request"
    });
    for line in [&statement, &answered] {
        assert_eq!(line["event_id"], "e-1", "{line}");
        assert_eq!(line["trace_id"], TRACE, "{line}");
        // The token alone does not lead to the user.
        assert!(
            line["user_token"].is_string() || line["user_token"].is_number(),
            "{line}"
        );
        assert!(!line.to_string().contains(USER), "{line}");
        assert_eq!(line["level"], "DEBUG");
        assert!(
            line["time"]
                .as_str()
                .unwrap()
                .parse::<jiff::Timestamp>()
                .is_ok(),
            "{line}"
        );
        assert!(
            line["target"].is_string() && line.get("log.target").is_none(),
            "{line}"
        );
    }
}
