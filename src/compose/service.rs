//! What `docker compose ps` says of a container.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use serde::{Deserialize, Serialize};

const UNKNOWN: &str = "docker compose says what is not known here; is it newer than 2.x?";

/// How a container is, as far as one waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Condition {
    /// Healthy, or has done what it was for.
    Well,
    /// On its way.
    Waits,
    /// Ended with an error.
    Failed,
}

/// One container.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Service {
    /// The service; of several containers of one, with its number.
    pub(super) name: String,
    pub(super) condition: Condition,
    /// In a word or two.
    pub(super) state: String,
    /// host:port on this machine.
    pub(super) addresses: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    service: String,
    name: String,
    state: String,
    #[serde(default)]
    health: String,
    #[serde(default)]
    exit_code: i64,
    publishers: Option<Vec<Publisher>>,
}

#[derive(Deserialize)]
struct Publisher {
    #[serde(rename = "URL")]
    url: String,
    #[serde(rename = "PublishedPort")]
    port: u16,
}

/// The services that are meant to run on and on, out of `docker compose config`.
pub(super) fn lasting(config: &str) -> anyhow::Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Config {
        services: BTreeMap<String, Policy>,
    }
    #[derive(Deserialize)]
    struct Policy {
        restart: Option<String>,
    }
    let config: Config = serde_json::from_str(config).context(UNKNOWN)?;
    let services = config.services.into_iter();
    let lasting = services.filter(|(_, it)| {
        let restart = it.restart.as_deref();
        restart.is_some_and(|it| it == "unless-stopped" || it == "always")
    });
    Ok(lasting.map(|(name, _)| name).collect())
}

/// What `docker compose ps` says: an object a line.
pub(super) fn read(text: &str, lasting: &BTreeSet<String>) -> anyhow::Result<Vec<Service>> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let rows: Vec<Row> = lines
        .map(|line| serde_json::from_str(line).context(UNKNOWN))
        .collect::<anyhow::Result<_>>()?;
    let several = |service: &str| rows.iter().filter(|row| row.service == service).count() > 1;
    let mut services: Vec<Service> = rows
        .iter()
        .map(|row| {
            let number = row.name.rsplit('-').next().unwrap_or_default();
            let name = if several(&row.service) {
                format!("{}-{number}", row.service)
            } else {
                row.service.clone()
            };
            let (condition, state) = condition(row, lasting.contains(&row.service));
            let published = row.publishers.iter().flatten().filter(|it| it.port != 0);
            let mut addresses: Vec<String> = published
                .map(|it| format!("{}:{}", it.url, it.port))
                .collect();
            addresses.dedup();
            Service {
                name,
                condition,
                state,
                addresses,
            }
        })
        .collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(services)
}

fn condition(row: &Row, lasts: bool) -> (Condition, String) {
    match (&*row.state, &*row.health) {
        ("running", "healthy" | "") => (Condition::Well, "is well".to_owned()),
        ("exited", _) if row.exit_code == 0 && lasts => {
            (Condition::Failed, "is stopped".to_owned())
        }
        ("exited", _) if row.exit_code == 0 => (Condition::Well, "is done".to_owned()),
        ("exited" | "dead", _) => (Condition::Failed, format!("has failed ({})", row.exit_code)),
        // An unhealthy one may get well.
        ("running", health) => (Condition::Waits, health.to_owned()),
        (state, _) => (Condition::Waits, state.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(row: &str, condition: Condition, state: &str) {
        let line = format!(r#"{{"Service":"kafka","Name":"shardlane-kafka-1",{row}}}"#);
        let service = &read(&line, &BTreeSet::new()).unwrap()[0];
        assert_eq!(
            (service.condition, &*service.state),
            (condition, state),
            "{row}"
        );
    }

    #[test]
    fn what_one_waits_for() {
        check(
            r#""State":"running","Health":"healthy""#,
            Condition::Well,
            "is well",
        );
        check(
            r#""State":"running","Health":"""#,
            Condition::Well,
            "is well",
        );
        check(
            r#""State":"running","Health":"starting""#,
            Condition::Waits,
            "starting",
        );
        check(
            r#""State":"running","Health":"unhealthy""#,
            Condition::Waits,
            "unhealthy",
        );
        check(r#""State":"created""#, Condition::Waits, "created");
        check(
            r#""State":"restarting","ExitCode":2"#,
            Condition::Waits,
            "restarting",
        );
        check(
            r#""State":"exited","ExitCode":0"#,
            Condition::Well,
            "is done",
        );
        check(
            r#""State":"exited","ExitCode":2"#,
            Condition::Failed,
            "has failed (2)",
        );
    }

    #[test]
    fn a_server_that_has_ended_is_not_done() {
        let config = r#"{"services":{"db":{"restart":"unless-stopped"},"migrate":{"restart":"on-failure:5"},"x":{}}}"#;
        let lasting = lasting(config).unwrap();
        let ended = |service| {
            let line =
                format!(r#"{{"Service":"{service}","Name":"s-{service}-1","State":"exited"}}"#);
            read(&line, &lasting).unwrap()[0].condition
        };
        assert_eq!(ended("db"), Condition::Failed);
        assert_eq!(ended("migrate"), Condition::Well);
    }

    #[test]
    fn several_of_a_service_have_numbers_and_ports_are_said_once() {
        let text = r#"
            {"Service":"citus-worker","Name":"shardlane-citus-worker-2","State":"running","Publishers":null}
            {"Service":"citus-worker","Name":"shardlane-citus-worker-1","State":"running","Publishers":[{"URL":"","TargetPort":5432,"PublishedPort":0}]}
            {"Service":"ingest","Name":"shardlane-ingest-1","State":"running","Publishers":[{"URL":"127.0.0.1","TargetPort":8080,"PublishedPort":8080},{"URL":"127.0.0.1","TargetPort":8080,"PublishedPort":8080}]}
        "#;
        let services = read(text, &BTreeSet::new()).unwrap();
        let names: Vec<&str> = services.iter().map(|it| &*it.name).collect();
        assert_eq!(names, ["citus-worker-1", "citus-worker-2", "ingest"]);
        assert_eq!(services[0].addresses, [""; 0]);
        assert_eq!(services[2].addresses, ["127.0.0.1:8080"]);
    }
}
