//! W3C Trace Context (<https://www.w3.org/TR/trace-context/>) through Kafka's headers.
//!
//! Spans are `tracing`'s. Where no OpenTelemetry layer takes them, the context of a request is passed on as it came, and
//! nobody reads it from a record.

use std::str::FromStr as _;

use bytes::Bytes;
use opentelemetry::Context;
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState,
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::record::RawRecord;

/// Header of HTTP and of Kafka: the trace and the span to which this belongs.
pub const HEADER_TRACEPARENT: &str = "traceparent";
/// Header of HTTP and of Kafka: what tracing systems add to it.
pub const HEADER_TRACESTATE: &str = "tracestate";

/// How many records' traces a batch's span names. The span of a batch of thousands would be larger than its payload.
const LINKS_MAX: usize = 32;
/// The longest `tracestate` that is passed on; the specification asks for 512 at least.
const TRACESTATE_BYTES_MAX: usize = 512;

/// A place in somebody's trace, as it travels in headers.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceContext(SpanContext);

impl TraceContext {
    /// Reads the two headers. `None` where `traceparent` is not valid; a `tracestate` that is not valid is left out, as
    /// the specification asks.
    #[must_use]
    pub fn parse(traceparent: &str, tracestate: &str) -> Option<TraceContext> {
        let (trace, span, flags) = parse_traceparent(traceparent)?;
        let state = (tracestate.len() <= TRACESTATE_BYTES_MAX)
            .then(|| TraceState::from_str(tracestate).ok())
            .flatten()
            .unwrap_or_default();
        let context = SpanContext::new(trace, span, flags, true, state);
        context.is_valid().then_some(TraceContext(context))
    }

    /// The place of a span that is exported; `None` where it is not.
    #[must_use]
    pub fn of(span: &Span) -> Option<TraceContext> {
        if span.is_disabled() {
            return None;
        }
        let context = span.context();
        let context = context.span().span_context().clone();
        context.is_valid().then_some(TraceContext(context))
    }

    /// The trace, as logs and headers have it.
    #[must_use]
    pub fn trace_id(&self) -> String {
        self.0.trace_id().to_string()
    }

    /// Makes `span`, which has not been entered yet, a part of this trace; nothing where it is not exported.
    pub fn adopt(&self, span: &Span) {
        span.set_parent(self.as_parent()).ok();
    }

    fn as_parent(&self) -> Context {
        Context::new().with_remote_span_context(self.0.clone())
    }

    /// In the form of version 00.
    fn traceparent(&self) -> String {
        let (trace, span) = (self.0.trace_id(), self.0.span_id());
        format!("00-{trace}-{span}-{:02x}", self.0.trace_flags().to_u8())
    }

    /// The headers, for a record.
    pub(crate) fn headers(&self) -> Vec<(String, Option<Bytes>)> {
        let header = |name: &str, value: String| (name.to_owned(), Some(value.into()));
        let mut headers = vec![header(HEADER_TRACEPARENT, self.traceparent())];
        let state = self.0.trace_state().header();
        if !state.is_empty() {
            headers.push(header(HEADER_TRACESTATE, state));
        }
        headers
    }

    fn of_record(record: &RawRecord) -> Option<TraceContext> {
        let text = |name| {
            let mut named = record.headers.iter().filter(|header| header.key == name);
            std::str::from_utf8(named.next()?.value?).ok()
        };
        TraceContext::parse(
            text(HEADER_TRACEPARENT)?,
            text(HEADER_TRACESTATE).unwrap_or(""),
        )
    }
}

/// Ties a batch's span, which has not been entered yet, to the traces of its records: a single record's trace goes on in
/// it, those of several are linked. Nothing is read where the span is not exported.
pub(crate) fn tie(span: &Span, records: &[RawRecord]) {
    // A layer that takes the span takes a parent, also an empty one.
    if span.is_disabled() || span.set_parent(Context::new()).is_err() {
        return;
    }
    if let [only] = records
        && let Some(context) = TraceContext::of_record(only)
    {
        context.adopt(span);
    }
    let contexts = records.iter().filter_map(TraceContext::of_record);
    let sampled = contexts.filter(|context| context.0.is_sampled());
    for context in sampled.take(LINKS_MAX) {
        span.add_link(context.0);
    }
}

