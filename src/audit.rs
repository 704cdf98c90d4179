//! `shardlane audit`: is everything where the map says?

use std::fmt::Display;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::Value;
use shardlane_router::SlotMap;
use shardlane_sql::audit::{Repaired, Severity, inspect, repair};
use shardlane_worker::{RECORDS_MAX, TopicAudit, TopicSet, audit_topics};

use crate::backend::{BackendArgs, MapArgs};

/// Find rows on the wrong shard, slots with no owner or two, records in foreign partitions, tables that drifted
///
/// Exits with 1 if something is not as it should be, or was left so by --fix.
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    map: MapArgs,
    /// Kafka bootstrap servers; without them the topics are not looked at
    #[arg(long, env = "SHARDLANE_KAFKA", value_name = "HOST:PORT")]
    kafka: Option<String>,
    /// Prefix of the topics' names
    #[arg(long, default_value = "")]
    prefix: String,
    /// Records of each partition that are looked at, the newest ones
    #[arg(long, value_name = "N", default_value_t = RECORDS_MAX, value_parser = clap::value_parser!(u64).range(1..))]
    records_max: u64,
    /// Look at all records
    #[arg(long, conflicts_with = "records_max")]
    all: bool,
    /// Repair what is safe to repair, and say what was done
    #[arg(long)]
    fix: bool,
    /// Print JSON: an array of findings and repairs, each with a `kind`
    #[arg(long)]
    json: bool,
}

/// A line of the answer.
struct Line {
    /// damage, information or repaired.
    severity: &'static str,
    sentence: String,
    /// Its fields.
    value: Value,
}

impl Line {
    fn new(
        severity: &'static str,
        item: &(impl Display + serde::Serialize),
    ) -> anyhow::Result<Line> {
        let sentence = item.to_string();
        let mut value = serde_json::to_value(item)?;
        if let Some(fields) = value.as_object_mut() {
            fields.insert("severity".to_owned(), severity.into());
            fields.insert("message".to_owned(), sentence.clone().into());
        }
        Ok(Line {
            severity,
            sentence,
            value,
        })
    }
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Damage => "damage",
        Severity::Information => "information",
    }
}

impl AuditArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let map = self.map.read(self.backend.shards())?;
        let backend = self.backend.backend(&map)?;
        let Repaired { repairs, left } = if self.fix {
            repair(&backend).await?
        } else {
            Repaired {
                repairs: Vec::new(),
                left: inspect(&backend).await?,
            }
        };
        let mut lines = Vec::new();
        for repair in &repairs {
            lines.push(Line::new("repaired", repair)?);
        }
        for finding in &left {
            lines.push(Line::new(word(finding.severity()), finding)?);
        }
        lines.extend(self.topics(map).await?);
        self.print(&lines)?;
        let is_clean = lines.iter().all(|line| line.severity != "damage");
        Ok(ExitCode::from(u8::from(!is_clean)))
    }

    async fn topics(&self, map: SlotMap) -> anyhow::Result<Vec<Line>> {
        let Some(bootstrap) = self.kafka.clone() else {
            return Ok(Vec::new());
        };
        let topics = TopicSet::with_prefix(&self.prefix);
        // The map in the topic is the one that placed the records, where there is one.
        let watch = self.map.follow(&bootstrap, &topics, &map).await?;
        let audit = TopicAudit {
            bootstrap,
            topics,
            map: watch.snapshot().document.map().clone(),
            records_max: (!self.all).then_some(self.records_max),
        };
        let findings = tokio::task::spawn_blocking(move || audit_topics(&audit))
            .await
            .context("the audit of the topics ended early")??;
        let lines = findings.iter();
        lines
            .map(|finding| Line::new(word(finding.severity()), finding))
            .collect()
    }

    fn print(&self, lines: &[Line]) -> anyhow::Result<()> {
        if self.json {
            let values: Vec<&Value> = lines.iter().map(|line| &line.value).collect();
            println!("{}", serde_json::to_string_pretty(&values)?);
            return Ok(());
        }
        for line in lines {
            println!("{:11}  {}", line.severity, line.sentence);
        }
        let count = |severity| lines.iter().filter(|it| it.severity == severity).count();
        println!(
            "{} repaired, {} damaged, {} for information",
            count("repaired"),
            count("damage"),
            count("information")
        );
        Ok(())
    }
}
