//! `shardlane dlq`: dead letters, listed, shown and replayed.

mod show;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use shardlane_domain::{DeadLetter, LetterFilter, Listing, ReplayEnd, ReplayOptions, Replayed};
use shardlane_sql::{ParkLimits, Store};
use shardlane_worker::{DeadLetterLog, Publisher, TopicSet};
use uuid::Uuid;

use crate::backend::{BackendArgs, MapArgs, parse_span};

/// List, show and replay what was accepted and could not be applied
///
/// Of the dead-letter topics with --kafka, of direct mode's table with --database.
#[derive(Debug, Args)]
pub(crate) struct DlqArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List letters
    List(ListArgs),
    /// Show one letter: its headers, its reason, where it comes from, and its payload
    Show(ShowArgs),
    /// Give letters to the front door again; those that were applied meanwhile are duplicates
    ///
    /// Exits with 1 if a letter could not be taken, or if more match than the limit.
    Replay(ReplayArgs),
}

#[derive(Debug, Args)]
struct StoreArgs {
    /// Which store, where both are configured
    #[arg(long, value_enum)]
    from: Option<From>,
    /// Kafka bootstrap servers
    #[arg(long, env = "SHARDLANE_KAFKA", value_name = "HOST:PORT")]
    kafka: Option<String>,
    /// Prefix of the topics' names
    #[arg(long, default_value = "")]
    prefix: String,
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    map: MapArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum From {
    Kafka,
    Database,
}

#[derive(Debug, Args)]
struct FilterArgs {
    /// Only these: class=C, user=UUID, source=orders|chargebacks, since=TIME or 2h, state=dead|replaying|replayed,
    /// reason~REGEX; several with commas or by repeating it must all hold
    #[arg(long = "where", value_name = "CONDITION")]
    conditions: Vec<String>,
    /// How many letters at most
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    limit: usize,
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// Print JSON: `letters` and how many are `matching`
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// As `dlq list` shows it
    id: String,
    #[command(flatten)]
    store: StoreArgs,
    /// Print the payload and nothing else, byte for byte
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ReplayArgs {
    /// These letters; without ids all that --where finds
    #[arg(conflicts_with_all = ["conditions", "limit"])]
    ids: Vec<String>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// Say what would be replayed, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Also those that were replayed before
    #[arg(long)]
    again: bool,
    /// Leave letters whose webhook was accepted longer ago than this. Beyond the workers' --replay-window the inbox may
    /// have forgotten an event that was applied meanwhile
    #[arg(long, value_name = "TIME", value_parser = parse_span, default_value = "2d")]
    replay_window: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Where letters are kept.
enum Letters {
    Kafka(DeadLetterLog),
    Database(Arc<Store>),
}

impl DlqArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        match self.action {
            Action::List(arguments) => arguments.run().await,
            Action::Show(arguments) => arguments.run().await,
            Action::Replay(arguments) => arguments.run().await,
        }
    }
}

impl StoreArgs {
    /// The broker, if the letters are in Kafka.
    fn kafka(&self) -> anyhow::Result<Option<&str>> {
        let kafka = self.kafka.as_deref();
        match (self.from, kafka, self.backend.is_named()) {
            (None, Some(_), true) => {
                bail!("both a broker and a database are named; say --from kafka or --from database")
            }
            (Some(From::Kafka), None, _) => {
                bail!("no broker is named; give --kafka HOST:PORT or set SHARDLANE_KAFKA")
            }
            (None, None, false) => bail!(
                "nothing is named to look into; give --kafka HOST:PORT, or --database DSN for direct mode"
            ),
            (Some(From::Database), ..) | (None, None, true) => Ok(None),
            (Some(From::Kafka) | None, Some(kafka), _) => Ok(Some(kafka)),
        }
    }

    async fn open(&self) -> anyhow::Result<Letters> {
        Ok(match self.kafka()? {
            Some(kafka) => {
                let topics = TopicSet::with_prefix(&self.prefix);
                Letters::Kafka(DeadLetterLog::new(kafka.to_owned(), topics))
            }
            None => {
                let map = self.map.read(self.backend.shards())?;
                Letters::Database(self.backend.connect(&map, ParkLimits::default()).await?)
            }
        })
    }

