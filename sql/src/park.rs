//! Events that wait in the database: how they are written down, and how they are read again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use shardlane_domain::{Event, Source};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::fold::RejectReason;
use crate::rows::RawJson;
use crate::stage::Origin;

/// How long, and how many, events may wait.
#[derive(Debug, Clone, Copy)]
pub struct ParkLimits {
    /// An event that is still too early after this time becomes a dead letter.
    pub park_max: Duration,
    /// How many events of one user and source may wait; one more is a dead letter at once. 0: none waits.
    pub park_rows_max: usize,
}

impl Default for ParkLimits {
    fn default() -> Self {
        ParkLimits {
            park_max: Duration::from_secs(600),
            park_rows_max: 1_000,
        }
    }
}

/// A header of a Kafka record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub key: String,
    /// `None` is Kafka's null.
    pub value: Option<Bytes>,
}

/// What a record carries beside its event: a dead letter must have it again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Carried {
    /// The record's key.
    pub key: Option<Bytes>,
    /// The record's headers, in order.
    pub headers: Vec<Header>,
}

/// A parked event that became a dead letter: keep it elsewhere before [`Staged::commit`](crate::Staged::commit).
#[derive(Debug, Clone)]
pub struct ParkedLetter {
    /// The event, with its bytes as they came.
    pub event: Event,
    /// Where it stood in Kafka; `None` if it came in direct mode.
    pub origin: Option<Origin>,
    /// Key and headers as they came.
    pub carried: Carried,
    /// Since when it waited.
    pub parked_at: Timestamp,
    /// Why.
    pub reason: RejectReason,
}

/// How many bytes of parked events one transaction reads at most; the sweep goes on with the rest.
const LOAD_BYTES_MAX: i64 = 8 * 1024 * 1024;

/// A row of `parked`.
pub(crate) struct Parked {
    pub(crate) user_id: Uuid,
    pub(crate) source: Source,
    pub(crate) seq: i64,
    /// Places are taken again once a queue was empty: only with its event is one the same.
    pub(crate) event_id: String,
    pub(crate) order_id: String,
    pub(crate) opens: bool,
    pub(crate) deadline: Timestamp,
    bytes: i64,
    /// Read only where the queue may move.
    pub(crate) content: Option<Content>,
}

/// What a row of `parked` carries.
pub(crate) struct Content {
    pub(crate) event: Event,
    pub(crate) origin: Option<Origin>,
    carried: Carried,
    parked_at: Timestamp,
}

impl Parked {
    /// A row of `read_parked.sql`; `None` for a source that this version does not know.
    fn from_row(row: &Row) -> Option<Parked> {
        Some(Parked {
            user_id: row.get(0),
            source: Source::from_text(row.get(1))?,
            seq: row.get(2),
            order_id: row.get(3),
            opens: row.get(4),
            bytes: i64::from(row.get::<_, i32>(5)),
            deadline: row.get(6),
            event_id: row.get(7),
            content: None,
        })
    }

    /// A row of a simulated shard.
    #[cfg(test)]
    pub(crate) fn simulated(record: &crate::stage::Record, seq: i64, deadline: Timestamp) -> Self {
        let event = &record.event;
        Parked {
            user_id: event.user_id,
            source: event.source,
            seq,
            event_id: record.event.event_id.clone(),
            order_id: event.order_id.clone(),
            opens: event.opens(),
            deadline,
            bytes: i64::try_from(event.payload.len()).unwrap(),
            content: None,
        }
    }

    /// What [`fill`] does for a row of a simulated shard.
    #[cfg(test)]
    pub(crate) fn load(&mut self, record: &crate::stage::Record) {
        self.content = Some(Content {
            event: record.event.clone(),
            origin: record.origin.clone(),
            carried: Carried::default(),
            parked_at: Timestamp::UNIX_EPOCH,
        });
    }

    pub(crate) fn letter(&self, reason: RejectReason) -> Option<ParkedLetter> {
        let content = self.content.as_ref()?;
        Some(ParkedLetter {
            event: content.event.clone(),
            origin: content.origin.clone(),
            carried: content.carried.clone(),
            parked_at: content.parked_at,
            reason,
        })
    }
}

