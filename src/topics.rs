//! `shardlane topics`: the webhook topics, their dead-letter topics, and the topic that holds the map.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use shardlane_router::{Alignment, PartitionId, ShardId, Slot, SlotMap};
use shardlane_worker::{
    GrowthOutcome, GrowthSettings, GrowthStep, MapTiming, TopicRetention, TopicSet, abort_growth,
    check_topics, create_map, create_topics, grow, read_map as read_newest, set_retention,
};

use crate::backend::{DEFAULT_PARTITIONS, parse_span};
use crate::migrate::read_map;

/// Make the topics, or give them more partitions
#[derive(Debug, Args)]
pub(crate) struct TopicsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make the webhook topics, their dead-letter topics and the map's topic, where they do not exist
    Create(CreateArgs),
    /// Add partitions while ingest and workers run, with each user's order kept
    ///
    /// Killed in between, it can be run again. Exits with 1 if it took everything back because the workers did not
    /// drain in time.
    Grow(GrowArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// Kafka bootstrap servers
    #[arg(long, env = "SHARDLANE_KAFKA", value_name = "HOST:PORT")]
    kafka: String,
    /// Partitions of each topic: any number up to 4096; 8 if nothing is said and there is no map
    #[arg(long)]
    partitions: Option<u32>,
    /// A slot map as JSON instead of the even one of epoch 1
    #[arg(long, value_name = "FILE", conflicts_with = "partitions")]
    map: Option<PathBuf>,
    /// Manual shards, or shards of the Citus tables, that the note about alignment is for
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=4096))]
    shards: u16,
    /// Replicas of each partition
    #[arg(long, default_value_t = 1)]
    replicas: i32,
    /// How long the webhook topics keep records, such as 1d; those that exist get it too. Without it new ones keep them for 3 days
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    retention: Option<Duration>,
    /// How much longer they may stay, because Kafka deletes whole segments
    #[arg(long, value_name = "TIME", value_parser = parse_span, default_value = "1d", requires = "retention")]
    segment: Duration,
    /// Prefix of the topics' names
    #[arg(long, default_value = "")]
    prefix: String,
}

#[derive(Debug, Args)]
struct GrowArgs {
    /// Kafka bootstrap servers
    #[arg(long, env = "SHARDLANE_KAFKA", value_name = "HOST:PORT")]
    kafka: String,
    /// Partitions of each topic afterwards: any number up to 4096
    #[arg(long, required_unless_present = "abort")]
    partitions: Option<u32>,
    /// Prefix of the topics' names
    #[arg(long, default_value = "")]
    prefix: String,
    /// Consumer group of the workers; repeat it for each group whose order counts
    #[arg(long = "group", default_value = "shardlane")]
    groups: Vec<String>,
    /// Seconds that the workers may take for what lies in the old partitions; then everything is taken back
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    drain_max: u64,
    /// Take back a growth that was killed
    #[arg(long, conflicts_with = "partitions")]
    abort: bool,
}

impl TopicsArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        match self.action {
            Action::Create(arguments) => arguments.run().await,
            Action::Grow(arguments) => arguments.run().await,
        }
    }
}

