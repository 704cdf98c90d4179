//! The router's hash against the servers it claims to agree with: Postgres, and Citus where it is installed.
//!
//! 10,000 seeded random keys of each type, a few round trips each. The golden vectors in `router` hold on machines
//! without a server; this holds for keys that nobody chose.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shardlane_router::{RouteKey, Token, TokenHash, lookup3};
use shardlane_sql::Layout;
use shardlane_sql::testing::TestDb;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

const KEYS: usize = 10_000;
/// Beyond two blocks of 12 bytes, so that each length of a tail is met behind no, one and two blocks.
const TEXT_BYTES_MAX: usize = 40;

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

fn uuids() -> Vec<Uuid> {
    let mut rng = rng(1);
    let random = (0..KEYS).map(|_| uuid::Builder::from_random_bytes(rng.random()).into_uuid());
    // Not only version 4: any 16 bytes are a uuid to Postgres.
    let mut rng = self::rng(2);
    let any = (0..KEYS).map(|_| Uuid::from_bytes(rng.random()));
    random
        .chain(any)
        .chain([Uuid::nil(), Uuid::max()])
        .collect()
}

fn integers() -> Vec<i64> {
    let mut rng = rng(3);
    // Of every width: most random 64-bit numbers are large.
    let random = (0..KEYS).map(|_| rng.random::<i64>() >> rng.random_range(0..64));
    random
        .chain([
            0,
            1,
            -1,
            i64::MIN,
            i64::MAX,
            1 << 32,
            -(1 << 32),
            i64::from(i32::MIN),
        ])
        .collect()
}

/// Texts of every length in bytes from 0 on, ASCII and of chars of one to four bytes. Never NUL, which Postgres's
/// text does not hold.
fn texts() -> Vec<String> {
    let mut rng = rng(4);
    let texts: Vec<String> = (0..KEYS)
        .map(|nth| text(&mut rng, nth % (TEXT_BYTES_MAX + 1), nth % 3 == 0))
        .collect();
    for length in 0..=25 {
        assert!(
            texts
                .iter()
                .any(|text| text.len() == length && text.is_ascii()),
            "an ASCII text of {length} bytes"
        );
        let wide = texts
            .iter()
            .any(|text| text.len() == length && !text.is_ascii());
        assert!(wide || length < 2, "a multi-byte text of {length} bytes");
    }
    texts
}

fn text(rng: &mut ChaCha8Rng, bytes: usize, ascii: bool) -> String {
    let mut text = String::new();
    while text.len() < bytes {
        let top = match rng.random_range(0..4) {
            _ if ascii => 0x7f,
            0 => 0x7f,
            1 => 0x7ff,
            2 => 0xffff,
            _ => 0x10_ffff,
        };
        // Surrogates are no chars: drawn again.
        let Some(char) = char::from_u32(rng.random_range(1..=top)) else {
            continue;
        };
        if text.len() + char.len_utf8() <= bytes {
            text.push(char);
        }
    }
    text
}

/// A key with its Postgres type.
trait Key: std::fmt::Debug + ToSql + Sync {
    const TYPE: &str;
}

impl Key for Uuid {
    const TYPE: &str = "uuid";
}

impl Key for i64 {
    const TYPE: &str = "int8";
}

impl Key for i32 {
    const TYPE: &str = "int4";
}

impl Key for i16 {
    const TYPE: &str = "int2";
}

impl Key for String {
    const TYPE: &str = "text";
}

/// Asks `select <expression of k> from {keys}` for all keys at once, and compares one by one.
async fn check<K, A>(client: &Client, keys: &[K], asked: &str, ours: impl Fn(&K) -> A)
where
    K: Key,
    A: for<'a> tokio_postgres::types::FromSql<'a> + PartialEq + std::fmt::Debug,
{
    let sql = asked.replace(
        "{keys}",
        &format!("unnest($1::{}[]) with ordinality as t (k, nth)", K::TYPE),
    );
    let rows = client
        .query(&format!("{sql} order by nth"), &[&keys])
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    assert_eq!(rows.len(), keys.len(), "{sql}");
    for (row, key) in rows.iter().zip(keys) {
        let theirs: A = row.get(0);
        assert_eq!(
            ours(key),
            theirs,
            "ours and the server's answer for {key:?}: {sql}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hashes_are_postgres_own() {
    let Some(db) = TestDb::new(Layout::Single).await else {
        return;
    };
    let client = db.client(0).await;
    check(
        &client,
        &uuids(),
        "select uuid_hash(k) from {keys}",
        lookup3::hash_uuid,
    )
    .await;
    check(
        &client,
        &integers(),
        "select hashint8(k) from {keys}",
        |k| lookup3::hash_int8(*k),
    )
    .await;
    let text = "select hashtext(k collate \"C\") from {keys}";
    check(&client, &texts(), text, |k| lookup3::hash_text(k)).await;
    // Any deterministic collation hashes the bytes; the database's own is one.
    check(&client, &texts(), "select hashtext(k) from {keys}", |k| {
        lookup3::hash_text(k)
    })
    .await;

    // "hashint4 and hashint2 of the same value agree", which is why they are all routed as int8.
    let mut rng = rng(5);
    let int4: Vec<i32> = (0..KEYS).map(|_| rng.random()).collect();
    let int2: Vec<i16> = (0..KEYS).map(|_| rng.random()).collect();
    check(&client, &int4, "select hashint4(k) from {keys}", |k| {
        lookup3::hash_int8((*k).into())
    })
    .await;
    check(&client, &int2, "select hashint2(k) from {keys}", |k| {
        lookup3::hash_int8((*k).into())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_is_the_one_that_a_check_computes() {
    let Some(db) = TestDb::new(Layout::Single).await else {
        return;
    };
    let client = db.client(0).await;
    let slot = |key: RouteKey<'_>| i64::from(TokenHash::Postgres.token(&key).slot().number());
    let formula = |hash: &str| format!("select (({hash}::int8 + 2147483648) >> 20) from {{keys}}");
    check(&client, &uuids(), &formula("uuid_hash(k)"), |k| {
        slot(RouteKey::Uuid(*k))
    })
    .await;
    check(&client, &integers(), &formula("hashint8(k)"), |k| {
        slot(RouteKey::Int8(*k))
    })
    .await;
    check(&client, &texts(), &formula("hashtext(k)"), |k| {
        slot(RouteKey::Text(k))
    })
    .await;

    // The formula alone, at each slot's first and last hash.
    let ends: Vec<i32> = shardlane_router::Slot::all()
        .flat_map(|slot| <[i32; 2]>::from(slot.key_range().hash_bounds()))
        .collect();
    check(&client, &ends, &formula("k"), |hash| {
        i64::from(Token::from_hash(*hash).slot().number())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hashes_are_those_by_which_citus_distributes() {
    let Some(db) = TestDb::new(Layout::Citus).await else {
        return;
    };
    let client = db.client(0).await;
    check(
        &client,
        &uuids(),
        "select worker_hash(k) from {keys}",
        lookup3::hash_uuid,
    )
    .await;
    check(
        &client,
        &integers(),
        "select worker_hash(k) from {keys}",
        |k| lookup3::hash_int8(*k),
    )
    .await;
    check(
        &client,
        &texts(),
        "select worker_hash(k) from {keys}",
        |k| lookup3::hash_text(k),
    )
    .await;
}
