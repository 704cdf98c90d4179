//! `shardlane topics`: the webhook topics and their dead-letter topics.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use shardlane_worker::{TopicSet, create_topics};

/// Make the topics
#[derive(Debug, Args)]
pub(crate) struct TopicsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make the webhook topics and their dead-letter topics, where they do not exist
    Create(CreateArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// Kafka bootstrap servers
    #[arg(long, env = "SHARDLANE_KAFKA", value_name = "HOST:PORT")]
    kafka: String,
    /// Partitions of each topic: a power of two, the map's count
    #[arg(long, default_value_t = 8)]
    partitions: u32,
    /// Replicas of each partition
    #[arg(long, default_value_t = 1)]
    replicas: i32,
    /// Prefix of the topics' names
    #[arg(long, default_value = "")]
    prefix: String,
}

impl TopicsArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let Action::Create(create) = self.action;
        let topics = TopicSet::with_prefix(&create.prefix);
        create_topics(
            &create.kafka,
            &topics,
            create.partitions,
            create.replicas,
            &[],
        )
        .await?;
        for topic in topics.webhooks() {
            println!("{topic}: ready");
        }
        Ok(ExitCode::SUCCESS)
    }
}
