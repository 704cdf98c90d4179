//! Property 1: the golden vectors in `vectors.json`, and what is known to be odd about the hashes.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use shardlane_router::{KeyType, RouteKey, SLOT_COUNT, SlotMap, Token, TokenHash, lookup3};
use uuid::Uuid;

#[derive(Deserialize)]
struct File {
    slot_count: usize,
    /// By the hash's id.
    maps: HashMap<String, SlotMap>,
    vectors: Vec<Vector>,
    refused: Vec<Refused>,
}

#[derive(Deserialize)]
struct Vector {
    hash: String,
    key_type: KeyType,
    key: String,
    hash_i32: i32,
    token: u32,
    slot: u16,
    partition: i32,
    shard: i64,
}

#[derive(Deserialize)]
struct Refused {
    key_type: KeyType,
    key: String,
    why: String,
}

impl Vector {
    /// The empty text is refused as a key, yet has a hash that the port must get right.
    fn key(&self) -> RouteKey<'_> {
        if self.key_type == KeyType::Text {
            RouteKey::Text(&self.key)
        } else {
            RouteKey::parse(self.key_type, &self.key).unwrap()
        }
    }
}

fn file() -> File {
    serde_json::from_str(include_str!("../vectors.json")).unwrap()
}

#[test]
fn every_golden_vector_holds() {
    let file = file();
    assert_eq!(file.slot_count, SLOT_COUNT);
    for vector in &file.vectors {
        let hash = TokenHash::from_id(&vector.hash).unwrap();
        let name = format!("{} {} {:?}", vector.hash, vector.key_type, vector.key);
        let token = hash.token(&vector.key());
        assert_eq!(hash.hash_i32(&vector.key()), vector.hash_i32, "{name}");
        assert_eq!(token.value(), vector.token, "{name}");
        assert_eq!(token.hash_i32(), vector.hash_i32, "{name}");
        assert_eq!(token.slot().number(), vector.slot, "{name}");
        let map = &file.maps[&vector.hash];
        assert_eq!(map.hash(), hash);
        let route = map.route(&vector.key());
        assert_eq!(route.partition.0, vector.partition, "{name}");
        assert_eq!(route.shard.0, vector.shard, "{name}");
    }
}

/// A port that computes the partition by a formula over the count must not pass by chance.
#[test]
fn vectors_meet_every_partition_and_shard_and_no_formula_gives_them() {
    let file = file();
    for (id, map) in &file.maps {
        let vectors: Vec<&Vector> = file.vectors.iter().filter(|v| v.hash == *id).collect();
        let partitions: HashSet<i32> = vectors.iter().map(|v| v.partition).collect();
        assert_eq!(partitions, (0..5).collect(), "{id}");
        assert_eq!(map.partition_count(), 5);
        let shards: HashSet<i64> = vectors.iter().map(|v| v.shard).collect();
        assert!(shards.contains(&0) && shards.contains(&1), "{id}");
        let formulas: [fn(u32) -> u32; 2] = [|slot| slot % 5, |slot| slot * 5 / 4096];
        for formula in formulas {
            let misses = |v: &&&Vector| formula(v.slot.into()) != v.partition.cast_unsigned();
            let missed = vectors.iter().filter(misses).count();
            assert!(missed * 4 > vectors.len(), "{id}: only {missed} differ");
        }
    }
}

#[test]
fn refused_keys_are_refused() {
    let file = file();
    assert!(file.refused.len() >= 20);
    for Refused { key_type, key, why } in &file.refused {
        assert!(
            RouteKey::parse(*key_type, key).is_err(),
            "{key_type} {key:?}: {why}"
        );
    }
}

