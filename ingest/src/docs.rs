//! `/docs`: the contract for people, by Swagger UI, whose files are in this program: nothing is fetched from elsewhere,
//! when it is built or when it is read.

use std::sync::{Arc, LazyLock};

use axum::extract::{Path, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Redirect, Response};
use utoipa_swagger_ui::{Config, serve};

use crate::problem::Problem;
use crate::webhook::Door;

/// What a browser may do with these pages: run and show what comes from here, and ask this server. Swagger UI sets
/// styles from its script, and has pictures in its style sheet.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| {
    let config = Config::new(["/openapi.json"])
        // It would ask somebody else's server whether the document is valid.
        .validator_url("none")
        .default_models_expand_depth(0);
    Arc::new(config)
});

/// `/docs`: the files are found beside `/docs/`.
pub(crate) async fn start() -> Redirect {
    Redirect::permanent("/docs/")
}

/// `/docs/`.
pub(crate) async fn index(door: State<Arc<Door>>) -> Result<Response, Problem> {
    page(&door, "index.html")
}

/// `/docs/<file>`.
pub(crate) async fn file(
    door: State<Arc<Door>>,
    Path(file): Path<String>,
) -> Result<Response, Problem> {
    page(&door, &file)
}

fn page(door: &Door, file: &str) -> Result<Response, Problem> {
    let found = serve(file, Arc::clone(&CONFIG)).map_err(|error| {
        tracing::error!(%error, "a page of the documentation cannot be made");
        Problem::Internal
    })?;
    let found = found.ok_or_else(|| door.not_found())?;
    let content_type = HeaderValue::from_str(&found.content_type);
    let headers = [
        (
            header::CONTENT_TYPE,
            content_type.unwrap_or(HeaderValue::from_static("application/octet-stream")),
        ),
        (header::CONTENT_SECURITY_POLICY, POLICY),
    ];
    Ok((headers, found.bytes.into_owned()).into_response())
}