impl CreateArgs {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let topics = TopicSet::with_prefix(&self.prefix);
        let found = read_newest(&self.kafka, &topics).await?;
        let map = match &found {
            Some(document) => document.map().clone(),
            None => {
                let partitions = self.partitions.unwrap_or(DEFAULT_PARTITIONS);
                read_map(self.map.as_deref(), partitions, 1)?
            }
        };
        let partitions = map.partition_count();
        create_topics(&self.kafka, &topics, partitions, self.replicas, &[]).await?;
        // No map by which some users would have no partition. More partitions are in the log.
        check_topics(&self.kafka, &topics, &map).await?;
        if let Some(retention) = self.retention {
            let segment = self.segment;
            set_retention(&self.kafka, &topics, TopicRetention { retention, segment }).await?;
        }
        let document = create_map(&self.kafka, &topics, &map, self.replicas).await?;
        for topic in topics.webhooks() {
            println!("{topic}: ready");
        }
        let epoch = document.map().epoch();
        println!("{}: epoch {epoch}, {partitions} partitions", topics.map());
        let shards: Vec<ShardId> = (0..i64::from(self.shards)).map(ShardId).collect();
        let over = SlotMap::aligned(epoch, map.hash(), partitions, &shards)?;
        if let Some(note) = alignment_note(document.map(), &over)? {
            eprintln!("note: {note}");
        }
        if let Some(asked) = self.partitions
            && asked != document.map().partition_count()
        {
            eprintln!(
                "the map was there before and is kept; `shardlane topics grow --partitions {asked}` changes it"
            );
            return Ok(ExitCode::from(1));
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl GrowArgs {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let settings = GrowthSettings {
            bootstrap: self.kafka,
            topics: TopicSet::with_prefix(&self.prefix),
            groups: self.groups,
            timing: MapTiming::HOUSE,
            drain_max: Duration::from_secs(self.drain_max),
        };
        let Some(partitions) = self.partitions else {
            match abort_growth(&settings).await? {
                Some(epoch) => println!("taken back: epoch {epoch} has the partitions of before"),
                None => println!("nothing is frozen, so there is nothing to take back"),
            }
            return Ok(ExitCode::SUCCESS);
        };
        let mut frozen = false;
        let growth = grow(&settings, partitions, |step| {
            frozen |= matches!(step, GrowthStep::Frozen { .. });
            tell(step);
        });
        let outcome = tokio::select! {
            outcome = growth => outcome,
            signal = tokio::signal::ctrl_c() => {
                signal?;
                match abort_growth(&settings).await? {
                    Some(epoch) => bail!("interrupted and taken back: epoch {epoch} has the partitions of before"),
                    None => bail!("interrupted; nothing is frozen"),
                }
            }
        };
        let unfinished = "the moved slots are frozen: run it again, or with --abort";
        let outcome = match outcome {
            Err(error) if frozen => return Err(error).context(unfinished),
            other => other?,
        };
        match outcome {
            GrowthOutcome::Grown { epoch } => {
                println!("grown: epoch {epoch} has {partitions} partitions");
                Ok(ExitCode::SUCCESS)
            }
            GrowthOutcome::RolledBack {
                epoch,
                records_left,
            } => {
                println!(
                    "not grown: {records_left} records were left after {} s; epoch {epoch} has the partitions of \
                     before, and nothing is lost. Do the workers run and keep up? Then run it again",
                    self.drain_max
                );
                Ok(ExitCode::from(1))
            }
        }
    }
}

fn tell(step: &GrowthStep) {
    match step {
        GrowthStep::Planned {
            from,
            to,
            moved_slots,
            resumed,
        } => {
            let how = if *resumed {
                "; an earlier run has begun it"
            } else {
                ""
            };
            eprintln!("grow: {from} -> {to} partitions, {moved_slots} of 4096 slots move{how}");
        }
        GrowthStep::PartitionsAdded => eprintln!("grow: all topics have the partitions"),
        GrowthStep::Assigned { group, now: true } => {
            eprintln!("grow: group {group} was told of them");
        }
        GrowthStep::Assigned { group, now: false } => eprintln!(
            "grow: group {group} does not answer; its workers find the new partitions within 5 minutes"
        ),
        GrowthStep::Frozen { epoch, settle } => eprintln!(
            "grow: the moved slots are frozen (epoch {epoch}); waiting {settle:?} for what is on its way"
        ),
        GrowthStep::Settled => eprintln!("grow: nothing is on its way any more"),
        GrowthStep::Draining { records_left } => eprintln!("grow: {records_left} records to drain"),
        GrowthStep::Drained => eprintln!("grow: the old partitions are drained"),
    }
}

/// What it costs that the partitions of one map and the shards of the other do not share their borders; `None` if they
/// do.
pub(crate) fn alignment_note(
    partitions: &SlotMap,
    shards: &SlotMap,
) -> anyhow::Result<Option<String>> {
    let partition_of: Vec<PartitionId> = Slot::all().map(|s| partitions.partition_of(s)).collect();
    let shard_of: Vec<ShardId> = Slot::all().map(|s| shards.shard_of(s)).collect();
    let both = SlotMap::from_tables(
        partitions.epoch(),
        partitions.hash(),
        &partition_of,
        &shard_of,
    )?;
    let Alignment::NotAligned {
        max_shards_per_partition,
    } = both.alignment()
    else {
        return Ok(None);
    };
    let partition_count = both.partition_count();
    let several = (0..i32::try_from(partition_count)?)
        .filter(|number| both.shards_of(PartitionId(*number)).len() > 1)
        .count();
    Ok(Some(format!(
        "{partition_count} partitions and {} shards are not aligned: {several} partitions lead to more than one shard, \
         at most {max_shards_per_partition}, and a batch of theirs takes a transaction for each. That is correct, only \
         dearer",
        both.shards().len(),
    )))
}
