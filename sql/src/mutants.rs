//! Defects that somebody could put in, and points at which a worker can be struck. Without the feature `mutants` both are
//! nothing: [`is`] is a constant `false`, and [`reached`] returns at once.
//!
//! With it, `SHARDLANE_MUTANT=<name>` plants one defect, and `SHARDLANE_POINT=<name>:<n>` stops this process's task when it
//! comes to a point for the n-th time: it says `point <name>` on stdout, and waits there for its end.

/// A planted defect. The fault suite's oracle has to find each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The offset is committed before the batch is written.
    CommitBeforeWrite = 1,
    /// The inbox is written without `on conflict do nothing`.
    NoOnConflict,
    /// A webhook is acknowledged before the broker has its record.
    AckBeforeDelivery,
    /// The fence moves in a transaction of its own, before the batch's.
    FenceOutside,
    /// A user is hashed with another seed.
    WrongHashSeed,
    /// A dead letter is counted and not published.
    DeadLetterSwallowed,
    /// A revoked partition is handed over with what its lane still holds committed.
    LostRevokeDrain,
    /// What failed for a moment is tried again behind what came after it.
    RetryOvertakes,
    /// A lane that waited for its database goes on behind the records with which it waited.
    StaleResume,
    /// A redelivered record is a new one of this moment.
    TimeRegenerated,
    /// The outbox is written after the commit.
    OutboxOutside,
    /// What was seen is remembered by the process, not by the database.
    MemoryInbox,
}

impl Mutant {
    /// All twelve.
    pub const ALL: [Mutant; 12] = [
        Mutant::CommitBeforeWrite,
        Mutant::NoOnConflict,
        Mutant::AckBeforeDelivery,
        Mutant::FenceOutside,
        Mutant::WrongHashSeed,
        Mutant::DeadLetterSwallowed,
        Mutant::LostRevokeDrain,
        Mutant::RetryOvertakes,
        Mutant::StaleResume,
        Mutant::TimeRegenerated,
        Mutant::OutboxOutside,
        Mutant::MemoryInbox,
    ];

    /// The name in the environment and in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Mutant::CommitBeforeWrite => "commit-before-write",
            Mutant::NoOnConflict => "no-on-conflict",
            Mutant::AckBeforeDelivery => "ack-before-delivery",
            Mutant::FenceOutside => "fence-outside-transaction",
            Mutant::WrongHashSeed => "wrong-hash-seed",
            Mutant::DeadLetterSwallowed => "dead-letter-swallowed",
            Mutant::LostRevokeDrain => "lost-revoke-drain",
            Mutant::RetryOvertakes => "retry-overtakes",
            Mutant::StaleResume => "stale-resume",
            Mutant::TimeRegenerated => "time-regenerated",
            Mutant::OutboxOutside => "outbox-outside-transaction",
            Mutant::MemoryInbox => "memory-inbox",
        }
    }
}

/// A place in a batch's way where a kill must not hurt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The batch is decoded and nothing of it is written.
    BeforeWrite,
    /// The batch is written, and not committed.
    Written,
    /// The batch is committed, and its offset is not.
    Committed,
    /// The relay's batch is in the feed, and not yet deleted from the outbox.
    Relayed,
}

impl Point {
    /// The name in the environment.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Point::BeforeWrite => "before-write",
            Point::Written => "written",
            Point::Committed => "committed",
            Point::Relayed => "relayed",
        }
    }
}

#[cfg(not(feature = "mutants"))]
pub use absent::{is, reached};
#[cfg(feature = "mutants")]
pub use planted::{chosen, is, plant, reached};
#[cfg(feature = "mutants")]
pub(crate) use planted::{put_outbox, seen_before, take_outbox};

#[cfg(not(feature = "mutants"))]
mod absent {
    use super::{Mutant, Point};

    /// Never, in a build without defects.
    #[inline(always)]
    #[must_use]
    pub const fn is(_: Mutant) -> bool {
        false
    }

    /// Goes on.
    #[inline(always)]
    pub async fn reached(_: Point) {}
}

#[cfg(feature = "mutants")]
mod planted {
    use std::collections::HashSet;
    use std::io::Write as _;
    use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
    use std::sync::{LazyLock, Mutex, PoisonError};

    use tokio_postgres::Client;
    use uuid::Uuid;

    use super::{Mutant, Point};
    use crate::SqlError;

    static PLANTED: LazyLock<AtomicUsize> = LazyLock::new(|| {
        let name = std::env::var("SHARDLANE_MUTANT").unwrap_or_default();
        AtomicUsize::new(
            Mutant::ALL
                .iter()
                .position(|it| it.name() == name)
                .map_or(0, |it| it + 1),
        )
    });

    static POINT: LazyLock<Option<(String, u32)>> = LazyLock::new(|| {
        let text = std::env::var("SHARDLANE_POINT").ok()?;
        let (name, times) = text.split_once(':')?;
        Some((name.to_owned(), times.parse().ok()?))
    });

    /// Whether this defect is planted in this process.
    #[must_use]
    pub fn is(mutant: Mutant) -> bool {
        PLANTED.load(Ordering::Relaxed) == mutant as usize
    }

    /// The defect that is planted in this process.
    #[must_use]
    pub fn chosen() -> Option<Mutant> {
        Mutant::ALL.into_iter().find(|mutant| is(*mutant))
    }

    /// Plants a defect in this process, or none.
    pub fn plant(mutant: Option<Mutant>) {
        PLANTED.store(mutant.map_or(0, |it| it as usize), Ordering::Relaxed);
    }

    /// Stops here, for ever, if this is the point and the time that the environment names.
    pub async fn reached(point: Point) {
        static TIMES: AtomicU32 = AtomicU32::new(0);
        let Some((name, times)) = &*POINT else { return };
        if name == point.name() && TIMES.fetch_add(1, Ordering::Relaxed) + 1 == *times {
            let mut out = std::io::stdout();
            // Nobody listens: then nobody strikes, and waiting is all there is to do.
            writeln!(out, "point {name}")
                .and_then(|()| out.flush())
                .ok();
            std::future::pending::<()>().await;
        }
    }

    /// For [`Mutant::OutboxOutside`]: what this transaction has put into the outbox, taken out again.
    pub(crate) async fn take_outbox(client: &Client) -> Result<Option<String>, SqlError> {
        if !is(Mutant::OutboxOutside) {
            return Ok(None);
        }
        let own = "with own as (delete from outbox where xmin = pg_current_xact_id()::xid returning *) \
                   select json_agg(own)::text from own";
        Ok(client.query_one(own, &[]).await?.get(0))
    }

    /// Puts it in, in a transaction of its own.
    pub(crate) async fn put_outbox(client: &Client, rows: Option<String>) -> Result<(), SqlError> {
        let Some(rows) = rows else { return Ok(()) };
        let put = "insert into outbox select * from json_populate_recordset(null::outbox, $1::text::json)";
        client.execute(put, &[&rows]).await?;
        Ok(())
    }

    /// The memory of [`Mutant::MemoryInbox`]: false the first time that this process is asked for an event.
    pub(crate) fn seen_before(user: Uuid, source: &str, event: &str) -> bool {
        static SEEN: LazyLock<Mutex<HashSet<(Uuid, String, String)>>> =
            LazyLock::new(Mutex::default);
        let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
        !seen.insert((user, source.to_owned(), event.to_owned()))
    }
}
