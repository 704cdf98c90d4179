//! `--compose` where something is missing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

const HERE: &str = env!("CARGO_MANIFEST_DIR");

#[track_caller]
fn refused(path: &Path, arguments: &[&str], parts: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_shardlane"))
        .args(arguments)
        .current_dir(HERE)
        .env("PATH", path)
        .output()
        .unwrap();
    let sentence = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{sentence}");
    for part in parts {
        assert!(sentence.contains(part), "{part:?} is not in: {sentence}");
    }
}

/// A folder for `PATH` in which `docker` is this script.
fn docker(script: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("docker");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

#[test]
fn what_is_missing_is_named_and_how_to_get_it() {
    let nothing = tempfile::tempdir().unwrap();
    for command in ["up", "status", "down"] {
        refused(
            nothing.path(),
            &[command, "--compose"],
            &[
                "docker: not installed here",
                "https://docs.docker.com/engine/install/",
            ],
        );
    }
    let without_plugin = docker("echo \"docker: 'compose' is not a docker command.\" >&2; exit 1");
    refused(
        without_plugin.path(),
        &["up", "--compose"],
        &["no Compose plugin", "2.24"],
    );
    let old = docker("echo 2.5.1");
    refused(old.path(), &["up", "--compose"], &["is 2.5.1", "2.24"]);
    let engineless = docker(
        r#"[ "$1" = compose ] && echo 2.40.0 && exit 0; echo "is the daemon running?" >&2; exit 1"#,
    );
    refused(
        engineless.path(),
        &["up", "--compose"],
        &[
            "its engine does not answer (is the daemon running?)",
            "systemctl start docker",
        ],
    );
    refused(
        engineless.path(),
        &["up", "--compose", "--compose-folder", "docs"],
        &["docs has no compose.yaml", "--compose-folder"],
    );
}

#[test]
fn profiles_are_for_containers() {
    refused(
        Path::new("/nowhere"),
        &["up", "--profile", "observe"],
        &["--compose"],
    );
}
