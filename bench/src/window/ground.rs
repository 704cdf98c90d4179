//! The servers of the window experiment, and their rows.

use std::collections::BTreeMap;
use std::io;

use anyhow::{Context, bail};
use shardlane_local::{
    CitusCluster, CitusOptions, Postgres, PostgresOptions, citus_available, create_database,
    partman_available, postgres_available,
};
use shardlane_sql::Layout;
use tokio_postgres::Client;

use super::WindowSettings;
use super::variant::{Cell, Heat, MONTH_DAYS, Variant};
use crate::lab::{self, connect};
use crate::results::Skipped;

const DATABASE: &str = "window";
const CITUS_SHARDS: u32 = 16;
/// Events of one dispute, in the mean.
const EVENTS_A_DISPUTE: u64 = 4;
/// The first day of the month that the query asks for, from 0.
const FIRST_DAY: u32 = 10;

/// Running servers with every variant's rows.
pub(super) struct Ground {
    postgres: Option<Postgres>,
    citus: Option<CitusCluster>,
    layouts: Vec<Layout>,
    days: u32,
    can_drop_caches: bool,
    pub(super) skipped: Vec<Skipped>,
}

/// What the servers counted of the query.
pub(super) struct Seen {
    pub(super) planning_ms: f64,
    pub(super) pages_hit: f64,
    pub(super) pages_read: f64,
}

