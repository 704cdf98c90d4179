//! Finding a Java that Kafka can run on.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::missing::Missing;

const MAJOR_MIN: u32 = 17;

#[derive(Debug, Clone)]
pub(crate) struct Java {
    pub(crate) program: PathBuf,
    /// The exact build, such as `17.0.15+6-Debian-1deb12u1`.
    pub(crate) build: String,
}

/// `$JAVA_HOME/bin/java`, else `java`.
pub(crate) fn find() -> Result<Java, Missing> {
    static FOUND: OnceLock<Result<Java, Missing>> = OnceLock::new();
    FOUND.get_or_init(ask).clone()
}

fn ask() -> Result<Java, Missing> {
    let program = match std::env::var_os("JAVA_HOME").filter(|home| !home.is_empty()) {
        Some(home) => PathBuf::from(home).join("bin/java"),
        None => "java".into(),
    };
    let none = || Missing::Java {
        found: "none".into(),
    };
    let answer = Command::new(&program)
        .args(["-XshowSettings:properties", "-version"])
        .output()
        .map_err(|_| none())?;
    let answer = String::from_utf8_lossy(&answer.stderr).into_owned();
    let property = |name: &str| {
        let mut lines = answer.lines().filter_map(|line| line.split_once(" = "));
        lines
            .find(|(key, _)| key.trim() == name)
            .map(|(_, value)| value.trim().to_owned())
    };
    let version = property("java.specification.version").ok_or_else(none)?;
    // Before 9 it was "1.8".
    if version.parse::<u32>().is_ok_and(|major| major >= MAJOR_MIN) {
        let build = property("java.vm.version").unwrap_or(version);
        let sound = |c: char| {
            if c.is_ascii_alphanumeric() || "+-._".contains(c) {
                c
            } else {
                '_'
            }
        };
        Ok(Java {
            program,
            build: build.chars().map(sound).collect(),
        })
    } else {
        Err(Missing::Java { found: version })
    }
}
