//! `check_vectors.py`, which follows the words of the how-to and uses none of our code, agrees with
//! `vectors.json`; and it would notice if it did not.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/check_vectors.py");

/// None, with a visible line, where there is no Python 3.
fn check(file: Option<&Path>) -> Option<Output> {
    // -B: no __pycache__ in the sources.
    let version = Command::new("python3").args(["-B", "--version"]).output();
    if !version.is_ok_and(|found| found.status.success()) {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("test");
        let line = format!("skipped: {name}: python3 is not installed\n");
        // `eprintln!` would be captured and shown for a failing test only.
        std::io::stderr().write_all(line.as_bytes()).ok();
        return None;
    }
    let mut command = Command::new("python3");
    command.args(["-B", SCRIPT]).args(file);
    Some(command.output().unwrap())
}

/// What the script says of `vectors.json` after a change.
fn check_changed(change: impl Fn(&mut Value)) -> Option<(Option<i32>, String)> {
    let mut file: Value = serde_json::from_str(include_str!("../vectors.json")).unwrap();
    change(&mut file);
    let copy = tempfile::NamedTempFile::new().unwrap();
    serde_json::to_writer(copy.as_file(), &file).unwrap();
    let output = check(Some(copy.path()))?;
    let said = String::from_utf8(output.stdout).unwrap();
    Some((output.status.code(), said))
}

#[test]
fn python_agrees_with_every_vector() {
    let Some(output) = check(None) else { return };
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.ends_with(", 0 differences\n"), "{said}");
}

#[test]
fn python_notices_each_changed_field() {
    for field in ["hash_i32", "token", "slot", "partition", "shard"] {
        let changed = check_changed(|file| {
            let vector = file["vectors"].as_array_mut().unwrap().last_mut().unwrap();
            vector[field] = json!(vector[field].as_i64().unwrap() ^ 1);
        });
        let Some((code, said)) = changed else { return };
        assert_eq!(code, Some(1), "{field}: {said}");
        assert!(said.contains(&format!(": {field} is ")), "{said}");
        assert!(said.ends_with(", 1 differences\n"), "{said}");
    }
}

#[test]
fn python_notices_a_key_that_should_not_be_refused() {
    let changed = check_changed(|file| {
        file["refused"][0] = json!({"key_type": "int8", "key": "42", "why": "it is not"});
    });
    let Some((code, said)) = changed else { return };
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("int8 '42' was read as 42"), "{said}");
}

#[test]
fn python_takes_an_empty_file_for_a_mistake() {
    let Some((code, said)) = check_changed(|file| file["vectors"] = json!([])) else {
        return;
    };
    assert_eq!(code, Some(1), "{said}");
}
