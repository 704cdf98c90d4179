//! What bodies are, in and out.

use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::Sources;
use crate::sources::{Endpoint, Kind};

/// An error, as RFC 9457 wants it.
#[derive(ToSchema)]
#[schema(as = Problem)]
#[expect(
    dead_code,
    reason = "it only describes what shardlane_worker::ProblemDetails writes"
)]
pub(crate) struct ProblemBody {
    /// What is wrong: it never changes its meaning, and `docs/problems` has a page for each.
    r#type: String,
    /// The same for all problems of the type.
    title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What to do.
    detail: String,
    /// Where in the payload, as a JSON pointer.
    #[schema(nullable = false)]
    pointer: Option<String>,
}

/// The component that describes what a source takes.
pub(super) fn name_of(source: &Endpoint) -> String {
    format!("webhook-{}", source.name)
}

/// The schemas of all sources, as components: the very ones that check.
pub(super) fn of_sources(sources: &Sources) -> Map<String, Value> {
    let schemas = sources.iter().filter_map(|source| {
        let mut schema: Value = serde_json::from_slice(&source.schema.text()).ok()?;
        let name = name_of(source);
        if let Value::Object(members) = &mut schema {
            // Here it is a part of a document, and no document of its own.
            members.remove("$id");
            members.remove("$schema");
        }
        point_into(&mut schema, &format!("#/components/schemas/{name}"));
        Some((name, schema))
    });
    schemas.collect()
}

/// References within the schema lead to the same places of the document.
fn point_into(schema: &mut Value, place: &str) {
    match schema {
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::String(to) if name == "$ref" && to.starts_with('#') => {
                        to.replace_range(..1, place);
                    }
                    _ => point_into(value, place),
                }
            }
        }
        Value::Array(elements) => {
            for element in elements {
                point_into(element, place);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A webhook that this source takes; `None` where a schema of the operator's own refuses ours.
pub(super) fn example(source: &Endpoint) -> Option<Value> {
    let user = "550e8400-e29b-41d4-a716-446655440000";
    let example = match source.kind {
        Kind::Order => json!({
            "provider_event_id": "evt-1",
            "order_id": "ord-1",
            "user_id": user,
            "status": "created",
            "created_at": "2026-11-21T10:00:00Z",
            "updated_at": "2026-11-21T10:00:00Z",
            "meta": {"amount": "12.34", "currency": "EUR"},
        }),
        Kind::Chargeback => json!({
            "provider_event_id": "evt-2",
            "order_id": "ord-1",
            "user_id": user,
            "status": "opened",
            "reason": "fraud",
            "amount": 12.34,
            "currency": "EUR",
            "occurred_at": "2026-11-21T11:00:00Z",
            "evidence_due_at": "2026-12-05T11:00:00Z",
        }),
        Kind::Payment => json!({
            "event": "payment.captured",
            "transaction_id": "tx-1",
            "order_id": "ord-1",
            "merchant_id": "m-1",
            "status": "captured",
            "amount": 1234,
            "currency": "EUR",
            "timestamp": "2026-11-21T10:05:00Z",
            "metadata": {"user_id": user},
        }),
    };
    source.schema.check(&example).is_ok().then_some(example)
}
