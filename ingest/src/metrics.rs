//! Metrics of the front door; docs/metrics.md describes each.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use shardlane_worker::{metrics_answer, register_buried, register_pools, register_process};

use crate::Mode;
use crate::problem::Refusal;
use crate::webhook::Door;

/// Upper bounds of the buckets, in seconds: a request takes ten at most.
const SECONDS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];

type Labels = Vec<(&'static str, String)>;
type Seconds = Family<Labels, Histogram, fn() -> Histogram>;

fn seconds() -> Seconds {
    Family::new_with_constructor(|| Histogram::new(SECONDS))
}

/// What one server counts.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    request_seconds: Seconds,
    in_flight: Gauge,
    refused: Family<Labels, Counter>,
    accept_seconds: Seconds,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    pub(crate) fn new(mode: &Mode) -> Metrics {
        let mut metrics = Metrics {
            registry: Registry::default(),
            requests: Family::default(),
            request_seconds: seconds(),
            in_flight: Gauge::default(),
            refused: Family::default(),
            accept_seconds: seconds(),
        };
        metrics.describe();
        register_process(&mut metrics.registry);
        if let Mode::Direct(store) = mode {
            register_pools(&mut metrics.registry, store);
            register_buried(&mut metrics.registry, store);
        }
        metrics
    }

    fn describe(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "shardlane_http_requests",
            "Requests answered, by route and class of status",
            self.requests.clone(),
        );
        registry.register(
            "shardlane_http_request_seconds",
            "From a request's header to its answer",
            self.request_seconds.clone(),
        );
        registry.register(
            "shardlane_http_requests_in_flight",
            "Requests that have no answer yet",
            self.in_flight.clone(),
        );
        registry.register(
            "shardlane_http_refused",
            "Requests answered with a problem, by its name",
            self.refused.clone(),
        );
        registry.register(
            "shardlane_accept_seconds",
            "From a valid event to a durable one, or to the error: the publish, or the transaction",
            self.accept_seconds.clone(),
        );
    }

    /// An event is durable, or will not be.
    pub(crate) fn handed_over(&self, mode: &Mode, took: Duration, durable: bool) {
        let result = if durable { "durable" } else { "refused" };
        let labels = vec![
            ("mode", mode.name().to_owned()),
            ("result", result.to_owned()),
        ];
        self.accept_seconds
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
    }

    fn answered(&self, route: &str, status: StatusCode, took: Duration) {
        let route = ("route", route.to_owned());
        let class = format!("{}xx", status.as_u16() / 100);
        self.request_seconds
            .get_or_create(&vec![route.clone()])
            .observe(took.as_secs_f64());
        self.requests
            .get_or_create(&vec![route, ("status", class)])
            .inc();
    }
}

/// In flight for as long as it lives: a request may also end because its sender went away.
struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// `GET /metrics`.
pub(crate) async fn answer(State(door): State<Arc<Door>>, asked: HeaderMap) -> Response {
    metrics_answer(&door.metrics.registry, &asked)
}

/// Measures every request. A path that is no route of ours is `other`: its name is a stranger's.
pub(crate) async fn measure(
    State(metrics): State<Arc<Metrics>>,
    request: Request,
    next: Next,
) -> Response {
    metrics.in_flight.inc();
    let _in_flight = InFlight(metrics.in_flight.clone());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let began = Instant::now();
    let response = next.run(request).await;
    let route = route.as_ref().map_or("other", MatchedPath::as_str);
    metrics.answered(route, response.status(), began.elapsed());
    if let Some(Refusal(reason)) = response.extensions().get() {
        let labels = vec![("reason", (*reason).to_owned())];
        metrics.refused.get_or_create(&labels).inc();
    }
    response
}