    /// The front door's publisher, under the map as it is now.
    async fn publisher(&self) -> anyhow::Result<Publisher> {
        let Some(kafka) = self.kafka()?.map(str::to_owned) else {
            bail!("a publisher needs a broker");
        };
        let own = self.map.read(1)?;
        let topics = TopicSet::with_prefix(&self.prefix);
        let watch = self.map.follow(&kafka, &topics, &own).await?;
        let connect = move || Publisher::follow(&kafka, topics, watch);
        Ok(tokio::task::spawn_blocking(connect).await??)
    }
}

impl FilterArgs {
    fn parse(&self) -> anyhow::Result<LetterFilter> {
        let texts = self.conditions.iter().map(String::as_str);
        LetterFilter::parse(texts, Timestamp::now()).context("--where")
    }
}

impl Letters {
    async fn list(&self, filter: &LetterFilter, limit: usize) -> anyhow::Result<Listing> {
        Ok(match self {
            Letters::Kafka(log) => log.list(filter, limit).await?,
            Letters::Database(store) => store.dead_letters(filter, limit).await?,
        })
    }

    async fn letter(&self, id: &str) -> anyhow::Result<DeadLetter> {
        match self {
            Letters::Kafka(log) => Ok(log.letter(id).await?),
            Letters::Database(store) => {
                let uuid: Uuid = id.parse().with_context(|| {
                    format!("{id:?} is no id of a dead letter in a database; expected a uuid, as `dlq list` shows it")
                })?;
                let letter = store.dead_letter(uuid).await?;
                letter.with_context(|| format!("there is no dead letter {uuid}"))
            }
        }
    }
}

impl ListArgs {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let filter = self.filter.parse()?;
        let letters = self.store.open().await?;
        let listing = letters.list(&filter, self.filter.limit).await?;
        if self.json {
            show::listing_json(&listing)?;
        } else {
            show::listing(&listing);
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl ShowArgs {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let letter = self.store.open().await?.letter(&self.id).await?;
        if self.raw {
            show::raw(&letter)?;
        } else if self.json {
            show::letter_json(&letter)?;
        } else {
            show::letter(&letter);
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl ReplayArgs {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let filter = self.filter.parse()?;
        let letters = self.store.open().await?;
        let found = if self.ids.is_empty() {
            letters.list(&filter, self.filter.limit).await?
        } else {
            let mut found = Listing::default();
            for id in &self.ids {
                found.letters.push(letters.letter(id).await?);
            }
            found.matching = found.letters.len();
            found
        };
        let more = found.matching - found.letters.len();
        let options = ReplayOptions {
            dry_run: self.dry_run,
            again: self.again,
            window: self.replay_window,
        };
        let replayed: Vec<Replayed> = match &letters {
            Letters::Kafka(log) => {
                let publisher = self.store.publisher().await?;
                log.replay(found.letters, &publisher, &options).await?
            }
            Letters::Database(store) => {
                shardlane_ingest::replay(store, found.letters, &options).await?
            }
        };
        if self.json {
            show::replayed_json(&replayed, more)?;
        } else {
            show::replayed(&replayed, more);
        }
        let is_done = |replayed: &Replayed| match replayed.end {
            ReplayEnd::Taken(_) | ReplayEnd::WouldTake | ReplayEnd::ReplayedBefore => true,
            ReplayEnd::Malformed(_)
            | ReplayEnd::Refused(_)
            | ReplayEnd::TooOld(_)
            | ReplayEnd::Failed(_) => false,
        };
        let all = more == 0 && replayed.iter().all(is_done);
        Ok(ExitCode::from(u8::from(!all)))
    }
}

#[cfg(test)]
mod tests {
    use shardlane_domain::REPLAY_WINDOW;

    use super::*;

    #[test]
    fn the_default_window_is_the_house_s() {
        assert_eq!(parse_span("2d").unwrap(), REPLAY_WINDOW);
    }
}
