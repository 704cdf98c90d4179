//! The outbox, as a relay reads it: rows in the order in which they may leave, deleted when they have left.
//!
//! A transaction's rows have numbers that were drawn after it had read the states. So a row that depends on another one,
//! or whose transaction began when the other's had committed, has the higher number, and both are seen or only the
//! lower. Numbers become visible out of order all the same, when two transactions overlap: so a relay remembers no number
//! up to which it has read. It takes the lowest that are there, publishes, deletes them, and looks anew. Two transactions
//! of one user that overlap depend on each other in nothing; their rows leave in either order.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use shardlane_domain::{DisputeState, OrderState, Source};
use shardlane_router::{Epoch, ShardId};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Row, Statement};
use uuid::Uuid;

use crate::SqlError;
use crate::follow::connect;
use crate::identity::{self, ShardIdentity};
use crate::slots::SlotSet;

/// Names the lock of whoever relays a database's outbox. The number is arbitrary.
const OUTBOX_LOCK: i64 = 0x6f75_7462_6f78; // "outbox"

/// How many rows are counted at most when somebody asks how many there are.
const LAG_ROWS_MAX: i64 = 1_000_000;

/// A session whose process is gone without a word ends after this time, and gives the lock back. One that lives must say
/// something more often.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// A state as consumers get it.
pub(crate) trait Published {
    fn version(&self) -> i64;
    fn status(&self) -> &'static str;
    /// As JSON.
    fn document(&self) -> Vec<u8>;
}

#[derive(Serialize)]
struct OrderDocument {
    amount_minor: Option<i64>,
    currency: Option<&'static str>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

#[derive(Serialize)]
struct DisputeDocument<'a> {
    reason: &'a str,
    amount_minor: i64,
    currency: &'static str,
    opened_at: Timestamp,
    updated_at: Timestamp,
    evidence_due_at: Option<Timestamp>,
}

impl Published for OrderState {
    fn version(&self) -> i64 {
        self.version
    }

    fn status(&self) -> &'static str {
        self.status.as_str()
    }

    fn document(&self) -> Vec<u8> {
        json(&OrderDocument {
            amount_minor: self.amount.map(|amount| amount.minor),
            currency: self.amount.map(|amount| amount.currency.code()),
            created_at: self.created_at,
            updated_at: self.updated_at,
        })
    }
}

impl Published for DisputeState {
    fn version(&self) -> i64 {
        self.version
    }

    fn status(&self) -> &'static str {
        self.status.as_str()
    }

    fn document(&self) -> Vec<u8> {
        json(&DisputeDocument {
            reason: &self.reason,
            amount_minor: self.amount.minor,
            currency: self.amount.currency.code(),
            opened_at: self.opened_at,
            updated_at: self.updated_at,
            evidence_due_at: self.evidence_due_at,
        })
    }
}

fn json(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document)
        .unwrap_or_else(|error| unreachable!("texts, numbers and times are JSON: {error}"))
}

/// An applied event that waits to be published.
#[derive(Debug, Clone)]
pub struct OutboxRow {
    seq: i64,
    ordinal: i32,
    /// Whose order or dispute it is.
    pub user_id: Uuid,
    /// Where the event came from.
    pub source: Source,
    /// The provider's id of it.
    pub event_id: String,
    /// The order, also of a dispute.
    pub order_id: String,
    /// What the event reported: `created`, `opened`, `closed_won`, ...
    pub kind: String,
    /// Of the order or dispute after the event: 1 for the first.
    pub version: i64,
    /// Of the order or dispute after the event.
    pub status: String,
    /// The rest of the order or dispute after the event, as a JSON object.
    pub state: Box<RawValue>,
    /// When the front door took the event.
    pub received_at: Timestamp,
}

/// What waits in an outbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutboxLag {
    /// Rows; a million stands for more too.
    pub rows: u64,
    /// How long ago the front door took the event that is next.
    pub oldest_age: Duration,
}

/// A database with an outbox.
#[derive(Debug, Clone)]
pub struct Outbox {
    shard: ShardId,
    config: Config,
}

impl PartialEq for Outbox {
    fn eq(&self, other: &Outbox) -> bool {
        (self.shard, &self.config) == (other.shard, &other.config)
    }
}

impl Outbox {
    pub(crate) fn new(shard: ShardId, mut config: Config) -> Outbox {
        config
            .application_name("shardlane relay")
            .connect_timeout(Duration::from_secs(5))
            .keepalives_idle(Duration::from_secs(10))
            .tcp_user_timeout(SILENCE_MAX);
        Outbox { shard, config }
    }

    /// The shard: 0 where the layout is not cut, and on Citus.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Makes a connection of its own: the lock lives and dies with it.
    ///
    /// # Errors
    /// [`SqlError::Postgres`].
    pub async fn connect(&self) -> Result<OutboxSession, SqlError> {
        let client = connect(&self.config).await?;
        let silence = SILENCE_MAX.as_millis();
        // Plans are made while the table is empty, and kept when it is full: by the key, always.
        client
            .batch_execute(&format!(
                "set idle_session_timeout = {silence}; set enable_seqscan = off; \
                 set enable_hashjoin = off; set enable_mergejoin = off"
            ))
            .await?;
        let statements = Statements::prepare(&client).await?;
        Ok(OutboxSession {
            client,
            statements,
            leads: false,
        })
    }
}

/// A connection to an outbox. It reads and deletes only while it has the outbox's lock.
pub struct OutboxSession {
    client: Client,
    statements: Statements,
    leads: bool,
}

