//! Section 7 of the routing facts, as far as it is about keys: bad input has a typed error.

use proptest::prelude::*;
use shardlane_router::{KeyError, KeyType, RouteKey};
use uuid::Uuid;

const USER: &str = "550e8400-e29b-41d4-a716-446655440000";

/// The name of the error's variant, which is what a caller matches on.
fn refusal(kind: KeyType, bytes: &[u8]) -> &'static str {
    match RouteKey::from_bytes(kind, bytes) {
        Ok(_) => "accepted",
        Err(KeyError::Empty) => "Empty",
        Err(KeyError::NotUtf8 { .. }) => "NotUtf8",
        Err(KeyError::NulByte { .. }) => "NulByte",
        Err(KeyError::NotUuid { .. }) => "NotUuid",
        Err(KeyError::NotInteger { .. }) => "NotInteger",
        Err(KeyError::NotCanonicalInteger { .. }) => "NotCanonicalInteger",
        Err(KeyError::IntegerOverflow { .. }) => "IntegerOverflow",
        Err(_) => "another error",
    }
}

#[test]
fn bad_keys_are_refused_each_with_its_own_error() {
    use KeyType::{Int8, Text, Uuid};
    let cases: &[(KeyType, &[u8], &str)] = &[
        (Int8, b"", "Empty"),
        (Int8, b"+5", "NotCanonicalInteger"),
        (Int8, b"007", "NotCanonicalInteger"),
        (Int8, b"-0", "NotCanonicalInteger"),
        (Int8, b"-007", "NotCanonicalInteger"),
        (Int8, b"00", "NotCanonicalInteger"),
        (Int8, b"9223372036854775808", "IntegerOverflow"),
        (Int8, b"-9223372036854775809", "IntegerOverflow"),
        (
            Int8,
            b"99999999999999999999999999999999999999999999",
            "IntegerOverflow",
        ),
        (Int8, b"-", "NotInteger"),
        (Int8, b"--5", "NotInteger"),
        (Int8, b" 5", "NotInteger"),
        (Int8, b"5\n", "NotInteger"),
        (Int8, b"5.0", "NotInteger"),
        (Int8, b"0x10", "NotInteger"),
        (Int8, b"1_000", "NotInteger"),
        (Int8, "\u{0665}".as_bytes(), "NotInteger"),
        (Int8, b"5\0", "NotInteger"),
        (Int8, b"\xff", "NotUtf8"),
        (Int8, &42_i64.to_be_bytes(), "NotInteger"),
        (Uuid, b"", "Empty"),
        (Uuid, b"550e8400e29b41d4a716446655440000", "NotUuid"),
        (Uuid, b"{550e8400-e29b-41d4-a716-446655440000}", "NotUuid"),
        (
            Uuid,
            b"urn:uuid:550e8400-e29b-41d4-a716-446655440000",
            "NotUuid",
        ),
        (Uuid, b"550e8400-e29b-41d4-a716-44665544000", "NotUuid"),
        (Uuid, b"550e8400-e29b-41d4-a716-44665544000g", "NotUuid"),
        (Uuid, b" 50e8400-e29b-41d4-a716-446655440000", "NotUuid"),
        (Uuid, b"550e8400-e29b-41d4-a716-4466554400\0\0", "NotUuid"),
        (Uuid, &[0xff; 16], "NotUtf8"),
        (Text, b"", "Empty"),
        (Text, b"user\x00-1", "NulByte"),
        (Text, b"\0", "NulByte"),
        (Text, b"user-\xc3\x28", "NotUtf8"),
        (Text, b"\xed\xa0\x80", "NotUtf8"),
    ];
    for (kind, bytes, expected) in cases {
        let name = format!("{kind} {:?}", String::from_utf8_lossy(bytes));
        assert_eq!(refusal(*kind, bytes), *expected, "{name}");
    }
}

#[test]
fn good_keys_are_read_as_what_they_mean() {
    for number in [0, 1, -1, 42, i64::MAX, i64::MIN] {
        assert_eq!(
            RouteKey::parse(KeyType::Int8, &number.to_string()),
            Ok(RouteKey::Int8(number))
        );
    }
    let user = Uuid::parse_str(USER).unwrap();
    for text in [USER, &USER.to_uppercase()] {
        assert_eq!(
            RouteKey::parse(KeyType::Uuid, text),
            Ok(RouteKey::Uuid(user))
        );
    }
    for text in ["a", "007", "+5", " blank ", "é", USER] {
        assert_eq!(
            RouteKey::parse(KeyType::Text, text),
            Ok(RouteKey::Text(text))
        );
    }
}

