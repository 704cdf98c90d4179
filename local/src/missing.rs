//! What is not installed here, and how to get it.

use std::process::Command;
use std::sync::OnceLock;

use crate::{java, kafka_jars, pg_bin::PgBin, run_as::RunAs};

/// Something that a server needs and this machine has not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// No PostgreSQL server binaries.
    #[error(
        "postgres: not installed here: no initdb and postgres in $SHARDLANE_PG_BIN, in the system's places or beside pg_config; on Debian install the package postgresql"
    )]
    Postgres,

    /// Postgres refuses to run as root, and there is no other user to run it as.
    #[error(
        "postgres: does not run as root and there is no user {name} here; install the package postgresql, which creates it, or name a user in SHARDLANE_POSTGRES_USER"
    )]
    PostgresUser {
        /// The user that was looked for.
        name: String,
    },

    /// No pg_partman for the Postgres that was found.
    #[error(
        "partman: pg_partman is not installed here for PostgreSQL {major}; on Debian install the package postgresql-{major}-partman"
    )]
    Partman {
        /// Major version of the Postgres that was found.
        major: u32,
    },

    /// No Citus for the Postgres that was found.
    #[error(
        "citus: not installed here (for PostgreSQL {major}); install it from Citus's official packages (postgresql-{major}-citus-<version>) or build it from source"
    )]
    Citus {
        /// Major version of the Postgres that was found.
        major: u32,
    },

    /// No Java, or one that is too old for Kafka.
    #[error(
        "kafka: needs Java 17 or later and found {found}; on Debian install the package openjdk-17-jre-headless, or set JAVA_HOME"
    )]
    Java {
        /// What was found: a version, or "none".
        found: String,
    },

    /// Kafka's jars are not in the cache, and there is no Maven to fetch them.
    #[error(
        "kafka: its jars are not in {cache} and there is no Maven to fetch them; on Debian install the package maven"
    )]
    Maven {
        /// The cache folder.
        cache: String,
    },

    /// Maven could not fetch Kafka's jars.
    #[error(
        "kafka: Maven could not fetch the jars (is the network or its mirror reachable?):\n{detail}"
    )]
    KafkaJars {
        /// Maven's last words.
        detail: String,
    },

    /// No promtool in `PATH`.
    #[error("promtool: not installed here; on Debian install the package prometheus")]
    Promtool,

    /// No Chromium in `PATH`.
    #[error("chromium: not installed here; on Debian install the package chromium")]
    Chromium,

    /// No schemathesis in `PATH`.
    #[error("schemathesis: not installed here; install it with pip install schemathesis")]
    Schemathesis,
}

/// Is there a PostgreSQL that can be started here?
///
/// # Errors
/// [`Missing`] says what is not there and how to get it.
pub fn postgres_available() -> Result<(), Missing> {
    static FOUND: OnceLock<Result<(), Missing>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            PgBin::find()?;
            RunAs::for_postgres()?;
            Ok(())
        })
        .clone()
}

/// Has that PostgreSQL the Citus extension?
///
/// # Errors
/// [`Missing`] says what is not there and how to get it.
pub fn citus_available() -> Result<(), Missing> {
    static FOUND: OnceLock<Result<(), Missing>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            postgres_available()?;
            let bin = PgBin::find()?;
            if bin.has_extension("citus") && bin.has_library("citus") {
                Ok(())
            } else {
                Err(Missing::Citus { major: bin.major })
            }
        })
        .clone()
}

/// Has that PostgreSQL the pg_partman extension and its background worker?
///
/// # Errors
/// [`Missing`] says what is not there and how to get it.
pub fn partman_available() -> Result<(), Missing> {
    static FOUND: OnceLock<Result<(), Missing>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            postgres_available()?;
            let bin = PgBin::find()?;
            if bin.has_extension("pg_partman") && bin.has_library("pg_partman_bgw") {
                Ok(())
            } else {
                Err(Missing::Partman { major: bin.major })
            }
        })
        .clone()
}

/// Are there a Java for Kafka, and its jars or the Maven to fetch them?
///
/// Does not go to the network: a start may still end with [`Missing::KafkaJars`].
///
/// # Errors
/// [`Missing`] says what is not there and how to get it.
pub fn kafka_available() -> Result<(), Missing> {
    static FOUND: OnceLock<Result<(), Missing>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            java::find()?;
            kafka_jars::obtainable()
        })
        .clone()
}

/// Is there a promtool?
///
/// # Errors
/// [`Missing`] says how to get it.
pub fn promtool_available() -> Result<(), Missing> {
    let asked = Command::new("promtool").arg("--version").output();
    asked.map(drop).map_err(|_| Missing::Promtool)
}

/// Is there a Chromium?
///
/// # Errors
/// [`Missing::Chromium`].
pub fn chromium_available() -> Result<(), Missing> {
    let asked = Command::new("chromium").arg("--version").output();
    asked.map(drop).map_err(|_| Missing::Chromium)
}

/// Is there a schemathesis?
///
/// # Errors
/// [`Missing::Schemathesis`].
pub fn schemathesis_available() -> Result<(), Missing> {
    let asked = Command::new("schemathesis").arg("--version").output();
    asked.map(drop).map_err(|_| Missing::Schemathesis)
}