/// What depends on the slots that the database owns.
struct Statements {
    /// Of the slots; `None` where a database owns all.
    epoch: Option<Epoch>,
    read: Statement,
    delete: Statement,
}

impl Statements {
    /// On a manual shard only rows of slots that it owns are read: others are on their way here or gone, and whoever owns
    /// them publishes them. They are deleted only under the identity by which they were read: a frozen slot's rows must
    /// not change beneath a reshard that compares them.
    async fn prepare(client: &Client) -> Result<Statements, SqlError> {
        let identity = identity::read(client).await?;
        let (owned, still_owned) = match &identity {
            None => ("true".to_owned(), "true".to_owned()),
            Some(ShardIdentity { epoch, slots, .. }) => {
                let owned = slots.parse::<SlotSet>()?.condition();
                let unchanged = format!(
                    "exists (select 1 from shard_identity where epoch = {})",
                    epoch.0
                );
                let still_owned = format!("{owned} and {unchanged}");
                (owned, still_owned)
            }
        };
        let read = include_str!("statements/read_outbox.sql").replace("/*owned*/ true", &owned);
        let delete =
            include_str!("statements/delete_outbox.sql").replace("/*owned*/ true", &still_owned);
        Ok(Statements {
            epoch: identity.map(|identity| identity.epoch),
            read: client.prepare(&read).await?,
            delete: client.prepare(&delete).await?,
        })
    }
}

impl OutboxSession {
    /// Takes the outbox's lock, if nobody has it. It is given back when the session ends, however it ends.
    ///
    /// # Errors
    /// [`SqlError::Postgres`].
    pub async fn try_lead(&mut self) -> Result<bool, SqlError> {
        if !self.leads {
            let query = "select pg_try_advisory_lock($1)";
            self.leads = self.client.query_one(query, &[&OUTBOX_LOCK]).await?.get(0);
        }
        Ok(self.leads)
    }

    /// Deletes `published`, which the broker has, and reads up to `rows_max` rows that are next, in order. One round trip.
    /// What a reshard has frozen or moved meanwhile stays for the new owner, who publishes it again.
    ///
    /// # Errors
    /// [`SqlError`]; nobody may relay on with this session. Without the lock it is [`SqlError::Settings`].
    pub async fn take(
        &mut self,
        published: &[OutboxRow],
        rows_max: u32,
    ) -> Result<Vec<OutboxRow>, SqlError> {
        if !self.leads {
            return Err(SqlError::Settings(
                "an outbox is read by whoever has its lock".to_owned(),
            ));
        }
        loop {
            let (client, statements) = (&self.client, &self.statements);
            let (mut seqs, mut ordinals, mut users) = (Vec::new(), Vec::new(), Vec::new());
            for row in published {
                seqs.push(row.seq);
                ordinals.push(row.ordinal);
                users.push(row.user_id);
            }
            let delete = async {
                if published.is_empty() {
                    return Ok(0);
                }
                let keys: [&(dyn ToSql + Sync); 3] = [&seqs, &ordinals, &users];
                client.execute(&statements.delete, &keys).await
            };
            let limit = i64::from(rows_max);
            let limit: [&(dyn ToSql + Sync); 1] = [&limit];
            let read = client.query(&statements.read, &limit);
            // Sent in this order; the identity is looked at behind both.
            let (deleted, rows, now) =
                futures_util::join!(delete, read, identity::read_if(client, statements.epoch));
            let (deleted, rows) = (deleted?, rows?);
            if now? == statements.epoch {
                return rows.iter().map(from_row).collect();
            }
            tracing::info!(
                deleted,
                "the shard has other slots now: its outbox is read anew"
            );
            self.statements = Statements::prepare(&self.client).await?;
        }
    }

    /// Says that this process is there, and finds out whether it still has its session.
    ///
    /// # Errors
    /// [`SqlError::Postgres`].
    pub async fn heartbeat(&self) -> Result<(), SqlError> {
        Ok(self.client.batch_execute("").await?)
    }

    /// How much waits. Scans up to a million rows.
    ///
    /// # Errors
    /// [`SqlError::Postgres`].
    pub async fn lag(&self) -> Result<OutboxLag, SqlError> {
        let count = "select count(*) from (select 1 from outbox limit $1) x";
        let next = "select received_at from outbox order by seq, ordinal limit 1";
        let (count, next) = futures_util::try_join!(
            self.client.query_one(count, &[&LAG_ROWS_MAX]),
            self.client.query_opt(next, &[]),
        )?;
        Ok(OutboxLag {
            rows: count.get::<_, i64>(0).unsigned_abs(),
            oldest_age: next.map_or(Duration::ZERO, |row| age(row.get(0))),
        })
    }
}

/// How long ago that was; a clock that is behind makes it zero.
fn age(at: Timestamp) -> Duration {
    Duration::try_from(Timestamp::now().duration_since(at)).unwrap_or_default()
}

fn from_row(row: &Row) -> Result<OutboxRow, SqlError> {
    let source: &str = row.get(3);
    let unknown = |value: &str| SqlError::UnknownValue {
        table: "outbox",
        value: value.to_owned(),
    };
    let state: String = row.get(9);
    Ok(OutboxRow {
        seq: row.get(0),
        ordinal: row.get(1),
        user_id: row.get(2),
        source: Source::from_text(source).ok_or_else(|| unknown(source))?,
        event_id: row.get(4),
        order_id: row.get(5),
        kind: row.get(6),
        version: row.get(7),
        status: row.get(8),
        state: RawValue::from_string(state).map_err(|error| unknown(&error.to_string()))?,
        received_at: row.get(10),
    })
}
