//! Any bytes as a body: nothing panics, and what the strict reader takes is the JSON that everybody else reads.
#![no_main]

#[allow(
    dead_code,
    unused_imports,
    reason = "the door's own file, of which a target uses a part"
)]
#[path = "../../ingest/src/json.rs"]
mod json;

use bytes::Bytes;
use jiff::Timestamp;
use json::{JsonLimits, parse};
use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use serde_json::Value;
use shardlane_domain::{Event, Source};

const LIMITS: JsonLimits = JsonLimits {
    depth_max: 32,
    string_bytes_max: 16 * 1024,
};

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(elements) => 1 + elements.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fuzz_target!(|data: &[u8]| {
    match parse(data, LIMITS) {
        Ok(value) => {
            assert_eq!(
                serde_json::from_slice::<Value>(data).ok().as_ref(),
                Some(&value)
            );
            assert!(depth(&value) <= LIMITS.depth_max);
        }
        // What has no place is no JSON at all. (The first thing that is wrong is told: what has a place may be none either.)
        Err(flaw) => {
            let text = std::str::from_utf8(data);
            let is_json = text.is_ok_and(|it| serde_json::from_str::<IgnoredAny>(it).is_ok());
            assert!(flaw.pointer.is_some() || !is_json, "{flaw}");
        }
    }
    for source in Source::ALL {
        let payload = Bytes::copy_from_slice(data);
        match Event::decode(*source, payload, Timestamp::UNIX_EPOCH) {
            Ok(event) => {
                assert_eq!(event.payload, data);
                // What is stored must be text to PostgreSQL.
                for text in [&event.event_id, &event.order_id] {
                    assert!((1..=255).contains(&text.len()) && !text.contains('\0'));
                }
            }
            Err(error) => drop(error.pointer()),
        }
    }
});
