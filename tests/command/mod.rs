//! Our program, as a shell would start it that has no variables of ours.

use std::process::{Command, Stdio};

pub(crate) fn shardlane(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shardlane"));
    command
        .args(arguments)
        .env_remove("SHARDLANE_CONFIG")
        .env_remove("SHARDLANE_KAFKA")
        .env_remove("SHARDLANE_DATABASE")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}
