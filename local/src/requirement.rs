//! Tests that need a server: run, skip visibly, or fail where the server is promised.

use std::io::Write;

use crate::missing::{
    Missing, chromium_available, citus_available, kafka_available, partman_available,
    postgres_available, promtool_available, schemathesis_available,
};

/// A server that a test may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requirement {
    /// PostgreSQL.
    Postgres,
    /// PostgreSQL with pg_partman.
    Partman,
    /// PostgreSQL with Citus.
    Citus,
    /// Apache Kafka.
    Kafka,
    /// Prometheus's promtool. A tool and no server, so `all` does not name it.
    Promtool,
    /// A browser without a window. A tool too.
    Chromium,
    /// schemathesis, which tries an OpenAPI document on its server. A tool too.
    Schemathesis,
}

impl Requirement {
    /// The name that `SHARDLANE_REQUIRE` uses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Requirement::Postgres => "postgres",
            Requirement::Partman => "partman",
            Requirement::Citus => "citus",
            Requirement::Kafka => "kafka",
            Requirement::Promtool => "promtool",
            Requirement::Chromium => "chromium",
            Requirement::Schemathesis => "schemathesis",
        }
    }

    /// Is it here?
    ///
    /// # Errors
    /// [`Missing`] says what is not there and how to get it.
    pub fn check(self) -> Result<(), Missing> {
        match self {
            Requirement::Postgres => postgres_available(),
            Requirement::Partman => partman_available(),
            Requirement::Citus => citus_available(),
            Requirement::Kafka => kafka_available(),
            Requirement::Promtool => promtool_available(),
            Requirement::Chromium => chromium_available(),
            Requirement::Schemathesis => schemathesis_available(),
        }
    }

    /// `Some` if `found` is there. Otherwise prints `skipped: <test>: <reason>` past the test
    /// harness's capture and returns `None`.
    ///
    /// # Panics
    /// When `SHARDLANE_REQUIRE` (a comma list, or `all`) names this requirement.
    pub fn or_skip<T>(self, found: Result<T, Missing>) -> Option<T> {
        let missing = match found {
            Ok(found) => return Some(found),
            Err(missing) => missing,
        };
        let promised = std::env::var("SHARDLANE_REQUIRE").unwrap_or_default();
        let promised = promised.split(',').map(str::trim).any(|name| {
            let is_tool = matches!(
                self,
                Requirement::Promtool | Requirement::Chromium | Requirement::Schemathesis
            );
            !is_tool && name.eq_ignore_ascii_case("all") || name.eq_ignore_ascii_case(self.name())
        });
        assert!(
            !promised,
            "SHARDLANE_REQUIRE names {}, but {missing}",
            self.name()
        );
        let thread = std::thread::current();
        let line = format!("skipped: {}: {missing}\n", thread.name().unwrap_or("test"));
        // `eprintln!` would be captured and shown for a failing test only.
        std::io::stderr().write_all(line.as_bytes()).ok();
        None
    }
}

/// `Some` if the component (`postgres`, `partman`, `citus`, `kafka`, `promtool`, `chromium`, `schemathesis`) is here; otherwise the
/// test is skipped with one printed line. The test's name is its thread's name.
///
/// ```no_run
/// # fn test() {
/// let Some(()) = shardlane_local::require("citus") else { return };
/// # }
/// ```
///
/// # Panics
/// When `SHARDLANE_REQUIRE` names the component and it is missing, or when there is no such
/// component.
pub fn require(component: &str) -> Option<()> {
    let requirement = match component {
        "postgres" => Requirement::Postgres,
        "partman" => Requirement::Partman,
        "citus" => Requirement::Citus,
        "kafka" => Requirement::Kafka,
        "promtool" => Requirement::Promtool,
        "chromium" => Requirement::Chromium,
        "schemathesis" => Requirement::Schemathesis,
        unknown => {
            panic!(
                "no such component: {unknown}; known: postgres, partman, citus, kafka, promtool, chromium, schemathesis"
            )
        }
    };
    requirement.or_skip(requirement.check())
}
