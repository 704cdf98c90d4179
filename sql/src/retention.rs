//! Inbox rows that nobody will ask for any more are removed, by exactly one worker a database.
//!
//! A window of pages at a time: a short statement, a pause, the next window. Once the whole table was walked, a window
//! is visited when its oldest row is due, which this process remembers. Whoever starts anew walks the table once.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rand::RngExt as _;
use tokio::task::AbortHandle;
use tokio_postgres::{Client, Config, Statement};

use crate::follow::{Address, address, connect};
use crate::reshard::Journal;
use crate::{SqlError, Store};

/// Held, in each database, by the session that keeps its inbox. The number is arbitrary and names this lock only.
const RETENTION_LOCK: i64 = 0x7265_7461_696e; // "retain"

/// How long the server may take for one statement, and how long that may wait for somebody else's lock.
const LIMITS: &str = "set statement_timeout = '30s'; set lock_timeout = '2s'; \
     set citus.multi_shard_modify_mode = 'sequential'";

/// How long a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// A window is visited when its oldest row is overdue by this part of the time that rows are kept: it goes in few
/// visits, and not row by row.
const SLACK: i32 = 50;
/// And at the latest after this part of it: rows may be in other pages than they were, because the table was rewritten or
/// Citus has moved a shard.
const VISIT: i32 = 7;

/// How the inbox is kept small.
#[derive(Debug, Clone, Copy)]
pub struct RetentionSettings {
    /// Rows that were received longer ago are removed: mostly within a fiftieth of this, at the latest a seventh.
    pub keep: Duration,
    /// Pages that one statement walks, over all shards of a Citus cluster; a page holds about 70 rows.
    pub window_pages: u32,
    /// The pause between two statements.
    pub pause: Duration,
    /// How often one looks whether something is due, and whether the worker that does this is still there; jittered.
    pub look_interval: Duration,
}

impl RetentionSettings {
    /// Small statements: about 4,500 rows, some milliseconds.
    pub fn new(keep: Duration) -> Self {
        RetentionSettings {
            keep,
            window_pages: 64,
            pause: Duration::from_millis(50),
            look_interval: Duration::from_secs(30),
        }
    }
}

/// The job that [`Store::retain_inbox`] started; dropped, it ends.
#[derive(Debug)]
pub struct RetentionJob(AbortHandle);

impl Drop for RetentionJob {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Store {
    /// Removes old inbox rows of every database, where no other worker does, until the job is dropped. `removed` hears
    /// how many rows each statement removed. Must be called in a tokio runtime.
    pub fn retain_inbox(
        &self,
        settings: RetentionSettings,
        removed: impl Fn(u64) + Send + Sync + 'static,
    ) -> RetentionJob {
        let store = self.clone();
        let job = async move {
            let mut keepers = HashMap::new();
            loop {
                let is_busy = round(&store, &mut keepers, settings, &removed).await;
                let pause = if is_busy {
                    settings.pause
                } else {
                    let jitter = rand::rng().random_range(0.8..1.2);
                    settings.look_interval.mul_f64(jitter)
                };
                tokio::time::sleep(pause).await;
            }
        };
        RetentionJob(tokio::spawn(job).abort_handle())
    }

