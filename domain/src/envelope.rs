//! A webhook's bytes, decoded and checked: everything that can be known without asking a database.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;
use memchr::memchr2;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    DisputeAction, DisputeChange, Money, MoneyError, OrderChange, OrderStatus, Resolution, payment,
    stored_as_text,
};

/// The longest payload that is decoded, in bytes. Kafka's default record limit is 1 MiB.
pub const PAYLOAD_BYTES_MAX: usize = 256 * 1024;
/// How many objects and arrays may be open at one place. serde_json's own limit; PostgreSQL's depends on its stack.
pub const DEPTH_MAX: usize = 128;
/// The longest id or reason, in bytes: ids are parts of index keys, which PostgreSQL limits to about
/// 2,700 bytes a row.
pub const FIELD_BYTES_MAX: usize = 255;

/// Where a webhook came from: the name space of its `provider_event_id`, and its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// `POST /webhooks/payments/orders`, and payments of orders: `POST /webhooks/silvergate`.
    Orders,
    /// `POST /webhooks/payments/chargebacks`.
    Chargebacks,
}

stored_as_text!(Source { Orders = "orders", Chargebacks = "chargebacks" });

/// A topic that belongs to no source.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "topic {0:?} carries no webhooks; expected a name that ends in orders.webhooks or disputes.webhooks"
)]
pub struct UnknownSource(String);

impl Source {
    /// The Kafka topic of this source, without a prefix.
    pub const fn topic(self) -> &'static str {
        match self {
            Source::Orders => "orders.webhooks",
            Source::Chargebacks => "disputes.webhooks",
        }
    }

    /// The source whose webhooks `topic` carries; a prefix (`test7.orders.webhooks`) is allowed.
    ///
    /// # Errors
    /// [`UnknownSource`] where the topic is none of ours.
    pub fn of_topic(topic: &str) -> Result<Source, UnknownSource> {
        Source::ALL
            .iter()
            .copied()
            .find(|source| {
                topic
                    .strip_suffix(source.topic())
                    .is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('.'))
            })
            .ok_or_else(|| UnknownSource(topic.to_owned()))
    }
}

/// One webhook, decoded. `(user_id, source, event_id)` identifies it.
#[derive(Debug, Clone)]
pub struct Event {
    /// The user whose hash decides partition and shard.
    pub user_id: Uuid,
    /// Where it came from.
    pub source: Source,
    /// The provider's id of this event.
    pub event_id: String,
    /// The order that it is about.
    pub order_id: String,
    /// When we accepted it. Set once, at the front door; a redelivery carries the same.
    pub received_at: Timestamp,
    /// The body, byte for byte as it was sent: JSON.
    pub payload: Bytes,
    /// xxh3-128 of `payload`: tells a redelivery from another event under the same id. It guards against
    /// a provider's mistake, not against an attacker; signatures do that.
    pub payload_hash: u128,
    /// What it says.
    pub body: Body,
}

/// What a webhook says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// About an order.
    Order(OrderChange),
    /// About a dispute.
    Dispute(DisputeChange),
}

/// Why bytes are not a webhook that we can take.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The body is longer than [`PAYLOAD_BYTES_MAX`].
    #[error("payload of {0} bytes is over the limit of {PAYLOAD_BYTES_MAX}")]
    TooLong(usize),
    /// Not UTF-8, not JSON, a field missing, doubled or of the wrong type.
    #[error("payload is not the JSON object that this source sends: {0}")]
    Json(#[from] serde_json::Error),
    /// Not UTF-8.
    #[error("payload is not UTF-8")]
    NotUtf8,
    /// Another JSON value than an object.
    #[error("payload is not a JSON object")]
    NotAnObject,
    /// More brackets are open than [`DEPTH_MAX`].
    #[error("payload is nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
    /// Half of a surrogate pair is no character.
    #[error("payload holds half of a surrogate pair, which is no character and cannot be stored")]
    LoneSurrogate,
    /// PostgreSQL's text holds no NUL, nor does its jsonb, to which readers cast.
    #[error("payload holds the escape \\u0000, which cannot be stored; send it without")]
    NulEscape,
    /// An id or reason that is empty, too long or holds control characters.
    #[error("{field} must have 1 to {FIELD_BYTES_MAX} bytes and no control characters")]
    Field {
        /// The field's name in the payload.
        field: &'static str,
    },
    /// A refund comes after its order's end, which it does not change.
    #[error("refunds are not taken: the order has ended, and a refund does not change how")]
    Refund,
    /// Amount or currency.
    #[error("{error}")]
    Money {
        /// The object that holds both, as a JSON pointer.
        parent: &'static str,
        /// What is wrong.
        #[source]
        error: MoneyError,
    },
}

