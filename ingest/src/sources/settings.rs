//! A source as the settings file says it.

use std::path::PathBuf;

use serde::Deserialize;
use shardlane_domain::Source;

use crate::signature::SecretFrom;

/// What a source's events are: it decides topic and schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Order,
    Chargeback,
    /// What happens to the money of an order: an event of that order.
    Payment,
}

impl Kind {
    /// Topic and name space of its events.
    pub(crate) const fn source(self) -> Source {
        match self {
            Kind::Order | Kind::Payment => Source::Orders,
            Kind::Chargeback => Source::Chargebacks,
        }
    }
}

/// How a source signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Signature {
    #[default]
    Standard,
    Stripe,
    Off,
}

/// `[sources.<name>]`. What is absent has a default, but for path and kind of a source that is not built in.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceSettings {
    pub(super) path: Option<String>,
    pub(super) kind: Option<Kind>,
    #[serde(default)]
    pub(super) signature: Signature,
    #[serde(default)]
    pub(super) secrets: Vec<SecretFrom>,
    pub(super) tolerance_seconds: Option<u64>,
    pub(super) schema: Option<PathBuf>,
    pub(super) body_bytes_max: Option<usize>,
    pub(super) depth_max: Option<usize>,
    pub(super) string_bytes_max: Option<usize>,
    pub(super) past_days_max: Option<u64>,
    pub(super) future_seconds_max: Option<u64>,
    pub(super) rate_per_second: Option<u32>,
    pub(super) rate_burst: Option<u32>,
}