/// Section 3.2: lower-case hex; versions after 00 may have more behind.
fn parse_traceparent(text: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let mut fields = text.split('-');
    let mut field = |digits: usize| {
        let field = fields.next()?;
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (field.len() == digits && field.bytes().all(is_digit)).then_some(field)
    };
    let version = field(2)?;
    let trace = TraceId::from_hex(field(32)?).ok()?;
    let span = SpanId::from_hex(field(16)?).ok()?;
    let flags = u8::from_str_radix(field(2)?, 16).ok()?;
    let has_more = fields.next().is_some();
    // Later versions' other flags are not ours to pass on.
    let flags = TraceFlags::default().with_sampled(flags & 1 == 1);
    (version != "ff" && !(version == "00" && has_more)).then_some((trace, span, flags))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rdkafka::message::Header;

    use super::*;
    use crate::headers::PackedHeaders;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn check(traceparent: &str, valid: bool) {
        let parsed = TraceContext::parse(traceparent, "");
        assert_eq!(parsed.is_some(), valid, "{traceparent:?}: {parsed:?}");
    }

    #[test]
    fn only_valid_parents_are_taken() {
        check(PARENT, true);
        check(&PARENT.replace("-01", "-00"), true);
        check(&PARENT.replace("00-4", "cc-4"), true);
        check(
            &format!("{}-what-ever", PARENT.replace("00-4", "cc-4")),
            true,
        );
        for broken in [
            "",
            "00",
            "00-abc",
            &PARENT.to_uppercase(),
            &PARENT.replace("00-4", "ff-4"),
            &PARENT.replace(TRACE, &"0".repeat(32)),
            &PARENT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &PARENT.replace("4bf9", "4bfx"),
            &PARENT.replace("4bf9", "4bf"),
            &PARENT.replace("4bf9", "+bf9"),
            &PARENT.replace("-01", "-1"),
            &format!("{PARENT}-what-ever"),
            &format!("{PARENT} "),
        ] {
            check(broken, false);
        }
    }

    #[test]
    fn what_was_read_is_written() {
        let written = |parent: &str, state: &str| {
            let context = TraceContext::parse(parent, state).unwrap();
            let text = |(key, value): (String, Option<Bytes>)| {
                let value = String::from_utf8(value.unwrap().to_vec()).unwrap();
                format!("{key}={value}")
            };
            context.headers().into_iter().map(text).collect::<Vec<_>>()
        };
        let parent = format!("traceparent={PARENT}");
        let state = "tracestate=vendor=1,other@tenant=a b".to_owned();
        assert_eq!(
            written(PARENT, "vendor=1,other@tenant=a b"),
            [parent.clone(), state]
        );
        assert_eq!(written(PARENT, "no list"), [parent.as_str()]);
        let long = format!("vendor={}", "1".repeat(TRACESTATE_BYTES_MAX));
        assert_eq!(written(PARENT, &long), [parent]);
    }

    fn record(traceparent: &str) -> RawRecord {
        let headers = PackedHeaders::of([Header {
            key: HEADER_TRACEPARENT,
            value: Some(traceparent.as_bytes()),
        }]);
        let payload = Bytes::from_static(b"{}");
        RawRecord::again(0, None, payload, Timestamp::UNIX_EPOCH, headers)
    }

    /// `cargo test -p shardlane-worker --lib -- --ignored --nocapture ties_cost`: what a batch of 2,000 pays where nobody
    /// exports spans, without a subscriber and with one that logs.
    #[test]
    #[ignore = "a measurement"]
    fn ties_cost() {
        let records: Vec<RawRecord> = (0..2_000).map(|_| record(PARENT)).collect();
        let measure = |what: &str| {
            let began = std::time::Instant::now();
            for _ in 0..100_000 {
                let span = tracing::info_span!("batch", records = records.len());
                tie(&span, std::hint::black_box(&records));
            }
            let per_batch = began.elapsed() / 100_000;
            println!("{what}: {per_batch:?} a batch of 2,000");
        };
        measure("no subscriber");
        let logging = tracing_subscriber::fmt()
            .with_writer(std::io::sink)
            .finish();
        tracing::subscriber::with_default(logging, || measure("a log at level info"));
    }
}
