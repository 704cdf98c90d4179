//! `shardlane doctor`: what this machine has not, and how to get it.

use std::process::{Command, ExitCode};

use clap::Args;
use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use serde::Serialize;
use shardlane_local::{
    Missing, chromium_available, citus_available, kafka_available, partman_available,
    postgres_available, promtool_available,
};

/// Say what is not installed here, what needs it, and how to get it; exits with 1 if PostgreSQL or Kafka is missing
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One thing that something needs.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    needed_for: &'static str,
    /// Nothing of ours works without it.
    required: bool,
    /// How to get it, where it is not there.
    missing: Option<String>,
}

impl Finding {
    fn of(name: &'static str, needed_for: &'static str, found: Result<(), Missing>) -> Finding {
        let missing = found.err().map(|missing| missing.to_string());
        Finding {
            name,
            needed_for,
            required: matches!(name, "postgres" | "kafka"),
            missing,
        }
    }

    fn program(
        name: &'static str,
        needed_for: &'static str,
        arguments: &[&str],
        get: &str,
    ) -> Finding {
        let answers = Command::new(name)
            .args(arguments)
            .output()
            .is_ok_and(|output| output.status.success());
        let missing = (!answers).then(|| get.to_owned());
        Finding {
            name,
            needed_for,
            required: false,
            missing,
        }
    }
}

fn findings() -> Vec<Finding> {
    vec![
        Finding::of("postgres", "up, experiments, tests", postgres_available()),
        Finding::of("kafka", "up --kafka, experiments, tests", kafka_available()),
        Finding::of("partman", "the layout partman", partman_available()),
        Finding::of("citus", "the layout citus", citus_available()),
        Finding::of(
            "chromium",
            "the test of the live page",
            chromium_available(),
        ),
        Finding::of("promtool", "the tests of the rules", promtool_available()),
        Finding::program(
            "docker",
            "compose/",
            &["compose", "version"],
            "docker: no answer to `docker compose version`; install Docker Engine and its Compose plugin, 2.24 or newer",
        ),
    ]
}

impl DoctorArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        // It starts programs and waits for them.
        let findings = tokio::task::spawn_blocking(findings).await?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&findings)?);
        } else {
            let mut table = Table::new();
            table.load_style(ASCII_MARKDOWN);
            table.set_header(["what", "here", "needed for"]);
            for finding in &findings {
                let here = if finding.missing.is_none() {
                    "yes"
                } else {
                    "no"
                };
                table.add_row([finding.name, here, finding.needed_for]);
            }
            println!("{table}");
            for missing in findings
                .iter()
                .filter_map(|finding| finding.missing.as_ref())
            {
                println!("{missing}");
            }
        }
        let complete = findings
            .iter()
            .all(|it| !it.required || it.missing.is_none());
        Ok(if complete {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}