/// The rows of `read_parked.sql`, each queue in its order.
pub(crate) fn queues(rows: &[Row]) -> Vec<Parked> {
    let mut parked: Vec<Parked> = rows.iter().filter_map(Parked::from_row).collect();
    parked.sort_unstable_by_key(|it| (it.user_id, it.source, it.seq));
    parked
}

/// The keys of the rows whose content is wanted: of each queue of these users the first ones.
pub(crate) fn wanted(parked: &[Parked], may_move: impl Fn(Uuid) -> bool) -> ParkedKeys<'_> {
    let mut bytes = 0;
    let mut keys = ParkedKeys::default();
    for it in parked.iter().filter(|it| may_move(it.user_id)) {
        if bytes > LOAD_BYTES_MAX {
            break;
        }
        bytes += it.bytes;
        keys.push(it);
    }
    keys
}

/// Rows of `parked`, one array a column.
#[derive(Default)]
pub(crate) struct ParkedKeys<'a> {
    pub(crate) users: Vec<Uuid>,
    pub(crate) sources: Vec<&'static str>,
    pub(crate) seqs: Vec<i64>,
    pub(crate) events: Vec<&'a str>,
}

impl<'a> ParkedKeys<'a> {
    pub(crate) fn push(&mut self, parked: &'a Parked) {
        self.users.push(parked.user_id);
        self.sources.push(parked.source.as_str());
        self.seqs.push(parked.seq);
        self.events.push(&parked.event_id);
    }

    pub(crate) fn params(&self) -> [&(dyn ToSql + Sync); 4] {
        [&self.users, &self.sources, &self.seqs, &self.events]
    }
}

/// Takes the rows of `load_parked.sql`.
pub(crate) fn fill(parked: &mut [Parked], rows: &[Row]) {
    let mut contents: HashMap<(Uuid, &str, i64), &Row> = rows
        .iter()
        .map(|row| ((row.get(0), row.get(1), row.get(2)), row))
        .collect();
    for it in parked {
        let row = contents.remove(&(it.user_id, it.source.as_str(), it.seq));
        it.content = row.and_then(|row| content(it, row));
    }
}

/// `None`, and the event stays where it is, if this version cannot read it.
fn content(parked: &Parked, row: &Row) -> Option<Content> {
    let payload = Bytes::copy_from_slice(row.get::<_, &str>(10).as_bytes());
    let (user, source, seq) = (parked.user_id, parked.source, parked.seq);
    let event = Event::decode(source, payload, row.get(8));
    let carried = carried(row.get(6), row.get(7));
    let (event, carried) = match (event, carried) {
        (Ok(event), Some(carried)) => (event, carried),
        (event, _) => {
            let error = event.err().map(|error| error.to_string());
            tracing::error!(%user, %source, seq, error, "a parked event cannot be read; was it written by a newer version?");
            return None;
        }
    };
    let place: (Option<&str>, Option<i32>, Option<i64>) = (row.get(3), row.get(4), row.get(5));
    let origin = match place {
        (Some(topic), Some(partition), Some(offset)) => Some(Origin {
            topic: Arc::from(topic),
            partition,
            offset,
        }),
        _ => None,
    };
    Some(Content {
        event,
        origin,
        carried,
        parked_at: row.get(9),
    })
}

fn carried(key: Option<&[u8]>, headers: &str) -> Option<Carried> {
    let headers: Vec<(String, Value)> = serde_json::from_str(headers).ok()?;
    let value = |value: Value| match value {
        Value::Null => Some(None),
        Value::String(text) => Some(Some(Bytes::from(text))),
        other => {
            let bytes = BASE64.decode(other["base64"].as_str()?).ok()?;
            Some(Some(Bytes::from(bytes)))
        }
    };
    Some(Carried {
        key: key.map(Bytes::copy_from_slice),
        headers: headers
            .into_iter()
            .map(|(key, it)| {
                Some(Header {
                    key,
                    value: value(it)?,
                })
            })
            .collect::<Option<_>>()?,
    })
}

