//! Each operation: what it takes, and all that it answers.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::header::Header;
use utoipa::openapi::path::{Operation, OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{Content, ContentBuilder, Ref, Required};

use super::{Durable, problems, schemas};
use crate::Sources;
use crate::problem::Problem;
use crate::signature::{Scheme, Verifier};
use crate::sources::{Endpoint, Kind};
use crate::webhook::Answer;

const JSON: &str = "application/json";

fn operation(id: &str, tag: &str, summary: &str) -> OperationBuilder {
    OperationBuilder::new()
        .operation_id(Some(id))
        .tag(tag)
        .summary(Some(summary))
}

/// Ends an operation with the problems that it may answer, one response a status.
fn with_problems(operation: OperationBuilder, problems: Vec<Problem>) -> Operation {
    let mut by_status: BTreeMap<u16, Vec<Problem>> = BTreeMap::new();
    for problem in problems {
        let status = problem.status().as_u16();
        by_status.entry(status).or_default().push(problem);
    }
    by_status
        .into_iter()
        .fold(operation, |operation, (status, problems)| {
            operation.response(status.to_string(), refusal(status, &problems))
        })
        .build()
}

fn refusal(status: u16, problems: &[Problem]) -> ResponseBuilder {
    let titles: Vec<&str> = problems.iter().map(Problem::title).collect();
    let examples = problems.iter().map(|problem| {
        let example = ExampleBuilder::new().value(Some(problem.example()));
        (problem.name(), example.build())
    });
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .examples_from_iter(examples)
        .build();
    let response = ResponseBuilder::new()
        .description(titles.join("; "))
        .content("application/problem+json", content);
    let header = |about: &str| {
        let mut header = Header::new(ObjectBuilder::new().schema_type(Type::String));
        header.description = Some(about.to_owned());
        header
    };
    match status {
        401 => response.header("www-authenticate", header("How this source signs.")),
        405 => response.header("allow", header("The methods that there are.")),
        415 => response.header(
            "accept-encoding",
            header("`identity`, after a compressed body."),
        ),
        429 | 503 => response.header("retry-after", header("In how many seconds to send again.")),
        _ => response,
    }
}

fn answer(description: &str, examples: &[Answer]) -> ResponseBuilder {
    let examples = examples.iter().map(|answer| {
        let example = ExampleBuilder::new().value(serde_json::to_value(answer).ok());
        (answer.as_str(), example.build())
    });
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Answer")))
        .examples_from_iter(examples)
        .build();
    ResponseBuilder::new()
        .description(description)
        .content(JSON, content)
}

fn texts(content_types: &[&str], description: &str) -> ResponseBuilder {
    content_types.iter().fold(
        ResponseBuilder::new().description(description),
        |response, kind| {
            response.content(
                *kind,
                Content::new(Some(ObjectBuilder::new().schema_type(Type::String))),
            )
        },
    )
}

fn json_of(schema: &str, example: Value, description: &str) -> ResponseBuilder {
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(schema)))
        .example(Some(example))
        .build();
    ResponseBuilder::new()
        .description(description)
        .content(JSON, content)
}

fn any_object(content_type: &str, description: &str) -> ResponseBuilder {
    let object = Content::new(Some(ObjectBuilder::new().schema_type(Type::Object)));
    ResponseBuilder::new()
        .description(description)
        .content(content_type, object)
}

fn text_parameter(
    name: &str,
    place: ParameterIn,
    required: Required,
    about: &str,
) -> ParameterBuilder {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .description(Some(about))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
}