impl DecodeError {
    /// The error of an amount or a currency that stand in `parent`.
    pub(crate) fn money(parent: &'static str) -> impl Fn(MoneyError) -> DecodeError {
        move |error| DecodeError::Money { parent, error }
    }
}

impl Event {
    /// Decodes the body of a webhook of `source`, accepted at `received_at`.
    ///
    /// # Errors
    /// [`DecodeError`] says which field is wrong and what it should be.
    pub fn decode(
        source: Source,
        payload: Bytes,
        received_at: Timestamp,
    ) -> Result<Event, DecodeError> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(DecodeError::TooLong(payload.len()));
        }
        let text = std::str::from_utf8(&payload).map_err(|_| DecodeError::NotUtf8)?;
        check_storable(text.as_bytes())?;
        let (user_id, event_id, order_id, body) = match source {
            Source::Orders => match decode_order(text) {
                Err(_) if payment::is_payment(text) => payment::decode(text)?,
                order => order?,
            },
            Source::Chargebacks => decode_chargeback(text)?,
        };
        let event_id = checked("provider_event_id", event_id)?;
        let order_id = checked("order_id", order_id)?;
        let payload_hash = xxh3_128(&payload);
        Ok(Event {
            user_id,
            source,
            event_id,
            order_id,
            received_at,
            payload,
            payload_hash,
            body,
        })
    }

    /// Whether it opens the order or the dispute that it is about: other events of it wait for this one.
    pub fn opens(&self) -> bool {
        match &self.body {
            Body::Order(change) => change.status == OrderStatus::Created,
            Body::Dispute(change) => change.action == DisputeAction::Opened,
        }
    }

    /// When the event happened at the provider.
    pub fn occurred_at(&self) -> Timestamp {
        match &self.body {
            Body::Order(change) => change.updated_at,
            Body::Dispute(change) => change.occurred_at,
        }
    }
}

/// User, event id, order id, and what it says.
pub(crate) type Decoded = (Uuid, String, String, Body);

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum OrderStatusText {
    Created,
    Updated,
    Failed,
    Success,
}

#[derive(Deserialize)]
struct OrderPayload<'a> {
    provider_event_id: String,
    order_id: String,
    user_id: Uuid,
    status: OrderStatusText,
    created_at: Timestamp,
    updated_at: Timestamp,
    #[serde(borrow)]
    meta: Option<OrderMeta<'a>>,
}

/// What is read of an order's `meta`, which is a map of strings. Its other values are checked and not kept: no map is
/// built.
#[derive(Default)]
struct OrderMeta<'a> {
    amount: Option<Cow<'a, str>>,
    currency: Option<Cow<'a, str>>,
}

/// A string in the place where it stands, if it holds no escape. (serde's own `Cow` is always a copy.)
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for OrderMeta<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = OrderMeta<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<OrderMeta<'de>, M::Error> {
                let mut meta = OrderMeta::default();
                while let Some((Text(key), Text(value))) = map.next_entry()? {
                    let (field, name) = match &*key {
                        "amount" => (&mut meta.amount, "amount"),
                        "currency" => (&mut meta.currency, "currency"),
                        _ => continue,
                    };
                    // The last of two amounts would be a guess.
                    if field.replace(value).is_some() {
                        return Err(M::Error::duplicate_field(name));
                    }
                }
                Ok(meta)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

