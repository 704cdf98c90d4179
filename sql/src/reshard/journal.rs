//! How far a reshard is, kept in the first shard of its plan.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{Plan, ReshardError, Step};
use crate::SqlError;

/// A plan and how many of its steps are done.
#[derive(Debug, Clone)]
pub struct Journal {
    /// What is to be done.
    pub plan: Plan,
    /// How many of [`Plan::steps`] are done.
    pub done: usize,
}

impl Journal {
    /// The step that is next; `None` when all are done.
    #[must_use]
    pub fn next(&self) -> Option<Step> {
        self.plan.steps().get(self.done).copied()
    }

    /// Whether a reshard has begun in this database and not ended.
    pub(crate) async fn is_open(client: &Client) -> Result<bool, SqlError> {
        let query = "select exists (select 1 from reshard_journal where ended_at is null)";
        Ok(client.query_one(query, &[]).await?.get(0))
    }

    /// The journal of a reshard that has not ended.
    pub(crate) async fn open(client: &Client) -> Result<Option<Journal>, ReshardError> {
        let query = "select plan::text, done from reshard_journal where ended_at is null";
        let row = match client.query_opt(query, &[]).await {
            // A joining database has no table yet.
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => None,
            row => row?,
        };
        let Some(row) = row else { return Ok(None) };
        let (text, done): (String, i32) = (row.get(0), row.get(1));
        let plan = serde_json::from_str(&text).map_err(|error| SqlError::UnknownValue {
            table: "reshard_journal",
            value: error.to_string(),
        })?;
        Ok(Some(Journal {
            plan,
            done: usize::try_from(done).unwrap_or(0),
        }))
    }

    pub(super) async fn begin(client: &Client, plan: Plan) -> Result<Journal, ReshardError> {
        let text = serde_json::to_string(&plan)
            .map_err(|error| SqlError::Settings(format!("the plan cannot be written: {error}")))?;
        let insert = "insert into reshard_journal (id, plan, done) values ($1, $2::text::jsonb, 0)";
        client.execute(insert, &[&plan.id, &text]).await?;
        Ok(Journal { plan, done: 0 })
    }

    pub(super) async fn advance(
        &mut self,
        client: &Client,
        done: usize,
    ) -> Result<(), ReshardError> {
        self.done = done;
        let steps = i32::try_from(done).unwrap_or(i32::MAX);
        let update = "update reshard_journal set done = $2, written_at = now() where id = $1";
        client.execute(update, &[&self.plan.id, &steps]).await?;
        Ok(())
    }

    pub(super) async fn end(&self, client: &Client) -> Result<(), ReshardError> {
        let update = "update reshard_journal set ended_at = now() where id = $1";
        client.execute(update, &[&self.plan.id]).await?;
        Ok(())
    }
}
