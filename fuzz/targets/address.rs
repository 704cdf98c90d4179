//! The address, which is read without building a tree, against the tree: who the user is decides the shard.
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
use shardlane_domain::{Event, Source};
use shardlane_router::{RouteKey, TokenHash};
use uuid::Uuid;

const LIMITS: JsonLimits = JsonLimits {
    depth_max: 32,
    string_bytes_max: 16 * 1024,
};

fuzz_target!(|data: &[u8]| {
    // What the door does not take gets no address.
    let Ok(tree) = parse(data, LIMITS) else {
        return;
    };
    for source in Source::ALL {
        let payload = Bytes::copy_from_slice(data);
        let Ok(event) = Event::decode(*source, payload, Timestamp::UNIX_EPOCH) else {
            continue;
        };
        let text = |pointer: &str| tree.pointer(pointer).and_then(|it| it.as_str());
        let own = text("/provider_event_id");
        let user = text(if own.is_some() {
            "/user_id"
        } else {
            "/metadata/user_id"
        });
        assert_eq!(
            user.and_then(|it| Uuid::try_parse(it).ok()),
            Some(event.user_id)
        );
        assert_eq!(text("/order_id"), Some(&*event.order_id));
        match own {
            Some(id) => assert_eq!(id, event.event_id),
            None => {
                let (transaction, status) = (text("/transaction_id"), text("/status"));
                let id = format!("payment:{}:{}", transaction.unwrap(), status.unwrap());
                assert_eq!(id, event.event_id);
            }
        }
        // However the user is written, the place is the same.
        let key = RouteKey::Uuid(event.user_id);
        let again = RouteKey::Uuid(event.user_id.hyphenated().to_string().parse().unwrap());
        let token = |key| TokenHash::Postgres.token(key).value();
        assert_eq!(token(&key), token(&again));
    }
});
