//! `shardlane audit` as a script sees it: exit codes and stable kinds.

mod command;

use std::process::Output;

use serde_json::Value;
use shardlane_local::{Postgres, PostgresOptions, create_database, require};

use crate::command::shardlane;

fn run(arguments: &[&str]) -> Output {
    shardlane(arguments).output().unwrap()
}

/// The exit code and the findings.
fn audit(databases: &str, more: &[&str]) -> (Option<i32>, Value) {
    let mut arguments = vec!["audit", "--layout", "shards", "--database", databases];
    arguments.extend(["--json"].iter().chain(more));
    let output = run(&arguments);
    let findings = serde_json::from_slice(&output.stdout);
    (
        output.status.code(),
        findings.unwrap_or_else(|error| panic!("{error}: {output:?}")),
    )
}

#[test]
fn exit_codes_and_kinds_say_what_is_found_and_repaired() {
    let Some(()) = require("postgres") else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(async {
        let server = Postgres::start(PostgresOptions::fast()).await.unwrap();
        for name in ["a", "b"] {
            create_database(&server.url("postgres"), name)
                .await
                .unwrap();
        }
        server
    });
    let (a, b) = (server.url("a"), server.url("b"));
    let both = format!("{a},{b}");
    let unready = run(&["audit", "--layout", "shards", "--database", &both]);
    let sentence = String::from_utf8_lossy(&unready.stderr).into_owned();
    assert_eq!(unready.status.code(), Some(2), "{sentence}");
    assert!(
        sentence.contains("shardlane migrate --layout shards"),
        "{sentence}"
    );
    assert!(
        run(&["migrate", "--layout", "shards", &a, &b])
            .status
            .success()
    );
    assert_eq!(audit(&both, &[]), (Some(0), Value::Array(Vec::new())));

    let execute = |sql: &str| {
        runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&b, tokio_postgres::NoTls)
                .await
                .unwrap();
            tokio::spawn(connection);
            client.batch_execute(sql).await.unwrap();
        });
    };
    execute("alter table orders drop constraint orders_owns_slot");
    for _ in 0..2 {
        let (code, findings) = audit(&both, &[]);
        assert_eq!(code, Some(1), "{findings}");
        assert_eq!(findings[0]["kind"], "check_missing");
        assert_eq!(findings[0]["severity"], "damage");
        assert_eq!(findings[0]["shard"], 1);
        assert_eq!(findings.as_array().unwrap().len(), 1);
    }
    let (code, findings) = audit(&both, &["--fix"]);
    assert_eq!(code, Some(0), "{findings}");
    assert_eq!(findings[0]["kind"], "checks_restored");
    assert_eq!(findings[0]["severity"], "repaired");

    // What cannot be repaired is 1 with --fix too, and a line says what to do.
    execute("update shard_identity set epoch = 9");
    let told = run(&["audit", "--layout", "shards", "--database", &both, "--fix"]);
    assert_eq!(told.status.code(), Some(1));
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(
        text.contains("damage") && text.contains("epoch 9") && text.contains("1 damaged"),
        "{text}"
    );
}
