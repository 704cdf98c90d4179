//! Logs for programs: one JSON object a line, flat, with the fields of the spans in which something happened.
//!
//! An inner span's field goes before an outer one's of the same name, the event's own before both. So a line says
//! `event_id`, `user_token`, `partition`, `shard` and `trace_id` wherever they are known.

use std::error::Error;
use std::fmt;
use std::io::Write as _;
use std::sync::OnceLock;

use jiff::Timestamp;
use serde_json::{Map, Value};
use tracing::dispatcher::WeakDispatch;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// Writes to stderr.
#[derive(Default)]
pub(crate) struct JsonLog {
    /// Who knows the spans' traces.
    dispatch: OnceLock<WeakDispatch>,
}

/// The fields of a span.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for JsonLog {
    fn on_register_dispatch(&self, dispatch: &Dispatch) {
        // There is one.
        self.dispatch.set(dispatch.downgrade()).ok();
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut line = Fields::default();
        for span in context
            .event_scope(event)
            .into_iter()
            .flat_map(|it| it.from_root())
        {
            if let Some(fields) = span.extensions().get::<Fields>() {
                line.0.extend(fields.0.clone());
            }
            line.set("span", span.name().into());
            if let Some(trace) = self.exported_trace(&span.id()) {
                line.set("trace_id", trace.into());
            }
        }
        event.record(&mut line);
        // What comes by way of the crate `log` says its target in a field.
        let target = line.0.remove("log.target");
        line.0
            .retain(|name, _| !name.starts_with("log.") && !name.starts_with("otel."));
        let metadata = event.metadata();
        line.set("time", Timestamp::now().to_string().into());
        line.set("level", metadata.level().as_str().into());
        line.set("target", target.unwrap_or_else(|| metadata.target().into()));
        let mut text = Value::Object(line.0).to_string();
        text.push('\n');
        // In one piece; a closed stderr is no reason to stop.
        std::io::stderr().write_all(text.as_bytes()).ok();
    }
}

impl JsonLog {
    #[cfg(feature = "otlp")]
    fn exported_trace(&self, span: &Id) -> Option<String> {
        use opentelemetry::trace::TraceContextExt as _;
        let dispatch = self.dispatch.get()?.upgrade()?;
        let context = tracing_opentelemetry::get_otel_context(span, &dispatch)?;
        let place = context.span().span_context().clone();
        place.is_valid().then(|| place.trace_id().to_string())
    }

    #[cfg(not(feature = "otlp"))]
    fn exported_trace(&self, _: &Id) -> Option<String> {
        None
    }
}

impl Fields {
    fn set(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field.name(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field.name(), value.into());
    }

    /// The whole chain: each error displays only itself.
    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let (mut chain, mut source) = (value.to_string(), value.source());
        while let Some(cause) = source {
            chain.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        self.set(field.name(), chain.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field.name(), format!("{value:?}").into());
    }
}