fn decode_order(payload: &str) -> Result<Decoded, DecodeError> {
    let order: OrderPayload<'_> = serde_json::from_str(payload)?;
    let meta = order.meta.unwrap_or_default();
    let amount = match (&meta.amount, &meta.currency) {
        (Some(amount), Some(currency)) => {
            Some(Money::parse_major(amount, currency).map_err(DecodeError::money("/meta"))?)
        }
        _ => None,
    };
    let status = match order.status {
        OrderStatusText::Created => OrderStatus::Created,
        OrderStatusText::Updated => OrderStatus::Updated,
        OrderStatusText::Failed => OrderStatus::Failed,
        OrderStatusText::Success => OrderStatus::Success,
    };
    let change = OrderChange {
        status,
        created_at: order.created_at,
        updated_at: order.updated_at,
        amount,
    };
    Ok((
        order.user_id,
        order.provider_event_id,
        order.order_id,
        Body::Order(change),
    ))
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ChargebackStatusText {
    Opened,
    Updated,
    Closed,
}

#[derive(Deserialize)]
struct ChargebackPayload<'a> {
    provider_event_id: String,
    order_id: String,
    user_id: Uuid,
    status: ChargebackStatusText,
    reason: String,
    /// Kept as text: a float would round it.
    #[serde(borrow)]
    amount: &'a RawValue,
    currency: String,
    occurred_at: Timestamp,
    evidence_due_at: Option<Timestamp>,
    meta: Option<ChargebackMeta>,
}

#[derive(Deserialize)]
struct ChargebackMeta {
    resolution: Option<ResolutionText>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ResolutionText {
    Won,
    Lost,
}

fn decode_chargeback(payload: &str) -> Result<Decoded, DecodeError> {
    let chargeback: ChargebackPayload<'_> = serde_json::from_str(payload)?;
    let resolution = chargeback
        .meta
        .and_then(|meta| meta.resolution)
        .map(|resolution| match resolution {
            ResolutionText::Won => Resolution::Won,
            ResolutionText::Lost => Resolution::Lost,
        });
    let change = DisputeChange {
        action: match chargeback.status {
            ChargebackStatusText::Opened => DisputeAction::Opened,
            ChargebackStatusText::Updated => DisputeAction::Updated,
            ChargebackStatusText::Closed => DisputeAction::Closed(resolution),
        },
        reason: checked("reason", chargeback.reason)?,
        amount: Money::parse_major(chargeback.amount.get(), &chargeback.currency)
            .map_err(DecodeError::money(""))?,
        occurred_at: chargeback.occurred_at,
        evidence_due_at: chargeback.evidence_due_at,
    };
    Ok((
        chargeback.user_id,
        chargeback.provider_event_id,
        chargeback.order_id,
        Body::Dispute(change),
    ))
}

pub(crate) fn checked(field: &'static str, text: String) -> Result<String, DecodeError> {
    if text.is_empty() || text.len() > FIELD_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(DecodeError::Field { field });
    }
    Ok(text)
}