#[test]
fn a_null_key_is_not_an_empty_key() {
    for kind in [KeyType::Uuid, KeyType::Int8, KeyType::Text] {
        assert_eq!(RouteKey::from_kafka_key(kind, None), Err(KeyError::Missing));
        assert_eq!(
            RouteKey::from_kafka_key(kind, Some(b"")),
            Err(KeyError::Empty)
        );
    }
}

#[test]
fn an_uppercase_uuid_as_text_is_another_key() {
    use shardlane_router::TokenHash;
    let upper = USER.to_uppercase();
    let slot_as = |kind, text| {
        let key = RouteKey::parse(kind, text).unwrap();
        TokenHash::Postgres.token(&key).slot()
    };
    assert_eq!(slot_as(KeyType::Uuid, USER), slot_as(KeyType::Uuid, &upper));
    assert_ne!(slot_as(KeyType::Text, USER), slot_as(KeyType::Text, &upper));
}

#[test]
fn errors_say_what_to_do_and_stay_short() {
    let shown = |kind, text: &str| RouteKey::parse(kind, text).unwrap_err().to_string();
    assert_eq!(
        shown(KeyType::Int8, "007"),
        "the key \"007\" is not a canonical integer; write it without plus sign or leading zeros"
    );
    assert_eq!(
        shown(KeyType::Text, "a\u{1b}[0m\0"),
        "the key \"a\\u{1b}[0m\\0\" holds a NUL at byte 5, which Postgres text cannot store; remove it"
    );
    let long = shown(KeyType::Int8, &"é".repeat(1_000_000));
    assert!(long.len() < 250 && long.contains("\"..."), "{long}");
    assert_eq!(
        RouteKey::from_bytes(KeyType::Uuid, b"ab\xff")
            .unwrap_err()
            .to_string(),
        "the key is not UTF-8 after byte 2; produce uuid keys as text, not as raw bytes"
    );
}

#[test]
fn columns_that_hash_otherwise_than_their_bytes_are_refused() {
    let of = KeyType::from_column;
    assert_eq!(of("uuid", true), Ok(KeyType::Uuid));
    for name in ["int8", "bigint", "int4", "integer", "int2", "smallint"] {
        assert_eq!(of(name, true), Ok(KeyType::Int8), "{name}");
    }
    for name in ["text", "varchar", "character varying", "varchar(9)"] {
        assert_eq!(of(name, true), Ok(KeyType::Text), "{name}");
        assert_eq!(
            of(name, false),
            Err(KeyError::NondeterministicCollation),
            "{name}"
        );
    }
    for name in ["char(8)", "character(8)", "bpchar", "character"] {
        assert_eq!(of(name, true), Err(KeyError::PaddedColumn), "{name}");
    }
    for name in [
        "numeric",
        "citext",
        "jsonb",
        "timestamp with time zone",
        "",
        "int8[]",
    ] {
        assert!(
            matches!(of(name, true), Err(KeyError::UnsupportedColumnType { .. })),
            "{name}"
        );
    }
}

#[test]
fn key_types_have_one_name_everywhere() {
    for (kind, name) in [
        (KeyType::Uuid, "uuid"),
        (KeyType::Int8, "int8"),
        (KeyType::Text, "text"),
    ] {
        assert_eq!(kind.to_string(), name);
        assert_eq!(name.parse(), Ok(kind));
        assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{name}\""));
    }
    assert!("bigint".parse::<KeyType>().is_err());
}

proptest! {
    #[test]
    fn what_is_shown_reads_back(number: i64, bytes: [u8; 16], text in "[^\0]{1,40}") {
        for key in [
            RouteKey::Int8(number),
            RouteKey::Uuid(Uuid::from_bytes(bytes)),
            RouteKey::Text(&text),
        ] {
            let shown = key.to_string();
            prop_assert_eq!(RouteKey::parse(key.key_type(), &shown), Ok(key));
        }
    }

    #[test]
    fn an_int8_reads_only_as_it_is_shown(text in "[-+]?[0-9]{0,22}") {
        let shown = text.parse::<i64>().ok().map(|number| number.to_string());
        let expected = shown.as_deref() == Some(text.as_str());
        prop_assert_eq!(RouteKey::parse(KeyType::Int8, &text).is_ok(), expected);
    }

    #[test]
    fn no_bytes_make_reading_panic(bytes: Vec<u8>) {
        for kind in [KeyType::Uuid, KeyType::Int8, KeyType::Text] {
            if let Err(error) = RouteKey::from_bytes(kind, &bytes) {
                prop_assert!(error.to_string().len() < 600);
            }
        }
    }
}
