//! `shardlane dlq` as a script sees it.

mod command;

use std::process::Output;

use serde_json::Value;
use shardlane_domain::{Event, Source};
use shardlane_local::require;
use shardlane_sql::testing::TestDb;
use shardlane_sql::{Layout, NewLetter};
use uuid::Uuid;

use crate::command::shardlane;

fn run(arguments: &[&str]) -> Output {
    shardlane(arguments).output().unwrap()
}

/// Runs, and expects exit code 2 with a sentence that holds `part`.
#[track_caller]
fn refused(arguments: &[&str], part: &str) {
    let output = run(arguments);
    let sentence = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {sentence}");
    assert!(sentence.contains(part), "{part:?} is not in: {sentence}");
    assert_eq!(output.stdout, b"");
}

#[test]
fn what_cannot_be_understood_is_refused_before_anybody_is_asked() {
    let kafka = ["--kafka", "127.0.0.1:1"];
    let list = |more: &[&'static str]| [&["dlq", "list"], &kafka[..], more].concat();
    refused(&list(&["--where", "colour=red"]), "class=, user=");
    refused(&list(&["--where", "class=illegal,since=soon"]), "2h");
    refused(&list(&["--where", "reason~("]), "regular expression");
    refused(&["dlq", "list"], "--kafka HOST:PORT");
    refused(
        &list(&["--database", "postgres://x@127.0.0.1/x"]),
        "--from kafka or --from database",
    );
    refused(
        &["dlq", "show", "x", "--from", "kafka", "--database", "x"],
        "no broker is named",
    );
    refused(
        &["dlq", "replay", "--replay-window", "soon"],
        "such as 90s, 2h or 7d",
    );
    refused(
        &["dlq", "show", "17", "--kafka", "127.0.0.1:1"],
        "orders.webhooks.DLQ/0/17",
    );
    refused(
        &["worker", "--kafka", "x", "--inbox-retention", "soon"],
        "or off",
    );
}

#[test]
fn letters_of_a_database_are_listed_shown_and_replayed() {
    let Some(()) = require("postgres") else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let user = Uuid::from_u128(7);
    let payload = format!(
        "{{\"provider_event_id\":\"e\",\"order_id\":\"o\",\"user_id\":\"{user}\",\"status\":\"created\",\
         \"created_at\":\"2026-11-01T10:00:00Z\",\"updated_at\":\"2026-11-01T10:00:00Z\"}}"
    );
    let garbage = b"\xff\x1b[31m \0 no JSON";
    let (db, ids) = runtime.block_on(async {
        let db = TestDb::new(Layout::Shards).await.unwrap();
        let store = db.store().await;
        let mut letter = NewLetter {
            source: Source::Orders,
            user_id: Some(user),
            class: "data",
            reason: "not that day".to_owned(),
            attempts: 1,
            received_at: shardlane_worker::accepted_now(),
            payload: payload.clone().into(),
            headers: Vec::new(),
        };
        Event::decode(letter.source, letter.payload.clone(), letter.received_at).unwrap();
        let good = store.bury(&letter).await.unwrap().to_string();
        (letter.user_id, letter.class, letter.payload) = (None, "malformed", garbage[..].into());
        let bad = store.bury(&letter).await.unwrap().to_string();
        (db, [good, bad])
    });
    let databases = db.urls().join(",");
    let dlq = |action: &str, more: &[&str]| {
        let store = ["--layout", "shards", "--database", &databases];
        let output = run(&[&["dlq", action], &store[..], more].concat());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap(), output.stdout, text)
    };
    let json = |action: &str, more: &[&str]| {
        let (code, out, text) = dlq(action, &[more, &["--json"]].concat());
        let value: Value =
            serde_json::from_slice(&out).unwrap_or_else(|error| panic!("{error}: {text}"));
        (code, value)
    };
    let (code, listing) = json("list", &["--where", "class=data", "--where", "state=dead"]);
    assert_eq!((code, &listing["matching"]), (0, &Value::from(1)));
    assert_eq!(listing["letters"][0]["id"], ids[0]);
    let (_, table, _) = dlq("list", &["--limit", "1"]);
    assert!(
        String::from_utf8(table)
            .unwrap()
            .contains("1 of 2 dead letters")
    );

    assert_eq!(dlq("show", &[&ids[0], "--raw"]).1, payload.as_bytes());
    assert_eq!(dlq("show", &[&ids[1], "--raw"]).1, garbage);
    // A terminal is not told what somebody else wrote for it.
    let (code, shown, _) = dlq("show", &[&ids[1]]);
    assert_eq!(code, 0);
    assert!(!shown.contains(&0x1b) && !shown.contains(&0), "{shown:?}");
    let (code, _, sentence) = dlq("show", &[&Uuid::nil().to_string()]);
    assert_eq!(code, 2);
    assert!(sentence.contains("there is no dead letter"), "{sentence}");

    let ends = |value: &Value| {
        let letters = value["letters"].as_array().unwrap().iter();
        let mut ends: Vec<String> = letters
            .map(|it| it["end"].as_str().unwrap().to_owned())
            .collect();
        ends.sort_unstable();
        ends
    };
    let (code, value) = json("replay", &["--dry-run"]);
    assert_eq!(
        (code, ends(&value)),
        (1, vec!["malformed".to_owned(), "would_take".to_owned()])
    );
    let (code, value) = json("replay", &[&ids[0]]);
    assert_eq!((code, ends(&value)), (0, vec!["taken".to_owned()]));
    assert_eq!(value["letters"][0]["detail"], "applied");
    let (code, value) = json("replay", &[&ids[0], "--again"]);
    assert_eq!(
        (code, &value["letters"][0]["detail"]),
        (0, &Value::from("duplicate"))
    );
    let (code, value) = json("replay", &["--limit", "1", "--where", "state=replayed"]);
    assert_eq!(
        (code, ends(&value)),
        (0, vec!["replayed_before".to_owned()])
    );
}