/// Refuses what is valid JSON for serde and not for PostgreSQL, in any field, known or not: one pass over the bytes,
/// without building a tree. The log keeps json; a reader must be able to cast it to jsonb.
fn check_storable(json: &[u8]) -> Result<(), DecodeError> {
    if json.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(DecodeError::NotAnObject);
    }
    let (mut depth, mut in_string, mut at) = (0_usize, false, 0);
    loop {
        // Most of a payload is text in strings, in which only two bytes matter: it is not looked at byte by byte.
        if in_string {
            let Some(plain) = memchr2(b'"', b'\\', json.get(at..).unwrap_or_default()) else {
                break;
            };
            at += plain;
        }
        let Some(byte) = json.get(at) else { break };
        match byte {
            b'"' => in_string = !in_string,
            b'\\' if in_string => {
                let escape = &json[at + 1..];
                if escape.starts_with(b"u") {
                    match code_unit(escape) {
                        Some(0) => return Err(DecodeError::NulEscape),
                        // A high surrogate must be followed by a low one, and a low one must follow.
                        Some(0xd800..=0xdbff) => {
                            let low = escape.get(5..).filter(|next| next.starts_with(b"\\u"));
                            if !matches!(
                                low.and_then(|next| code_unit(&next[1..])),
                                Some(0xdc00..=0xdfff)
                            ) {
                                return Err(DecodeError::LoneSurrogate);
                            }
                            at += 6;
                        }
                        Some(0xdc00..=0xdfff) => return Err(DecodeError::LoneSurrogate),
                        Some(_) | None => {}
                    }
                }
                at += 1;
            }
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(DecodeError::TooDeep);
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// The UTF-16 code unit of an escape that begins with `u`; `None` where the digits are no digits, which serde refuses.
fn code_unit(escape: &[u8]) -> Option<u16> {
    let digits = std::str::from_utf8(escape.get(1..5)?).ok()?;
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ORDER: &str = r#"{"provider_event_id":"e1","order_id":"o1","user_id":"550e8400-e29b-41d4-a716-446655440000","status":"created","created_at":"2026-11-01T10:00:00Z","updated_at":"2026-11-01T12:00:00+01:00","meta":{"amount":"12.34","currency":"EUR"},"later":1}"#;
    const CHARGEBACK: &str = r#"{"provider_event_id":"c1","order_id":"o1","user_id":"550E8400-E29B-41D4-A716-446655440000","status":"closed","reason":"fraud","amount":12.34,"currency":"EUR","occurred_at":"2026-11-02T10:00:00Z","meta":{"resolution":"lost"}}"#;

    fn decode(source: Source, json: &str) -> Result<Event, DecodeError> {
        Event::decode(
            source,
            Bytes::copy_from_slice(json.as_bytes()),
            Timestamp::UNIX_EPOCH,
        )
    }

    #[test]
    fn both_payloads_of_the_contract_decode() {
        let order = decode(Source::Orders, ORDER).unwrap();
        assert_eq!(
            (order.event_id.as_str(), order.order_id.as_str()),
            ("e1", "o1")
        );
        let Body::Order(change) = &order.body else {
            panic!("an order")
        };
        assert_eq!(change.amount.unwrap().minor, 1234);
        assert_eq!(order.occurred_at(), "2026-11-01T11:00:00Z".parse().unwrap());

        let escaped = ORDER.replace(
            r#""amount":"12.34""#,
            r#""\"":"x","\u0061mount":"12\u002e34""#,
        );
        let Body::Order(change) = decode(Source::Orders, &escaped).unwrap().body else {
            panic!("an order")
        };
        assert_eq!(change.amount.unwrap().minor, 1234);

        let chargeback = decode(Source::Chargebacks, CHARGEBACK).unwrap();
        assert_eq!(
            chargeback.user_id, order.user_id,
            "an uppercase uuid is the same user"
        );
        let Body::Dispute(change) = &chargeback.body else {
            panic!("a dispute")
        };
        assert_eq!(change.action, DisputeAction::Closed(Some(Resolution::Lost)));
        assert_eq!(change.amount.minor, 1234);
        assert_eq!(&chargeback.payload[..], CHARGEBACK.as_bytes());
    }

    /// `CHARGEBACK` or `ORDER` with one text replaced, and a part of the error's sentence.
    fn check_refused(source: Source, from: &str, to: &str, expect: &str) {
        let json = match source {
            Source::Orders => ORDER,
            Source::Chargebacks => CHARGEBACK,
        };
        assert!(json.contains(from), "the test replaces nothing: {from}");
        let error = decode(source, &json.replacen(from, to, 1))
            .unwrap_err()
            .to_string();
        assert!(error.contains(expect), "{to}: {error}");
    }

    #[test]
    fn bad_input_is_refused_with_the_field_and_the_reason() {
        check_refused(
            Source::Orders,
            r#""status":"created""#,
            r#""status":"paid""#,
            "paid",
        );
        check_refused(Source::Orders, r#""order_id":"o1","#, "", "order_id");
        check_refused(Source::Orders, r#""e1""#, r#""""#, "provider_event_id");
        check_refused(Source::Orders, r#""o1""#, r#""o\u00001""#, "\\u0000");
        check_refused(Source::Orders, r#""o1""#, r#""o\n1""#, "order_id");
        check_refused(Source::Orders, "550e8400", "zzz", "UUID");
        check_refused(Source::Orders, "12.34", "12.345", "decimals");
        check_refused(Source::Orders, "2026-11-01T10:00:00Z", "yesterday", "");
        check_refused(
            Source::Orders,
            r#""order_id":"o1""#,
            r#""order_id":"o1","order_id":"o2""#,
            "duplicate",
        );
        check_refused(
            Source::Orders,
            r#""currency":"EUR""#,
            r#""currency":"EUR","amount":"99""#,
            "duplicate",
        );
        check_refused(Source::Chargebacks, "12.34", "-1", "negative");
        check_refused(Source::Chargebacks, "12.34", r#""12.34""#, "decimal number");
        check_refused(Source::Chargebacks, r#""EUR""#, r#""XXZ""#, "ISO 4217");
        check_refused(Source::Chargebacks, r#""fraud""#, r#""""#, "reason");
    }

    #[test]
    fn meta_is_a_map_of_strings_of_which_amount_and_currency_are_read() {
        let decoded = |meta: &str| {
            let (before, _) = ORDER.split_once(r#""meta""#).unwrap();
            match decode(Source::Orders, &format!(r#"{before}"meta":{meta}}}"#)) {
                Ok(Event {
                    body: Body::Order(change),
                    ..
                }) => Ok(change.amount.map(|amount| amount.minor)),
                Ok(_) => unreachable!("an order is an order"),
                Err(error) => Err(error.to_string()),
            }
        };
        let plain = r#"{"amount":"12.34","currency":"EUR","note":"a \"quoted\" text"}"#;
        assert_eq!(decoded(plain), Ok(Some(1234)));
        assert_eq!(
            decoded(r#"{"amount":"12\u002e34","currency":"\u0045UR"}"#),
            Ok(Some(1234))
        );
        let escaped = r#"{"\u0061mount":"1","currency":"EUR"}"#;
        assert_eq!(decoded(escaped), Ok(Some(100)));
        let doubled = r#"{"amount":"1","currency":"EUR","amount":"2"}"#;
        assert!(decoded(doubled).unwrap_err().contains("duplicate field"));
        for without in [r#"{"amount":"12.34"}"#, "{}", "null"] {
            assert_eq!(decoded(without), Ok(None), "{without}");
        }
        for bad in [r#"{"note":1}"#, r#"{"amount":null}"#, "[]", r#""text""#] {
            assert!(decoded(bad).unwrap_err().contains("invalid type"), "{bad}");
        }
    }

    #[test]
    fn what_jsonb_refuses_is_refused_in_unknown_fields_too() {
        let with = |later: &str| ORDER.replace(r#""later":1"#, &format!(r#""later":{later}"#));
        let refused = |later: &str| match decode(Source::Orders, &with(later)) {
            Ok(_) => "taken".to_owned(),
            Err(error) => error.to_string(),
        };
        let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(refused(&nested(DEPTH_MAX - 1)), "taken");
        assert!(refused(&nested(DEPTH_MAX)).contains("nested"));
        assert!(refused(&nested(20_000)).contains("nested"));
        assert_eq!(
            refused(&format!("{:?}", "[".repeat(500))),
            "taken",
            "brackets in a string are text"
        );
        assert!(refused(r#""\u0000""#).contains("\\u0000"));
        assert!(refused(r#""\\\u0000""#).contains("\\u0000"));
        assert_eq!(
            refused(r#""\\u0000""#),
            "taken",
            "an escaped backslash, then plain text"
        );
        for lone in [
            r#""\ud800""#,
            r#""\ud800x""#,
            r#""\ud800\ud800""#,
            r#""\udc00""#,
        ] {
            assert!(refused(lone).contains("surrogate"), "{lone}");
        }
        assert_eq!(refused(r#""\ud83d\ude00""#), "taken");
        let array = br#"["e","o","550e8400-e29b-41d4-a716-446655440000"]"#;
        let taken = |bytes: &'static [u8]| {
            Event::decode(
                Source::Orders,
                Bytes::from_static(bytes),
                Timestamp::UNIX_EPOCH,
            )
        };
        assert!(matches!(taken(array), Err(DecodeError::NotAnObject)));
        assert!(matches!(
            taken(b"{\"a\":\"\xff\"}"),
            Err(DecodeError::NotUtf8)
        ));
    }

    #[test]
    fn a_topic_names_its_source_with_or_without_a_prefix() {
        assert_eq!(Source::of_topic("orders.webhooks"), Ok(Source::Orders));
        assert_eq!(
            Source::of_topic("run-1.disputes.webhooks"),
            Ok(Source::Chargebacks)
        );
        assert!(Source::of_topic("reorders.webhooks").is_err());
        assert!(Source::of_topic("orders.webhooks.DLQ").is_err());
    }

    proptest! {
        #[test]
        fn decode_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for source in Source::ALL {
                drop(Event::decode(*source, Bytes::from(bytes.clone()), Timestamp::UNIX_EPOCH));
            }
        }
    }
}
