//! A Kafka record as a lane takes it.

use bytes::Bytes;
use jiff::Timestamp;
use rdkafka::Message;
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Header, Headers as _, OwnedHeaders};
use shardlane_domain::{DecodeError, Event, Source};
use uuid::Uuid;

use crate::HEADER_ACCEPTED_AT;

/// What a record takes besides its bytes: the structs, the decoded event's own texts, allocations.
const RECORD_BYTES: usize = 768;
/// What a header takes besides its bytes.
const HEADER_BYTES: usize = 64;

/// A record copied out of the client's buffers; its topic and partition are the lane's.
#[derive(Debug, Clone)]
pub(crate) struct RawRecord {
    pub(crate) offset: i64,
    pub(crate) key: Option<Bytes>,
    /// `None` is Kafka's null, which is not the same as no bytes.
    pub(crate) payload: Option<Bytes>,
    pub(crate) received_at: Timestamp,
    pub(crate) headers: Option<OwnedHeaders>,
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
            .unwrap_or(Timestamp::UNIX_EPOCH);
        let headers = message.headers();
        let header_bytes = headers.map_or(0, |headers| {
            let bytes = |header: Header<'_, &[u8]>| {
                header.key.len() + header.value.map_or(0, <[u8]>::len) + HEADER_BYTES
            };
            headers.iter().map(bytes).sum()
        });
        RawRecord {
            bytes: RECORD_BYTES + message.key_len() + message.payload_len() + header_bytes,
            offset: message.offset(),
            key: message.key().map(Bytes::copy_from_slice),
            payload: message.payload().map(Bytes::copy_from_slice),
            received_at,
            headers: headers.map(BorrowedHeaders::detach),
        }
    }

    /// A record as it was before it waited in a database; nobody counts its bytes.
    pub(crate) fn again(
        offset: i64,
        key: Option<Bytes>,
        payload: Bytes,
        received_at: Timestamp,
        headers: OwnedHeaders,
    ) -> RawRecord {
        RawRecord {
            bytes: 0,
            offset,
            key,
            payload: Some(payload),
            received_at,
            headers: Some(headers),
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
