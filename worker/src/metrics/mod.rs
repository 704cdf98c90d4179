//! Metrics for Prometheus. They are read from the counters that are there anyway, when somebody asks: nothing is counted
//! twice, and there is no registry of the whole process, in which two workers would meet.
//!
//! docs/metrics.md describes each; a test compares.

mod buried;
mod pools;
mod process;
mod relay;
mod shards;
mod sheet;
mod time_partitions;
mod worker;

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use shardlane_sql::Store;

pub(crate) use self::relay::RelayCollector;
pub(crate) use self::shards::ShardCollector;
pub(crate) use self::time_partitions::TimePartitionCollector;
pub(crate) use self::worker::WorkerCollector;

const OPENMETRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
const CLASSIC: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// `GET /metrics` for a registry: in OpenMetrics where the asker takes that, as Prometheus does, and in Prometheus's
/// older text otherwise.
#[must_use]
pub fn metrics_answer(registry: &Registry, asked: &HeaderMap) -> Response {
    let mut text = String::new();
    if encode(&mut text, registry).is_err() {
        unreachable!("a String takes everything");
    }
    let accept = asked.get(header::ACCEPT).and_then(|it| it.to_str().ok());
    if accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
        return ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response();
    }
    ([(header::CONTENT_TYPE, CLASSIC)], classic(&text)).into_response()
}

/// A registry's part for the pools of a store.
pub fn register_pools(registry: &mut Registry, store: &Store) {
    registry.register_collector(Box::new(pools::PoolCollector(store.clone())));
}

/// A registry's part for the dead letters that direct mode keeps in a store.
pub fn register_buried(registry: &mut Registry, store: &Store) {
    registry.register_collector(Box::new(buried::BuriedCollector(store.clone())));
}

/// A registry's part for the process: memory and CPU time, under the names that Prometheus's own libraries give them.
pub fn register_process(registry: &mut Registry) {
    registry.register_collector(Box::new(process::ProcessCollector));
}

/// The older text has no end mark, and describes a counter under the name that its samples have.
fn classic(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = ("", "");
    for line in openmetrics.lines() {
        if line == "# EOF" {
            continue;
        }
        if let Some(described) = line.strip_prefix("# HELP ") {
            // The type is the next line.
            help = described.split_once(' ').unwrap_or((described, ""));
            continue;
        }
        if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|described| described.split_once(' '))
        {
            let total = if kind == "counter" { "_total" } else { "" };
            text.push_str(&format!("# HELP {name}{total} {}\n", help.1));
            text.push_str(&format!("# TYPE {name}{total} {kind}\n"));
            continue;
        }
        text.push_str(line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;

    use super::*;

    async fn answer(accept: Option<&'static str>) -> (HeaderValue, String) {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        counter.inc();
        registry.register("taken", "What was taken", counter);
        registry.register("wait", "What waits", Gauge::<i64>::default());
        let mut asked = HeaderMap::new();
        if let Some(accept) = accept {
            asked.insert(header::ACCEPT, HeaderValue::from_static(accept));
        }
        let (parts, body) = metrics_answer(&registry, &asked).into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        (parts.headers[header::CONTENT_TYPE].clone(), body)
    }

    #[tokio::test]
    async fn whoever_asks_for_openmetrics_gets_it() {
        let (kind, body) =
            answer(Some("application/openmetrics-text;q=0.5,text/plain;q=0.1")).await;
        assert_eq!(kind, OPENMETRICS);
        assert_eq!(
            body,
            "# HELP taken What was taken.\n# TYPE taken counter\ntaken_total 1\n\
             # HELP wait What waits.\n# TYPE wait gauge\nwait 0\n# EOF\n"
        );
    }

    #[tokio::test]
    async fn others_get_the_older_text() {
        let (kind, body) = answer(None).await;
        assert_eq!(kind, CLASSIC);
        assert_eq!(
            body,
            "# HELP taken_total What was taken.\n# TYPE taken_total counter\ntaken_total 1\n\
             # HELP wait What waits.\n# TYPE wait gauge\nwait 0\n"
        );
    }
}
