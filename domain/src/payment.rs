//! A payment's webhook, which is an event of its order: what it says of the money decides where the order stands.
//!
//! It has no user of its own, so it must carry the one that we gave the provider with the payment: `metadata.user_id`.

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;
use uuid::Uuid;

use crate::envelope::{Decoded, checked};
use crate::{Body, DecodeError, Money, OrderChange, OrderStatus};

/// Where a transaction stands, as far as its order is concerned. A refund comes after the order's end, and is none of it.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PaymentStatus {
    Authorized,
    CapturePending,
    Captured,
    CaptureFailed,
    Voided,
}

impl PaymentStatus {
    /// The status that it gives the order.
    const fn of_order(self) -> OrderStatus {
        match self {
            PaymentStatus::Authorized | PaymentStatus::CapturePending => OrderStatus::Updated,
            PaymentStatus::Captured => OrderStatus::Success,
            PaymentStatus::CaptureFailed | PaymentStatus::Voided => OrderStatus::Failed,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            PaymentStatus::Authorized => "authorized",
            PaymentStatus::CapturePending => "capture_pending",
            PaymentStatus::Captured => "captured",
            PaymentStatus::CaptureFailed => "capture_failed",
            PaymentStatus::Voided => "voided",
        }
    }
}

#[derive(Deserialize)]
struct PaymentPayload {
    transaction_id: String,
    refund_id: Option<String>,
    order_id: String,
    status: PaymentStatus,
    /// Minor units.
    amount: i64,
    currency: String,
    timestamp: Timestamp,
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    user_id: Uuid,
}

/// Whether a body that is no order is meant as a payment: it names a transaction, and no event of its own.
pub(crate) fn is_payment(payload: &str) -> bool {
    #[derive(Deserialize)]
    struct Shape {
        transaction_id: Option<IgnoredAny>,
        provider_event_id: Option<IgnoredAny>,
    }
    let shape = serde_json::from_str::<Shape>(payload);
    shape.is_ok_and(|shape| shape.transaction_id.is_some() && shape.provider_event_id.is_none())
}

pub(crate) fn decode(payload: &str) -> Result<Decoded, DecodeError> {
    let payment: PaymentPayload = serde_json::from_str(payload)?;
    if payment.refund_id.is_some() {
        return Err(DecodeError::Refund);
    }
    let transaction = checked("transaction_id", payment.transaction_id)?;
    // The provider numbers transactions and not events, and a transaction reaches each status once. The prefix keeps it
    // apart from the ids of orders' own events, with which it shares a name space.
    let event_id = format!("payment:{transaction}:{}", payment.status.as_str());
    let amount =
        Money::from_minor(payment.amount, &payment.currency).map_err(DecodeError::money(""))?;
    let change = OrderChange {
        status: payment.status.of_order(),
        created_at: payment.timestamp,
        updated_at: payment.timestamp,
        amount: Some(amount),
    };
    Ok((
        payment.metadata.user_id,
        checked("transaction_id", event_id)?,
        payment.order_id,
        Body::Order(change),
    ))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{Event, Source};

    const PAYMENT: &str = r#"{"event":"payment.captured","transaction_id":"tx-1","order_id":"o-1","merchant_id":"m-1","status":"captured","amount":1234,"currency":"EUR","timestamp":"2026-11-01T10:00:00Z","metadata":{"user_id":"550e8400-e29b-41d4-a716-446655440000","cart":7}}"#;

    /// `PAYMENT` with one text replaced: the event's id, its status and amount, or the error's place and sentence.
    fn check(from: &str, to: &str, expect: &str) {
        assert!(PAYMENT.contains(from), "the test replaces nothing: {from}");
        let payload = Bytes::from(PAYMENT.replacen(from, to, 1));
        let found = match Event::decode(Source::Orders, payload, Timestamp::UNIX_EPOCH) {
            Ok(Event {
                event_id,
                order_id,
                body: Body::Order(change),
                ..
            }) => format!(
                "{event_id} {order_id} {} {}",
                change.status,
                change.amount.map_or(0, |amount| amount.minor)
            ),
            Ok(event) => panic!("{event:?}"),
            Err(error) => format!("{}: {error}", error.pointer()),
        };
        assert!(found.starts_with(expect), "{to}: {found}");
    }

    #[test]
    fn a_payments_status_is_its_orders() {
        for (status, order) in [
            ("authorized", "updated"),
            ("capture_pending", "updated"),
            ("captured", "success"),
            ("capture_failed", "failed"),
            ("voided", "failed"),
        ] {
            let to = format!(r#""status":"{status}""#);
            let expect = format!("payment:tx-1:{status} o-1 {order} 1234");
            check(r#""status":"captured""#, &to, &expect);
        }
        check(
            r#""order_id""#,
            r#""refund_id":null,"order_id""#,
            "payment:tx-1:captured",
        );
    }

    #[test]
    fn what_is_not_an_orders_payment_is_refused_with_its_place() {
        for status in ["refunded", "partially_refunded", "paid"] {
            check(
                r#""status":"captured""#,
                &format!(r#""status":"{status}""#),
                ": payload is not",
            );
        }
        check(
            r#""order_id""#,
            r#""refund_id":"r-1","order_id""#,
            "/refund_id: ",
        );
        check(
            r#""user_id""#,
            r#""user""#,
            ": payload is not the JSON object that this source sends: missing field `user_id`",
        );
        check(
            "metadata",
            "meta",
            ": payload is not the JSON object that this source sends: missing field `metadata`",
        );
        check("1234", "12.34", ": payload is not");
        check("1234", "-1", "/amount: ");
        check("1234", "9223372036854775808", ": payload is not");
        check("EUR", "XXZ", "/currency: ");
        check("tx-1", &"x".repeat(250), "/transaction_id: ");
        check("tx-1", "", "/transaction_id: ");
    }

    #[test]
    fn a_body_with_an_event_id_of_its_own_is_an_order() {
        check(
            r#"{"event""#,
            r#"{"provider_event_id":"e-1","event""#,
            ": payload is not the JSON object that this source sends: unknown variant `captured`",
        );
    }
}
