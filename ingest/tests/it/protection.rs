//! What keeps the door standing: rates, sizes, encodings, slow and lying sockets, TLS.

use std::time::{Duration, Instant};

use axum::http::{HeaderName, StatusCode, header};
use shardlane_ingest::{IngestSettings, PROBLEM_TYPE_PREFIX, Server, TlsFiles};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::server::{Running, exchange, settings};
use crate::support::{
    FakeBroker, JSON, OLD, ORDERS, STRANGER, get, now, order, post, send, sign, signed_settings,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

fn body() -> String {
    order(Uuid::now_v7(), "e-1", "created", 10)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_over_its_rate_waits_and_a_stranger_cannot_use_it_up() {
    let broker = FakeBroker::start();
    // So slow that no third place comes while this test runs, on any machine.
    let limits = "rate_per_second = 1\nrate_burst = 2";
    let app = broker.router_with(&signed_settings(&[OLD], limits));
    for _ in 0..20 {
        let reply = send(&app, sign(STRANGER, "m", now(), body())).await;
        reply.is_problem(401, "not-authentic");
    }
    let started = Instant::now();
    let mut taken = 0;
    loop {
        let reply = send(&app, sign(OLD, "m", now(), body())).await;
        if reply.status == StatusCode::ACCEPTED {
            taken += 1;
            continue;
        }
        reply.is_problem(429, "too-many-requests");
        break;
    }
    let earned = started.elapsed().as_secs();
    assert!((2..=2 + earned).contains(&taken), "{taken} in {earned} s");
    let kept = i64::try_from(taken).unwrap();
    assert_eq!(broker.records(), kept, "nothing of the others is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sources_body_limit_is_exact_and_its_own() {
    let broker = FakeBroker::start();
    let app = broker.router_with(&signed_settings(&[OLD], "body_bytes_max = 1000"));
    for (bytes, status) in [(1000, 202), (1001, 413)] {
        let text = format!("{:<bytes$}", body());
        let reply = send(&app, sign(OLD, "m", now(), text)).await;
        assert_eq!(reply.status.as_u16(), status, "{bytes}: {reply:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_body_is_refused_unread() {
    let broker = FakeBroker::start();
    let app = broker.router();
    for encoding in ["gzip", "deflate", "br", "zstd", "gzip, identity", ""] {
        let mut request = post(ORDERS, vec![0x1f, 0x8b, 8, 0]);
        request
            .headers_mut()
            .insert(header::CONTENT_ENCODING, encoding.parse().unwrap());
        let reply = send(&app, request).await;
        reply.is_problem(415, "content-encoding");
        assert_eq!(reply.header(header::ACCEPT_ENCODING), "identity");
    }
    let mut request = post(ORDERS, body());
    request
        .headers_mut()
        .insert(header::CONTENT_ENCODING, "identity".parse().unwrap());
    assert_eq!(send(&app, request).await.status, StatusCode::ACCEPTED);
    assert_eq!(broker.records(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_has_a_request_id_and_says_nothing_to_a_browser() {
    let broker = FakeBroker::start();
    let app = broker.router();
    for (given, taken) in [
        (Some("abc-123"), true),
        (Some(&*"x".repeat(128)), true),
        (Some(&*"x".repeat(129)), false),
        (Some("a b"), false),
        (Some("id\"}{"), false),
        (Some(""), false),
        (None, false),
    ] {
        for mut request in [get("/livez"), get("/nowhere"), post(ORDERS, "{")] {
            if let Some(given) = given {
                request
                    .headers_mut()
                    .insert(REQUEST_ID, given.parse().unwrap());
            }
            let reply = send(&app, request).await;
            let id = reply.header(REQUEST_ID);
            assert_eq!(Some(id) == given, taken, "{id}");
            assert!(taken || Uuid::try_parse(id).is_ok(), "{id}");
            assert_eq!(reply.header(header::X_CONTENT_TYPE_OPTIONS), "nosniff");
            assert_eq!(reply.header(header::CACHE_CONTROL), "no-store");
            let policy = reply.header(header::CONTENT_SECURITY_POLICY);
            assert!(policy.contains("default-src 'none'"), "{policy}");
        }
    }
    let mut doubled = get("/livez");
    doubled
        .headers_mut()
        .append(REQUEST_ID, "a".parse().unwrap());
    doubled
        .headers_mut()
        .append(REQUEST_ID, "b".parse().unwrap());
    let reply = send(&app, doubled).await;
    assert!(
        Uuid::try_parse(reply.header(REQUEST_ID)).is_ok(),
        "{reply:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schemas_are_served() {
    let broker = FakeBroker::start();
    for (name, title) in [
        ("orders", "An order's webhook"),
        ("chargebacks", "A chargeback's webhook"),
    ] {
        let reply = send(&broker.router(), get(&format!("/schemas/{name}.json"))).await;
        assert_eq!(reply.status, StatusCode::OK);
        assert_eq!(
            reply.header(header::CONTENT_TYPE),
            "application/schema+json"
        );
        assert_eq!(reply.body["title"], title);
    }
}

/// Sends these bytes, and reads what comes back until the server or the test's patience ends.
async fn raw(running: &Running, request: &str) -> String {
    exchange(running.address, request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_that_lie_are_never_taken_for_another() {
    let running = Running::start(IngestSettings {
        body_deadline: Duration::from_millis(300),
        header_deadline: Duration::from_millis(300),
        ..settings()
    })
    .await;
    let text = body();
    let length = text.len();
    let head = format!("POST {ORDERS} HTTP/1.1\r\nhost: test\r\ncontent-type: {JSON}\r\n");
    let chunks = format!("{length:x}\r\n{text}\r\n0\r\n\r\n");
    for (framing, payload, expect) in [
        (
            format!("connection: close\r\ncontent-length: {length}"),
            text.clone(),
            "202",
        ),
        (
            "connection: close\r\ntransfer-encoding: chunked".into(),
            chunks.clone(),
            "202",
        ),
        // More was promised than comes.
        (
            format!("content-length: {}", length + 1),
            text.clone(),
            "408",
        ),
        (
            "transfer-encoding: chunked".into(),
            format!("{length:x}\r\n{text}"),
            "408",
        ),
        // Less: the body is cut, and the rest is no request.
        (
            format!("content-length: {}", length - 1),
            text.clone(),
            "400",
        ),
        (
            format!("content-length: {length}\r\ncontent-length: {}", length - 1),
            text.clone(),
            "400",
        ),
        (format!("content-length: +{length}"), text.clone(), "400"),
        (
            "content-length: 99999999999999999999999".into(),
            text.clone(),
            "400",
        ),
        ("content-length: 9999999999".into(), text.clone(), "413"),
        ("transfer-encoding: chunked".into(), "zz\r\n".into(), "400"),
        ("transfer-encoding: gzip".into(), text.clone(), "400"),
    ] {
        let answer = raw(&running, &format!("{head}{framing}\r\n\r\n{payload}")).await;
        let status = answer.get(9..12).unwrap_or_default();
        assert_eq!(status, expect, "{framing}: {answer}");
        let later = answer.matches("HTTP/1.1 2").count();
        assert!(later == usize::from(expect == "202"), "{framing}: {answer}");
    }
}

/// The classic of request smuggling: two lengths, of which a proxy may take the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_two_lengths_carries_no_second_one() {
    let running = Running::start(IngestSettings {
        header_deadline: Duration::from_millis(300),
        ..settings()
    })
    .await;
    let hidden = "0\r\n\r\nGET /livez HTTP/1.1\r\nhost: test\r\n\r\n";
    let request = format!(
        "POST {ORDERS} HTTP/1.1\r\nhost: test\r\ncontent-type: {JSON}\r\ncontent-length: {}\r\n\
         transfer-encoding: chunked\r\n\r\n{hidden}",
        hidden.len()
    );
    let answer = raw(&running, &request).await;
    assert!(!answer.contains("alive"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_sockets_are_closed_and_do_not_keep_others_out() {
    let running = Running::start(IngestSettings {
        header_deadline: Duration::from_millis(500),
        ..settings()
    })
    .await;
    let mut slow = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream
            .write_all(b"POST /webhooks HTTP/1.1\r\nx-slow: ")
            .await
            .unwrap();
        slow.push(stream);
    }
    let live = "GET /livez HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
    let answer = exchange(running.address, live).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    for mut stream in slow {
        // A byte now and then does not keep a header alive.
        stream.write_all(b"a").await.ok();
        let mut rest = Vec::new();
        let end = stream.read_to_end(&mut rest);
        let ended = tokio::time::timeout(Duration::from_secs(10), end).await;
        assert!(ended.is_ok(), "a slow socket is still open");
        assert!(!rest.starts_with(b"HTTP/1.1 2"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_without_end_is_refused() {
    let running = Running::start(settings()).await;
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    let long = format!("GET /livez HTTP/1.1\r\nx-long: {}", "a".repeat(100 * 1024));
    // The server may answer and close before it has all.
    stream.write_all(long.as_bytes()).await.ok();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok();
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
}

/// A certificate of our own for localhost, on disk.
fn certificate(folder: &tempfile::TempDir) -> (TlsFiles, rcgen::CertifiedKey<rcgen::KeyPair>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = TlsFiles {
        certificate: folder.path().join("tls.crt"),
        key: folder.path().join("tls.key"),
    };
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    (files, made)
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_the_same_door_answers_and_plain_http_does_not() {
    use tokio_rustls::rustls::pki_types::ServerName;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
    let folder = tempfile::tempdir().unwrap();
    let (files, made) = certificate(&folder);
    let running = Running::start(IngestSettings {
        tls: Some(files),
        header_deadline: Duration::from_millis(500),
        ..settings()
    })
    .await;
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(std::sync::Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TcpStream::connect(running.address).await.unwrap();
    let mut stream = connector.connect(name, stream).await.unwrap();
    let text = body();
    let request = format!(
        "POST {ORDERS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {JSON}\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{text}",
        text.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    assert!(
        answer.contains("strict-transport-security: max-age=31536000"),
        "{answer}"
    );

    let plain = exchange(running.address, "GET /livez HTTP/1.1\r\nhost: test\r\n\r\n").await;
    assert!(!plain.contains("HTTP/1.1"), "{plain}");
    // A handshake that does not come is closed at the header's deadline.
    let silent = exchange(running.address, "").await;
    assert_eq!(silent, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_cannot_be_used_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let (files, _) = certificate(&folder);
    let other = tempfile::tempdir().unwrap();
    let (strange, _) = certificate(&other);
    let absent = folder.path().join("absent.pem");
    for (certificate, key, expect) in [
        (&absent, &files.key, "server.tls.certificate"),
        (&files.certificate, &absent, "server.tls.key"),
        (&files.certificate, &files.certificate, "server.tls.key"),
        (&files.certificate, &strange.key, "leaf's key"),
    ] {
        let broker = FakeBroker::start();
        let settings = IngestSettings {
            tls: Some(TlsFiles {
                certificate: certificate.clone(),
                key: key.clone(),
            }),
            ..settings()
        };
        let mode = broker.mode(Duration::from_secs(1));
        let error = Server::bind(settings, mode).await.map(drop).unwrap_err();
        assert!(error.to_string().contains(expect), "{error}");
    }
}

/// Each type that the door's source names has a page, and each page is linked.
#[test]
fn each_problem_has_a_page() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let pages = format!("{root}/docs/problems");
    let index = std::fs::read_to_string(format!("{pages}/README.md")).unwrap();
    for name in shardlane_ingest::PROBLEM_NAMES {
        let page = std::fs::read_to_string(format!("{pages}/{name}.md"))
            .unwrap_or_else(|error| panic!("docs/problems/{name}.md: {error}"));
        assert!(
            page.contains(&format!("`{PROBLEM_TYPE_PREFIX}{name}`")),
            "{name}"
        );
        assert!(
            index.contains(&format!("({name}.md)")),
            "{name} is not linked"
        );
    }
    let files = std::fs::read_dir(&pages).unwrap().count();
    assert_eq!(
        files,
        shardlane_ingest::PROBLEM_NAMES.len() + 1,
        "a page too many"
    );
}
