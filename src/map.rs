//! `shardlane map`: who owns what now, and what has changed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use shardlane_citus::{MapDiff, Watch, WatchOptions};
use shardlane_router::ShardMap;
use shardlane_sql::reshard::{Reshard, ReshardOptions};
use shardlane_sql::{Catalog, Layout, TABLES, catalog_history};

use crate::backend::MapArgs;

/// Show who owns what now: slots of manual shards, ranges of Citus
#[derive(Debug, Args)]
pub(crate) struct MapCommand {
    /// shards or citus
    #[arg(long)]
    layout: Layout,
    /// DSNs of the shards in their order; for citus of any node
    #[arg(
        long = "database",
        env = "SHARDLANE_DATABASE",
        value_delimiter = ',',
        value_name = "DSN",
        required = true
    )]
    databases: Vec<String>,
    #[command(flatten)]
    map: MapArgs,
    /// Show changes: since a map that was saved with --json, or, without FILE, all that the shards remember; on citus
    /// those that happen from now on, until Ctrl-C
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    diff: Option<Option<PathBuf>>,
    /// Print JSON
    #[arg(long, conflicts_with = "diff")]
    json: bool,
}

impl MapCommand {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        match self.layout {
            Layout::Shards => self.shards().await,
            Layout::Citus => self.citus().await,
            layout => bail!("layout {layout} has no map: all users are in one database"),
        }
    }

    async fn shards(self) -> anyhow::Result<ExitCode> {
        let map = self.map.read(self.databases.len())?;
        let reshard = Reshard::connect(&self.databases, map, ReshardOptions::default()).await?;
        let now = reshard.catalog().await?;
        match self.diff {
            None if self.json => println!("{}", serde_json::to_string_pretty(&now)?),
            None => print!("{}", crate::reshard::describe(&now)),
            Some(Some(file)) => {
                let then: Catalog = saved(&file)?;
                print_changes(&then, &now)?;
            }
            Some(None) => {
                let history = catalog_history(&self.databases).await?;
                for pair in history.windows(2) {
                    print_changes(&pair[0], &pair[1])?;
                }
                if history.len() < 2 {
                    println!("nothing has changed");
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn citus(self) -> anyhow::Result<ExitCode> {
        let config = self.databases[0]
            .parse()
            .context("the DSN cannot be read")?;
        let watch = Watch::start(config, &TABLES, WatchOptions::default()).await?;
        let now = watch.current();
        match self.diff {
            None if self.json => println!("{}", serde_json::to_string_pretty(&*now)?),
            None => print_ranges(&now),
            Some(Some(file)) => {
                let then: ShardMap = saved(&file)?;
                let diff = MapDiff::between(&then, &now);
                if diff.is_empty() {
                    println!("nothing has changed");
                } else {
                    print!("{diff}");
                }
            }
            Some(None) => follow(&watch).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn follow(watch: &Watch) -> anyhow::Result<()> {
    eprintln!("waiting for changes; Ctrl-C ends it");
    let mut changes = watch.subscribe();
    let mut before = watch.current();
    loop {
        tokio::select! {
            changed = changes.changed() => changed?,
            signal = tokio::signal::ctrl_c() => return Ok(signal?),
        }
        let now = changes.borrow_and_update().clone();
        print!("{}", MapDiff::between(&before, &now));
        before = now;
    }
}

fn print_changes(then: &Catalog, now: &Catalog) -> anyhow::Result<()> {
    println!("epoch {} -> {}", then.epoch(), now.epoch());
    print!("{}", then.map.diff(&now.map)?);
    let (frozen, thawed) = (
        now.frozen.without(&then.frozen),
        then.frozen.without(&now.frozen),
    );
    for (slots, what) in [(frozen, "frozen"), (thawed, "thawed")] {
        if !slots.is_empty() {
            println!("slots {slots}: {what}");
        }
    }
    for entry in now
        .shards
        .iter()
        .filter(|entry| then.entry(entry.shard).is_none())
    {
        println!("shard {} joined", entry.shard);
    }
    for entry in then
        .shards
        .iter()
        .filter(|entry| now.entry(entry.shard).is_none())
    {
        println!("shard {} left", entry.shard);
    }
    Ok(())
}

fn print_ranges(map: &ShardMap) {
    for range in map.shards() {
        let (min, max) = range.range.hash_bounds();
        println!(
            "shard {}: hashes {min} to {max} on {}",
            range.shard,
            map.node_of(range)
        );
    }
}

fn saved<T: serde::de::DeserializeOwned>(file: &Path) -> anyhow::Result<T> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("{} cannot be read", file.display()))?;
    serde_json::from_str(&text).with_context(|| {
        format!(
            "{} is no map; save one with `shardlane map --json`",
            file.display()
        )
    })
}
