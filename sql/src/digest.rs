//! A digest of what a layout holds, for comparing layouts row by row.

use std::collections::BTreeMap;

use tokio_postgres::NoTls;

use crate::SqlError;

/// The tables that are compared, each with the columns in which layouts must agree. `base_version` depends on how
/// events fell into batches, as `seq` does, and `kafka_fence` and `kafka_outcomes` on the topic; none is state.
const COMPARED: [(&str, &str); 8] = [
    (
        "inbox",
        "user_id, source, event_id, payload_hash, received_at",
    ),
    (
        "parked",
        "user_id, source, event_id, order_id, opens, received_at, payload",
    ),
    (
        "orders",
        "user_id, order_id, status, version, amount_minor, currency, created_at, updated_at",
    ),
    (
        "disputes",
        "user_id, order_id, status, version, reason, amount_minor, currency, opened_at, updated_at, evidence_due_at",
    ),
    (
        "outbox",
        "user_id, source, event_id, order_id, kind, version, status, state, received_at",
    ),
    ("order_directory", "order_id, user_id"),
    (
        "order_events",
        "user_id, order_id, event_id, status, outcome, version, occurred_at, received_at, payload",
    ),
    (
        "dispute_events",
        "user_id, order_id, event_id, action, outcome, version, occurred_at, received_at, payload",
    ),
];

/// Rows and the sum of their 64-bit hashes, by table. Sums do not depend on the order of rows or on how they lie on
/// shards; a row that is missing, doubled or different changes both layouts' sums apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Digest(pub BTreeMap<&'static str, (i64, i128)>);

/// A digest could not be read.
pub type DigestError = SqlError;

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (table, (rows, sum))) in self.0.iter().enumerate() {
            let comma = if index > 0 { " " } else { "" };
            write!(f, "{comma}{table}:{rows}:{sum:x}")?;
        }
        Ok(())
    }
}

/// Reads every shard directly, not through the router: the DSNs of all manual shards, or the one DSN of a server
/// or Citus coordinator.
///
/// # Errors
/// [`SqlError::Postgres`].
pub async fn digest(urls: &[String]) -> Result<Digest, DigestError> {
    let mut total = Digest::default();
    for url in urls {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        let driver = tokio::spawn(connection);
        client.batch_execute("set timezone = 'UTC'").await?;
        for (table, columns) in COMPARED {
            let row = client
                .query_one(
                    &format!(
                        "select count(*), coalesce(sum(hashtextextended(row({columns})::text, 0)::numeric), 0)::text \
                         from {table}"
                    ),
                    &[],
                )
                .await?;
            let sum: String = row.get(1);
            let sum: i128 = sum
                .parse()
                .map_err(|_| SqlError::UnknownValue { table, value: sum })?;
            let entry = total.0.entry(table).or_default();
            entry.0 += row.get::<_, i64>(0);
            entry.1 += sum;
        }
        drop(client);
        driver.await.ok();
    }
    Ok(total)
}
