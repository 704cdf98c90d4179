//! From settings to sources: everything is read, compiled and checked at the start, so that no request can find it
//! wanting.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use shardlane_domain::PAYLOAD_BYTES_MAX;

use super::settings::{Kind, Signature};
use super::{Endpoint, Rate, SourceSettings, Sources, Window, refuse};
use crate::IngestError;
use crate::json::JsonLimits;
use crate::schema::Schema;
use crate::signature::{Scheme, Verifier};

/// Standard Webhooks' own tolerance.
const TOLERANCE_SECONDS: u64 = 300;
/// Longer, and a captured request could be sent again for hours.
const TOLERANCE_SECONDS_RANGE: RangeInclusive<u64> = 1..=3600;
const DEPTH: usize = 32;
/// serde_json reads 127 levels.
const DEPTH_RANGE: RangeInclusive<usize> = 1..=100;
const STRING_BYTES: usize = 16 * 1024;
const PAST_DAYS: u64 = 3650;
const FUTURE_SECONDS: u64 = 86_400;
const DAY_SECONDS: u64 = 86_400;
const NAME_BYTES_MAX: usize = 40;
/// What the front door answers itself.
const TAKEN: [&str; 6] = [
    "/livez",
    "/readyz",
    "/metrics",
    "/schemas",
    "/docs",
    "/openapi.json",
];

/// The sources that need no path and no kind.
const BUILT_IN: [(&str, &str, Kind); 3] = [
    ("orders", "/webhooks/payments/orders", Kind::Order),
    (
        "chargebacks",
        "/webhooks/payments/chargebacks",
        Kind::Chargeback,
    ),
    ("silvergate", "/webhooks/silvergate", Kind::Payment),
];

pub(super) fn built_in_unsigned() -> Vec<Endpoint> {
    let settings = SourceSettings {
        signature: Signature::Off,
        ..SourceSettings::default()
    };
    BUILT_IN
        .iter()
        .map(|(name, ..)| {
            endpoint(name, &settings).unwrap_or_else(|error| {
                unreachable!("{name} has the house's own settings: {error}")
            })
        })
        .collect()
}

impl Sources {
    /// Checks settings, reads secrets and schemas.
    pub(crate) fn build(
        settings: &BTreeMap<String, SourceSettings>,
    ) -> Result<Sources, IngestError> {
        if settings.is_empty() {
            return Err(refuse(
                "the settings name no source, so nothing could be taken; add [sources.orders] with its secrets".into(),
            ));
        }
        let mut paths = HashMap::new();
        let mut sources = Vec::with_capacity(settings.len());
        for (name, settings) in settings {
            let source = endpoint(name, settings)?;
            if let Some(other) = paths.insert(source.path.clone(), name) {
                return Err(refuse(format!(
                    "sources.{other}.path and sources.{name}.path are both {}; give each source its own",
                    source.path
                )));
            }
            sources.push(Arc::new(source));
        }
        Ok(Sources(sources.into()))
    }
}

fn endpoint(name: &str, settings: &SourceSettings) -> Result<Endpoint, IngestError> {
    check_name(name)?;
    let built_in = BUILT_IN.iter().find(|(built_in, ..)| *built_in == name);
    let missing = |setting: &str, fix: &str| {
        refuse(format!("sources.{name}.{setting} is missing; add {fix}"))
    };
    let path = match (&settings.path, built_in) {
        (Some(path), _) => path.clone(),
        (None, Some((_, path, _))) => (*path).to_owned(),
        (None, None) => return Err(missing("path", "one such as path = \"/webhooks/name\"")),
    };
    check_path(name, &path)?;
    let kind = match (settings.kind, built_in) {
        (Some(kind), _) => kind,
        (None, Some((_, _, kind))) => *kind,
        (None, None) => {
            return Err(missing(
                "kind",
                "kind = \"order\", \"chargeback\" or \"payment\"",
            ));
        }
    };
    Ok(Endpoint {
        name: name.to_owned(),
        path,
        kind,
        verifier: verifier(name, settings)?,
        schema: schema(name, settings, kind)?,
        body_bytes_max: within(
            name,
            "body_bytes_max",
            settings.body_bytes_max.unwrap_or(PAYLOAD_BYTES_MAX),
            1..=PAYLOAD_BYTES_MAX,
        )?,
        json: JsonLimits {
            depth_max: within(
                name,
                "depth_max",
                settings.depth_max.unwrap_or(DEPTH),
                DEPTH_RANGE,
            )?,
            string_bytes_max: within(
                name,
                "string_bytes_max",
                settings.string_bytes_max.unwrap_or(STRING_BYTES),
                1..=PAYLOAD_BYTES_MAX,
            )?,
        },
        window: window(name, settings)?,
        rate: rate(name, settings)?,
    })
}

