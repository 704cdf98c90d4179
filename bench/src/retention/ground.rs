//! The servers and the logs of the retention experiment.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::bail;
use shardlane_local::Durability;
use shardlane_sql::Layout;
use shardlane_sql::servers::LayoutServers;
use tokio_postgres::Client;

use super::{Cell, RetentionSettings, Way};
use crate::lab::{self, connect};
use crate::results::Skipped;

const DATABASE: &str = "retention";
const CITUS_SHARDS: u32 = 16;
/// Rows of one DELETE by pages.
const PAGE_ROWS: u32 = 10_000;

pub(super) struct Ground {
    servers: Vec<LayoutServers>,
    pub(super) layouts: Vec<Layout>,
    pub(super) skipped: Vec<Skipped>,
}

/// A table with some days of rows.
pub(super) struct Log {
    layout: Layout,
    way: Way,
    url: String,
    client: Client,
    /// The oldest day that it has, from 0.
    oldest: u32,
    days: u32,
}

impl Ground {
    pub(super) async fn start(wanted: &[Layout]) -> anyhow::Result<Ground> {
        let mut ground = Ground {
            servers: Vec::new(),
            layouts: Vec::new(),
            skipped: Vec::new(),
        };
        for layout in wanted {
            if Way::all_of(*layout).is_empty() {
                bail!("layout {layout} has no way of its own here");
            }
            // A partition is dropped by plain SQL, as pg_partman's maintenance does: one Postgres is enough.
            let runs_as = match layout {
                Layout::Partman => Layout::Single,
                other => *other,
            };
            if let Err(missing) = LayoutServers::available(runs_as) {
                ground.skipped.push(Skipped {
                    layout: layout.to_string(),
                    reason: missing.to_string(),
                });
                continue;
            }
            let servers = LayoutServers::start(runs_as, Durability::Durable, 1, &[]).await?;
            match servers.citus() {
                Some(cluster) => cluster.create_database(DATABASE).await?,
                None => {
                    for node in servers.nodes() {
                        shardlane_local::create_database(&node.url("postgres"), DATABASE).await?;
                    }
                }
            }
            ground.layouts.push(*layout);
            ground.servers.push(servers);
        }
        Ok(ground)
    }

    fn servers(&self, layout: Layout) -> anyhow::Result<&LayoutServers> {
        let found = self.layouts.iter().position(|one| *one == layout);
        match found {
            Some(index) => Ok(&self.servers[index]),
            None => bail!("layout {layout} does not run"),
        }
    }

    pub(super) async fn checkpoint(&self, layout: Layout) -> anyhow::Result<()> {
        lab::checkpoint(self.servers(layout)?).await
    }

    #[expect(clippy::cast_precision_loss, reason = "megabytes for people")]
    pub(super) async fn wal_bytes(&self, layout: Layout) -> anyhow::Result<f64> {
        Ok(lab::wal_bytes(self.servers(layout)?).await? as f64)
    }

    /// A new log with all its days.
    pub(super) async fn log(
        &self,
        cell: Cell,
        settings: &RetentionSettings,
    ) -> anyhow::Result<Log> {
        let servers = self.servers(cell.layout)?;
        let Some(node) = servers.nodes().first().copied() else {
            bail!("layout {} has no server", cell.layout);
        };
        let url = node.url(DATABASE);
        let client = connect(&url).await?;
        client.batch_execute("set timezone = 'UTC'").await?;
        let mut log = Log {
            layout: cell.layout,
            way: cell.way,
            url,
            client,
            oldest: 0,
            days: 0,
        };
        log.create().await?;
        for _ in 0..settings.days {
            log.append_day(settings).await?;
        }
        let vacuum = format!("vacuum analyze {}.events", log.schema());
        log.client.batch_execute(&vacuum).await?;
        Ok(log)
    }

    pub(super) async fn versions(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut versions = BTreeMap::new();
        for servers in &self.servers {
            if let Some(node) = servers.nodes().first() {
                let client = connect(&node.url(DATABASE)).await?;
                versions.extend(lab::versions_of(&client).await?);
            }
        }
        Ok(versions)
    }
}

impl Log {
    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    pub(super) async fn client(&self) -> anyhow::Result<Client> {
        let client = connect(&self.url).await?;
        client.batch_execute("set timezone = 'UTC'").await?;
        Ok(client)
    }

