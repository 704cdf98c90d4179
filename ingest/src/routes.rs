//! Every route of the front door, with what the contract says of it: the router and `/openapi.json` are made of the same
//! table, so that neither has a route that the other has not.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use utoipa::openapi::HttpMethod;
use utoipa::openapi::path::Operation;

use crate::problem::Problem;
use crate::webhook::{self, Door};
use crate::{Sources, docs, health, metrics, openapi};

/// One path, one method.
pub(crate) struct Route {
    /// Parameters stand in braces, for the router as for the contract.
    pub(crate) path: String,
    pub(crate) method: HttpMethod,
    pub(crate) operation: Operation,
    pub(crate) handler: MethodRouter<Arc<Door>>,
}

/// All of them; `durable` is what an accepted webhook can be answered with.
pub(crate) fn all(sources: &Sources, durable: openapi::Durable) -> Vec<Route> {
    let own = [
        ("/livez", get(health::live), openapi::live()),
        ("/readyz", get(health::ready), openapi::ready()),
        ("/metrics", get(metrics::answer), openapi::metrics()),
        ("/schemas/{file}", get(schema), openapi::schema(sources)),
        ("/openapi.json", get(document), openapi::own()),
        ("/docs", get(docs::start), openapi::docs_start()),
        ("/docs/", get(docs::index), openapi::docs_index()),
        ("/docs/{file}", get(docs::file), openapi::docs_file()),
    ];
    let own = own.map(|(path, handler, operation)| Route {
        path: path.to_owned(),
        method: HttpMethod::Get,
        operation,
        handler,
    });
    let webhooks = sources.iter().map(|source| {
        let endpoint = Arc::clone(source);
        let take = move |door, request| webhook::take(Arc::clone(&endpoint), door, request);
        Route {
            path: source.path.clone(),
            method: HttpMethod::Post,
            operation: openapi::webhook(source, durable),
            handler: post(take),
        }
    });
    webhooks.chain(own).collect()
}

/// `/schemas/<name>.json`: what a source's webhooks must be.
async fn schema(
    State(door): State<Arc<Door>>,
    Path(file): Path<String>,
) -> Result<Response, Problem> {
    let source = door.sources.iter().find(|source| {
        file.strip_suffix(".json")
            .is_some_and(|name| name == source.name)
    });
    match source {
        Some(source) => {
            let content_type = [(header::CONTENT_TYPE, "application/schema+json")];
            Ok((content_type, source.schema.text()).into_response())
        }
        None => Err(door.not_found()),
    }
}

/// `/openapi.json`.
async fn document(State(door): State<Arc<Door>>) -> Response {
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    (content_type, door.document.clone()).into_response()
}
