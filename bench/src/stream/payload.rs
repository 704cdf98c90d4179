//! The bodies of webhooks, as their providers send them.

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

pub(super) fn to_json<T: Serialize>(payload: &T) -> String {
    serde_json::to_string(payload)
        .unwrap_or_else(|error| unreachable!("plain structs serialize: {error}"))
}

/// A letter a byte.
pub(super) fn to_text(noise: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz 01234";
    noise
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte % 32)]))
        .collect()
}

#[derive(Serialize)]
pub(super) struct OrderPayload<'a> {
    pub(super) provider_event_id: &'a str,
    pub(super) order_id: &'a str,
    pub(super) user_id: Uuid,
    pub(super) status: &'static str,
    pub(super) created_at: Timestamp,
    pub(super) updated_at: Timestamp,
    pub(super) meta: OrderMeta<'a>,
}

#[derive(Serialize)]
pub(super) struct OrderMeta<'a> {
    pub(super) amount: &'a str,
    pub(super) currency: &'static str,
    pub(super) note: &'a str,
}

#[derive(Serialize)]
pub(super) struct PaymentPayload<'a> {
    pub(super) event: String,
    pub(super) transaction_id: String,
    pub(super) order_id: &'a str,
    pub(super) merchant_id: &'static str,
    pub(super) status: &'static str,
    pub(super) amount: u64,
    pub(super) currency: &'static str,
    pub(super) timestamp: Timestamp,
    pub(super) metadata: PaymentMeta<'a>,
}

#[derive(Serialize)]
pub(super) struct PaymentMeta<'a> {
    pub(super) user_id: Uuid,
    pub(super) note: &'a str,
}

#[derive(Serialize)]
pub(super) struct ChargebackPayload<'a> {
    pub(super) provider_event_id: &'a str,
    pub(super) order_id: &'a str,
    pub(super) user_id: Uuid,
    pub(super) status: &'static str,
    pub(super) reason: &'static str,
    pub(super) amount: Option<Box<serde_json::value::RawValue>>,
    pub(super) currency: &'static str,
    pub(super) occurred_at: Timestamp,
    pub(super) meta: ChargebackMeta<'a>,
}

#[derive(Serialize)]
pub(super) struct ChargebackMeta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resolution: Option<&'static str>,
    pub(super) note: &'a str,
}