impl Ground {
    pub(super) async fn prepare(
        settings: &WindowSettings,
        say: impl Fn(&str),
    ) -> anyhow::Result<Ground> {
        let (mut layouts, mut skipped) = (Vec::new(), Vec::new());
        for layout in &settings.layouts {
            let available = match layout {
                Layout::Single => postgres_available(),
                Layout::Partman => partman_available(),
                Layout::Citus => citus_available(),
                Layout::Shards => bail!("layout shards has no variant of its own here"),
            };
            match available {
                Ok(()) => layouts.push(*layout),
                Err(missing) => skipped.push(Skipped {
                    layout: layout.to_string(),
                    reason: missing.to_string(),
                }),
            }
        }
        say("starting servers");
        let wants = |one: &[Layout]| layouts.iter().any(|layout| one.contains(layout));
        let preload = vec!["pg_stat_statements".to_owned()];
        let options = [
            // The load is no part of the measurement.
            ("max_wal_size", "4GB"),
            ("pg_stat_statements.track_planning", "on"),
            ("pg_stat_statements.track", "all"),
            ("synchronize_seqscans", "off"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let postgres = async {
            if !wants(&[Layout::Single, Layout::Partman]) {
                return Ok(None);
            }
            let options = PostgresOptions {
                preload: preload.clone(),
                settings: options.to_vec(),
                ..PostgresOptions::default()
            };
            Postgres::start(options).await.map(Some)
        };
        let citus = async {
            if !wants(&[Layout::Citus]) {
                return Ok(None);
            }
            let options = CitusOptions {
                preload: preload.clone(),
                settings: options.to_vec(),
                ..CitusOptions::default()
            };
            CitusCluster::start_with(options).await.map(Some)
        };
        let (postgres, citus) = futures_util::try_join!(postgres, citus)?;
        let ground = Ground {
            postgres,
            citus,
            layouts,
            days: settings.days,
            can_drop_caches: drop_caches().await.is_ok(),
            skipped,
        };
        ground.create_databases().await?;
        for layout in &ground.layouts {
            say(&format!("{layout}: writing {} events", settings.events));
            ground
                .fill(*layout, settings)
                .await
                .with_context(|| format!("layout {layout}"))?;
        }
        Ok(ground)
    }

    async fn create_databases(&self) -> anyhow::Result<()> {
        if let Some(postgres) = &self.postgres {
            create_database(&postgres.url("postgres"), DATABASE).await?;
        }
        if let Some(citus) = &self.citus {
            citus.create_database(DATABASE).await?;
        }
        for url in [
            self.postgres.as_ref().map(|it| it.url(DATABASE)),
            self.citus.as_ref().map(|it| it.coordinator_url(DATABASE)),
        ]
        .into_iter()
        .flatten()
        {
            let client = connect(&url).await?;
            client
                .batch_execute("create extension pg_stat_statements")
                .await?;
        }
        Ok(())
    }

    /// The cells of the layouts that run here.
    pub(super) fn cells(&self, heat: Heat) -> Vec<Cell> {
        let layouts = self.layouts.iter();
        layouts
            .flat_map(|layout| {
                Variant::ALL
                    .into_iter()
                    .filter(|variant| variant.is_of(*layout))
                    .map(|variant| Cell {
                        layout: *layout,
                        variant,
                        heat,
                    })
            })
            .collect()
    }

    fn nodes(&self, layout: Layout) -> Vec<&Postgres> {
        match layout {
            Layout::Citus => self.citus.iter().flat_map(CitusCluster::nodes).collect(),
            _ => self.postgres.iter().collect(),
        }
    }

    /// A new session with the node that is asked.
    pub(super) async fn client(&self, layout: Layout) -> anyhow::Result<Client> {
        let nodes = self.nodes(layout);
        let node = nodes.first().context("the layout runs")?;
        let client = connect(&node.url(DATABASE)).await?;
        client.batch_execute("set timezone = 'UTC'").await?;
        Ok(client)
    }

    /// Restarts a layout's servers and drops what the machine remembers of their files.
    pub(super) async fn cool(&self, layout: Layout) -> anyhow::Result<()> {
        for node in self.nodes(layout) {
            node.restart().await?;
        }
        if self.can_drop_caches {
            drop_caches().await?;
        }
        Ok(())
    }

    pub(super) async fn reset_statistics(&self, layout: Layout) -> anyhow::Result<()> {
        for node in self.nodes(layout) {
            let client = connect(&node.url(DATABASE)).await?;
            client
                .query_one("select pg_stat_statements_reset()", &[])
                .await?;
        }
        Ok(())
    }

    /// Of all nodes, since the last reset.
    pub(super) async fn statistics(&self, layout: Layout) -> anyhow::Result<Seen> {
        let query = "select coalesce(sum(total_plan_time), 0), coalesce(sum(shared_blks_hit), 0)::float8, \
                     coalesce(sum(shared_blks_read), 0)::float8 from pg_stat_statements \
                     where query like '%dispute_events%' and query not like '%pg_stat_statements%'";
        let mut seen = Seen {
            planning_ms: 0.0,
            pages_hit: 0.0,
            pages_read: 0.0,
        };
        for node in self.nodes(layout) {
            let row = connect(&node.url(DATABASE))
                .await?
                .query_one(query, &[])
                .await?;
            seen.planning_ms += row.get::<_, f64>(0);
            seen.pages_hit += row.get::<_, f64>(1);
            seen.pages_read += row.get::<_, f64>(2);
        }
        Ok(seen)
    }

    /// Events of one kind that belong to lost fraud disputes, in the window.
    pub(super) fn query(&self, variant: Variant) -> String {
        let schema = variant.schema();
        let (from, to) = (
            days_ago(MONTH_DAYS - FIRST_DAY),
            days_ago(MONTH_DAYS - FIRST_DAY - self.days),
        );
        format!(
            "select count(*), coalesce(sum(d.amount_minor), 0)::bigint from {schema}.dispute_events e \
             join public.disputes d using (user_id, order_id) \
             where e.action = 'closed' and e.received_at >= '{from}' and e.received_at < '{to}' \
             and d.status = 'lost' and d.reason = 'fraud'"
        )
    }

    async fn fill(&self, layout: Layout, settings: &WindowSettings) -> anyhow::Result<()> {
        let client = self.client(layout).await?;
        let disputes = (settings.events / EVENTS_A_DISPUTE).max(1);
        let is_citus = layout == Layout::Citus;
        // Single and partman share a server and this table.
        let exists = "select to_regclass('public.disputes') is not null";
        if !client.query_one(exists, &[]).await?.get::<_, bool>(0) {
            client.batch_execute(DISPUTES).await?;
            if is_citus {
                client
                    .batch_execute(&format!(
                        "set citus.shard_count = {CITUS_SHARDS}; set citus.shard_replication_factor = 1; \
                         select create_distributed_table('public.disputes', 'user_id')"
                    ))
                    .await?;
            }
            let insert = format!(
                "insert into public.disputes select {}, j::text, \
                 (array['open', 'under_review', 'won', 'lost'])[1 + (hashint8extended(j, 2) & 3)], \
                 (array['fraud', 'duplicate', 'not_received', 'other'])[1 + (hashint8extended(j, 3) & 3)], \
                 hashint8extended(j, 4) & 65535, 'EUR', '{}' from generate_series(0, {disputes} - 1) j",
                user_of("j"),
                days_ago(MONTH_DAYS)
            );
            client.batch_execute(&insert).await?;
            client
                .batch_execute("vacuum analyze public.disputes")
                .await?;
        }
        for variant in Variant::ALL
            .into_iter()
            .filter(|variant| variant.is_of(layout))
        {
            create_events(&client, variant, is_citus).await?;
            client
                .batch_execute(&insert_events(variant, settings, disputes))
                .await?;
            let schema = variant.schema();
            if variant.is_indexed() {
                let index =
                    format!("create index on {schema}.dispute_events (action, received_at)");
                client.batch_execute(&index).await?;
            }
            let vacuum = format!("vacuum analyze {schema}.dispute_events");
            client.batch_execute(&vacuum).await?;
        }
        for node in self.nodes(layout) {
            connect(&node.url(DATABASE))
                .await?
                .batch_execute("checkpoint")
                .await?;
        }
        Ok(())
    }

    pub(super) async fn versions(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut versions =
            BTreeMap::from([("shardlane".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
        for layout in &self.layouts {
            let client = self.client(*layout).await?;
            versions.extend(lab::versions_of(&client).await?);
        }
        Ok(versions)
    }

    pub(super) fn describe(&self, settings: &WindowSettings) -> BTreeMap<String, String> {
        let caches = if self.can_drop_caches {
            "dropped before each cold run"
        } else {
            "not dropped: not allowed here, so cold means a restart only"
        };
        let order = if settings.in_order {
            "as they came"
        } else {
            "in any order"
        };
        BTreeMap::from(
            [
                ("events", settings.events.to_string()),
                ("payload bytes", settings.payload_bytes.to_string()),
                ("rows stand", order.to_owned()),
                ("window", format!("{} of {MONTH_DAYS} days", self.days)),
                ("runs", settings.runs.to_string()),
                ("Citus shards", CITUS_SHARDS.to_string()),
                ("page cache", caches.to_owned()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        )
    }
}

const DISPUTES: &str = "create table public.disputes (user_id uuid not null, order_id text not null, status text not null, \
    reason text not null, amount_minor bigint not null, currency text not null, opened_at timestamptz not null, \
    primary key (user_id, order_id))";

/// The user of dispute `j`: three disputes have the same one.
fn user_of(dispute: &str) -> String {
    format!("md5('user-' || ({dispute}) / 3)::uuid")
}

/// Midnight in UTC, so many days before today's.
fn days_ago(days: u32) -> String {
    let today = jiff::Timestamp::now()
        .to_zoned(jiff::tz::TimeZone::UTC)
        .date();
    let day = today.saturating_sub(jiff::Span::new().days(i64::from(days)));
    format!("{day} 00:00:00+00")
}

async fn create_events(client: &Client, variant: Variant, is_citus: bool) -> anyhow::Result<()> {
    let schema = variant.schema();
    let partition = match variant.partition_days() {
        Some(_) => " partition by range (received_at)",
        None => "",
    };
    // The columns and key of the product's own table.
    client
        .batch_execute(&format!(
            "create schema {schema}; create table {schema}.dispute_events (user_id uuid not null, order_id text not null, \
             event_id text not null, action text not null, outcome text not null, version bigint not null, \
             occurred_at timestamptz not null, received_at timestamptz not null, payload json not null, \
             primary key (user_id, order_id, event_id, received_at)){partition}"
        ))
        .await?;
    if is_citus {
        client
            .batch_execute(&format!(
                "select create_distributed_table('{schema}.dispute_events', 'user_id', colocate_with => 'public.disputes')"
            ))
            .await?;
    }
    let Some(days) = variant.partition_days() else {
        return Ok(());
    };
    client
        .batch_execute("create schema if not exists partman; create extension if not exists pg_partman schema partman")
        .await?;
    let major: i32 = client
        .query_one(
            "select split_part(extversion, '.', 1)::integer from pg_extension where extname = 'pg_partman'",
            &[],
        )
        .await?
        .get(0);
    // pg_partman 5 renamed the arguments and dropped the type 'native' that 4.x requires.
    let interval = if major >= 5 {
        "p_interval := '1 day'"
    } else {
        "p_type := 'native', p_interval := 'daily'"
    };
    client
        .batch_execute(&format!(
            "select partman.create_parent(p_parent_table := '{schema}.dispute_events', p_control := 'received_at', {interval}, \
             p_premake := 1, p_start_partition := '{}')",
            days_ago(days)
        ))
        .await?;
    Ok(())
}

fn insert_events(variant: Variant, settings: &WindowSettings, disputes: u64) -> String {
    let (schema, events) = (variant.schema(), settings.events);
    let month_us = u64::from(MONTH_DAYS) * 86_400 * 1_000_000;
    // Either the place in the log is the time, or any time of the month.
    let at = if settings.in_order {
        format!("(i::float8 / {events} * {month_us})::bigint")
    } else {
        format!("((hashint8extended(i, 5) & 1152921504606846975) % {month_us})")
    };
    format!(
        "insert into {schema}.dispute_events select {user}, j::text, i::text, \
         (array['opened', 'under_review', 'submitted', 'closed'])[1 + (hashint8extended(i, 6) & 3)], 'applied', 1, at, at, \
         json_build_object('note', repeat(md5(i::text), {repeat})) \
         from (select i, (hashint8extended(i, 1) & 1152921504606846975) % {disputes} as j, \
               timestamptz '{start}' + {at} * interval '1 microsecond' as at from generate_series(0, {events} - 1) i) as event",
        user = user_of("j"),
        repeat = settings.payload_bytes / 32,
        start = days_ago(MONTH_DAYS),
    )
}

/// Forgets the machine's page cache; only root may.
async fn drop_caches() -> io::Result<()> {
    tokio::task::spawn_blocking(|| {
        // Only clean pages are dropped.
        nix::unistd::sync();
        std::fs::write("/proc/sys/vm/drop_caches", "3")
    })
    .await?
}
