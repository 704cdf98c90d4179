//! Requests to send, and brokers to stand on.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode, header};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use serde_json::{Value, json};
use shardlane_ingest::{IngestSettings, Mode, PROBLEM_TYPE_PREFIX, RETRY_AFTER_SECONDS, router};
use shardlane_sql::testing::{TEST_PARTITIONS, test_map};
use shardlane_worker::{Publisher, TopicError, TopicSet};
use tower::ServiceExt;
use uuid::Uuid;

pub(crate) const ORDERS: &str = "/webhooks/payments/orders";
pub(crate) const CHARGEBACKS: &str = "/webhooks/payments/chargebacks";
pub(crate) const JSON: &str = "application/json";

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Reply {
    pub(crate) fn header(&self, name: header::HeaderName) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// An error with all that an error must have. `name` is the type's last part.
    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, name: &str) {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(
            self.body["type"],
            format!("{PROBLEM_TYPE_PREFIX}{name}"),
            "{self:?}"
        );
        assert_eq!(self.body["status"], status, "{self:?}");
        assert_eq!(
            self.header(header::CONTENT_TYPE),
            "application/problem+json"
        );
        for member in ["title", "detail"] {
            assert!(
                self.body[member]
                    .as_str()
                    .is_some_and(|text| !text.is_empty()),
                "{self:?}"
            );
        }
        let retry_after = if status == 503 {
            RETRY_AFTER_SECONDS.to_string()
        } else {
            String::new()
        };
        assert_eq!(self.header(header::RETRY_AFTER), retry_after, "{self:?}");
    }

    #[track_caller]
    pub(crate) fn is(&self, status: u16, body: &Value) {
        assert_eq!(
            (self.status.as_u16(), &self.body),
            (status, body),
            "{self:?}"
        );
        assert_eq!(self.header(header::CONTENT_TYPE), JSON);
    }
}

pub(crate) async fn send(app: &Router, request: Request<Body>) -> Reply {
    let (parts, body) = app.clone().oneshot(request).await.unwrap().into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let body = serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{error}: {body:?}"));
    Reply {
        status: parts.status,
        headers: parts.headers,
        body,
    }
}

pub(crate) fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path)
        .header(header::CONTENT_TYPE, JSON)
        .body(body.into())
        .unwrap()
}

pub(crate) fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

/// An order's webhook: what happened at `minute` of one hour.
pub(crate) fn order(user: Uuid, event_id: &str, status: &str, minute: u8) -> String {
    json!({
        "provider_event_id": event_id,
        "order_id": "o-1",
        "user_id": user,
        "status": status,
        "created_at": "2026-11-01T10:00:00Z",
        "updated_at": format!("2026-11-01T10:{minute:02}:00Z"),
        "meta": {"amount": "12.34", "currency": "EUR"},
    })
    .to_string()
}

pub(crate) fn chargeback(user: Uuid, event_id: &str, status: &str, minute: u8) -> String {
    json!({
        "provider_event_id": event_id,
        "order_id": "o-1",
        "user_id": user,
        "status": status,
        "reason": "fraud",
        "amount": 12.34,
        "currency": "EUR",
        "occurred_at": format!("2026-11-02T10:{minute:02}:00Z"),
    })
    .to_string()
}

/// librdkafka's own broker inside this process: enough to acknowledge, and to be away on command.
pub(crate) struct FakeBroker(MockCluster<'static, DefaultProducerContext>);

impl FakeBroker {
    pub(crate) fn start() -> FakeBroker {
        let cluster = MockCluster::new(1).unwrap();
        for topic in TopicSet::with_prefix("").webhooks() {
            cluster
                .create_topic(&topic, i32::try_from(TEST_PARTITIONS).unwrap(), 1)
                .unwrap();
        }
        FakeBroker(cluster)
    }

    pub(crate) fn mode(&self, timeout: Duration) -> Mode {
        publisher(&self.0.bootstrap_servers(), "", timeout)
    }

    pub(crate) fn go_away(&self) {
        self.0.broker_down(1).unwrap();
    }

    /// A front door on this broker, with the default bounds.
    pub(crate) fn router(&self) -> Router {
        router(
            self.mode(Duration::from_secs(5)),
            &IngestSettings::default(),
        )
    }
}

pub(crate) fn publisher(bootstrap: &str, prefix: &str, timeout: Duration) -> Mode {
    let topics = TopicSet::with_prefix(prefix);
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match Publisher::connect(bootstrap, topics.clone(), test_map().into(), timeout) {
            Ok(publisher) => return Mode::Kafka(publisher),
            // Made by the controller; the broker that is asked next may not have heard of them yet.
            Err(TopicError::Missing(_)) if Instant::now() < until => {}
            Err(error) => panic!("{error}"),
        }
    }
}