    /// Whether slots are on their way: source and target are compared row by row, so nobody else may remove rows.
    async fn is_resharding(&self) -> Result<bool, SqlError> {
        let routes = self.routes();
        if routes.catalog().is_none() {
            return Ok(false);
        }
        for lane in routes.lanes() {
            let session = lane.pool.get(lane.target.shard).await?;
            if Journal::is_open(&session.client).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// One statement in each database that this worker keeps. True: there is more to do at once.
async fn round(
    store: &Store,
    keepers: &mut HashMap<Address, Keeper>,
    settings: RetentionSettings,
    removed: &impl Fn(u64),
) -> bool {
    match store.is_resharding().await {
        Ok(false) => {}
        Ok(true) => return false,
        Err(error) => {
            tracing::warn!("the inbox keeps its old rows for now: {error}");
            return false;
        }
    }
    let databases = store.databases();
    keepers.retain(|known, _| databases.iter().any(|config| address(config) == *known));
    let shards = store
        .routes()
        .shard_map()
        .map_or(1, |map| map.shards().len());
    let shards = u32::try_from(shards).unwrap_or(u32::MAX).max(1);
    let pages = (settings.window_pages / shards).max(1);
    let mut is_busy = false;
    for config in databases {
        let address = address(&config);
        let step = async {
            let keeper = match keepers.get_mut(&address) {
                Some(keeper) => keeper,
                None => match Keeper::open(&config, pages).await? {
                    Some(keeper) => keepers.entry(address.clone()).or_insert(keeper),
                    None => return Ok(Step::Idle),
                },
            };
            keeper.step(settings.keep).await
        };
        match step.await {
            Ok(Step::Idle) => {}
            Ok(Step::Visited { rows }) => {
                is_busy = true;
                removed(rows);
            }
            Err(error) => {
                let error: SqlError = error;
                tracing::warn!("the inbox keeps its old rows for now: {error}");
                // Its connection may be broken, and with it the lock; what it knew is learnt again.
                keepers.remove(&address);
            }
        }
    }
    is_busy
}

/// What one look came to.
enum Step {
    /// Nothing is due, or another worker does it.
    Idle,
    /// A window was visited.
    Visited { rows: u64 },
}

/// The one who keeps a database's inbox, for as long as its session holds the lock.
struct Keeper {
    client: Client,
    remove: Statement,
    oldest: Statement,
    rest: Statement,
    pages: u32,
    walk: Walk,
}

impl Keeper {
    /// `None`: another worker has the lock.
    async fn open(config: &Config, pages: u32) -> Result<Option<Keeper>, SqlError> {
        let opening = async {
            let client = connect(config).await?;
            let query = "select pg_try_advisory_lock($1)";
            let row = client.query_one(query, &[&RETENTION_LOCK]).await?;
            if !row.get::<_, bool>(0) {
                return Ok(None);
            }
            // Plain Postgres takes a setting of an extension that it does not have.
            client.batch_execute(LIMITS).await?;
            let remove = client
                .prepare(include_str!("statements/retain_inbox.sql"))
                .await?;
            let oldest = client
                .prepare(include_str!("statements/read_inbox_window.sql"))
                .await?;
            let rest = client
                .prepare(include_str!("statements/read_inbox_rest.sql"))
                .await?;
            Ok(Some(Keeper {
                client,
                remove,
                oldest,
                rest,
                pages,
                walk: Walk::default(),
            }))
        };
        match tokio::time::timeout(CONNECT_MAX, opening).await {
            Ok(opened) => opened,
            Err(_) => Ok(None),
        }
    }

    async fn step(&mut self, keep: Duration) -> Result<Step, SqlError> {
        let now = Timestamp::now();
        let keep = SignedDuration::try_from(keep).unwrap_or(SignedDuration::MAX);
        let Some(page) = self.next_page(now).await? else {
            return Ok(Step::Idle);
        };
        let (from, to) = (tid(page), tid(page + i64::from(self.pages)));
        let cutoff = now.saturating_sub(keep).unwrap_or(Timestamp::MIN);
        let rows = self
            .client
            .execute(&self.remove, &[&from, &to, &cutoff])
            .await?;
        let oldest = self.client.query_one(&self.oldest, &[&from, &to]).await?;
        // Whatever comes into an empty window is new.
        let oldest = oldest.get::<_, Option<Timestamp>>(0).unwrap_or(now);
        let due = after(after(oldest, keep), keep / SLACK).min(after(now, keep / VISIT));
        self.walk.visited(page, self.pages, due);
        Ok(Step::Visited { rows })
    }

    /// A window that is due, or the next one of the walk.
    async fn next_page(&mut self, now: Timestamp) -> Result<Option<i64>, SqlError> {
        if let Some(page) = self.walk.due(now) {
            return Ok(Some(page));
        }
        let next = self.walk.next;
        let row = self.client.query_opt(&self.rest, &[&tid(next)]).await?;
        Ok(row.map(|_| next))
    }
}

fn after(time: Timestamp, length: SignedDuration) -> Timestamp {
    time.saturating_add(length).unwrap_or(Timestamp::MAX)
}

/// A page's first row.
fn tid(page: i64) -> String {
    format!("({page},0)")
}

/// Which windows were seen, and when each has something to remove.
#[derive(Debug, Default)]
struct Walk {
    /// The page behind the last window that was seen.
    next: i64,
    due: BTreeMap<Timestamp, Vec<i64>>,
}

impl Walk {
    fn visited(&mut self, page: i64, pages: u32, due: Timestamp) {
        self.next = self.next.max(page + i64::from(pages));
        self.due.entry(due).or_default().push(page);
    }

    /// A window that is due; it must be visited.
    fn due(&mut self, now: Timestamp) -> Option<i64> {
        let mut first = self.due.first_entry()?;
        if *first.key() > now {
            return None;
        }
        let page = first.get_mut().pop();
        if first.get().is_empty() {
            first.remove();
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_come_when_they_are_due_and_each_once() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut walk = Walk::default();
        walk.visited(0, 64, at(30));
        walk.visited(64, 64, at(10));
        walk.visited(128, 64, at(30));
        assert_eq!(walk.next, 192);
        assert_eq!(walk.due(at(9)), None);
        assert_eq!(walk.due(at(10)), Some(64));
        assert_eq!(walk.due(at(29)), None);
        walk.visited(64, 64, at(40));
        assert_eq!(walk.next, 192, "a second visit does not lengthen the walk");
        let mut both = [walk.due(at(35)), walk.due(at(35))];
        both.sort_unstable();
        assert_eq!(both, [Some(0), Some(128)]);
        assert_eq!(walk.due(at(39)), None);
    }
}
