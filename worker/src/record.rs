//! A Kafka record as a lane takes it.

use bytes::Bytes;
use jiff::Timestamp;
use rdkafka::Message;
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Headers as _};
use shardlane_domain::{DecodeError, Event, Source};
use shardlane_sql::mutants::{self, Mutant};
use uuid::Uuid;

use crate::HEADER_ACCEPTED_AT;
use crate::headers::PackedHeaders;

/// What a record takes besides its bytes: the structs, the decoded event's own texts, allocations.
const RECORD_BYTES: usize = 768;

/// A record copied out of the client's buffers; its topic and partition are the lane's.
#[derive(Debug, Clone)]
pub(crate) struct RawRecord {
    pub(crate) offset: i64,
    pub(crate) key: Option<Bytes>,
    /// `None` is Kafka's null, which is not the same as no bytes.
    pub(crate) payload: Option<Bytes>,
    pub(crate) received_at: Timestamp,
    pub(crate) headers: PackedHeaders,
    bytes: usize,
}

/// Why a record is no event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Malformed {
    #[error(transparent)]
    Payload(#[from] DecodeError),
    #[error("the record has no value")]
    Empty,
    #[error("the record's key is {key}, but its user is {user}; producers must key by user_id")]
    ForeignKey { key: String, user: Uuid },
}

impl RawRecord {
    pub(crate) fn copy(message: &BorrowedMessage<'_>) -> RawRecord {
        // Kafka's CreateTime was set by the front door when it accepted the webhook; a redelivery of the record
        // carries the same. A replayed dead letter says in a header when that was.
        let received_at = message
            .headers()
            .and_then(accepted_at)
            .or_else(|| time_of(message))
            .filter(|_| !mutants::is(Mutant::TimeRegenerated))
            .unwrap_or_else(no_time);
        // One piece of memory for all of it.
        let (key, payload) = (message.key(), message.payload());
        let header_bytes = message.headers().map_or(0, PackedHeaders::size);
        let (key_bytes, payload_bytes) = (message.key_len(), message.payload_len());
        let mut all = Vec::with_capacity(key_bytes + payload_bytes + header_bytes);
        all.extend_from_slice(key.unwrap_or_default());
        all.extend_from_slice(payload.unwrap_or_default());
        PackedHeaders::pack(
            &mut all,
            message
                .headers()
                .into_iter()
                .flat_map(BorrowedHeaders::iter),
        );
        let mut rest = Bytes::from(all);
        let key_copy = rest.split_to(key_bytes);
        let payload_copy = rest.split_to(payload_bytes);
        RawRecord {
            bytes: RECORD_BYTES + key_bytes + payload_bytes + header_bytes,
            offset: message.offset(),
            key: key.map(|_| key_copy),
            payload: payload.map(|_| payload_copy),
            received_at,
            headers: PackedHeaders::new(rest),
        }
    }

    /// A record as it was before it waited in a database; nobody counts its bytes.
    pub(crate) fn again(
        offset: i64,
        key: Option<Bytes>,
        payload: Bytes,
        received_at: Timestamp,
        headers: PackedHeaders,
    ) -> RawRecord {
        RawRecord {
            bytes: 0,
            offset,
            key,
            payload: Some(payload),
            received_at,
            headers,
        }
    }

    /// The user that the key names, if it is a uuid in text.
    pub(crate) fn key_user(&self) -> Option<Uuid> {
        self.key
            .as_deref()
            .and_then(|key| Uuid::try_parse_ascii(key).ok())
    }

    /// What it takes in memory, about, with the event that it is decoded to.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn decode(&self, source: Source) -> Result<Event, Malformed> {
        let payload = self.payload.as_ref().filter(|payload| !payload.is_empty());
        let payload = payload.ok_or(Malformed::Empty)?;
        let event = Event::decode(source, payload.clone(), self.received_at)?;
        match &self.key {
            Some(key) if self.key_user() != Some(event.user_id) => Err(Malformed::ForeignKey {
                key: String::from_utf8_lossy(key).into_owned(),
                user: event.user_id,
            }),
            // A record without a key came from a foreign producer: its user decides.
            _ => Ok(event),
        }
    }
}

/// Of a record that says nothing of its time.
fn no_time() -> Timestamp {
    if mutants::is(Mutant::TimeRegenerated) {
        return Timestamp::now();
    }
    Timestamp::UNIX_EPOCH
}

/// The time that Kafka keeps with a record.
pub(crate) fn time_of(message: &BorrowedMessage<'_>) -> Option<Timestamp> {
    let millis = message.timestamp().to_millis()?;
    Timestamp::from_millisecond(millis).ok()
}

fn accepted_at(headers: &BorrowedHeaders) -> Option<Timestamp> {
    let header = headers
        .iter()
        .find(|header| header.key == HEADER_ACCEPTED_AT)?;
    std::str::from_utf8(header.value?).ok()?.parse().ok()
}