#[test]
fn vectors_cover_every_type_and_every_tail_length_up_to_three_blocks() {
    let file = file();
    for hash in [TokenHash::Postgres, TokenHash::Murmur3] {
        let of = |kind| {
            let vectors = file.vectors.iter();
            vectors.filter(move |v| v.hash == hash.id() && v.key_type == kind)
        };
        assert!(of(KeyType::Int8).count() >= 12, "{hash}");
        assert!(of(KeyType::Uuid).count() >= 3, "{hash}");
        let lengths: HashSet<usize> = of(KeyType::Text).map(|v| v.key.len()).collect();
        for length in 0..=36 {
            assert!(lengths.contains(&length), "{hash}: text of {length} bytes");
        }
        // Bytes above 0x7f at every place of a block, for languages whose bytes are signed.
        let wide = |v: &&Vector| !v.key.is_ascii();
        let lengths: HashSet<usize> = of(KeyType::Text)
            .filter(wide)
            .map(|v| v.key.len())
            .collect();
        for length in 2..=25 {
            assert!(
                lengths.contains(&length),
                "{hash}: wide text of {length} bytes"
            );
        }
    }
}

#[test]
fn vectors_of_the_design_are_in_the_file_as_written_there() {
    let by_postgres: &[(RouteKey<'_>, i32)] = &[
        (RouteKey::Int8(0), -272_711_505),
        (RouteKey::Int8(1), -1_905_060_026),
        (RouteKey::Int8(2), 1_134_484_726),
        (RouteKey::Int8(3), -28_094_569),
        (RouteKey::Int8(42), 1_509_752_520),
        (RouteKey::Int8(123), -205_084_363),
        (RouteKey::Int8(-1), 385_747_274),
        (RouteKey::Int8(1 << 32), -1_905_060_026),
        (RouteKey::Int8(i64::MAX), -1_524_351_049),
        (RouteKey::Int8(i64::MIN), -96_758_253),
        (RouteKey::Int8(2_608_474_032), i32::MAX),
        (RouteKey::Int8(963_809_240), i32::MIN),
        (RouteKey::Uuid(Uuid::nil()), 1_353_656_403),
        (RouteKey::Text(""), -1_477_818_771),
        (RouteKey::Text("kafka"), -1_712_114_907),
        (RouteKey::Text("user-1"), -558_825_088),
        (RouteKey::Text("42"), 1_865_074_622),
        (RouteKey::Text("hello world!"), 1_400_155_871),
        (RouteKey::Text("é"), -983_094_517),
    ];
    let file = file();
    for (key, expected) in by_postgres {
        assert_eq!(TokenHash::Postgres.hash_i32(key), *expected, "{key}");
        assert!(
            file.vectors
                .iter()
                .any(|v| v.hash == TokenHash::Postgres.id()
                    && v.key() == *key
                    && v.hash_i32 == *expected),
            "{key} is missing from vectors.json"
        );
    }
    let murmur3 = |key: RouteKey<'_>| TokenHash::Murmur3.hash_i32(&key).cast_unsigned();
    let user = Uuid::parse_str("550e8400-e29b-41d4-a716-446655440000").unwrap();
    assert_eq!(murmur3(RouteKey::Text("user-1")), 4_171_401_059);
    assert_eq!(murmur3(RouteKey::Int8(1)), 1_392_991_556);
    assert_eq!(murmur3(RouteKey::Uuid(user)), 3_062_766_882);
}

#[test]
fn fixed_size_functions_agree_with_the_one_for_bytes() {
    for n in 0..1_000_u128 {
        let uuid = Uuid::from_u128(n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
        assert_eq!(
            lookup3::hash_uuid(&uuid),
            lookup3::hash_bytes(uuid.as_bytes()).cast_signed()
        );
    }
    for n in 0..1_000_i64 {
        let number = n.wrapping_mul(0x1e37_79b9_7f4a_7c15);
        let bytes = number.to_le_bytes();
        let by_crate = murmurhash32::murmurhash3_with_seed::<0>(&bytes);
        let key = RouteKey::Int8(number);
        assert_eq!(TokenHash::Murmur3.hash_i32(&key).cast_unsigned(), by_crate);
        let uuid = Uuid::from_u128(u128::from(number.unsigned_abs()) << 50);
        let by_crate = murmurhash32::murmurhash3_with_seed::<0>(uuid.as_bytes());
        let key = RouteKey::Uuid(uuid);
        assert_eq!(TokenHash::Murmur3.hash_i32(&key).cast_unsigned(), by_crate);
    }
    // hashint8 is hash_uint32 of the folded value, which is not the hash of four bytes; -1 and 0
    // fold to the same magnitude and must differ all the same.
    assert_ne!(lookup3::hash_int8(-1), lookup3::hash_int8(0));
}

#[test]
fn known_weakness_hashint8_folds_its_halves() {
    let folded: HashSet<i32> = (0..90_000_i64)
        .map(|k| lookup3::hash_int8(k << 32 | k))
        .collect();
    assert_eq!(folded.len(), 1, "every k << 32 | k has the hash of 0");
    assert!(folded.contains(&lookup3::hash_int8(0)));

    // 300 tenants with 300 rows each, numbered `tenant << 32 | sequence`.
    let by_tenant: HashSet<i32> = (0..300_i64)
        .flat_map(|tenant| (0..300_i64).map(move |sequence| tenant << 32 | sequence))
        .map(lookup3::hash_int8)
        .collect();
    assert_eq!(by_tenant.len(), 512, "90,000 ids, 512 hashes");

    let as_uuid: HashSet<i32> = (0..90_000_u128)
        .map(|k| lookup3::hash_uuid(&Uuid::from_u128(k << 32 | k)))
        .collect();
    assert!(as_uuid.len() > 89_990, "uuid_hash reads every byte");
}

#[test]
fn tokens_keep_the_order_of_signed_hashes() {
    let hashes = [i32::MIN, i32::MIN + 1, -1, 0, 1, i32::MAX - 1, i32::MAX];
    let tokens = hashes.map(Token::from_hash);
    assert!(tokens.is_sorted());
    assert_eq!(
        (tokens[0], tokens[3], tokens[6]),
        (Token::MIN, Token::new(1 << 31), Token::MAX)
    );
}

#[test]
fn hash_ids_and_names_are_frozen() {
    for (hash, id, name) in [
        (TokenHash::Postgres, "pg-lookup3-1", "postgres"),
        (TokenHash::Murmur3, "murmur3-x86-32-seed0-1", "murmur3"),
    ] {
        assert_eq!(hash.id(), id);
        assert_eq!(hash.to_string(), name);
        assert_eq!(name.parse(), Ok(hash));
        assert_eq!(TokenHash::from_id(id), Ok(hash));
        assert_eq!(serde_json::to_string(&hash).unwrap(), format!("\"{name}\""));
    }
    assert_eq!(TokenHash::default(), TokenHash::Postgres);
    assert!("Postgres".parse::<TokenHash>().is_err());
    assert!(TokenHash::from_id("postgres").is_err());
}

/// The bench compares with Kafka's murmur2; these are the vectors of Kafka's own `UtilsTest`.
#[test]
fn the_murmur2_of_the_bench_is_kafkas() {
    for (key, expected) in [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        (
            "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
            -58_897_971,
        ),
        ("abc", 479_470_107),
    ] {
        let hash = murmur2::murmur2(key.as_bytes(), murmur2::KAFKA_SEED);
        assert_eq!(hash.cast_signed(), expected, "{key}");
    }
}

/// Two implementations of other authors, over every length.
#[test]
fn murmur3_agrees_with_two_other_crates() {
    let bytes: String = ('a'..='z').cycle().take(100).collect();
    for length in 0..bytes.len() {
        let text = &bytes[..length];
        let theirs = murmur3::murmur3_32(&mut text.as_bytes(), 0).unwrap();
        let ours = TokenHash::Murmur3.hash_i32(&RouteKey::Text(text));
        assert_eq!(ours.cast_unsigned(), theirs, "{length} bytes");
        let theirs = murmurhash32::murmurhash3_with_seed::<0>(text.as_bytes());
        assert_eq!(ours.cast_unsigned(), theirs, "{length} bytes");
    }
}
