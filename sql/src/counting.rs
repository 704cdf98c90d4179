//! A client that counts the statements that it sends.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row, ToStatement};

/// Shared by the sessions of a pool.
pub(crate) type StatementCount = Arc<AtomicU64>;

/// Counts where a request is sent: when its future is first polled, as the client itself does. What it lends as a
/// [`Client`] is not counted.
pub(crate) struct CountingClient {
    client: Client,
    statements: StatementCount,
}

impl Deref for CountingClient {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl CountingClient {
    pub(crate) fn new(client: Client, statements: StatementCount) -> Self {
        CountingClient { client, statements }
    }

    fn count(&self) {
        self.statements.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) async fn batch_execute(&self, query: &str) -> Result<(), Error> {
        self.count();
        self.client.batch_execute(query).await
    }

    pub(crate) async fn execute<T>(
        &self,
        statement: &T,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, Error>
    where
        T: ?Sized + ToStatement,
    {
        self.count();
        self.client.execute(statement, params).await
    }

    pub(crate) async fn query<T>(
        &self,
        statement: &T,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error>
    where
        T: ?Sized + ToStatement,
    {
        self.count();
        self.client.query(statement, params).await
    }

    pub(crate) async fn query_opt<T>(
        &self,
        statement: &T,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, Error>
    where
        T: ?Sized + ToStatement,
    {
        self.count();
        self.client.query_opt(statement, params).await
    }
}
