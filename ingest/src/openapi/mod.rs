//! The contract, OpenAPI 3.1: what `/openapi.json` says of each route.
//!
//! Bodies are described by the very schemas that check them, and problems by the very answers.

mod operations;
mod problems;
mod schemas;

use serde_json::{Map, Value};
use utoipa::openapi::path::{PathItem, Paths};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::{
    Components, ComponentsBuilder, ExternalDocs, Info, License, OpenApi, OpenApiBuilder, Tag,
};

use crate::Sources;
use crate::health::Health;
use crate::routes::Route;
use crate::signature::Scheme;
use crate::webhook::Answer;

pub(crate) use operations::{
    docs_file, docs_index, docs_start, live, metrics, own, ready, schema, webhook,
};
pub(crate) use schemas::ProblemBody;

/// What an accepted webhook can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durable {
    /// In Kafka: 202.
    InKafka,
    /// Applied: 200, or 202 where it waits for another event.
    InTheDatabase,
}

const ABOUT: &str = "Webhooks of payment providers, each about one user. **2xx means durable**: the broker or the \
    database has the event, and sending it again changes nothing. Every other answer is a problem of RFC 9457; 408, 429 and \
    503 mean: send it again. Each answer has an `x-request-id`, the request's own if it had one. A W3C `traceparent` is \
    passed on.";

/// The document of these routes, as text.
pub(crate) fn document(routes: &[Route], sources: &Sources) -> Vec<u8> {
    let mut document = match serde_json::to_value(api(routes)) {
        Ok(Value::Object(document)) => document,
        _ => unreachable!("a document of texts is a JSON object"),
    };
    let described = schemas::of_sources(sources);
    if let Some(Value::Object(schemas)) = document
        .get_mut("components")
        .and_then(|components| components.get_mut("schemas"))
    {
        schemas.extend::<Map<String, Value>>(described);
    }
    serde_json::to_vec_pretty(&document)
        .unwrap_or_else(|error| unreachable!("values of JSON are JSON: {error}"))
}

fn api(routes: &[Route]) -> OpenApi {
    let mut info = Info::new("Shardlane's front door", env!("CARGO_PKG_VERSION"));
    info.description = Some(ABOUT.to_owned());
    let mut license = License::new(env!("CARGO_PKG_LICENSE"));
    license.identifier = Some(env!("CARGO_PKG_LICENSE").to_owned());
    info.license = Some(license);
    let tag = |name: &str, about: &str| {
        let mut tag = Tag::new(name);
        tag.description = Some(about.to_owned());
        tag
    };
    let mut standard = tag("webhooks", "What providers post.");
    standard.external_docs = Some(ExternalDocs::new("https://www.standardwebhooks.com/"));
    let paths = routes.iter().fold(Paths::new(), |mut paths, route| {
        let item = PathItem::new(route.method.clone(), route.operation.clone());
        paths.paths.insert(route.path.clone(), item);
        paths
    });
    OpenApiBuilder::new()
        .info(info)
        .paths(paths)
        .components(Some(components()))
        .tags(Some([
            standard,
            tag(
                "contract",
                "What a webhook must be, and what it is answered.",
            ),
            tag("operations", "For those who run the server."),
        ]))
        .build()
}

fn components() -> Components {
    let scheme = |scheme: Scheme, about: &str| {
        let key = ApiKeyValue::with_description(scheme.header(), about);
        SecurityScheme::ApiKey(ApiKey::Header(key))
    };
    ComponentsBuilder::new()
        .schema_from::<Answer>()
        .schema_from::<Health>()
        .schema_from::<ProblemBody>()
        .security_scheme(
            Scheme::Standard.name(),
            scheme(
                Scheme::Standard,
                "Standard Webhooks: `v1,` and the base64 of HMAC-SHA256 over `webhook-id.webhook-timestamp.body`; \
                 several, separated by blanks, while keys rotate.",
            ),
        )
        .security_scheme(
            Scheme::Stripe.name(),
            scheme(
                Scheme::Stripe,
                "Stripe's: `t=TIME,v1=SIGNATURE`, hexadecimal HMAC-SHA256 over `TIME.body`.",
            ),
        )
        .build()
}