    fn schema(&self) -> &'static str {
        match self.way {
            Way::Delete => "deleted",
            Way::DeletePages => "deleted_pages",
            Way::Drop => "dropped",
            Way::Detach => "detached",
        }
    }

    async fn create(&self) -> anyhow::Result<()> {
        let schema = self.schema();
        let partition = if self.way.is_partitioned() {
            " partition by range (received_at)"
        } else {
            ""
        };
        // The product's own log of orders.
        self.client
            .batch_execute(&format!(
                "create schema {schema}; create table {schema}.events (user_id uuid not null, order_id text not null, \
                 event_id text not null, status text not null, outcome text not null, version bigint not null, \
                 occurred_at timestamptz not null, received_at timestamptz not null, payload json not null, \
                 primary key (user_id, order_id, event_id, received_at)){partition}"
            ))
            .await?;
        if self.layout == Layout::Citus {
            self.client
                .batch_execute(&format!(
                    "set citus.shard_count = {CITUS_SHARDS}; set citus.shard_replication_factor = 1; \
                     select create_distributed_table('{schema}.events', 'user_id')"
                ))
                .await?;
        }
        if !self.way.is_partitioned() {
            // How a day's rows are found; a partition needs no such index.
            let index = format!("create index on {schema}.events (received_at)");
            self.client.batch_execute(&index).await?;
        }
        Ok(())
    }

    /// Writes the rows of the day behind the newest one.
    pub(super) async fn append_day(&mut self, settings: &RetentionSettings) -> anyhow::Result<()> {
        let schema = self.schema();
        let day = self.oldest + self.days;
        if self.way.is_partitioned() {
            self.client
                .batch_execute(&format!(
                    "create table {schema}.events_{day} partition of {schema}.events for values from ('{}') to ('{}')",
                    midnight(day),
                    midnight(day + 1)
                ))
                .await?;
        }
        let rows = settings.rows / u64::from(settings.days);
        self.client
            .batch_execute(&format!(
                "insert into {schema}.events select md5(i::text)::uuid, (i / 4)::text, '{day}-' || i, 'updated', 'applied', 1, at, at, \
                 json_build_object('note', repeat(md5(i::text), {repeat})) from (select i, timestamptz '{start}' + \
                 i * interval '1 day' / {rows} as at from generate_series(0, {rows} - 1) i) as event",
                repeat = settings.payload_bytes / 32,
                start = midnight(day),
            ))
            .await?;
        self.days += 1;
        Ok(())
    }

    /// An insert into the newest day.
    pub(super) fn insert_one(&self) -> String {
        let (schema, at) = (self.schema(), midnight(self.oldest + self.days - 1));
        format!(
            "insert into {schema}.events values (gen_random_uuid(), '1', 'live', 'updated', 'applied', 1, \
             '{at}'::timestamptz + interval '1 hour', '{at}'::timestamptz + interval '1 hour', '{{}}')"
        )
    }

    /// How much of the time was VACUUM's.
    pub(super) async fn remove_oldest_day(&self) -> anyhow::Result<Duration> {
        let (schema, day) = (self.schema(), self.oldest);
        let (from, to) = (midnight(day), midnight(day + 1));
        match self.way {
            Way::Delete => {
                let delete = format!(
                    "delete from {schema}.events where received_at >= '{from}' and received_at < '{to}'"
                );
                self.client.batch_execute(&delete).await?;
                self.vacuum().await
            }
            Way::DeletePages => {
                let delete = format!(
                    "delete from {schema}.events where ctid = any(array(select ctid from {schema}.events \
                     where received_at >= '{from}' and received_at < '{to}' limit {PAGE_ROWS}))"
                );
                while self.client.execute(&delete, &[]).await? > 0 {}
                self.vacuum().await
            }
            Way::Drop => {
                let drop = format!("drop table {schema}.events_{day}");
                self.client.batch_execute(&drop).await?;
                Ok(Duration::ZERO)
            }
            Way::Detach => {
                let detach = format!(
                    "alter table {schema}.events detach partition {schema}.events_{day} concurrently"
                );
                self.client.batch_execute(&detach).await?;
                let drop = format!("drop table {schema}.events_{day}");
                self.client.batch_execute(&drop).await?;
                Ok(Duration::ZERO)
            }
        }
    }

    async fn vacuum(&self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let vacuum = format!("vacuum {}.events", self.schema());
        self.client.batch_execute(&vacuum).await?;
        Ok(began.elapsed())
    }

    pub(super) async fn oldest_day_rows(&self) -> anyhow::Result<i64> {
        let query = format!(
            "select count(*) from {}.events where received_at >= '{}' and received_at < '{}'",
            self.schema(),
            midnight(self.oldest),
            midnight(self.oldest + 1)
        );
        Ok(self.client.query_one(&query, &[]).await?.get(0))
    }

    /// It has left: the next one is the oldest.
    pub(super) fn forget_oldest_day(&mut self) {
        self.oldest += 1;
        self.days -= 1;
    }

    /// Of all files, indexes included, on all nodes.
    #[expect(clippy::cast_precision_loss, reason = "megabytes for people")]
    pub(super) async fn bytes(&self) -> anyhow::Result<f64> {
        let schema = self.schema();
        let query = match self.layout {
            Layout::Citus => format!(
                "select coalesce(sum(citus_total_relation_size(inhrelid::regclass)), 0)::bigint + \
                 citus_total_relation_size('{schema}.events') from pg_inherits where inhparent = '{schema}.events'::regclass"
            ),
            _ => format!(
                "select coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint + \
                 pg_total_relation_size('{schema}.events') from pg_inherits where inhparent = '{schema}.events'::regclass"
            ),
        };
        Ok(self.client.query_one(&query, &[]).await?.get::<_, i64>(0) as f64)
    }
}

/// The begin of day `day`.
fn midnight(day: u32) -> String {
    let first = jiff::civil::date(2026, 1, 1);
    let day = first.saturating_add(jiff::Span::new().days(i64::from(day)));
    format!("{day} 00:00:00+00")
}
