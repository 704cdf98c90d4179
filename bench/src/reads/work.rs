//! One read: a key, a connection, the statement, and whether the answer can be right.

use std::sync::Arc;

use futures_util::future::try_join_all;
use rand_chacha::ChaCha8Rng;

use super::data::Data;
use super::question::{Key, Path, Question};
use crate::closed_loop::Operation;
use crate::pools::{Pools, Session};

/// A read failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// No connection was free in time.
    #[error("no connection in time")]
    Pool(#[source] bb8::RunError<tokio_postgres::Error>),
    /// The server refused.
    #[error("the server refused")]
    Server(#[from] tokio_postgres::Error),
    /// The answer is not what was stored.
    #[error("{question} of {key:?}: expected {} rows, found {rows}", key.rows)]
    Wrong {
        question: &'static str,
        key: Box<Key>,
        rows: usize,
    },
}

/// What all reads of one cell share.
pub(super) struct Work {
    pub(super) question: Question,
    pub(super) path: Path,
    pub(super) pools: Pools,
    pub(super) data: Arc<Data>,
}

impl Work {
    /// The rows of an answer, in its order.
    pub(super) async fn ask(&self, key: &Key) -> Result<Vec<String>, ReadError> {
        if self.path == Path::ScatterGather {
            let sessions = self.pools.all().await.map_err(ReadError::Pool)?;
            let parts = sessions.iter().map(|session| self.query(session, key));
            return Ok(try_join_all(parts).await?.concat());
        }
        let session = self
            .pools
            .session(key.user)
            .await
            .map_err(ReadError::Pool)?;
        Ok(self.query(&session, key).await?)
    }

    async fn query(
        &self,
        session: &Session,
        key: &Key,
    ) -> Result<Vec<String>, tokio_postgres::Error> {
        let parameters = self.question.parameters(key);
        let rows = session
            .client
            .query(&session.statements[0], &parameters)
            .await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }
}

impl Operation for Work {
    type Error = ReadError;

    async fn operate(&self, rng: &mut ChaCha8Rng) -> Result<(), ReadError> {
        let key = self.data.any_key(self.question, rng);
        let rows = self.ask(&key).await?.len();
        if rows == key.rows {
            return Ok(());
        }
        Err(ReadError::Wrong {
            question: self.question.name(),
            key: Box::new(key),
            rows,
        })
    }

    fn is_fatal(error: &ReadError) -> bool {
        matches!(error, ReadError::Wrong { .. })
    }
}
