//! One trace from the request to the commit, through a real broker. A binary of its own: the subscriber is the process's.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, header};
use opentelemetry::trace::{SpanId, TraceId, TracerProvider as _};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use serde_json::{Value, json};
use shardlane_domain::Source;
use shardlane_ingest::{IngestSettings, Mode, Sources, router};
use shardlane_sql::Layout;
use shardlane_sql::testing::{TEST_PARTITIONS, TestDb, kafka, test_map, unique};
use shardlane_worker::{Publisher, TopicError, TopicSet, Worker, WorkerSettings, create_topics};
use tower::ServiceExt;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);

/// Takes our spans of the whole process.
fn exporter() -> &'static InMemorySpanExporter {
    static EXPORTER: OnceLock<InMemorySpanExporter> = OnceLock::new();
    EXPORTER.get_or_init(|| {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(exporter.clone())
            .build();
        let ours = filter_fn(|metadata| metadata.target().starts_with("shardlane"));
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("shardlane"));
        tracing_subscriber::registry()
            .with(layer.with_filter(ours))
            .init();
        exporter
    })
}

struct World {
    db: TestDb,
    bootstrap: String,
    topics: TopicSet,
    door: Router,
}

impl World {
    async fn new() -> Option<World> {
        exporter();
        let (bootstrap, db) = (kafka().await?, TestDb::new(Layout::Shards).await?);
        let topics = TopicSet::with_prefix(&unique("trace"));
        create_topics(&bootstrap, &topics, TEST_PARTITIONS, 1, &[])
            .await
            .unwrap();
        let (servers, names) = (bootstrap.clone(), topics.clone());
        let until = Instant::now() + PATIENCE;
        let connect = move || loop {
            match Publisher::connect(&servers, names.clone(), test_map().into(), PATIENCE) {
                // Made by the controller; the broker that is asked next may not have heard of them yet.
                Err(TopicError::Missing(_)) if Instant::now() < until => {}
                connected => return connected.unwrap(),
            }
        };
        let publisher = tokio::task::spawn_blocking(connect).await.unwrap();
        Some(World {
            db,
            bootstrap,
            topics,
            door: router(
                Mode::Kafka(publisher),
                &IngestSettings::new(Sources::unsigned()),
            ),
        })
    }

    /// Posts an order's webhook; partition and offset come back.
    async fn post(&self, user: Uuid, event: &str, traceparent: Option<&str>) -> (i64, i64) {
        let body = json!({
            "provider_event_id": event, "order_id": format!("o-{event}"), "user_id": user,
            "status": "created", "created_at": "2026-11-01T10:00:00Z",
            "updated_at": "2026-11-01T10:00:00Z", "meta": {"note": "a secret of the payload"},
        });
        let mut request = Request::post("/webhooks/payments/orders")
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(traceparent) = traceparent {
            request = request.header("traceparent", traceparent);
        }
        let request = request.body(Body::from(body.to_string())).unwrap();
        let response = self.door.clone().oneshot(request).await.unwrap();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let number = |name: &str| body[name].as_i64().unwrap_or_else(|| panic!("{body}"));
        (number("partition"), number("offset"))
    }

    /// Runs a worker until so many records are done.
    async fn work(&self, records: u64) {
        let settings = WorkerSettings::new(
            self.bootstrap.clone(),
            unique("group"),
            self.topics.clone(),
            test_map(),
        );
        let worker = Worker::start(settings, self.db.store().await)
            .await
            .unwrap();
        let (stats, deadline) = (worker.stats(), Instant::now() + PATIENCE);
        while stats.counts().done < records {
            assert!(Instant::now() < deadline, "{:?}", stats.counts());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        worker.stop().await.unwrap();
    }
}

/// The finished spans of a trace.
fn spans_of(trace: TraceId) -> Vec<SpanData> {
    let mut spans = exporter().get_finished_spans().unwrap();
    spans.retain(|span| span.span_context.trace_id() == trace);
    spans
}

/// The one span of this name.
#[track_caller]
fn one<'a>(spans: &'a [SpanData], name: &str) -> &'a SpanData {
    let mut named = spans.iter().filter(|span| span.name == name);
    let (Some(span), None) = (named.next(), named.next()) else {
        panic!("{name}: {spans:#?}")
    };
    span
}

