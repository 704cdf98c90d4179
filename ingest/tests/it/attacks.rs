//! Hostile bodies at every path: each is the sender's error, whatever it is, and the next webhook is taken as ever.

use std::io::Write as _;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;
use shardlane_domain::PAYLOAD_BYTES_MAX;
use shardlane_ingest::{IngestSettings, Mode, router};
use shardlane_sql::Layout;
use shardlane_sql::testing::TestDb;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::server::{Running, exchange, settings};
use crate::support::{
    CHARGEBACKS, JSON, ORDERS, PAYMENTS, chargeback, order, payment, post, send, unsigned,
};

/// A good webhook of each path, which all name their order `o-1`.
fn good() -> [(&'static str, String); 3] {
    let user = Uuid::now_v7();
    [
        (ORDERS, order(user, "e-1", "created", 10)),
        (PAYMENTS, payment(user, "tx-1", "authorized", 10)),
        (CHARGEBACKS, chargeback(user, "c-1", "opened", 10)),
    ]
}

/// What may stand in the place of a value, or of a member that nobody knows.
fn hostile_values() -> Vec<Vec<u8>> {
    let text = |text: &str| text.as_bytes().to_vec();
    let mut values = vec![
        b"\"\xff\"".to_vec(),
        b"\"\xed\xa0\x80\"".to_vec(),
        b"\"\xc0\x80\"".to_vec(),
        b"\"\0\"".to_vec(),
        text(r#""\ud800""#),
        text(r#""\udc00\ud800""#),
        text(r#""\u0000""#),
        text(r#"{"\u0000":1}"#),
        text("1e400"),
        text("-1e400"),
        text("1e-400000000000"),
        text("18446744073709551616"),
        text("-9223372036854775809"),
        text("NaN"),
        text("01"),
        text("0x10"),
        text(r#"{"a":1,"a":2}"#),
        text(r#"{"a":1,"\u0061":2}"#),
        text("'; drop table orders; --"),
        text(""),
    ];
    values.push("9".repeat(10_000).into());
    values.push(format!("0.{}", "1".repeat(10_000)).into());
    values.push(format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000)).into());
    values.push("[".repeat(10_000).into());
    values.push(format!("{}1{}", r#"{"a":"#.repeat(10_000), "}".repeat(10_000)).into());
    values.push(format!("\"{}\"", "x".repeat(100_000)).into());
    values
}

/// Direct mode: what passes the door meets the database in the same request.
#[tokio::test(flavor = "multi_thread")]
async fn no_hostile_value_in_any_place_is_our_error() {
    let Some(db) = TestDb::new(Layout::Single).await else {
        return;
    };
    let app = router(Mode::Direct(db.store().await), &unsigned());
    let mut refused = 0;
    for value in hostile_values() {
        for (path, body) in good() {
            for place in ["\"o-1\"", "\"EUR\"", "12.34", "1234", "\"2026-11-0", "{"] {
                let Some(at) = body.find(place) else { continue };
                let mut hostile = body.as_bytes()[..at].to_vec();
                // In front of all members, in their object; else in the place of a value.
                if place == "{" {
                    hostile.extend_from_slice(b"{\"later\":");
                }
                hostile.extend_from_slice(&value);
                let rest = match place {
                    "{" => format!(",{}", &body[at + 1..]),
                    _ => body[at + place.len()..].to_owned(),
                };
                hostile.extend_from_slice(rest.as_bytes());
                let reply = send(&app, post(path, hostile)).await;
                let start = String::from_utf8_lossy(&value[..value.len().min(20)]);
                assert!(
                    !reply.status.is_server_error(),
                    "{path} {place} {start}: {reply:?}"
                );
                refused += u32::from(reply.status.is_client_error());
            }
        }
    }
    assert!(refused > 300, "{refused}");
    let (path, body) = &good()[0];
    assert_eq!(
        send(&app, post(path, body.clone())).await.status,
        StatusCode::OK
    );
}

/// SQL in every string of a payment; tests of direct mode have the other two.
#[tokio::test(flavor = "multi_thread")]
async fn sql_in_every_string_of_a_payment_is_text() {
    let Some(db) = TestDb::new(Layout::Single).await else {
        return;
    };
    let app = router(Mode::Direct(db.store().await), &unsigned());
    for text in [
        "'; drop table orders; --",
        "$1 %s \\ ' '' ; /* */",
        "1); select pg_sleep(9); --",
    ] {
        let user = Uuid::now_v7();
        let mut body: Value = serde_json::from_str(&payment(user, text, "authorized", 10)).unwrap();
        for member in ["order_id", "merchant_id", "event"] {
            body[member] = text.into();
        }
        let reply = send(&app, post(PAYMENTS, body.to_string())).await;
        assert_eq!(reply.body["status"], "parked", "{text}: {reply:?}");
        let sql = "select event_id from parked where user_id = $1";
        let row = db.client(0).await.query_one(sql, &[&user]).await.unwrap();
        let stored: String = row.get(0);
        assert_eq!(stored, format!("payment:{text}:authorized"));
    }
}

/// A few hundred bytes that would be ten million: refused by their header, and not unpacked without it.
#[tokio::test(flavor = "multi_thread")]
async fn a_gzip_bomb_stays_packed() {
    let broker = crate::support::FakeBroker::start();
    let app = broker.router();
    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    bomb.write_all(&vec![b' '; 10_000_000]).unwrap();
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < PAYLOAD_BYTES_MAX / 10);
    for (path, _) in good() {
        let packed = |encoding: Option<&str>| -> Request<Body> {
            let mut request = post(path, bomb.clone());
            if let Some(encoding) = encoding {
                let encoding = encoding.parse().unwrap();
                request
                    .headers_mut()
                    .insert(header::CONTENT_ENCODING, encoding);
            }
            request
        };
        let reply = send(&app, packed(Some("gzip"))).await;
        reply.is_problem(415, "content-encoding");
        send(&app, packed(None))
            .await
            .is_problem(400, "malformed-json");
    }
    assert_eq!(broker.records(), 0);
}

/// A thousand senders that never end their requests; those who do are answered as ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_slow_sockets_keep_nobody_out() {
    let running = Running::start(IngestSettings {
        connections_max: 2_000,
        header_deadline: Duration::from_secs(60),
        ..settings()
    })
    .await;
    let mut slow = JoinSet::new();
    for number in 0..1_000 {
        let address = running.address;
        slow.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // Half of them in the middle of a header, half in the middle of a body.
            let start = if number % 2 == 0 {
                format!("POST {ORDERS} HTTP/1.1\r\nx-slow: ")
            } else {
                format!("POST {ORDERS} HTTP/1.1\r\nhost: t\r\ncontent-type: {JSON}\r\ncontent-length: 99\r\n\r\n{{")
            };
            stream.write_all(start.as_bytes()).await.unwrap();
            stream
        });
    }
    let held = slow.join_all().await;
    for number in 0..20 {
        let body = order(Uuid::now_v7(), &format!("e-{number}"), "created", 10);
        let request = format!(
            "POST {ORDERS} HTTP/1.1\r\nhost: t\r\ncontent-type: {JSON}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = exchange(running.address, &request).await;
        assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    }
    assert_eq!(held.len(), 1_000);
}
