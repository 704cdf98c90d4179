//! The contract: `/openapi.json` says what the door does, and `/docs` shows it without anybody else's help.

use std::collections::BTreeSet;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode, header};
use serde_json::Value;
use shardlane_ingest::{Mode, PROBLEM_NAMES, PROBLEM_TYPE_PREFIX, router};
use shardlane_sql::Layout;
use shardlane_sql::testing::TestDb;
use tower::ServiceExt;

use crate::server::{Running, settings};
use crate::support::{FakeBroker, OLD, get, post, send, signed_settings, unsigned};

const STRIPE: &str = "[sources.acme]\npath = \"/webhooks/acme\"\nkind = \"chargeback\"\nsignature = \"stripe\"\n\
                      secrets = [{secret}]";

async fn document(app: &Router) -> Value {
    let reply = send(app, get("/openapi.json")).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.header(header::CONTENT_TYPE), "application/json");
    assert_eq!(reply.body["openapi"], "3.1.0");
    reply.body
}

/// Each operation: path, method, and what is said of it.
fn operations(document: &Value) -> Vec<(String, String, &Value)> {
    let paths = document["paths"].as_object().unwrap().iter();
    paths
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().iter();
            methods.map(|(method, operation)| (path.clone(), method.clone(), operation))
        })
        .collect()
}

/// What the door has not is a 404 or, for a method, a 405; both say so by their problem.
#[tokio::test(flavor = "multi_thread")]
async fn every_documented_path_is_there_and_answers_as_documented() {
    let broker = FakeBroker::start();
    let app = broker.router();
    let document = document(&app).await;
    let mut paths = Vec::new();
    for (path, method, operation) in operations(&document) {
        let file = if path.starts_with("/docs") {
            "swagger-ui.css"
        } else {
            "orders.json"
        };
        let request = Request::builder()
            .method(method.to_uppercase().as_str())
            .uri(path.replace("{file}", file));
        let example = &operation["requestBody"]["content"]["application/json"]["example"];
        let request = if method == "post" {
            request
                .header(header::CONTENT_TYPE, "application/json")
                .body(example.to_string().into())
        } else {
            request.body(Body::empty())
        };
        let response = app.clone().oneshot(request.unwrap()).await.unwrap();
        let status = response.status();
        let documented = &operation["responses"][status.as_str()];
        assert!(documented.is_object(), "{method} {path} answers {status}");
        assert!(
            status.is_success() || status.is_redirection(),
            "{method} {path}: {status}"
        );
        if let Some(kinds) = documented["content"].as_object() {
            let kind = response.headers()[header::CONTENT_TYPE].to_str().unwrap();
            let kind = kind.split(';').next().unwrap();
            assert!(kinds.contains_key(kind), "{method} {path} answers {kind}");
        }
        paths.push(format!("{method} {path}"));
    }
    paths.sort();
    assert_eq!(
        paths,
        [
            "get /docs",
            "get /docs/",
            "get /docs/{file}",
            "get /livez",
            "get /metrics",
            "get /openapi.json",
            "get /readyz",
            "get /schemas/{file}",
            "post /webhooks/payments/chargebacks",
            "post /webhooks/payments/orders",
            "post /webhooks/silvergate",
        ]
    );
    assert_eq!(
        broker.records(),
        3,
        "the examples are webhooks that are taken"
    );
}

