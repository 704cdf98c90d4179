//! Foreign rows that go where they belong: copies are deleted, users of whom the owner has nothing are moved.

use std::collections::BTreeSet;

use futures_util::{SinkExt as _, TryStreamExt as _};
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use super::members::Member;
use super::repair::LOCK_WAIT;
use super::{AuditError, Repair};
use crate::slots::SlotSet;
use crate::{ErrorClass, SLOT_TABLES, SqlError, follow};

/// How many users are looked at at once.
const USERS_MAX: i64 = 200;
/// How many rows are compared at once.
const ROWS_MAX: i32 = 1_000;
/// Of a row `t`: two rows with the same are the same, also where a provider made their payloads.
const ROW_DIGEST: &str = "sha256(convert_to(t::text, 'UTF8'))";

/// A table, and how its rows are told apart.
struct Table {
    name: &'static str,
    /// All columns in order, separated by commas.
    columns: String,
    /// The primary key.
    key: Vec<String>,
}

/// Rows of `owner`'s users that lie in `from`.
pub(super) struct Shift<'a> {
    from: &'a Member,
    owner: &'a Member,
    slots: SlotSet,
    tables: Vec<Table>,
    /// Connections of its own, because a transaction needs one to itself.
    writers: (Client, Client),
}

impl<'a> Shift<'a> {
    pub(super) async fn new(
        from: &'a Member,
        owner: &'a Member,
        slots: SlotSet,
    ) -> Result<Shift<'a>, AuditError> {
        let mut tables = Vec::new();
        for name in SLOT_TABLES {
            tables.push(table(&from.client, name).await?);
        }
        let writers = (from.open().await?, owner.open().await?);
        Ok(Shift {
            from,
            owner,
            slots,
            tables,
            writers,
        })
    }

    /// Takes the users in order, some at once.
    pub(super) async fn run(mut self, repairs: &mut Vec<Repair>) -> Result<(), AuditError> {
        let (shard, owner) = (self.from.shard, self.owner.shard);
        let (mut copies, mut moved, mut moved_users) = (0, 0, 0);
        let mut after = None;
        loop {
            let users = self.users(after).await?;
            let Some(last) = users.last() else { break };
            after = Some(*last);
            let known = self.known(&users).await?;
            let (known, unknown): (Vec<Uuid>, Vec<Uuid>) =
                users.into_iter().partition(|user| known.contains(user));
            copies += self.delete_copies(&known).await?;
            if self.copy(&unknown).await? {
                moved += self.delete_copies(&unknown).await?;
                moved_users += unknown.len() as u64;
            }
        }
        if copies > 0 {
            repairs.push(Repair::CopiesDeleted {
                shard,
                owner,
                rows: copies,
            });
        }
        if moved > 0 {
            repairs.push(Repair::UsersMoved {
                shard,
                owner,
                users: moved_users,
                rows: moved,
            });
        }
        Ok(())
    }

    /// The next of the owner's users that have rows here.
    async fn users(&self, after: Option<Uuid>) -> Result<Vec<Uuid>, AuditError> {
        let condition = self.slots.condition();
        let selects: Vec<String> = SLOT_TABLES
            .iter()
            .map(|table| {
                format!(
                    "(select distinct user_id from {table} \
                     where {condition} and ($1::uuid is null or user_id > $1) order by 1 limit {USERS_MAX})"
                )
            })
            .collect();
        let query = format!("{} order by 1 limit {USERS_MAX}", selects.join(" union "));
        let rows = self.from.client.query(&query, &[&after]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Those of whom the owner has any row.
    async fn known(&self, users: &[Uuid]) -> Result<BTreeSet<Uuid>, AuditError> {
        let rows = self.owner.client.query(&known_query(), &[&users]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Copies all rows of users to their owner, in one transaction. False, and nothing is written, if the owner has
    /// got to know one of them meanwhile, or refuses a row.
    async fn copy(&mut self, users: &[Uuid]) -> Result<bool, AuditError> {
        if users.is_empty() {
            return Ok(false);
        }
        let source = self.writers.0.transaction().await?;
        source
            .batch_execute("set transaction isolation level repeatable read")
            .await?;
        let target = self.writers.1.transaction().await?;
        target.batch_execute(LOCK_WAIT).await?;
        // Each batch writes here before it reads a state, so none begins or is under way until the commit.
        target
            .batch_execute("lock table inbox in share row exclusive mode")
            .await?;
        if !target.query(&known_query(), &[&users]).await?.is_empty() {
            return Ok(false);
        }
        for table in &self.tables {
            match copy_rows(&source, &target, table, users).await {
                Ok(()) => {}
                Err(error) if error.class() == ErrorClass::Data => {
                    tracing::warn!("shard {} refuses rows: {error}", self.owner.shard);
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
        target.commit().await?;
        source.commit().await?;
        Ok(true)
    }

    /// Deletes the rows of users whose exact copies are on the owner. Returns how many.
    async fn delete_copies(&mut self, users: &[Uuid]) -> Result<u64, AuditError> {
        let mut deleted = 0;
        if users.is_empty() {
            return Ok(deleted);
        }
        for table in &self.tables {
            let transaction = self.writers.0.transaction().await?;
            let select = transaction.prepare(&table.select()).await?;
            let portal = transaction.bind(&select, &[&users]).await?;
            loop {
                let rows = transaction.query_portal(&portal, ROWS_MAX).await?;
                if rows.is_empty() {
                    break;
                }
                let keys: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
                let digests: Vec<Vec<u8>> = rows.iter().map(|row| row.get(1)).collect();
                let same = self
                    .owner
                    .client
                    .query(&table.same(), &[&keys, &digests])
                    .await?;
                let same: BTreeSet<i64> = same.iter().map(|row| row.get(0)).collect();
                let (keys, digests) = only(&same, keys, digests);
                deleted += transaction
                    .execute(&table.delete(), &[&keys, &digests])
                    .await?;
            }
            transaction.commit().await?;
        }
        Ok(deleted)
    }
}

impl Member {
    /// Another connection, which reads and writes values as the first.
    async fn open(&self) -> Result<Client, SqlError> {
        let client = follow::connect(&self.config).await?;
        client.batch_execute(super::members::AS_TEXT).await?;
        Ok(client)
    }
}

/// Whether the `n`th (from 1) is wanted.
fn only(
    wanted: &BTreeSet<i64>,
    keys: Vec<String>,
    digests: Vec<Vec<u8>>,
) -> (Vec<String>, Vec<Vec<u8>>) {
    (1..)
        .zip(keys.into_iter().zip(digests))
        .filter(|(n, _)| wanted.contains(n))
        .map(|(_, pair)| pair)
        .unzip()
}

fn known_query() -> String {
    let selects: Vec<String> = SLOT_TABLES
        .iter()
        .map(|table| format!("select user_id from {table} where user_id = any($1)"))
        .collect();
    selects.join(" union ")
}

async fn table(client: &Client, name: &'static str) -> Result<Table, AuditError> {
    let query = "select quote_ident(a.attname), a.attnum = any(i.indkey) \
                 from pg_attribute a \
                 join pg_index i on i.indrelid = a.attrelid and i.indisprimary \
                 where a.attrelid = $1::text::regclass and a.attnum > 0 and not a.attisdropped \
                 order by a.attnum";
    let rows = client.query(query, &[&name]).await?;
    let columns: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let key = rows.iter().filter(|row| row.get(1)).map(|row| row.get(0));
    Ok(Table {
        name,
        columns: columns.join(", "),
        key: key.collect(),
    })
}

impl Table {
    /// Key and digest of each row of some users.
    fn select(&self) -> String {
        let Table { name, key, .. } = self;
        let fields: Vec<String> = key
            .iter()
            .map(|column| format!("'{column}', t.{column}"))
            .collect();
        format!(
            "select jsonb_build_object({})::text, {ROW_DIGEST} from {name} t where user_id = any($1)",
            fields.join(", ")
        )
    }

    /// The rows of given keys and digests.
    fn matches(&self) -> String {
        let Table { name, key, .. } = self;
        let same: Vec<String> = key
            .iter()
            .map(|column| format!("t.{column} = r.{column}"))
            .collect();
        format!(
            "unnest($1::text[], $2::bytea[]) with ordinality as k (key, digest, n) \
             cross join lateral jsonb_populate_record(null::{name}, k.key::jsonb) as r \
             where {} and {ROW_DIGEST} = k.digest",
            same.join(" and ")
        )
    }

    fn same(&self) -> String {
        format!("select k.n from {} as t, {}", self.name, self.matches())
    }

    fn delete(&self) -> String {
        format!("delete from {} as t using {}", self.name, self.matches())
    }
}

/// Byte for byte, past the client's types.
async fn copy_rows(
    source: &Transaction<'_>,
    target: &Transaction<'_>,
    table: &Table,
    users: &[Uuid],
) -> Result<(), SqlError> {
    let Table { name, columns, .. } = table;
    // COPY takes no parameters.
    let users: Vec<String> = users.iter().map(|user| format!("'{user}'")).collect();
    let users = users.join(",");
    let out = format!(
        "copy (select {columns} from {name} where user_id = any(array[{users}]::uuid[])) to stdout (format binary)"
    );
    let rows = source.copy_out(&out).await?;
    let into = format!("copy {name} ({columns}) from stdin (format binary)");
    let sink = target.copy_in(&into).await?;
    futures_util::pin_mut!(rows, sink);
    while let Some(chunk) = rows.try_next().await? {
        sink.send(chunk).await?;
    }
    sink.finish().await?;
    Ok(())
}