fn attributes(span: &SpanData) -> HashMap<&str, String> {
    let attributes = span.attributes.iter();
    attributes
        .map(|it| (it.key.as_str(), it.value.to_string()))
        .collect()
}

fn id(span: &SpanData) -> SpanId {
    span.span_context.span_id()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_leads_from_the_request_to_the_commit() {
    let Some(world) = World::new().await else {
        return;
    };
    let user = Uuid::new_v4();
    let trace = TraceId::from(Uuid::new_v4().as_u128());
    let theirs = SpanId::from(7);
    let traceparent = format!("00-{trace}-{theirs}-01");
    let (partition, offset) = world.post(user, "e-1", Some(&traceparent)).await;
    world.work(1).await;

    let spans = spans_of(trace);
    let [request, publish, batch, stage, commit] =
        ["request", "publish", "batch", "stage", "commit"].map(|name| one(&spans, name));
    assert_eq!(spans.len(), 5, "{spans:#?}");
    for (parent, child) in [
        (theirs, request),
        (id(request), publish),
        (id(publish), batch),
        (id(batch), stage),
        (id(batch), commit),
    ] {
        assert_eq!(child.parent_span_id, parent, "{child:#?}");
    }
    let links: Vec<SpanId> = batch
        .links
        .iter()
        .map(|link| link.span_context.span_id())
        .collect();
    assert_eq!(links, [id(publish)]);

    let shard = test_map().shard_for(&shardlane_router::RouteKey::Uuid(user));
    let (topic, shard) = (world.topics.of(Source::Orders), shard.to_string());
    let (partition, offset) = (partition.to_string(), offset.to_string());
    for (span, name, value) in [
        (publish, "topic", &topic),
        (publish, "partition", &partition),
        (publish, "offset", &offset),
        (batch, "topic", &topic),
        (batch, "partition", &partition),
        (batch, "first_offset", &offset),
        (batch, "last_offset", &offset),
        (stage, "shard", &shard),
        (commit, "shard", &shard),
    ] {
        assert_eq!(attributes(span).get(name), Some(value), "{span:#?}");
    }
    let token = shardlane_router::TokenHash::Postgres
        .token(&shardlane_router::RouteKey::Uuid(user))
        .value();
    assert_eq!(attributes(request)["user_token"], token.to_string());
    let all = format!("{spans:?}");
    for secret in [&user.to_string(), &user.simple().to_string(), "a secret"] {
        assert!(!all.contains(secret), "{all}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_several_is_linked_to_each_of_their_traces() {
    let Some(world) = World::new().await else {
        return;
    };
    let user = Uuid::new_v4();
    // One without a trace: it gets one of its own.
    let traces = [(); 2].map(|()| TraceId::from(Uuid::new_v4().as_u128()));
    let parents = traces.map(|trace| format!("00-{trace}-{}-01", SpanId::from(7)));
    let unsampled = format!("00-{}-{}-00", Uuid::new_v4().simple(), SpanId::from(7));
    world.post(user, "e-1", Some(&parents[0])).await;
    world.post(user, "e-2", Some(&parents[1])).await;
    world.post(user, "e-3", Some(&unsampled)).await;
    let (_, last) = world.post(user, "e-4", None).await;
    world.work(4).await;

    let published = traces.map(|trace| id(one(&spans_of(trace), "publish")));
    let spans = exporter().get_finished_spans().unwrap();
    let batch = spans
        .iter()
        .find(|span| {
            span.links
                .iter()
                .any(|link| link.span_context.span_id() == published[0])
        })
        .unwrap();
    assert_eq!(batch.name, "batch");
    assert_eq!(attributes(batch)["last_offset"], last.to_string());
    assert_eq!(batch.parent_span_id, SpanId::INVALID);
    let links: Vec<SpanId> = batch
        .links
        .iter()
        .map(|link| link.span_context.span_id())
        .collect();
    assert_eq!(links.len(), 3, "{batch:#?}");
    assert_eq!(links[..2], published);
    let own = batch
        .links
        .iter()
        .next_back()
        .unwrap()
        .span_context
        .trace_id();
    let own = spans_of(own);
    assert_eq!(id(one(&own, "publish")), links[2]);
    assert_eq!(one(&own, "request").parent_span_id, SpanId::INVALID);
    // What belongs to the batch is in its trace.
    let of_batch = spans_of(batch.span_context.trace_id());
    assert_eq!(one(&of_batch, "commit").parent_span_id, id(batch));
}