/// A source's webhooks.
pub(crate) fn webhook(source: &Endpoint, durable: Durable) -> Operation {
    let what = match source.kind {
        Kind::Order => "What happened to an order",
        Kind::Chargeback => "What happened to a chargeback, which is a dispute of an order",
        Kind::Payment => "What happened to the money of an order",
    };
    let body = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(schemas::name_of(source))))
        .example(schemas::example(source))
        .build();
    let mut operation = operation(&format!("webhook-{}", source.name), "webhooks", what)
        .request_body(Some(
            RequestBodyBuilder::new()
                .required(Some(Required::True))
                .description(Some(format!(
                    "At most {} bytes, not compressed. Beyond what a schema can say: each member comes once, the currency \
                     is one of ISO 4217 and has the amount's decimals, and times are near now.",
                    source.body_bytes_max
                )))
                .content(JSON, body)
                .build(),
        ))
        .parameter(text_parameter(
            "traceparent",
            ParameterIn::Header,
            Required::False,
            "W3C Trace Context: passed on to Kafka if it is valid, and left out if it is not.",
        ));
    if let Verifier::On { scheme, .. } = &source.verifier {
        operation = operation.security(SecurityRequirement::new(
            scheme.name(),
            Vec::<String>::new(),
        ));
        if *scheme == Scheme::Standard {
            for (name, about) in [
                ("webhook-id", "The message's id; each attempt has the same."),
                ("webhook-timestamp", "Unix seconds of this attempt."),
            ] {
                operation = operation.parameter(text_parameter(
                    name,
                    ParameterIn::Header,
                    Required::True,
                    about,
                ));
            }
        }
    }
    let mut problems = problems::of_webhooks(source.verifier.challenge(), source.body_bytes_max);
    problems.extend(problems::of_any());
    problems.extend(problems::of_methods());
    let operation = match durable {
        Durable::InKafka => operation.response(
            "202",
            answer(
                "All replicas of the broker have it; a worker will apply it.",
                &[Answer::Accepted {
                    partition: 3,
                    offset: 1042,
                }],
            ),
        ),
        Durable::InTheDatabase => {
            problems.extend(problems::of_states());
            operation
                .response(
                    "200",
                    answer(
                        "It is committed.",
                        &[Answer::Applied, Answer::Duplicate, Answer::Stale],
                    ),
                )
                .response(
                    "202",
                    answer(
                        "It waits in the database for an event that it needs.",
                        &[Answer::Parked],
                    ),
                )
        }
    };
    with_problems(operation, problems)
}

pub(crate) fn live() -> Operation {
    let operation = operation("live", "operations", "Does the process answer?").response(
        "200",
        json_of("Health", json!({"status": "alive"}), "It does."),
    );
    with_problems(operation, problems::of_any())
}

pub(crate) fn ready() -> Operation {
    let operation = operation("ready", "operations", "Does what it stands on answer too?")
        .response(
            "200",
            json_of("Health", json!({"status": "ready"}), "It does."),
        );
    let mut problems = problems::of_readiness();
    problems.extend(problems::of_any());
    with_problems(operation, problems)
}

pub(crate) fn metrics() -> Operation {
    let kinds = ["text/plain", "application/openmetrics-text"];
    let operation = operation("metrics", "operations", "For Prometheus").response(
        "200",
        texts(&kinds, "In OpenMetrics where it is asked for."),
    );
    with_problems(operation, problems::of_any())
}

pub(crate) fn schema(sources: &Sources) -> Operation {
    let files = sources.iter().map(|source| format!("{}.json", source.name));
    let files: Vec<String> = files.collect();
    let about = format!("One of {}.", files.join(", "));
    let file = text_parameter("file", ParameterIn::Path, Required::True, &about)
        .example(files.first().map(|file| json!(file)));
    let operation = operation("schema", "contract", "What a source's webhooks must be")
        .parameter(file)
        .response(
            "200",
            any_object("application/schema+json", "A JSON Schema, 2020-12."),
        );
    let mut problems = problems::of_names();
    problems.extend(problems::of_any());
    with_problems(operation, problems)
}

pub(crate) fn own() -> Operation {
    let operation = operation("openapi", "contract", "This document")
        .response("200", any_object(JSON, "OpenAPI 3.1."));
    with_problems(operation, problems::of_any())
}

pub(crate) fn docs_start() -> Operation {
    let mut location = Header::new(ObjectBuilder::new().schema_type(Type::String));
    location.description = Some("`/docs/`".to_owned());
    let response = ResponseBuilder::new()
        .description("To the page.")
        .header("location", location);
    let operation =
        operation("docs", "contract", "This document for people").response("308", response);
    with_problems(operation, problems::of_any())
}

pub(crate) fn docs_index() -> Operation {
    let operation = operation(
        "docs-page",
        "contract",
        "This document for people, by Swagger UI",
    )
    .response("200", texts(&["text/html"], "A page."));
    with_problems(operation, problems::of_any())
}

pub(crate) fn docs_file() -> Operation {
    let file = text_parameter(
        "file",
        ParameterIn::Path,
        Required::True,
        "A file of Swagger UI.",
    )
    .example(Some(json!("swagger-ui.css")));
    let kinds = ["text/html", "text/css", "text/javascript", "image/png"];
    let operation = operation("docs-file", "contract", "A file of that page")
        .parameter(file)
        .response("200", texts(&kinds, "The file."));
    let mut problems = problems::of_names();
    problems.extend(problems::of_any());
    with_problems(operation, problems)
}
