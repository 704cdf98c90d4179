//! From the scheduled send to the row: some events are looked for in the shards until they appear.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use jiff::{SignedDuration, Timestamp};
use shardlane_domain::Source;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use super::arrivals::Arrival;
use super::results::RowResults;
use super::tally::quantiles;
use crate::lab::connect;
use crate::raw::histogram;

/// By primary key, all that are waited for at once.
const INBOX: &str = include_str!("inbox.sql");
/// For this session alone: a plan that is made while the table is empty reads all of it ever after.
const BY_INDEX: &str =
    "set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off";
/// Between two looks. With the query's own time it is the resolution, which is measured too.
const PAUSE: Duration = Duration::from_millis(2);
/// Events that are looked for, a second: few enough not to be the load themselves.
const SAMPLES_PER_S: f64 = 50.0;
/// About so many requests in four open an order.
const OPENING_SHARE: f64 = 0.25;
/// How long a row may take after the last answer; then it is missing.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much the databases' clock may differ from ours before old rows are taken for new ones.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_secs(1);

type Key = (Uuid, String, String);

enum News {
    Sent(u64, Instant, Key),
    Refused(u64),
}

/// Looks for rows while the load runs.
pub(super) struct Rows {
    give: mpsc::UnboundedSender<News>,
    looking: JoinHandle<anyhow::Result<Found>>,
}

/// What a sender tells.
pub(super) struct Handle {
    give: mpsc::UnboundedSender<News>,
    openings: AtomicU64,
    /// One of so many opening events is looked for.
    every: u64,
}

struct Found {
    latency_us: Histogram<u64>,
    /// From the last look that did not find a row to the one that did.
    gap_us: Histogram<u64>,
    were_there: u64,
    missing: u64,
}

struct Sample {
    scheduled: Instant,
    key: Key,
    absent_at: Option<Instant>,
}

impl Rows {
    /// Connects; `None` where no database is named.
    pub(super) async fn connect(databases: &[String]) -> anyhow::Result<Option<Rows>> {
        if databases.is_empty() {
            return Ok(None);
        }
        let mut shards = Vec::new();
        for database in databases {
            let client = connect(database)
                .await
                .context("a shard of --database does not answer")?;
            client.batch_execute(BY_INDEX).await?;
            let statement = client
                .prepare(INBOX)
                .await
                .context("a database of --database has no inbox; was it migrated?")?;
            shards.push((client, statement));
        }
        let (give, take) = mpsc::unbounded_channel();
        let looking = tokio::spawn(look(shards, take));
        Ok(Some(Rows { give, looking }))
    }

    pub(super) fn handle(&self, rate: f64) -> Handle {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate is bounded"
        )]
        let every = (rate * OPENING_SHARE / SAMPLES_PER_S).ceil().max(1.0) as u64;
        Handle {
            give: self.give.clone(),
            openings: AtomicU64::new(0),
            every,
        }
    }

    /// Waits for the rows that are still to come. All handles must be gone.
    pub(super) async fn finish(self) -> anyhow::Result<RowResults> {
        let Rows { give, looking } = self;
        drop(give);
        let found = looking.await.context("the look for rows panicked")??;
        Ok(RowResults {
            found: found.latency_us.len(),
            missing: found.missing,
            were_there: found.were_there,
            latency_ms: quantiles(&found.latency_us),
            resolution_ms: quantiles(&found.gap_us),
        })
    }
}

impl Handle {
    /// A request is about to leave. Only events that open an order are looked for: they are never refused, whatever
    /// came before them, and a redelivery has its row from the first delivery.
    pub(super) fn offer(&self, arrival: &Arrival) {
        let webhook = &arrival.webhook;
        let opens = webhook.source == Source::Orders && webhook.event_id.ends_with("-0");
        if !opens
            || webhook.is_duplicate
            || !self
                .openings
                .fetch_add(1, Ordering::Relaxed)
                .is_multiple_of(self.every)
        {
            return;
        }
        let key = (
            webhook.user_id,
            webhook.source.as_str().to_owned(),
            webhook.event_id.clone(),
        );
        self.tell(News::Sent(arrival.number, arrival.scheduled, key));
    }

    /// A request had no good answer: there may be no row.
    pub(super) fn forget(&self, number: u64) {
        self.tell(News::Refused(number));
    }

    fn tell(&self, news: News) {
        // Nobody listens after an error, which `finish` tells.
        self.give.send(news).ok();
    }
}

/// Ends when nobody sends any more and each row was found, or after its patience.
async fn look(
    shards: Vec<(Client, Statement)>,
    mut take: mpsc::UnboundedReceiver<News>,
) -> anyhow::Result<Found> {
    let began = Timestamp::now() - CLOCKS_DIFFER;
    let mut found = Found {
        latency_us: histogram(),
        gap_us: histogram(),
        were_there: 0,
        missing: 0,
    };
    let mut samples: HashMap<u64, Sample> = HashMap::new();
    let mut ended_at = None;
    loop {
        loop {
            match take.try_recv() {
                Ok(News::Sent(number, scheduled, key)) => {
                    let sample = Sample {
                        scheduled,
                        key,
                        absent_at: None,
                    };
                    samples.insert(number, sample);
                }
                Ok(News::Refused(number)) => drop(samples.remove(&number)),
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    ended_at.get_or_insert_with(Instant::now);
                    break;
                }
            }
        }
        if let Some(ended_at) = ended_at
            && (samples.is_empty() || ended_at.elapsed() > PATIENCE)
        {
            found.missing = samples.len() as u64;
            return Ok(found);
        }
        if !samples.is_empty() {
            look_once(&shards, &mut samples, &mut found, began).await?;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn look_once(
    shards: &[(Client, Statement)],
    samples: &mut HashMap<u64, Sample>,
    found: &mut Found,
    began: Timestamp,
) -> anyhow::Result<()> {
    let (mut users, mut sources, mut events) = (Vec::new(), Vec::new(), Vec::new());
    for sample in samples.values() {
        let (user, source, event) = &sample.key;
        users.push(*user);
        sources.push(source.as_str());
        events.push(event.as_str());
    }
    let wanted: [&(dyn ToSql + Sync); 3] = [&users, &sources, &events];
    let asked_at = Instant::now();
    let answers = try_join_all(
        shards
            .iter()
            .map(|(client, statement)| client.query(statement, &wanted)),
    )
    .await
    .context("a shard of --database did not answer")?;
    let seen_at = Instant::now();
    let there: HashMap<Key, Timestamp> = answers
        .iter()
        .flatten()
        .map(|row| ((row.get(0), row.get(1), row.get(2)), row.get(3)))
        .collect();
    samples.retain(|_, sample| {
        let Some(received_at) = there.get(&sample.key) else {
            sample.absent_at = Some(asked_at);
            return true;
        };
        if *received_at < began {
            found.were_there += 1;
            return false;
        }
        found
            .latency_us
            .saturating_record(micros(seen_at - sample.scheduled));
        // A row that the first look finds came after the send, at least.
        let absent_at = sample.absent_at.unwrap_or(sample.scheduled);
        found.gap_us.saturating_record(micros(seen_at - absent_at));
        false
    });
    Ok(())
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros())
        .unwrap_or(u64::MAX)
        .max(1)
}
