//! Where the watch reads: one session, to whichever node answers.

use std::time::{Duration, Instant};

use shardlane_router::{Epoch, Node, ShardMap};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config, IsolationLevel, Socket};

use crate::load::{check_tables, read_map};
use crate::node::describe;
use crate::{CitusError, node_config, self_test};

/// How often a map is read again when the cluster changes between its questions.
const READS_MAX: usize = 3;

/// How long another node is asked before the original address is tried again. Another node may lag behind the
/// coordinator, and one that was removed from the cluster goes on telling what it last knew.
const AWAY_MAX: Duration = Duration::from_secs(30);

/// What a node answered.
pub(super) enum Answer {
    /// The map is the one whose digest was given.
    Same,
    /// Another one, with its digest.
    Map(String, ShardMap),
}

struct Session {
    client: Client,
    driver: JoinHandle<()>,
    /// `None`: the original address.
    node: Option<Node>,
    since: Instant,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Asks the original address or, while that does not answer, the nodes of the last map.
pub(super) struct Source<T> {
    config: Config,
    tls: T,
    tables: Vec<String>,
    answer_time_max: Duration,
    session: Option<Session>,
}

impl<T> Source<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + 'static,
    T::Stream: Send,
    T::TlsConnect: Send,
    <T::TlsConnect as tokio_postgres::tls::TlsConnect<Socket>>::Future: Send,
{
    pub(super) fn new(config: Config, tls: T, tables: &[&str], answer_time_max: Duration) -> Self {
        Source {
            config,
            tls,
            tables: tables.iter().map(|&it| it.to_owned()).collect(),
            answer_time_max,
            session: None,
        }
    }

    /// Asks for the map. `known` is the digest of the last one, `nodes` are its nodes. Each node has its time; the
    /// error is the first one, of the node that was asked first.
    pub(super) async fn ask(
        &mut self,
        known: Option<&str>,
        nodes: &[Node],
        epoch: Epoch,
    ) -> Result<Answer, CitusError> {
        self.come_home().await;
        let mut first = None;
        if let Some(mut session) = self.session.take() {
            match self.ask_session(&mut session, known, epoch).await {
                Err(error) if is_of_the_node(&error) => first = Some((session.node.clone(), error)),
                answered => {
                    self.session = Some(session);
                    return answered;
                }
            }
        }
        let failed = first.as_ref().map(|(node, _)| node.clone());
        for node in places(nodes, failed) {
            let asked = match self.connect(node.clone()).await {
                Ok(mut session) => {
                    let asked = self.ask_session(&mut session, known, epoch).await;
                    self.session = Some(session);
                    asked
                }
                Err(error) => Err(error),
            };
            match asked {
                Err(error) if is_of_the_node(&error) => {
                    self.session = None;
                    first.get_or_insert((node, error));
                }
                answered => return answered,
            }
        }
        Err(first.map_or(CitusError::Stopped, |(_, error)| error))
    }

    /// Back to the original address, once in a while, if it answers.
    async fn come_home(&mut self) {
        let Some(session) = &mut self.session else {
            return;
        };
        if session.node.is_none() || session.since.elapsed() < AWAY_MAX {
            return;
        }
        session.since = Instant::now();
        if let Ok(home) = self.connect(None).await {
            self.session = Some(home);
        }
    }

    async fn connect(&self, node: Option<Node>) -> Result<Session, CitusError> {
        let config = match &node {
            Some(node) => node_config(&self.config, node),
            None => self.config.clone(),
        };
        let connecting = config.connect(self.tls.clone());
        let (client, connection) = timeout(self.answer_time_max, connecting)
            .await
            .map_err(|_| self.silent(node.as_ref()))?
            .map_err(|source| CitusError::Connect {
                node: describe(&config),
                source,
            })?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the watch's connection ended");
            }
        });
        Ok(Session {
            client,
            driver,
            node,
            since: Instant::now(),
        })
    }

    async fn ask_session(
        &self,
        session: &mut Session,
        known: Option<&str>,
        epoch: Epoch,
    ) -> Result<Answer, CitusError> {
        let node = session.node.clone();
        let tables: Vec<&str> = self.tables.iter().map(String::as_str).collect();
        timeout(
            self.answer_time_max,
            ask(&mut session.client, &tables, known, epoch),
        )
        .await
        .unwrap_or_else(|_| Err(self.silent(node.as_ref())))
    }

    fn silent(&self, node: Option<&Node>) -> CitusError {
        CitusError::Silent {
            node: node.map_or_else(|| describe(&self.config), Node::to_string),
            seconds: self.answer_time_max.as_secs_f32(),
        }
    }
}

/// The original address, then the nodes; the one that has just failed comes last.
fn places(nodes: &[Node], failed: Option<Option<Node>>) -> Vec<Option<Node>> {
    let mut places: Vec<Option<Node>> = std::iter::once(None)
        .chain(nodes.iter().cloned().map(Some))
        .collect();
    if let Some(failed) = failed {
        places.sort_by_key(|place| *place == failed);
    }
    places
}

/// Whether another node may answer better. A map that cannot be used is the same everywhere.
fn is_of_the_node(error: &CitusError) -> bool {
    matches!(
        error,
        CitusError::Connect { .. } | CitusError::Silent { .. } | CitusError::Metadata(_)
    )
}

async fn ask(
    client: &mut Client,
    tables: &[&str],
    known: Option<&str>,
    epoch: Epoch,
) -> Result<Answer, CitusError> {
    if known.is_some() && known == Some(&*digest(client, tables).await?) {
        return Ok(Answer::Same);
    }
    let mut reads = 0;
    loop {
        reads += 1;
        match read(client, tables, epoch).await {
            // The self-test asks Citus itself, which answers from its newest metadata, not from our snapshot.
            Err(CitusError::SelfTest { .. }) if reads < READS_MAX => {}
            other => return other,
        }
    }
}

/// One round trip, and no statement that a pooler between us and the node would have to remember.
async fn digest(
    client: &impl tokio_postgres::GenericClient,
    tables: &[&str],
) -> Result<String, CitusError> {
    let rows = client
        .query_typed(
            include_str!("../sql/digest.sql"),
            &[(&tables, Type::TEXT_ARRAY)],
        )
        .await
        .map_err(CitusError::Metadata)?;
    Ok(rows.first().map(|row| row.get(0)).unwrap_or_default())
}

/// Reads everything in one snapshot: a change in the middle is seen wholly or not at all.
async fn read(client: &mut Client, tables: &[&str], epoch: Epoch) -> Result<Answer, CitusError> {
    let snapshot = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await
        .map_err(CitusError::Metadata)?;
    check_tables(&snapshot, tables).await?;
    let digest = digest(&snapshot, tables).await?;
    let table = tables.first().copied().unwrap_or_default();
    let map = read_map(&snapshot, table, epoch).await?;
    snapshot.rollback().await.map_err(CitusError::Metadata)?;
    self_test(client, table, &map).await?;
    Ok(Answer::Map(digest, map))
}