/// A name stands in a path, in logs and in labels.
fn check_name(name: &str) -> Result<(), IngestError> {
    let good =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(good) {
        return Ok(());
    }
    Err(refuse(format!(
        "sources.{name:?} is no name of a source; use 1 to {NAME_BYTES_MAX} of a-z, 0-9, - and _"
    )))
}

fn check_path(name: &str, path: &str) -> Result<(), IngestError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let whole = path.strip_prefix('/').is_some_and(|rest| {
        rest.split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && part.bytes().all(good))
    });
    if !whole {
        return Err(refuse(format!(
            "sources.{name}.path {path:?} is no plain path; write it as /webhooks/name, without a slash at the end"
        )));
    }
    match TAKEN
        .iter()
        .find(|taken| path == **taken || path.starts_with(&format!("{taken}/")))
    {
        None => Ok(()),
        Some(taken) => Err(refuse(format!(
            "sources.{name}.path {path} is the server's own ({taken}); choose another, such as /webhooks/{name}"
        ))),
    }
}

fn verifier(name: &str, settings: &SourceSettings) -> Result<Verifier, IngestError> {
    let scheme = match settings.signature {
        Signature::Standard => Scheme::Standard,
        Signature::Stripe => Scheme::Stripe,
        Signature::Off if settings.secrets.is_empty() && settings.tolerance_seconds.is_none() => {
            return Ok(Verifier::Off);
        }
        Signature::Off => {
            return Err(refuse(format!(
                "sources.{name} has signature = \"off\" and also secrets or tolerance_seconds, which would not be used; \
                 remove one or the other"
            )));
        }
    };
    if settings.secrets.is_empty() {
        return Err(refuse(format!(
            "sources.{name}.secrets is missing; add secrets = [{{ file = \"PATH\" }}] or [{{ env = \"NAME\" }}], or, for \
             development only, signature = \"off\""
        )));
    }
    let secrets = settings
        .secrets
        .iter()
        .map(|from| {
            from.read(scheme)
                .map_err(|error| refuse(format!("sources.{name}.secrets: {error}")))
        })
        .collect::<Result<_, _>>()?;
    let tolerance = within(
        name,
        "tolerance_seconds",
        settings.tolerance_seconds.unwrap_or(TOLERANCE_SECONDS),
        TOLERANCE_SECONDS_RANGE,
    )?;
    Ok(Verifier::On {
        scheme,
        secrets,
        tolerance: Duration::from_secs(tolerance),
    })
}

fn schema(name: &str, settings: &SourceSettings, kind: Kind) -> Result<Schema, IngestError> {
    let Some(path) = &settings.schema else {
        return Schema::compile(Schema::text_of(kind)).map_err(refuse);
    };
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        refuse(format!(
            "sources.{name}.schema: the file {shown} cannot be read: {}",
            error.kind()
        ))
    })?;
    Schema::compile(&text).map_err(|error| {
        refuse(format!(
            "sources.{name}.schema: {shown} is no JSON Schema: {error}"
        ))
    })
}

fn window(name: &str, settings: &SourceSettings) -> Result<Window, IngestError> {
    let days = settings.past_days_max.unwrap_or(PAST_DAYS);
    let days = within(name, "past_days_max", days, 1..=36_500)?;
    let seconds = settings.future_seconds_max.unwrap_or(FUTURE_SECONDS);
    let seconds = within(
        name,
        "future_seconds_max",
        seconds,
        1..=36_500 * DAY_SECONDS,
    )?;
    Ok(Window {
        past: Duration::from_secs(days * DAY_SECONDS),
        future: Duration::from_secs(seconds),
    })
}

fn rate(name: &str, settings: &SourceSettings) -> Result<Option<Rate>, IngestError> {
    let positive = |setting, value| {
        NonZeroU32::new(value).ok_or_else(|| {
            refuse(format!(
                "sources.{name}.{setting} is 0, so that nothing would be taken; give 1 or more, or remove it"
            ))
        })
    };
    match (settings.rate_per_second, settings.rate_burst) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(refuse(format!(
            "sources.{name}.rate_burst says nothing without rate_per_second; add that, or remove it"
        ))),
        (Some(per_second), burst) => {
            let per_second = positive("rate_per_second", per_second)?;
            let burst = burst
                .map(|burst| positive("rate_burst", burst))
                .transpose()?;
            Ok(Some(Rate::new(per_second, burst.unwrap_or(per_second))))
        }
    }
}

fn within<T: PartialOrd + std::fmt::Display>(
    name: &str,
    setting: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<T, IngestError> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(refuse(format!(
        "sources.{name}.{setting} is {value}; give {} to {}",
        range.start(),
        range.end()
    )))
}
