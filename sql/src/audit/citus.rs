//! A Citus cluster: are the tables colocated as one user's rows need it, and is each row where Citus looks for it?
//!
//! Physical shard tables are read here and nowhere else, and never written.

use std::collections::BTreeMap;

use shardlane_citus::CitusError;
use shardlane_router::{Epoch, ShardId};
use tokio_postgres::{Client, Config};
use uuid::Uuid;

use super::{AuditError, EXAMPLES_MAX, Finding};
use crate::follow::{at, connect};
use crate::store::parse;
use crate::{SqlError, TABLES};

/// A shard of a table on a node.
struct Placement {
    table: String,
    shard: i64,
    /// Both ends included.
    range: (i32, i32),
    physical: String,
    node: (String, u16),
}

impl Placement {
    fn node(&self) -> String {
        format!("{}:{}", self.node.0, self.node.1)
    }

    fn range(&self) -> String {
        format!("{}..{}", self.range.0, self.range.1)
    }
}

pub(super) async fn inspect(coordinator: &str) -> Result<Vec<Finding>, AuditError> {
    let config = parse(coordinator)?;
    let client = connect(&config).await?;
    let mut findings = tables(&client).await?;
    let cut: Vec<&str> = TABLES
        .into_iter()
        .filter(|table| !findings.iter().any(|it| is_uncut(it, table)))
        .collect();
    let placements = placements(&client, &cut).await?;
    if let [first, others @ ..] = &cut[..] {
        for table in others {
            findings.extend(compare(&placements, first, table));
        }
    }
    findings.extend(foreign_rows(&config, &placements).await?);
    findings.extend(map(&client, &findings).await?);
    Ok(findings)
}

fn is_uncut(finding: &Finding, wanted: &str) -> bool {
    matches!(finding, Finding::CitusTable { table, .. } if table == wanted)
}

/// The tables' way of being distributed, and their colocation with the first.
async fn tables(client: &Client) -> Result<Vec<Finding>, AuditError> {
    let query = include_str!("../statements/audit_citus_tables.sql");
    let rows = client
        .query(query, &[&&TABLES[..]])
        .await
        .map_err(CitusError::Metadata)
        .map_err(SqlError::from)?;
    let mut findings = Vec::new();
    let mut group: Option<(String, i32)> = None;
    for row in rows {
        let table: String = row.get(0);
        let method: Option<String> = row.get(2);
        let column: Option<String> = row.get(4);
        let found: Option<String> = row.get(5);
        let problem = match (row.get::<_, bool>(1), method.as_deref(), column.as_deref()) {
            (false, ..) => "does not exist; run `shardlane migrate --layout citus`".to_owned(),
            (true, None, _) => format!(
                "is not distributed; run create_distributed_table('{table}', 'user_id', colocate_with => '{}')",
                TABLES[0]
            ),
            (true, Some("h"), Some("user_id")) if found.as_deref() == Some("uuid") => {
                let colocation: i32 = row.get(3);
                match &group {
                    None => group = Some((table, colocation)),
                    Some((first, expected)) if *expected != colocation => {
                        findings.push(Finding::CitusColocation {
                            table,
                            colocation,
                            first: first.clone(),
                            expected: *expected,
                        });
                    }
                    Some(_) => {}
                }
                continue;
            }
            (true, Some(_), column) => format!(
                "is not distributed by the hash of user_id as a uuid, but by {} of type {}; run \
                 undistribute_table('{table}') and distribute it anew",
                column.unwrap_or("no column"),
                found.as_deref().unwrap_or("none")
            ),
        };
        findings.push(Finding::CitusTable { table, problem });
    }
    Ok(findings)
}

async fn placements(client: &Client, tables: &[&str]) -> Result<Vec<Placement>, AuditError> {
    let query = include_str!("../statements/audit_citus_shards.sql");
    let rows = client.query(query, &[&tables]).await?;
    let placement = |row: &tokio_postgres::Row| Placement {
        table: row.get(0),
        shard: row.get(1),
        range: (row.get(2), row.get(3)),
        physical: row.get(4),
        node: (
            row.get(5),
            u16::try_from(row.get::<_, i32>(6)).unwrap_or_default(),
        ),
    };
    Ok(rows.iter().map(placement).collect())
}