/// The types of the problems that a document shows.
fn shown(document: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (_, _, operation) in operations(document) {
        for (status, response) in operation["responses"].as_object().unwrap() {
            let Some(content) = response["content"].get("application/problem+json") else {
                continue;
            };
            for (name, example) in content["examples"].as_object().unwrap() {
                let example = &example["value"];
                assert_eq!(example["type"], format!("{PROBLEM_TYPE_PREFIX}{name}"));
                assert_eq!(example["status"].to_string(), *status);
                found.insert(name.clone());
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn each_problem_is_documented_where_it_can_happen() {
    let Some(db) = TestDb::new(Layout::Single).await else {
        return;
    };
    let signed = signed_settings(&[OLD], STRIPE);
    let direct = document(&router(Mode::Direct(db.store().await), &signed)).await;
    let all: BTreeSet<String> = PROBLEM_NAMES.map(String::from).into();
    assert_eq!(shown(&direct), all);
    let broker = FakeBroker::start();
    let kafka = document(&broker.router()).await;
    let absent: Vec<_> = all.difference(&shown(&kafka)).cloned().collect();
    assert_eq!(
        absent,
        [
            "event-id-reused",
            "illegal-transition",
            "not-authentic",
            "out-of-order",
            "queue-full",
            "unstorable-event",
        ],
        "nothing is verified here, and no state is known"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_sources_say_how_and_their_bodies_are_what_checks_them() {
    let broker = FakeBroker::start();
    let app = broker.router_with(&signed_settings(&[OLD], STRIPE));
    let document = document(&app).await;
    let post = |path: &str| &document["paths"][path]["post"];
    let orders = post("/webhooks/payments/orders");
    assert_eq!(
        orders["security"][0]["StandardWebhooks"],
        Value::Array(vec![])
    );
    let required: Vec<&str> = orders["parameters"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it["required"] == true)
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    assert_eq!(required, ["webhook-id", "webhook-timestamp"]);
    assert_eq!(
        post("/webhooks/acme")["security"][0]["StripeSignature"],
        Value::Array(vec![])
    );
    let schema = &document["components"]["schemas"]["webhook-orders"];
    let place = "#/components/schemas/webhook-orders/$defs/id";
    assert_eq!(schema["properties"]["order_id"]["$ref"], place);
    assert_eq!(schema["$defs"]["id"]["maxLength"], 255);
    // The document is JSON Schema all through: each reference leads somewhere.
    let mut open = vec![&document];
    while let Some(value) = open.pop() {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(to)) = members.get("$ref") {
                    assert!(document.pointer(&to[1..]).is_some(), "{to}");
                }
                open.extend(members.values());
            }
            Value::Array(elements) => open.extend(elements),
            _ => {}
        }
    }
}

async fn page(app: &Router, path: &str) -> (StatusCode, HeaderMap, String) {
    let (head, body) = app.clone().oneshot(get(path)).await.unwrap().into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let text = String::from_utf8_lossy(&body).into_owned();
    (head.status, head.headers, text)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_needs_nobody_else_and_no_other_answer_is_a_page() {
    let broker = FakeBroker::start();
    let app = broker.router();
    let (status, headers, _) = page(&app, "/docs").await;
    assert_eq!(status, StatusCode::PERMANENT_REDIRECT);
    assert_eq!(headers[header::LOCATION], "/docs/");
    let (status, headers, index) = page(&app, "/docs/").await;
    assert_eq!(status, StatusCode::OK);
    let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
    for part in [
        "default-src 'none'",
        "script-src 'self'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(
        !policy.contains("unsafe-eval") && !policy.contains("script-src 'self' 'unsafe"),
        "{policy}"
    );
    assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    // What the page names is here, and nothing of it is elsewhere.
    let mut files = 0;
    for part in index.split(['"', '\'']) {
        assert!(
            !part.starts_with("http") && !part.starts_with("//"),
            "{part}"
        );
        let Some(file) = part.strip_prefix("./") else {
            continue;
        };
        let (status, headers, _) = page(&app, &format!("/docs/{file}")).await;
        assert_eq!(status, StatusCode::OK, "{file}");
        assert!(headers.contains_key(header::CONTENT_SECURITY_POLICY));
        files += 1;
    }
    assert!(files >= 4, "{index}");
    let (_, _, start) = page(&app, "/docs/swagger-initializer.js").await;
    assert!(
        start.contains("/openapi.json") && start.contains("\"validatorUrl\": \"none\""),
        "{start}"
    );
    for absent in ["/docs/absent.js", "/docs/..%2fCargo.toml", "/docs/%00"] {
        send(&app, get(absent)).await.is_problem(404, "not-found");
    }
    send(&app, post("/docs/", "{}"))
        .await
        .is_problem(405, "method-not-allowed");
    let (_, headers, _) = page(&app, "/livez").await;
    let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; frame"), "{policy}");
}

/// Where the sources have other paths, so has the document.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_without_a_route_is_not_in_the_document() {
    let broker = FakeBroker::start();
    let only_orders = document(&broker.router_with(&signed_settings(&[OLD], ""))).await;
    assert!(only_orders["paths"]["/webhooks/silvergate"].is_null());
    let all = document(&broker.router_with(&unsigned())).await;
    assert!(all["paths"]["/webhooks/silvergate"].is_object());
}

/// schemathesis sends what the document allows and what it forbids, and compares each answer with the document. Few
/// examples, because this is a test; `bench/schemathesis/run.sh` has no such limit.
#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_finds_no_answer_that_is_not_documented() {
    let Some(()) = shardlane_local::require("schemathesis") else {
        return;
    };
    let running = Running::start(settings()).await;
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let run = tokio::process::Command::new("sh")
        .arg("bench/schemathesis/run.sh")
        .arg(format!("http://{}", running.address))
        .args([
            "--max-examples",
            "5",
            "--seed",
            "1",
            "--phases",
            "examples,fuzzing",
        ])
        .current_dir(root)
        .output();
    let output = run.await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("skipped: schemathesis"), "{said}");
}