/// As the column `headers` has them. jsonb holds no NUL.
fn headers_json(headers: &[Header]) -> Value {
    let value = |bytes: &Bytes| match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => json!(text),
        _ => json!({"base64": BASE64.encode(bytes)}),
    };
    headers
        .iter()
        .map(|header| json!([header.key, header.value.as_ref().map(value)]))
        .collect()
}

/// Parameters of `insert_parked.sql`.
#[derive(Default)]
pub(crate) struct ParkedRows<'a> {
    pub(crate) user_id: Vec<Uuid>,
    source: Vec<&'static str>,
    seq: Vec<i64>,
    event_id: Vec<&'a str>,
    order_id: Vec<&'a str>,
    opens: Vec<bool>,
    bytes: Vec<i32>,
    topic: Vec<Option<&'a str>>,
    partition: Vec<Option<i32>>,
    offset: Vec<Option<i64>>,
    record_key: Vec<Option<Vec<u8>>>,
    headers: Vec<Value>,
    received_at: Vec<Timestamp>,
    parked_at: Vec<Timestamp>,
    deadline: Vec<Timestamp>,
    payload: Vec<RawJson<'a>>,
}

impl<'a> ParkedRows<'a> {
    pub(crate) fn push(
        &mut self,
        event: &'a Event,
        origin: Option<&'a Origin>,
        carried: &Carried,
        seq: i64,
        (parked_at, deadline): (Timestamp, Timestamp),
    ) {
        let value = |header: &Header| header.value.as_ref().map_or(0, Bytes::len);
        let headers = carried.headers.iter();
        let bytes = event.payload.len()
            + carried.key.as_ref().map_or(0, Bytes::len)
            + headers.map(|it| it.key.len() + value(it)).sum::<usize>();
        self.user_id.push(event.user_id);
        self.source.push(event.source.as_str());
        self.seq.push(seq);
        self.event_id.push(&event.event_id);
        self.order_id.push(&event.order_id);
        self.opens.push(event.opens());
        self.bytes.push(i32::try_from(bytes).unwrap_or(i32::MAX));
        self.topic.push(origin.map(|origin| &*origin.topic));
        self.partition.push(origin.map(|origin| origin.partition));
        self.offset.push(origin.map(|origin| origin.offset));
        self.record_key
            .push(carried.key.as_ref().map(|key| key.to_vec()));
        self.headers.push(headers_json(&carried.headers));
        self.received_at.push(event.received_at);
        self.parked_at.push(parked_at);
        self.deadline.push(deadline);
        self.payload.push(RawJson(event.payload[..].into()));
    }

    pub(crate) fn params(&self) -> [&(dyn ToSql + Sync); 16] {
        [
            &self.user_id,
            &self.source,
            &self.seq,
            &self.event_id,
            &self.order_id,
            &self.opens,
            &self.bytes,
            &self.topic,
            &self.partition,
            &self.offset,
            &self.record_key,
            &self.headers,
            &self.received_at,
            &self.parked_at,
            &self.deadline,
            &self.payload,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_and_headers_come_back_as_they_were() {
        let header = |key: &str, value: Option<&'static [u8]>| Header {
            key: key.to_owned(),
            value: value.map(Bytes::from_static),
        };
        let headers = vec![
            header("traceparent", Some(b"00-aa-bb-01")),
            header("traceparent", Some(b"")),
            header("none", None),
            header("no text", Some(b"\xff\x00\xfe")),
            header("nul", Some(b"a\0b")),
            header("json", Some(br#"{"base64": "no"}"#)),
        ];
        let text = headers_json(&headers).to_string();
        assert!(!text.contains("\\u0000"), "{text}");
        for key in [None, Some(&b"k\0"[..])] {
            let expected = Carried {
                key: key.map(Bytes::copy_from_slice),
                headers: headers.clone(),
            };
            assert_eq!(carried(key, &text), Some(expected));
        }
    }
}
