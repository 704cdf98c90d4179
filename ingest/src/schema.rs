//! JSON Schemas: compiled once, at the start.

use std::sync::Arc;

use bytes::Bytes;
use jsonschema::Validator;
use serde_json::Value;

use crate::json::Flaw;
use crate::sources::Kind;

/// A compiled schema, and its text as it is served.
#[derive(Debug, Clone)]
pub(crate) struct Schema {
    text: Bytes,
    validator: Arc<Validator>,
}

impl Schema {
    /// The house's own schema of a kind.
    pub(crate) const fn text_of(kind: Kind) -> &'static str {
        match kind {
            Kind::Order => include_str!("../schemas/order.json"),
            Kind::Chargeback => include_str!("../schemas/chargeback.json"),
            Kind::Payment => include_str!("../schemas/payment.json"),
        }
    }

    /// Compiles a schema; the error is a sentence. References to other documents are never fetched.
    pub(crate) fn compile(text: &str) -> Result<Schema, String> {
        let schema: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let validator = jsonschema::options()
            .should_validate_formats(true)
            .build(&schema)
            .map_err(|error| error.to_string())?;
        Ok(Schema {
            text: Bytes::copy_from_slice(text.as_bytes()),
            validator: Arc::new(validator),
        })
    }

    pub(crate) fn text(&self) -> Bytes {
        self.text.clone()
    }

    /// The first thing that is wrong. The sentence does not quote the value, which may be long, and may be secret.
    pub(crate) fn check(&self, value: &Value) -> Result<(), Flaw> {
        self.validator.validate(value).map_err(|error| {
            let pointer = error.instance_path().as_str().to_owned();
            Flaw::at(pointer, error.masked_with("the value").to_string())
        })
    }
}
