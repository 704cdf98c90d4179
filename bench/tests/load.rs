//! The load generator against servers whose answers are known.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use shardlane_bench::load::results::{Arrivals, LoadResults, LoadSettings, render};
use shardlane_bench::load::target::Target;
use shardlane_bench::load::{LoadOptions, run};
use shardlane_bench::report;
use shardlane_domain::{Event, SigningKey, Source};
use tokio::net::TcpListener;
use tokio::sync::RwLock;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A request, as the server got it.
struct Got {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

/// Answers each request with a status, once it may: whoever holds the gate to write makes it stand still.
struct Server {
    url: String,
    gate: Arc<RwLock<()>>,
    got: Arc<Mutex<Vec<Got>>>,
    connections: Arc<AtomicU64>,
}

async fn serve(status: fn(u64) -> u16) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server {
        url: format!("http://{}", listener.local_addr().unwrap()),
        gate: Arc::default(),
        got: Arc::default(),
        connections: Arc::default(),
    };
    let (gate, got) = (Arc::clone(&server.gate), Arc::clone(&server.got));
    let connections = Arc::clone(&server.connections);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.fetch_add(1, Ordering::Relaxed);
            stream.set_nodelay(true).unwrap();
            let (gate, got) = (Arc::clone(&gate), Arc::clone(&got));
            let answer = service_fn(move |request: Request<Incoming>| {
                let (gate, got) = (Arc::clone(&gate), Arc::clone(&got));
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    drop(gate.read().await);
                    let mut got = got.lock().unwrap();
                    let number = got.len() as u64;
                    got.push(Got {
                        path: head.uri.path().to_owned(),
                        headers: head.headers,
                        body,
                    });
                    Response::builder()
                        .status(status(number))
                        .body(Full::new(Bytes::from_static(b"{}")))
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    server
}

fn settings(rate: f64, duration_s: f64) -> LoadSettings {
    LoadSettings {
        rate,
        duration_s,
        connections: 4,
        users: 50,
        ..LoadSettings::default()
    }
}

async fn load(server: &Server, settings: LoadSettings, key: Option<SigningKey>) -> LoadResults {
    run(LoadOptions {
        target: Target::parse(&server.url, false).unwrap(),
        settings,
        key,
        databases: Vec::new(),
        command: "shardlane load".to_owned(),
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_valid_walks_and_all_are_counted() {
    let server = serve(|_| 202).await;
    let with_payments = LoadSettings {
        payments: 0.3,
        ..settings(400.0, 1.0)
    };
    let results = load(&server, with_payments, None).await;
    assert!(results.is_good(), "{}", render(&results));
    let measured = &results.measured;
    assert_eq!(
        (results.scheduled, measured.sent, measured.missed),
        (400, 400, 0)
    );
    assert_eq!(measured.statuses, [(202, 400)].into());
    let ms = &measured.latency_ms;
    assert!(
        0.0 < ms.p50 && ms.p50 <= ms.p99 && ms.p99 <= ms.max,
        "{ms:?}"
    );
    let slices: u64 = measured.over_time.iter().map(|slice| slice.requests).sum();
    assert_eq!(slices, 400);
    assert_eq!(
        server.connections.load(Ordering::Relaxed),
        4,
        "kept alive, and no more than allowed"
    );

    let got = server.got.lock().unwrap();
    let mut paths = HashSet::new();
    for request in got.iter() {
        let source = match request.path.as_str() {
            "/webhooks/payments/orders" | "/webhooks/silvergate" => Source::Orders,
            "/webhooks/payments/chargebacks" => Source::Chargebacks,
            other => panic!("{other}"),
        };
        Event::decode(source, request.body.clone(), jiff::Timestamp::now()).unwrap();
        assert_eq!(request.headers["content-type"], "application/json");
        assert!(!request.headers.contains_key("webhook-signature"));
        paths.insert(&request.path);
    }
    assert_eq!(paths.len(), 3, "{paths:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_server_is_felt_by_all_who_would_have_sent_meanwhile() {
    let server = serve(|_| 202).await;
    let gate = Arc::clone(&server.gate);
    let got = Arc::clone(&server.got);
    let stall = tokio::spawn(async move {
        while got.lock().unwrap().len() < 200 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let closed = gate.write().await;
        // The stall itself: the one thing here that is a length of time.
        tokio::time::sleep(Duration::from_millis(600)).await;
        drop(closed);
    });
    let results = load(&server, settings(400.0, 2.0), None).await;
    stall.await.unwrap();
    assert!(results.is_good(), "{}", render(&results));
    let ms = &results.measured.latency_ms;
    // Of 800 requests 240 fall into the stall, and only 4 are under way in it: measured from the real send, p90 would
    // not know of it. From the schedule their waits are 0 to 600 ms, so that a tenth of all waited 350 ms or more.
    assert!(ms.max >= 590.0, "{ms:?}");
    assert!(ms.p90 >= 300.0, "{ms:?}");
    assert!(
        results.measured.send_delay_ms.p90 >= 300.0,
        "the wait for a connection is told"
    );
    assert_eq!(results.measured.sent, 800);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_sent_or_is_not_answered_in_time_is_told() {
    let server = serve(|_| 202).await;
    let closed = server.gate.write().await;
    let impatient = LoadSettings {
        timeout_s: 0.3,
        ..settings(100.0, 1.0)
    };
    let results = load(&server, impatient, None).await;
    drop(closed);
    assert!(!results.is_good());
    let measured = &results.measured;
    let timeouts = measured.errors["timeout"];
    // Four connections wait for nothing. What comes meanwhile has no connection until it is nearly or wholly too late, and
    // which of the two is a matter of milliseconds.
    assert!(timeouts >= 4, "{}", render(&results));
    assert_eq!(timeouts + measured.missed, 100, "{}", render(&results));
    assert!(
        measured.latency_ms.p50 >= 290.0,
        "who waits in vain waits in the figures too"
    );
    assert_eq!(measured.achieved_per_s, 0.0);
    let page = report::load::render(&results).unwrap();
    let missed = format!("{} requests were never sent", measured.missed);
    assert_eq!(page.contains(&missed), measured.missed > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_answers_than_2xx_are_counted_by_status() {
    let server = serve(|number| if number % 10 == 3 { 503 } else { 202 }).await;
    let poisson = LoadSettings {
        arrivals: Arrivals::Poisson,
        ..settings(500.0, 0.2)
    };
    let results = load(&server, poisson, None).await;
    assert!(!results.is_good());
    assert_eq!(results.measured.statuses, [(202, 90), (503, 10)].into());
    let page = report::load::render(&results).unwrap();
    assert!(page.contains("10 requests were answered with 503"));
    for word in ["NaN", "http://", "https://", "src=", "@import"] {
        assert!(!page.contains(word), "{word}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signatures_are_taken_by_another_implementation() {
    let server = serve(|_| 202).await;
    let signed = LoadSettings {
        signed: true,
        ..settings(500.0, 0.4)
    };
    let results = load(&server, signed, Some(SigningKey::parse(SECRET).unwrap())).await;
    assert!(results.is_good(), "{}", render(&results));
    let verifier = standardwebhooks::Webhook::new(SECRET).unwrap();
    let got = server.got.lock().unwrap();
    assert_eq!(got.len(), 200);
    for request in got.iter() {
        verifier.verify(&request.body, &request.headers).unwrap();
        verifier
            .verify(&request.body[1..], &request.headers)
            .unwrap_err();
    }
}

#[tokio::test]
async fn where_nobody_listens_the_sentence_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let refused = run(LoadOptions {
        target: Target::parse(&url, false).unwrap(),
        settings: settings(10.0, 1.0),
        key: None,
        databases: Vec::new(),
        command: String::new(),
    })
    .await
    .unwrap_err();
    assert!(
        refused.to_string().contains("is the front door running"),
        "{refused}"
    );
}

#[test]
fn a_load_without_bounds_is_refused() {
    type Change = fn(&mut LoadSettings);
    let refused: [(Change, &str); 6] = [
        (|settings| settings.rate = 0.0, "--rate 0"),
        (
            |settings| settings.timeout_s = f64::INFINITY,
            "--timeout inf",
        ),
        (|settings| settings.payments = 1.5, "--payments 1.5"),
        (|settings| settings.payments = f64::NAN, "--payments NaN"),
        (|settings| settings.users = 0, "--users must be 1"),
        (|settings| settings.rate = 1e6, "sends 5000000 at most"),
    ];
    for (change, expect) in refused {
        let mut load = settings(100.0, 10.0);
        assert_eq!(load.requests().unwrap(), 1_000);
        change(&mut load);
        let error = load.requests().unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    }
}
