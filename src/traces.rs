//! Logs to stderr, as text or as JSON, and, built with the feature `otlp`, spans to a collector.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::json_log::JsonLog;

/// What a line of the log looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// An object a line.
    Json,
}

/// Where logs and spans go.
#[derive(Debug, clap::Args)]
pub(crate) struct TraceArgs {
    /// text, or json: an object a line, with event id, user token, shard, partition and trace id where they are known. What is
    /// logged says RUST_LOG; without it warnings and errors
    #[arg(
        long,
        global = true,
        env = "SHARDLANE_LOG_FORMAT",
        default_value = "text",
        hide_possible_values = true
    )]
    log_format: LogFormat,
    /// Send spans to this OpenTelemetry collector by OTLP over HTTP, such as http://127.0.0.1:4318
    #[cfg(feature = "otlp")]
    #[arg(
        long,
        global = true,
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        value_name = "URL"
    )]
    otlp: Option<String>,
}

/// Sends what is left when it is dropped.
#[must_use = "spans are sent until it is dropped"]
pub(crate) struct Traces {
    #[cfg(feature = "otlp")]
    provider: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

impl TraceArgs {
    /// Installs the process's subscriber.
    pub(crate) fn start(&self) -> anyhow::Result<Traces> {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
        let text = || tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let log = match self.log_format {
            LogFormat::Text => text().with_filter(filter).boxed(),
            // The spans in which something happens, whatever the level.
            LogFormat::Json => JsonLog::default()
                .with_filter(filter.or(filter_fn(is_our_span)))
                .boxed(),
        };
        let subscriber = tracing_subscriber::registry().with(log);
        #[cfg(feature = "otlp")]
        {
            let provider = self.otlp.as_deref().map(otlp::provider).transpose()?;
            subscriber.with(provider.as_ref().map(otlp::layer)).init();
            Ok(Traces { provider })
        }
        #[cfg(not(feature = "otlp"))]
        {
            subscriber.init();
            Ok(Traces {})
        }
    }
}

fn is_our_span(metadata: &tracing::Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target().starts_with("shardlane")
}

#[cfg(feature = "otlp")]
impl Drop for Traces {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.provider.as_ref().map(|it| it.shutdown()) {
            eprintln!("traces: the last spans were not sent: {error}");
        }
    }
}

#[cfg(feature = "otlp")]
mod otlp {
    use anyhow::Context as _;
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
    use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing::Subscriber;
    use tracing_subscriber::filter::filter_fn;
    use tracing_subscriber::layer::Layer;
    use tracing_subscriber::registry::LookupSpan;

    use super::is_our_span;

    /// The client that the house has anyway. It blocks, in the thread that the batch processor has for that.
    #[derive(Debug)]
    struct Client(ureq::Agent);

    #[async_trait::async_trait]
    impl HttpClient for Client {
        async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
            let (parts, body) = request.into_parts();
            let request = Request::from_parts(parts, body.to_vec());
            let (parts, mut body) = self.0.run(request)?.into_parts();
            Ok(Response::from_parts(parts, body.read_to_vec()?.into()))
        }
    }

    pub(super) fn provider(endpoint: &str) -> anyhow::Result<SdkTracerProvider> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client(ureq::Agent::new_with_defaults()))
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .build()
            .with_context(|| format!("--otlp {endpoint} is no collector's address"))?;
        let resource = Resource::builder().with_service_name("shardlane").build();
        Ok(SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource)
            .build())
    }

    /// Takes our own spans, whatever the log's level is.
    pub(super) fn layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("shardlane"))
            .with_filter(filter_fn(is_our_span))
    }
}
