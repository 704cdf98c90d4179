//! Dead letters of direct mode: a table with the content that a dead-letter topic has.
//!
//! A letter is written in a transaction of its own, after the one that could not take its event. With a user it lies in
//! the user's database, which has just answered, so it needs no other server; without one it lies in the first. It
//! stays there when slots move: readers ask every database.

use std::collections::{BTreeMap, HashSet};
use std::sync::{MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use shardlane_domain::{DeadLetter, LetterFilter, LetterState, Listing, Source};
use tokio_postgres::Row;
use tokio_postgres::types::{Json, ToSql};
use uuid::Uuid;

use crate::routes::Lane;
use crate::{SqlError, Store};

/// Makes ids of letters; arbitrary, and the same for ever.
const NAMESPACE: Uuid = Uuid::from_u128(0x5348_4152_444c_414e_4544_4541_4400_0001);

/// A webhook that became no row.
#[derive(Debug, Clone)]
pub struct NewLetter {
    /// Where it came from.
    pub source: Source,
    /// Its user, if it could be decoded.
    pub user_id: Option<Uuid>,
    /// For counting: `malformed`, `illegal`, ...
    pub class: &'static str,
    /// For people.
    pub reason: String,
    /// How often it was tried this time.
    pub attempts: u32,
    /// When it was accepted.
    pub received_at: Timestamp,
    /// The body, byte for byte.
    pub payload: Bytes,
    /// Names and values, in their order.
    pub headers: Vec<(String, String)>,
}

impl NewLetter {
    /// The same for the same bytes from the same source: a provider that repeats itself makes one letter.
    pub fn id(&self) -> Uuid {
        let mut content = self.source.as_str().as_bytes().to_vec();
        content.push(0);
        content.extend_from_slice(&self.payload);
        Uuid::new_v5(&NAMESPACE, &content)
    }
}

impl Store {
    /// Keeps a letter, in a transaction of its own. Returns its id.
    ///
    /// # Errors
    /// [`SqlError`]: the letter is not kept, so its sender must not be told that it was.
    pub async fn bury(&self, letter: &NewLetter) -> Result<Uuid, SqlError> {
        let routes = self.routes();
        let target = letter.user_id.and_then(|user| routes.target_of(user));
        let lane = target.and_then(|target| routes.lane(target));
        let session = session(lane.unwrap_or(&routes.lanes()[0])).await?;
        let (id, attempts) = (
            letter.id(),
            i32::try_from(letter.attempts).unwrap_or(i32::MAX),
        );
        // Text holds no NUL, and a reason may quote anything.
        let reason = letter.reason.replace('\0', "\u{fffd}");
        let params: [&(dyn ToSql + Sync); 10] = [
            &id,
            &letter.source.as_str(),
            &letter.user_id,
            &letter.class,
            &reason,
            &attempts,
            &letter.received_at,
            &Timestamp::now(),
            &&letter.payload[..],
            &Json(&letter.headers),
        ];
        let client = &session.client;
        client
            .execute(include_str!("statements/bury.sql"), &params)
            .await?;
        *self
            .buried_now()
            .entry((letter.source, letter.class))
            .or_default() += 1;
        Ok(id)
    }

    /// How many letters were kept since the store was connected, by source and class. One that is sent again counts again.
    #[must_use]
    pub fn buried(&self) -> BTreeMap<(Source, &'static str), u64> {
        self.buried_now().clone()
    }

    fn buried_now(&self) -> MutexGuard<'_, BTreeMap<(Source, &'static str), u64>> {
        let buried = self.shared.buried.lock();
        buried.unwrap_or_else(PoisonError::into_inner)
    }

    /// The letters that match, `limit` at most, of all databases.
    ///
    /// # Errors
    /// [`SqlError`]: one database that does not answer hides its letters, so there is no partial answer.
    pub async fn dead_letters(
        &self,
        filter: &LetterFilter,
        limit: usize,
    ) -> Result<Listing, SqlError> {
        let (mut listing, mut seen) = (Listing::default(), HashSet::new());
        for lane in self.routes().databases() {
            let session = session(lane).await?;
            let query = include_str!("statements/read_dead_letters.sql");
            // Streamed, because only `limit` of them are kept.
            let everything: [Option<Uuid>; 1] = [None];
            let rows = session.client.query_raw(query, everything).await?;
            let mut rows = std::pin::pin!(rows);
            while let Some(row) = rows.try_next().await? {
                let letter = letter_of(&row)?;
                if !filter.takes(&letter) || !seen.insert(letter.id.clone()) {
                    continue;
                }
                listing.matching += 1;
                if listing.letters.len() < limit {
                    listing.letters.push(letter);
                }
            }
        }
        listing.letters.sort_by_key(|letter| letter.dead_at);
        Ok(listing)
    }

    /// The letter with this id.
    ///
    /// # Errors
    /// [`SqlError`].
    pub async fn dead_letter(&self, id: Uuid) -> Result<Option<DeadLetter>, SqlError> {
        for lane in self.routes().databases() {
            let session = session(lane).await?;
            let query = include_str!("statements/read_dead_letters.sql");
            if let Some(row) = session.client.query_opt(query, &[&Some(id)]).await? {
                return Ok(Some(letter_of(&row)?));
            }
        }
        Ok(None)
    }

    /// Remembers that a letter's replay began, or, with `to`, how it ended. A letter that has died again since is left
    /// as it is.
    ///
    /// # Errors
    /// [`SqlError`].
    pub async fn mark_replay(
        &self,
        letter: &DeadLetter,
        began_at: Timestamp,
        to: Option<&str>,
    ) -> Result<(), SqlError> {
        let id = letter
            .id
            .parse::<Uuid>()
            .map_err(|_| SqlError::UnknownValue {
                table: "dead_letters",
                value: letter.id.clone(),
            })?;
        for lane in self.routes().databases() {
            let session = session(lane).await?;
            let statement = include_str!("statements/mark_replay.sql");
            let params: [&(dyn ToSql + Sync); 4] = [&id, &letter.dead_at, &began_at, &to];
            session.client.execute(statement, &params).await?;
        }
        Ok(())
    }
}

async fn session(lane: &Lane) -> Result<crate::session::PooledSession, SqlError> {
    lane.pool.get(lane.target.shard).await
}

fn letter_of(row: &Row) -> Result<DeadLetter, SqlError> {
    let source: &str = row.get(1);
    let Json(headers): Json<Vec<(String, String)>> = row.get(9);
    let headers = headers
        .into_iter()
        .map(|(key, value)| (key, Some(value.into())));
    let began: Option<Timestamp> = row.get(10);
    let to: Option<String> = row.get(11);
    let state = match (began, to) {
        (Some(at), Some(to)) => LetterState::Replayed { at, to },
        (Some(at), None) => LetterState::Replaying { at },
        (None, _) => LetterState::Dead,
    };
    Ok(DeadLetter {
        id: row.get::<_, Uuid>(0).to_string(),
        source: Source::from_text(source).ok_or_else(|| SqlError::UnknownValue {
            table: "dead_letters",
            value: source.to_owned(),
        })?,
        user_id: row.get(2),
        class: row.get(3),
        reason: row.get(4),
        attempts: row.get::<_, i32>(5).unsigned_abs(),
        received_at: row.get(6),
        dead_at: row.get(7),
        origin: None,
        key: None,
        payload: Some(row.get::<_, Vec<u8>>(8).into()),
        headers: headers.collect(),
        state,
    })
}
