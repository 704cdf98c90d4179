//! One connection with its prepared statements: prepared once, used for each batch.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bb8_postgres::PostgresConnectionManager;
use tokio::sync::Notify;
use tokio_postgres::{Client, Config, NoTls, Statement};

use shardlane_router::ShardId;

use crate::counting::{CountingClient, StatementCount};
use crate::follow::address;
use crate::identity::{self, ShardIdentity};
use crate::mutants::{self, Mutant};
use crate::{ErrorClass, SqlError};

/// Declares the statements that a session prepares, each from its file in `statements/`.
macro_rules! statements {
    ($($name:ident),+ $(,)?) => {
        pub(crate) struct Statements { $(pub(crate) $name: Statement),+ }

        impl Statements {
            async fn prepare(client: &Client) -> Result<Statements, tokio_postgres::Error> {
                let ($($name),+) = futures_util::try_join!(
                    $(prepare(client, include_str!(concat!("statements/", stringify!($name), ".sql")))),+
                )?;
                Ok(Statements { $($name),+ })
            }
        }
    };
}

statements!(
    move_fence,
    read_fence,
    pass_fence,
    insert_inbox,
    read_inbox,
    forget_rejected,
    read_parked,
    load_parked,
    insert_parked,
    delete_parked,
    find_movable,
    read_orders,
    read_disputes,
    upsert_orders,
    upsert_disputes,
    insert_order_events,
    insert_dispute_events,
    insert_outbox,
    insert_directory,
    count_outcomes,
);

async fn prepare(client: &Client, sql: &str) -> Result<Statement, tokio_postgres::Error> {
    if mutants::is(Mutant::NoOnConflict) {
        let sql = sql.replace("on conflict do nothing", "");
        return client.prepare(&sql).await;
    }
    if mutants::is(Mutant::FenceOutside) {
        // Moved already: what is left in the transaction always agrees.
        let sql = sql.replace("where f.epoch < excluded.epoch", "where true");
        return client.prepare(&sql).await;
    }
    client.prepare(sql).await
}

/// A worker that stands still within a transaction, or whose machine has gone, holds the fences of its partitions, and
/// whoever takes them over waits. So the server ends the transaction: after longer than a dead letter may take on its way
/// to Kafka, which is the longest that a worker waits within one.
const ABANDONED: &str = "set idle_in_transaction_session_timeout = '12s'";

/// A connection that was checked and prepared.
pub(crate) struct Session {
    pub(crate) client: CountingClient,
    pub(crate) statements: Statements,
    /// Set while a transaction is open. A session whose caller went away in between is not used again.
    pub(crate) in_transaction: bool,
}

/// Makes sessions to one database; refuses a database that is not the expected shard.
pub(crate) struct SessionManager {
    postgres: PostgresConnectionManager<NoTls>,
    database: String,
    statements: StatementCount,
    /// Replaced when the shard takes other slots. Sessions that are there stay: the shard's CHECKs look at each row.
    expected: Arc<ArcSwapOption<ShardIdentity>>,
}

impl SessionManager {
    fn new(
        config: Config,
        expected: Arc<ArcSwapOption<ShardIdentity>>,
        statements: StatementCount,
    ) -> Self {
        let database = describe(&config);
        SessionManager {
            postgres: PostgresConnectionManager::new(config, NoTls),
            database,
            statements,
            expected,
        }
    }
}

impl bb8::ManageConnection for SessionManager {
    type Connection = Session;
    type Error = SqlError;

    async fn connect(&self) -> Result<Session, SqlError> {
        let client = self.postgres.connect().await?;
        client.batch_execute(ABANDONED).await?;
        if let Some(expected) = &*self.expected.load() {
            identity::verify(&client, &self.database, expected).await?;
        }
        let statements = Statements::prepare(&client).await?;
        Ok(Session {
            client: CountingClient::new(client, Arc::clone(&self.statements)),
            statements,
            in_transaction: false,
        })
    }

    async fn is_valid(&self, session: &mut Session) -> Result<(), SqlError> {
        Ok(session.client.batch_execute("").await?)
    }

    fn has_broken(&self, session: &mut Session) -> bool {
        session.in_transaction || session.client.is_closed()
    }
}

/// A session for as long as its holder needs it; it does not hold the pool.
pub(crate) type PooledSession = bb8::PooledConnection<'static, SessionManager>;

/// A pool of sessions to one database. It does not test a connection before each use: a broken one fails its batch
/// with a transient error, which is retried on another.
pub(crate) struct Pool {
    config: Config,
    sessions: bb8::Pool<SessionManager>,
    server: String,
    connections_max: u32,
    statements: StatementCount,
    expected: Arc<ArcSwapOption<ShardIdentity>>,
    last_error: LastError,
    connect_timeout: Duration,
}

/// What the last failed attempt to connect said. bb8 connects in the background, and tells a waiting caller no more
/// than that the time is over.
#[derive(Debug, Clone, Default)]
struct LastError {
    error: Arc<Mutex<Option<SqlError>>>,
    /// Told of each failed attempt.
    told: Arc<Notify>,
}

impl LastError {
    fn replace(&self, error: Option<SqlError>) -> Option<SqlError> {
        std::mem::replace(
            &mut *self.error.lock().unwrap_or_else(PoisonError::into_inner),
            error,
        )
    }
}

