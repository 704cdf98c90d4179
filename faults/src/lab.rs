//! The servers: two Postgres primaries and one broker, on which the scenarios run one after another.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use shardlane_local::{Kafka, KafkaOptions, Postgres, PostgresOptions};

/// Running servers, and the program whose `worker` subcommand is a worker.
pub struct Lab {
    /// One a shard.
    pub postgres: Vec<Postgres>,
    /// The broker.
    pub kafka: Kafka,
    program: PathBuf,
    logs: PathBuf,
}

impl Lab {
    /// Starts everything. `program` is the `faults` command; workers write their logs below `logs`.
    ///
    /// # Errors
    /// A server that does not start.
    pub async fn start(program: &Path, logs: &Path) -> anyhow::Result<Lab> {
        let postgres = || {
            let settings = [("deadlock_timeout", "200ms"), ("max_connections", "300")];
            Postgres::start(PostgresOptions {
                settings: settings
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .to_vec(),
                ..PostgresOptions::fast()
            })
        };
        let (first, second, kafka) = tokio::join!(
            postgres(),
            postgres(),
            Kafka::start(KafkaOptions::default())
        );
        std::fs::create_dir_all(logs).with_context(|| format!("cannot make {}", logs.display()))?;
        Ok(Lab {
            postgres: vec![first?, second?],
            kafka: kafka?,
            program: program.to_owned(),
            logs: logs.to_owned(),
        })
    }

    /// The `faults` command.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Where workers write their logs.
    #[must_use]
    pub fn logs(&self) -> &Path {
        &self.logs
    }
}
