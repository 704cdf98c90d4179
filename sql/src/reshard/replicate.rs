//! One source's slots, followed by one target: Postgres's logical replication with a row filter.

use std::time::{Duration, Instant};

use tokio_postgres::Config;
use tokio_postgres::config::Host;
use uuid::Uuid;

use super::servers::Server;
use super::{Move, Plan, ReshardError};
use crate::SLOT_TABLES;

/// How often a state of the servers is looked at.
const POLL: Duration = Duration::from_millis(5);
const COPY_POLL: Duration = Duration::from_millis(50);

/// A publication on the source and a subscription on the target, under one name.
pub(super) struct Link<'a> {
    pub(super) moved: &'a Move,
    pub(super) name: String,
    pub(super) from: &'a Server,
    pub(super) to: &'a Server,
}

impl Plan {
    /// What the names of its publications, subscriptions and replication slots begin with.
    fn prefix(&self) -> String {
        // The last digits of a uuid v7 are random; a replication slot's name holds 63 characters.
        let id = self.id.simple().to_string();
        format!("shardlane_{}_", &id[20..])
    }

    /// Whether something of this name is its own.
    pub(crate) fn has_made(&self, name: &str) -> bool {
        name.starts_with(&self.prefix())
    }
}

impl<'a> Link<'a> {
    pub(super) fn new(plan: &Plan, moved: &'a Move, from: &'a Server, to: &'a Server) -> Self {
        let Move {
            from: source,
            to: target,
            ..
        } = moved;
        Link {
            name: format!("{}{source}_{target}", plan.prefix()),
            moved,
            from,
            to,
        }
    }

    /// Makes what is missing. The publication comes first: decoding begins at the replication slot.
    pub(super) async fn attach(&self) -> Result<(), ReshardError> {
        let Link { name, from, to, .. } = self;
        if !exists(from, "pg_publication", "pubname", name).await? {
            let condition = self.moved.slots.condition();
            let tables: Vec<String> = SLOT_TABLES
                .iter()
                .map(|table| format!("{table} where ({condition})"))
                .collect();
            let tables = tables.join(", ");
            let create = format!("create publication {name} for table {tables}, reshard_marker");
            from.client.batch_execute(&create).await?;
        }
        // Apart from the subscription: on one server with it, it would wait for itself.
        if !exists(from, "pg_replication_slots", "slot_name", name).await? {
            let create = "select pg_create_logical_replication_slot($1, 'pgoutput')";
            from.client.execute(create, &[name]).await?;
        }
        if !exists(to, "pg_subscription", "subname", name).await? {
            let source = quoted(&conninfo(&from.config));
            let create = format!(
                "create subscription {name} connection {source} publication {name} \
                 with (create_slot = false, slot_name = '{name}')"
            );
            to.client.batch_execute(&create).await?;
        }
        Ok(())
    }

    /// Waits until the rows that were there are copied.
    pub(super) async fn wait_for_copy(&self, max: Duration) -> Result<(), ReshardError> {
        let began = Instant::now();
        let query = "select count(*) filter (where r.srsubstate = 'r'), count(*) from pg_subscription_rel r \
                     join pg_subscription s on s.oid = r.srsubid where s.subname = $1";
        loop {
            let row = self.to.client.query_one(query, &[&self.name]).await?;
            let (ready, tables): (i64, i64) = (row.get(0), row.get(1));
            if ready == tables && tables > 0 {
                return Ok(());
            }
            if began.elapsed() > max {
                return Err(ReshardError::CopyTooSlow {
                    from: self.moved.from,
                    to: self.moved.to,
                    waited: max,
                });
            }
            tokio::time::sleep(COPY_POLL).await;
        }
    }

    /// Writes a marker behind all that is committed, and waits for it at the target. How long it took, or `None` if it
    /// was longer than `max`.
    pub(super) async fn marker(&self, max: Duration) -> Result<Option<Duration>, ReshardError> {
        let id = Uuid::now_v7();
        let began = Instant::now();
        let insert = "insert into reshard_marker (id) values ($1)";
        self.from.client.execute(insert, &[&id]).await?;
        let query = "select 1 from reshard_marker where id = $1";
        while began.elapsed() <= max {
            if self.to.client.query_opt(query, &[&id]).await?.is_some() {
                return Ok(Some(began.elapsed()));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(None)
    }

    /// From now on both servers end a statement that takes longer; `None`: they wait for it.
    pub(super) async fn bound_statements(&self, max: Option<Duration>) -> Result<(), ReshardError> {
        // 0 is no bound.
        let milliseconds = max.map_or(0, |max| max.as_millis().max(1));
        let set = format!("set statement_timeout = {milliseconds}");
        self.from.client.batch_execute(&set).await?;
        self.to.client.batch_execute(&set).await?;
        Ok(())
    }

    /// Takes away what [`Link::attach`] made, as far as it is there.
    pub(super) async fn detach(&self) -> Result<(), ReshardError> {
        let Link { name, from, to, .. } = self;
        // Drops its replication slots on the source too.
        let drop = format!("drop subscription if exists {name}");
        to.client.batch_execute(&drop).await?;
        let orphan = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1";
        from.client.execute(orphan, &[name]).await?;
        let drop = format!("drop publication if exists {name}");
        from.client.batch_execute(&drop).await?;
        Ok(())
    }
}

async fn exists(
    server: &Server,
    catalog: &str,
    column: &str,
    name: &str,
) -> Result<bool, ReshardError> {
    let query = format!("select 1 from {catalog} where {column} = $1::text::name");
    Ok(server.client.query_opt(&query, &[&name]).await?.is_some())
}

/// What one server needs to connect to another, as libpq reads it.
fn conninfo(config: &Config) -> String {
    let mut words = Vec::new();
    let mut word = |key: &str, value: &str| {
        let value = value.replace('\\', "\\\\").replace('\'', "\\'");
        words.push(format!("{key}='{value}'"));
    };
    match config.get_hosts().first() {
        Some(Host::Tcp(host)) => word("host", host),
        Some(Host::Unix(path)) => word("host", &path.display().to_string()),
        None => {}
    }
    if let Some(port) = config.get_ports().first() {
        word("port", &port.to_string());
    }
    if let Some(user) = config.get_user() {
        word("user", user);
    }
    if let Some(password) = config.get_password() {
        word("password", &String::from_utf8_lossy(password));
    }
    if let Some(database) = config.get_dbname() {
        word("dbname", database);
    }
    words.join(" ")
}

/// A string literal of SQL.
fn quoted(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_survives_both_quotings() {
        let config: Config = "postgres://u:p'%5C%20x@h:1/d".parse().unwrap();
        assert_eq!(
            conninfo(&config),
            r"host='h' port='1' user='u' password='p\'\\ x' dbname='d'"
        );
        assert_eq!(quoted(r"a\'b"), r"E'a\\''b'");
    }
}