impl bb8::ErrorSink<SqlError> for LastError {
    fn sink(&self, error: SqlError) {
        self.replace(Some(error));
        self.told.notify_waiters();
    }

    fn boxed_clone(&self) -> Box<dyn bb8::ErrorSink<SqlError>> {
        Box::new(self.clone())
    }
}

impl Pool {
    pub(crate) fn new(
        config: Config,
        expected: Option<ShardIdentity>,
        connections_max: u32,
        connect_timeout: Duration,
    ) -> Pool {
        let last_error = LastError::default();
        let expected = Arc::new(ArcSwapOption::from_pointee(expected));
        let (server, statements) = (describe(&config), StatementCount::default());
        let sessions = bb8::Pool::builder()
            .max_size(connections_max)
            .connection_timeout(connect_timeout)
            .test_on_check_out(false)
            .retry_connection(false)
            .error_sink(Box::new(last_error.clone()))
            .build_unchecked(SessionManager::new(
                config.clone(),
                Arc::clone(&expected),
                Arc::clone(&statements),
            ));
        Pool {
            config,
            sessions,
            server,
            connections_max,
            statements,
            expected,
            last_error,
            connect_timeout,
        }
    }

    /// Where its sessions lead.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// From now on the database must be this shard.
    pub(crate) fn expect(&self, identity: ShardIdentity) {
        self.expected.store(Some(Arc::new(identity)));
    }

    /// Makes the first session, and says at once why there can be none.
    pub(crate) async fn open(&self, shard: ShardId) -> Result<(), SqlError> {
        let first =
            tokio::time::timeout(self.connect_timeout, self.sessions.dedicated_connection());
        let session = first.await.unwrap_or_else(|_| Err(self.timed_out(shard)))?;
        // A full pool would have sessions enough.
        self.sessions.add(session).ok();
        Ok(())
    }

    /// Waits for a session, at most the pool's `connect_timeout`; not at all where there is none and none can be made.
    pub(crate) async fn get(&self, shard: ShardId) -> Result<PooledSession, SqlError> {
        let mut told = pin!(self.last_error.told.notified());
        // Before the attempt begins, so that its failure cannot come unheard.
        told.as_mut().enable();
        let mut session = pin!(self.sessions.get_owned());
        let got = tokio::select! {
            biased;
            got = &mut session => got,
            () = told => {
                if self.sessions.state().connections == 0 {
                    return Err(self.unreachable(shard));
                }
                session.await
            }
        };
        match got {
            Ok(session) => {
                self.last_error.replace(None);
                Ok(session)
            }
            Err(bb8::RunError::User(error)) => Err(error),
            Err(bb8::RunError::TimedOut) => Err(self.timed_out(shard)),
        }
    }

    fn timed_out(&self, shard: ShardId) -> SqlError {
        self.refusal().unwrap_or_else(|last| SqlError::PoolTimeout {
            shard,
            seconds: self.connect_timeout.as_secs(),
            last,
        })
    }

    fn unreachable(&self, shard: ShardId) -> SqlError {
        let unreachable = |last| SqlError::Unreachable { shard, last };
        self.refusal().unwrap_or_else(unreachable)
    }

    /// A refusal that waiting does not cure, as what it is; of any other its words.
    fn refusal(&self) -> Result<SqlError, Option<String>> {
        match self.last_error.replace(None) {
            Some(error)
                if matches!(error.class(), ErrorClass::Permanent | ErrorClass::Rerouted) =>
            {
                Ok(error)
            }
            last => Err(last.map(|error| error.to_string())),
        }
    }

    /// host:port/name of the database.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Asks the database for anything at all.
    pub(crate) async fn ping(&self, shard: ShardId) -> Result<(), SqlError> {
        let mut session = self.get(shard).await?;
        // Broken while nobody used it; the pool drops it, and the next one may be whole.
        while session.client.is_closed() {
            drop(session);
            session = self.get(shard).await?;
        }
        Ok(session.client.batch_execute("").await?)
    }

    /// How it is used, and how long its users have waited.
    pub(crate) fn waits(&self, shards: Vec<ShardId>) -> PoolWaits {
        let state = self.sessions.state();
        PoolWaits {
            shard: shards[0],
            shards,
            server: self.server.clone(),
            statements: self.statements.load(Ordering::Relaxed),
            connections_max: self.connections_max,
            idle: state.idle_connections,
            connections: state.connections,
            waited: state.statistics.get_waited,
            timed_out: state.statistics.get_timed_out,
            wait: state.statistics.get_wait_time,
        }
    }
}

/// How a pool is used, and how long its users have waited for a connection since it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolWaits {
    /// The shard; the first of those that share the pool.
    pub shard: ShardId,
    /// All of them.
    pub shards: Vec<ShardId>,
    /// Its database: host:port/name.
    pub server: String,
    /// Statements that were sent.
    pub statements: u64,
    /// As many connections as there may be.
    pub connections_max: u32,
    /// Connections that are there now.
    pub connections: u32,
    /// Those of them that nobody uses.
    pub idle: u32,
    /// Those who had to wait and got one.
    pub waited: u64,
    /// Those who waited in vain.
    pub timed_out: u64,
    /// How long all of them waited, in sum.
    pub wait: Duration,
}

/// host:port/name of a DSN, without its user and password, for messages.
pub(crate) fn describe(config: &Config) -> String {
    let (host, port, database) = address(config);
    format!("{host}:{port}/{database}")
}