/// Two tables must have the same ranges, each on the same node.
fn compare(placements: &[Placement], first: &str, table: &str) -> Vec<Finding> {
    let nodes_of = |table: &str| -> BTreeMap<(i32, i32), String> {
        let own = placements.iter().filter(|it| it.table == table);
        own.map(|it| (it.range, it.node())).collect()
    };
    let (expected, found) = (nodes_of(first), nodes_of(table));
    let missing_in = |from: &BTreeMap<(i32, i32), String>, other: &BTreeMap<(i32, i32), String>| {
        let missing = from.keys().filter(|range| !other.contains_key(range));
        missing
            .map(|(low, high)| format!("{low}..{high}"))
            .collect::<Vec<_>>()
    };
    let mut findings = Vec::new();
    let (only_here, only_there) = (missing_in(&found, &expected), missing_in(&expected, &found));
    if !only_here.is_empty() || !only_there.is_empty() {
        findings.push(Finding::CitusRanges {
            table: table.to_owned(),
            first: first.to_owned(),
            only_here,
            only_there,
        });
    }
    for placement in placements.iter().filter(|it| it.table == table) {
        let Some(expected) = expected.get(&placement.range) else {
            continue;
        };
        if *expected != placement.node() {
            findings.push(Finding::CitusPlacement {
                table: table.to_owned(),
                first: first.to_owned(),
                range: placement.range(),
                node: placement.node(),
                expected: expected.clone(),
            });
        }
    }
    findings
}

/// Asks each node about its own shards, one table at a time.
async fn foreign_rows(
    coordinator: &Config,
    placements: &[Placement],
) -> Result<Vec<Finding>, AuditError> {
    let mut by_node: BTreeMap<&(String, u16), Vec<&Placement>> = BTreeMap::new();
    for placement in placements {
        by_node.entry(&placement.node).or_default().push(placement);
    }
    let mut findings = Vec::new();
    for ((host, port), placements) in by_node {
        let ask = async {
            let client = connect(&at(coordinator, host, *port, None)).await?;
            let mut found = Vec::new();
            let (there, missing) = split(&client, placements).await?;
            found.extend(missing);
            for shards in there.chunk_by(|a, b| a.table == b.table) {
                found.extend(outside(&client, shards).await?);
            }
            Ok::<_, SqlError>(found)
        };
        findings.extend(ask.await.map_err(|source| AuditError::Node {
            node: format!("{host}:{port}"),
            source,
        })?);
    }
    Ok(findings)
}

/// The shards that a node has, and those that the metadata only says it has.
async fn split<'a>(
    client: &Client,
    placements: Vec<&'a Placement>,
) -> Result<(Vec<&'a Placement>, Vec<Finding>), SqlError> {
    let names: Vec<&str> = placements.iter().map(|it| &*it.physical).collect();
    let query = "select to_regclass(name) is not null \
                 from unnest($1::text[]) with ordinality as t (name, n) order by n";
    let rows = client.query(query, &[&names]).await?;
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    for (placement, row) in placements.into_iter().zip(rows) {
        if row.get(0) {
            there.push(placement);
        } else {
            missing.push(Finding::CitusShardMissing {
                table: placement.table.clone(),
                shard: ShardId(placement.shard),
                node: placement.node(),
            });
        }
    }
    Ok((there, missing))
}

/// Rows of some shards of one node that are outside their shard's range.
async fn outside(client: &Client, shards: &[&Placement]) -> Result<Vec<Finding>, SqlError> {
    let counts: Vec<String> = shards
        .iter()
        .enumerate()
        .map(|(index, shard)| format!("select {index}::integer, count(*) from {}", shard.rows()))
        .collect();
    let mut findings = Vec::new();
    for row in client.query(&counts.join(" union all "), &[]).await? {
        let (index, rows): (i32, i64) = (row.get(0), row.get(1));
        let shard = usize::try_from(index).ok().and_then(|it| shards.get(it));
        let Some(shard) = shard.filter(|_| rows > 0) else {
            continue;
        };
        let query = format!(
            "select distinct user_id from {} order by 1 limit {EXAMPLES_MAX}",
            shard.rows()
        );
        let users = client.query(&query, &[]).await?;
        let users: Vec<Uuid> = users.iter().map(|row| row.get(0)).collect();
        findings.push(Finding::CitusForeignRows {
            table: shard.table.clone(),
            shard: ShardId(shard.shard),
            node: shard.node(),
            rows,
            users,
        });
    }
    Ok(findings)
}

impl Placement {
    /// Its rows whose hash, by Citus's own function, is outside.
    fn rows(&self) -> String {
        let Placement {
            physical, range, ..
        } = self;
        format!(
            "{physical} where worker_hash(user_id) not between {} and {}",
            range.0, range.1
        )
    }
}

/// What the router says, self-test included, where nothing above has said it.
async fn map(client: &Client, known: &[Finding]) -> Result<Option<Finding>, AuditError> {
    match shardlane_citus::load(client, &TABLES, Epoch(1)).await {
        Ok(_) => Ok(None),
        Err(error @ CitusError::Metadata(_)) => Err(SqlError::from(error).into()),
        Err(CitusError::Table { .. } | CitusError::NotColocated { .. }) if !known.is_empty() => {
            Ok(None)
        }
        Err(error) => Ok(Some(Finding::CitusMap {
            problem: error.to_string(),
        })),
    }
}
