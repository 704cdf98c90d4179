//! The schemes against their definitions: Standard Webhooks' own crate, and a digest by another language's library.

use standardwebhooks::Webhook;

use super::secret::key;
use super::*;

const BODY: &[u8] = br#"{"id":"evt_1","object":"event"}"#;
const NOW: i64 = 1_700_000_000;
/// Base64 of 24 and of 32 bytes.
const OLD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEW: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD0QRm3k3nF5I=";
const STRANGER: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
const STRIPE_SECRET: &str = "whsec_stripe_test_secret_0123456789";
/// Python: `hmac.new(STRIPE_SECRET, b"1700000000." + BODY, "sha256").hexdigest()`.
const STRIPE_DIGEST: &str = "bae762c097bd914b71dfef766f94630f5688cda4dfb078b82b416fc39b2c5373";

fn verifier(scheme: Scheme, secrets: &[&str]) -> Verifier {
    Verifier::On {
        scheme,
        secrets: secrets
            .iter()
            .map(|text| key(scheme, text, "the test".into()).unwrap())
            .collect(),
        tolerance: Duration::from_secs(300),
    }
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, value.parse().unwrap());
    }
    headers
}

/// Claim and check, as the door does it at `now`.
fn verify(
    verifier: &Verifier,
    headers: &HeaderMap,
    now: i64,
    body: &[u8],
) -> Result<(), NotAuthentic> {
    let claim = verifier.claim(headers, Timestamp::from_second(now).unwrap())?;
    verifier.check(claim.as_ref(), body)
}

fn signed(secret: &str, at: i64) -> String {
    Webhook::new(secret)
        .unwrap()
        .sign("msg_1", at, BODY)
        .unwrap()
}

fn standard(at: i64, signature: &str) -> HeaderMap {
    headers(&[
        (standard::ID, "msg_1"),
        (standard::TIMESTAMP, &at.to_string()),
        (standard::SIGNATURE, signature),
    ])
}

#[test]
fn what_the_reference_signs_is_authentic_and_nothing_else_is() {
    let ours = verifier(Scheme::Standard, &[OLD]);
    let good = signed(OLD, NOW);
    let check = |headers: &HeaderMap, body: &[u8], expect| {
        assert_eq!(verify(&ours, headers, NOW, body), expect, "{headers:?}");
    };
    check(&standard(NOW, &good), BODY, Ok(()));
    let no_match = Err(NotAuthentic::NoMatch);
    check(&standard(NOW, &good), b"{}", no_match);
    check(&standard(NOW + 1, &good), BODY, no_match);
    check(&standard(NOW, &signed(STRANGER, NOW)), BODY, no_match);
    for signature in [
        "v1,",
        "v1",
        ",",
        "v1,AAAA",
        &good.replace("v1,", "v2,"),
        &good.replace("v1,", "v1a,"),
        &good.replace("v1,", "V1,"),
        &good.replace("v1,", ""),
        &good[..good.len() - 4],
    ] {
        check(&standard(NOW, signature), BODY, no_match);
    }
    let other_id = headers(&[
        (standard::ID, "msg_2"),
        (standard::TIMESTAMP, &NOW.to_string()),
        (standard::SIGNATURE, &good),
    ]);
    check(&other_id, BODY, no_match);
}

#[test]
fn the_reference_takes_what_we_take_for_any_body_and_id() {
    use proptest::prelude::*;
    let ours = verifier(Scheme::Standard, &[NEW]);
    let reference = Webhook::new(NEW).unwrap();
    // The reference has a clock of its own.
    let now = Timestamp::now().as_second();
    proptest!(|(body in ".{0,200}", id in "[!-~]{1,40}", flip in any::<bool>())| {
        let mut signature = reference.sign(&id, now, body.as_bytes()).unwrap();
        if flip {
            let other = if signature.as_bytes()[9] == b'A' { "B" } else { "A" };
            signature.replace_range(9..10, other);
        }
        let headers = headers(&[
            (standard::ID, &id),
            (standard::TIMESTAMP, &now.to_string()),
            (standard::SIGNATURE, &signature),
        ]);
        let theirs = reference.verify(body.as_bytes(), &headers).is_ok();
        prop_assert_eq!(verify(&ours, &headers, now, body.as_bytes()).is_ok(), theirs);
        prop_assert_eq!(theirs, !flip);
    });
}

#[test]
fn while_keys_rotate_both_fit_and_a_revoked_one_does_not() {
    let (old, new) = (signed(OLD, NOW), signed(NEW, NOW));
    let both = format!("{old} v1a,c3RyYW5nZQ== {new}");
    for (secrets, signature, expect) in [
        (&[OLD, NEW][..], &old, Ok(())),
        (&[OLD, NEW], &new, Ok(())),
        (&[OLD, NEW], &both, Ok(())),
        (&[NEW], &both, Ok(())),
        (&[OLD], &both, Ok(())),
        (&[NEW], &old, Err(NotAuthentic::NoMatch)),
        (&[STRANGER], &both, Err(NotAuthentic::NoMatch)),
    ] {
        let ours = verifier(Scheme::Standard, secrets);
        assert_eq!(verify(&ours, &standard(NOW, signature), NOW, BODY), expect);
    }
    // A signature beyond the bound is not looked at, however good.
    let far = format!("{}{new}", "v1,AAAA ".repeat(40));
    let many = format!("{}{new}", format!("{old} ").repeat(SIGNATURES_MAX));
    let ours = verifier(Scheme::Standard, &[NEW]);
    assert_eq!(verify(&ours, &standard(NOW, &far), NOW, BODY), Ok(()));
    assert_eq!(
        verify(&ours, &standard(NOW, &many), NOW, BODY),
        Err(NotAuthentic::NoMatch)
    );
}

