//! Arguments that name a layout's databases.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use shardlane_router::{Slot, SlotMap};
use shardlane_sql::{Backend, CitusPath, Layout, ParkLimits, Store, StoreOptions};
use shardlane_worker::{MapDocument, MapTiming, MapWatch, TopicSet, read_map as read_newest};

use crate::migrate::read_map;

/// A length of time such as 90s, 2h or 7d.
pub(crate) fn parse_span(text: &str) -> Result<Duration, String> {
    let length = shardlane_domain::span(text).and_then(|length| Duration::try_from(length).ok());
    length.ok_or_else(|| format!("{text:?} is no length of time; expected such as 90s, 2h or 7d"))
}

/// Partitions of each topic where nobody says anything else.
pub(crate) const DEFAULT_PARTITIONS: u32 = 8;

#[derive(Debug, Args)]
pub(crate) struct BackendArgs {
    /// single, partman, shards or citus
    #[arg(long, default_value = "single")]
    layout: Layout,
    /// DSN of the database; repeat it for each shard, in the order of the shards; for citus the coordinator's
    #[arg(
        long = "database",
        env = "SHARDLANE_DATABASE",
        value_delimiter = ',',
        value_name = "DSN"
    )]
    databases: Vec<String>,
    /// Connections over all servers
    #[arg(long, default_value_t = 8)]
    connections: u32,
}

#[derive(Debug, Args)]
pub(crate) struct ParkArgs {
    /// How long an event may wait for one that it needs; then it is a dead letter
    #[arg(long, value_name = "TIME", value_parser = parse_span, default_value = "10m")]
    park_max: Duration,
    /// Events of one user and source that may wait; 0: what comes too early is a dead letter at once
    #[arg(long, value_name = "EVENTS", default_value_t = 1_000)]
    park_rows_max: usize,
}

impl ParkArgs {
    pub(crate) fn limits(&self) -> ParkLimits {
        ParkLimits {
            park_max: self.park_max,
            park_rows_max: self.park_rows_max,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct MapArgs {
    /// Kafka partitions of each topic: any number up to 4096. The map's topic decides where there is one; 8 otherwise
    #[arg(long)]
    partitions: Option<u32>,
    /// A slot map as JSON instead of the even one of epoch 1
    #[arg(long, value_name = "FILE", conflicts_with = "partitions")]
    map: Option<PathBuf>,
}

impl MapArgs {
    /// The map of the shards, and of the partitions where Kafka has no map of its own.
    pub(crate) fn read(&self, shards: usize) -> anyhow::Result<SlotMap> {
        let partitions = self.partitions.unwrap_or(DEFAULT_PARTITIONS);
        read_map(self.map.as_deref(), partitions, shards)
    }

    /// Follows the map's topic, or waits for one with the map of the arguments.
    pub(crate) async fn follow(
        &self,
        kafka: &str,
        topics: &TopicSet,
        own: &SlotMap,
    ) -> anyhow::Result<Arc<MapWatch>> {
        let newest = read_newest(kafka, topics).await?;
        if let Some(document) = &newest {
            self.refuse_contradiction(document, own, topics)?;
        }
        // What the arguments leave unsaid is no reason to contradict the topic.
        let fallback = newest.is_none().then(|| own.clone());
        let (kafka, topics) = (kafka.to_owned(), topics.clone());
        let start = move || MapWatch::start(&kafka, &topics, MapTiming::HOUSE, fallback.as_ref());
        let watch = tokio::task::spawn_blocking(start).await??;
        if !watch.is_in_topic() {
            eprintln!(
                "map: {} partitions, from the arguments; before partitions can grow, run `shardlane topics create`",
                own.partition_count()
            );
        }
        Ok(Arc::new(watch))
    }

    fn refuse_contradiction(
        &self,
        document: &MapDocument,
        own: &SlotMap,
        topics: &TopicSet,
    ) -> anyhow::Result<()> {
        let (topic, theirs) = (topics.map(), document.map());
        let epoch = theirs.epoch();
        if let Some(partitions) = self.partitions
            && partitions != theirs.partition_count()
        {
            bail!(
                "--partitions {partitions} contradicts topic {topic}, whose map (epoch {epoch}) has {}; leave the \
                 argument away, or run `shardlane topics grow`",
                theirs.partition_count()
            );
        }
        if let Some(file) = &self.map
            && (own.hash() != theirs.hash()
                || Slot::all().any(|slot| own.partition_of(slot) != theirs.partition_of(slot)))
        {
            bail!(
                "--map {} places records elsewhere than topic {topic} (epoch {epoch}) says; leave the argument away, \
                 or give a map with the same partitions",
                file.display()
            );
        }
        Ok(())
    }
}

impl BackendArgs {
    /// How many manual shards there are: 1 where the layout has none.
    pub(crate) fn shards(&self) -> usize {
        if self.layout == Layout::Shards {
            self.databases.len().max(1)
        } else {
            1
        }
    }

    /// Whether a database is named at all.
    pub(crate) fn is_named(&self) -> bool {
        !self.databases.is_empty()
    }

    /// What the arguments name.
    pub(crate) fn backend(&self, map: &SlotMap) -> anyhow::Result<Backend> {
        Ok(match (self.layout, &self.databases[..]) {
            (_, []) => bail!("no database is named; give --database DSN or set SHARDLANE_DATABASE"),
            (Layout::Shards, urls) => Backend::Shards {
                urls: urls.to_vec(),
                map: map.clone(),
            },
            (Layout::Single | Layout::Partman, [url]) => Backend::One { url: url.clone() },
            (Layout::Citus, [url]) => Backend::Citus {
                coordinator: url.clone(),
                path: CitusPath::Owner,
            },
            (layout, urls) => bail!(
                "layout {layout} takes one database, {} were given",
                urls.len()
            ),
        })
    }

    pub(crate) async fn connect(
        &self,
        map: &SlotMap,
        park: ParkLimits,
    ) -> anyhow::Result<Arc<Store>> {
        let backend = self.backend(map)?;
        let options = StoreOptions {
            connections_max: self.connections,
            park,
            ..StoreOptions::default()
        };
        Ok(Arc::new(Store::connect(backend, options).await?))
    }
}
