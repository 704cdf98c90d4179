//! Which connection an operation takes: the only thing in which the paths differ.

use std::ops::DerefMut;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use shardlane_citus::Watch;
use shardlane_router::{RouteKey, ShardMap, SlotMap};
use tokio_postgres::{Client, Config, NoTls, Statement};
use uuid::Uuid;

/// The name of the measured connections in `pg_stat_activity`.
const APPLICATION: &str = "shardlane routing";
/// How long an operation waits for a connection, and the server for a statement.
const TIME_MAX: Duration = Duration::from_secs(60);

/// A connection with the statements of its workload.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) statements: Vec<Statement>,
}

/// Makes sessions to one node.
pub(crate) struct Sessions {
    config: Config,
    statements: &'static [&'static str],
}

impl bb8::ManageConnection for Sessions {
    type Connection = Session;
    type Error = tokio_postgres::Error;

    async fn connect(&self) -> Result<Session, tokio_postgres::Error> {
        let (client, connection) = self.config.connect(NoTls).await?;
        tokio::spawn(connection);
        let mut statements = Vec::with_capacity(self.statements.len());
        for statement in self.statements {
            statements.push(client.prepare(statement).await?);
        }
        Ok(Session { client, statements })
    }

    async fn is_valid(&self, session: &mut Session) -> Result<(), tokio_postgres::Error> {
        session.client.batch_execute("").await
    }

    fn has_broken(&self, session: &mut Session) -> bool {
        session.client.is_closed()
    }
}

/// How a pool is chosen.
pub(crate) enum Choice {
    /// Each in turn; with one pool, that one.
    Turns(AtomicUsize),
    /// The owner's. The pools are in the order of the map's nodes.
    Owner(Arc<ShardMap>),
    /// The manual shard's. The pools are in the order of the map's shards, which are numbered from 0.
    Shard(SlotMap),
    /// The owner's by the newest map. The experiment moves no shard, so the order of the nodes stays.
    Watched(Watch),
}

/// A pool a node, and the choice between them.
pub(crate) struct Pools {
    pools: Vec<bb8::Pool<Sessions>>,
    choice: Choice,
}

impl Pools {
    /// Connects `each` sessions to each node, and prepares their statements.
    pub(crate) async fn connect(
        nodes: &[Config],
        choice: Choice,
        each: u32,
        statements: &'static [&'static str],
    ) -> Result<Pools, tokio_postgres::Error> {
        let mut pools = Vec::with_capacity(nodes.len());
        for node in nodes {
            let mut config = node.clone();
            config.application_name(APPLICATION);
            let pool = bb8::Pool::builder()
                .max_size(each)
                .min_idle(each)
                .connection_timeout(TIME_MAX)
                // As a service would: a broken connection fails its operation, not every one pays for a test.
                .test_on_check_out(false)
                .build(Sessions { config, statements })
                .await?;
            pools.push(pool);
        }
        Ok(Pools { pools, choice })
    }

    /// A connection for an operation on `user`.
    pub(crate) async fn session(
        &self,
        user: Uuid,
    ) -> Result<impl DerefMut<Target = Session>, bb8::RunError<tokio_postgres::Error>> {
        let index = match &self.choice {
            Choice::Turns(next) => next.fetch_add(1, Ordering::Relaxed) % self.pools.len(),
            Choice::Owner(map) => map.route(&RouteKey::Uuid(user)).node,
            Choice::Shard(map) => {
                let shard = map.shard_for(&RouteKey::Uuid(user)).0;
                usize::try_from(shard).unwrap_or(usize::MAX)
            }
            Choice::Watched(watch) => watch.peek().route(&RouteKey::Uuid(user)).node,
        };
        self.pools[index].get().await
    }

    /// A connection to each node, for what no user decides.
    pub(crate) async fn all(
        &self,
    ) -> Result<Vec<impl DerefMut<Target = Session>>, bb8::RunError<tokio_postgres::Error>> {
        // In one order, so that no two operations wait for each other.
        let mut sessions = Vec::with_capacity(self.pools.len());
        for pool in &self.pools {
            sessions.push(pool.get().await?);
        }
        Ok(sessions)
    }
}

/// A connection's settings: bounded statements, and on Citus the counters that tell of hops.
pub(crate) fn config(url: &str, citus: bool) -> anyhow::Result<Config> {
    let mut config: Config = url.parse()?;
    let counters = if citus {
        " -c citus.enable_stat_counters=on"
    } else {
        ""
    };
    config.options(format!(
        "-c statement_timeout={}{counters}",
        TIME_MAX.as_millis()
    ));
    Ok(config)
}