#[test]
fn a_timestamp_counts_for_300_seconds_either_way() {
    let too_old = Err(NotAuthentic::TooOld { seconds: 300 });
    let too_new = Err(NotAuthentic::TooNew { seconds: 300 });
    for (age, expect) in [
        (0, Ok(())),
        (299, Ok(())),
        (300, Ok(())),
        (301, too_old),
        (NOW, too_old),
        (-299, Ok(())),
        (-300, Ok(())),
        (-301, too_new),
        (NOW - i64::MAX, too_new),
    ] {
        let at = NOW - age;
        let ours = verifier(Scheme::Standard, &[OLD]);
        let headers = standard(at, &signed(OLD, at));
        assert_eq!(verify(&ours, &headers, NOW, BODY), expect, "{age} s");
    }
    let ours = verifier(Scheme::Stripe, &[STRIPE_SECRET]);
    for (now, expect) in [
        (NOW + 300, Ok(())),
        (NOW + 301, too_old),
        (NOW - 300, Ok(())),
        (NOW - 301, too_new),
    ] {
        let headers = headers(&[(stripe::SIGNATURE, &format!("t={NOW},v1={STRIPE_DIGEST}"))]);
        assert_eq!(verify(&ours, &headers, now, BODY), expect, "{now}");
    }
}

#[test]
fn a_header_that_is_missing_doubled_or_unreadable_is_named() {
    let ours = verifier(Scheme::Standard, &[OLD]);
    let good = standard(NOW, &signed(OLD, NOW));
    for name in [standard::ID, standard::TIMESTAMP, standard::SIGNATURE] {
        let mut missing = good.clone();
        missing.remove(name);
        let mut doubled = good.clone();
        doubled.append(name, good[name].clone());
        let mut empty = good.clone();
        empty.insert(name, "".parse().unwrap());
        let mut binary = good.clone();
        binary.insert(name, HeaderValue::from_bytes(b"\xff\xfe").unwrap());
        let mut long = good.clone();
        long.insert(name, "1".repeat(HEADER_BYTES_MAX + 1).parse().unwrap());
        for (headers, expect) in [
            (missing, NotAuthentic::Missing(name)),
            (doubled, NotAuthentic::Doubled(name)),
            (empty, NotAuthentic::Unreadable(name)),
            (binary, NotAuthentic::Unreadable(name)),
            (long, NotAuthentic::Unreadable(name)),
        ] {
            assert_eq!(verify(&ours, &headers, NOW, BODY), Err(expect));
        }
    }
    for at in [
        "+1700000000",
        " 1700000000",
        "-1",
        "1700000000.0",
        "1e9",
        "soon",
        "99999999999999999999",
    ] {
        let mut headers = good.clone();
        headers.insert(standard::TIMESTAMP, at.parse().unwrap());
        assert!(verify(&ours, &headers, NOW, BODY).is_err(), "{at}");
    }
}

#[test]
fn stripes_scheme_fits_its_definition() {
    let ours = verifier(Scheme::Stripe, &[STRIPE_SECRET]);
    let bad = "0".repeat(64);
    let unreadable = Err(NotAuthentic::Unreadable(stripe::SIGNATURE));
    for (value, expect) in [
        (format!("t={NOW},v1={STRIPE_DIGEST}"), Ok(())),
        (
            format!("t={NOW}, v1={bad}, v1={STRIPE_DIGEST}, v0={bad}"),
            Ok(()),
        ),
        (format!("t={NOW},v1={bad}"), Err(NotAuthentic::NoMatch)),
        (
            format!("t={NOW},v0={STRIPE_DIGEST}"),
            Err(NotAuthentic::NoMatch),
        ),
        (
            format!("t={},v1={STRIPE_DIGEST}", NOW + 1),
            Err(NotAuthentic::NoMatch),
        ),
        (format!("t={NOW},t={NOW},v1={STRIPE_DIGEST}"), unreadable),
        (format!("v1={STRIPE_DIGEST}"), unreadable),
        ("rubbish".to_owned(), unreadable),
    ] {
        let headers = headers(&[(stripe::SIGNATURE, &value)]);
        assert_eq!(verify(&ours, &headers, NOW, BODY), expect, "{value}");
    }
    // A signature of the one scheme is none of the other.
    let standard = standard(NOW, &signed(OLD, NOW));
    assert_eq!(
        verify(&ours, &standard, NOW, BODY),
        Err(NotAuthentic::Missing(stripe::SIGNATURE))
    );
}

#[test]
fn a_secret_is_read_from_a_file_or_refused_without_being_quoted() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let from = SecretFrom::File(file.path().to_owned());
    let write = |text: &str| std::fs::write(file.path(), text).unwrap();
    write(&format!("{OLD}\n"));
    let secret = from.read(Scheme::Standard).unwrap();
    assert_eq!(secret.expose_secret().len(), 24);
    assert!(!format!("{secret:?}").contains("MfKQ"), "{secret:?}");
    for (scheme, text) in [
        (Scheme::Standard, ""),
        (Scheme::Standard, "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        (Scheme::Standard, "whsec_MfKQ9r8GKYqr"),
        (Scheme::Standard, "whsec_MfKQ 9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        (Scheme::Stripe, "MfKQ"),
    ] {
        write(text);
        let error = from.read(scheme).unwrap_err().to_string();
        assert!(!error.contains("MfKQ"), "{error}");
        assert!(error.contains("copy the secret whole"), "{error}");
    }
    let absent = SecretFrom::Env("SHARDLANE_TEST_NO_SUCH_SECRET".into());
    let error = absent.read(Scheme::Standard).unwrap_err().to_string();
    assert!(
        error.contains("SHARDLANE_TEST_NO_SUCH_SECRET; set it"),
        "{error}"
    );
}
