//! The servers of an experiment, and what they say of themselves.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use futures_util::future::join_all;
use shardlane_local::{Durability, Kafka, KafkaOptions, kafka_available};
use shardlane_sql::Layout;
use shardlane_sql::servers::LayoutServers;
use tokio_postgres::{Client, NoTls};

use crate::results::Skipped;

/// Running servers: the layouts that could start, one broker, and the reasons of the others.
pub(crate) struct Lab {
    pub(crate) layouts: Vec<LayoutServers>,
    pub(crate) kafka: Kafka,
    pub(crate) skipped: Vec<Skipped>,
}

impl Lab {
    /// Starts everything side by side. A layout whose software is not installed is skipped; one that is installed
    /// and does not start is an error.
    pub(crate) async fn start(layouts: &[Layout], shards: usize) -> anyhow::Result<Lab> {
        kafka_available()?;
        let mut skipped = Vec::new();
        let mut wanted = Vec::new();
        for layout in layouts {
            match LayoutServers::available(*layout) {
                Ok(()) => wanted.push(*layout),
                Err(missing) => skipped.push(Skipped {
                    layout: layout.to_string(),
                    reason: missing.to_string(),
                }),
            }
        }
        if wanted.is_empty() {
            let reasons: Vec<String> = skipped
                .iter()
                .map(|skipped| format!("{}: {}", skipped.layout, skipped.reason))
                .collect();
            bail!("no layout can run here: {}", reasons.join("; "));
        }
        let starts = wanted
            .iter()
            .map(|layout| LayoutServers::start(*layout, Durability::Durable, shards, &[]));
        let (kafka, layouts) =
            futures_util::join!(Kafka::start(KafkaOptions::default()), join_all(starts));
        let layouts = layouts
            .into_iter()
            .zip(&wanted)
            .map(|(servers, layout)| {
                servers.with_context(|| format!("layout {layout} did not start"))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Lab {
            layouts,
            kafka: kafka.context("Kafka did not start")?,
            skipped,
        })
    }

    /// Those of a layout.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn servers(&self, layout: Layout) -> anyhow::Result<&LayoutServers> {
        let mut running = self.layouts.iter();
        let found = running.find(|servers| servers.layout() == layout);
        found.with_context(|| format!("layout {layout} does not run"))
    }

    /// Versions of what runs.
    pub(crate) async fn versions(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut versions = BTreeMap::from([
            ("shardlane".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            (
                "kafka".to_owned(),
                shardlane_local::KAFKA_VERSION.to_owned(),
            ),
            (
                "librdkafka".to_owned(),
                rdkafka::util::get_rdkafka_version().1,
            ),
        ]);
        for servers in &self.layouts {
            let Some(node) = servers.nodes().first().copied() else {
                continue;
            };
            let client = connect(&node.url("postgres")).await?;
            let row = client.query_one("show server_version", &[]).await?;
            versions.insert("postgres".to_owned(), row.get(0));
            let extension = match servers.layout() {
                Layout::Partman => "pg_partman",
                Layout::Citus => "citus",
                Layout::Single | Layout::Shards => continue,
            };
            let row = client
                .query_opt(
                    "select default_version from pg_available_extensions where name = $1",
                    &[&extension],
                )
                .await?;
            if let Some(row) = row {
                versions.insert(extension.to_owned(), row.get(0));
            }
        }
        Ok(versions)
    }
}

/// Versions of a database's server, and of the extensions in it that make a layout.
pub(crate) async fn versions_of(client: &Client) -> anyhow::Result<BTreeMap<String, String>> {
    let query = "select 'postgres', current_setting('server_version') union all \
                 select extname, extversion from pg_extension where extname in ('citus', 'pg_partman')";
    let rows = client.query(query, &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

pub(crate) async fn connect(url: &str) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Bytes of write-ahead log that the servers of a layout have written since they were made.
pub(crate) async fn wal_bytes(servers: &LayoutServers) -> anyhow::Result<u64> {
    let mut total = 0;
    for node in servers.nodes() {
        let client = connect(&node.url("postgres")).await?;
        let row = client
            .query_one(
                "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint",
                &[],
            )
            .await?;
        total += row.get::<_, i64>(0).unsigned_abs();
    }
    Ok(total)
}

/// Writes out what earlier runs left dirty, so that no run pays for another.
pub(crate) async fn checkpoint(servers: &LayoutServers) -> anyhow::Result<()> {
    for node in servers.nodes() {
        connect(&node.url("postgres"))
            .await?
            .batch_execute("checkpoint")
            .await?;
    }
    Ok(())
}

/// CPU seconds of all servers of a layout.
pub(crate) fn cpu_seconds(servers: &LayoutServers) -> f64 {
    servers.nodes().iter().map(|node| node.cpu_seconds()).sum()
}
