//! Property 8: chi-square uniformity over the 4096 slots.
//!
//! With 4095 degrees of freedom chi-square has mean 4095 and standard deviation 90.5; the bound is
//! five of those. The keys are the same in each run, so the test either holds or does not.

mod common;

use common::{Sequence, chi_square};
use shardlane_router::{RouteKey, TokenHash};
use uuid::{Builder, Uuid};

const KEYS: u64 = 200_000;
const CHI_SQUARE_MAX: f64 = 4095.0 + 5.0 * 90.5;

fn check(name: &str, uuids: impl Fn() -> Vec<Uuid>) {
    for hash in [TokenHash::Postgres, TokenHash::Murmur3] {
        let keys = uuids();
        let slots = keys
            .iter()
            .map(|key| hash.token(&RouteKey::Uuid(*key)).slot());
        let found = chi_square(slots);
        assert!(
            found < CHI_SQUARE_MAX,
            "{hash}, {name}: chi-square {found:.0}"
        );
    }
}

#[test]
fn uuid_v4_spreads_evenly() {
    check("v4", || {
        let mut sequence = Sequence(4);
        (0..KEYS)
            .map(|_| Builder::from_random_bytes(sequence.next_bytes()).into_uuid())
            .collect()
    });
}

#[test]
fn uuid_v7_of_a_busy_minute_spreads_evenly() {
    check("v7", || {
        let mut sequence = Sequence(7);
        let start_ms = 1_790_000_000_000;
        (0..KEYS)
            .map(|n| {
                let random = sequence.next_bytes();
                Builder::from_unix_timestamp_millis(start_ms + n / 4, &random).into_uuid()
            })
            .collect()
    });
}

#[test]
fn counted_uuids_spread_evenly() {
    check("counted", || {
        (0..KEYS).map(|n| Uuid::from_u128(u128::from(n))).collect()
    });
}

#[test]
fn sequential_integers_and_texts_spread_evenly() {
    for hash in [TokenHash::Postgres, TokenHash::Murmur3] {
        let integers = (0..KEYS).map(|n| {
            let key = RouteKey::Int8(i64::try_from(n).unwrap());
            hash.token(&key).slot()
        });
        let found = chi_square(integers);
        assert!(
            found < CHI_SQUARE_MAX,
            "{hash}, int8: chi-square {found:.0}"
        );

        let texts = (0..KEYS).map(|n| hash.token(&RouteKey::Text(&format!("user-{n}"))).slot());
        let found = chi_square(texts);
        assert!(
            found < CHI_SQUARE_MAX,
            "{hash}, text: chi-square {found:.0}"
        );
    }
}

/// That the bound can fail: ids of the form `tenant << 32 | sequence` do, under Postgres's int8 hash.
#[test]
fn the_bound_catches_the_folding_of_hashint8() {
    let ids = (0..300_i64).flat_map(|tenant| (0..300_i64).map(move |n| tenant << 32 | n));
    let slots = ids.map(|id| TokenHash::Postgres.token(&RouteKey::Int8(id)).slot());
    assert!(chi_square(slots) > 10.0 * CHI_SQUARE_MAX);
}
