//! Reads the metadata of one node into a map, and asks the server whether the map is right.

use shardlane_router::{
    Epoch, KeyRange, KeyType, Node, RouteKey, ShardId, ShardMap, ShardRange, TokenHash,
};
use tokio_postgres::{Client, GenericClient};
use uuid::Uuid;

use crate::CitusError;

/// How many keys the self-test asks the server about.
const PROBE_COUNT: u128 = 64;

/// Reads the placement of `tables` (the first one's shards; all must be colocated with it, and distributed by a
/// `uuid` column) and runs the self-test. Three queries.
///
/// # Errors
/// [`CitusError`] where the tables cannot be routed to, or where the server's hash is not ours.
pub async fn load(client: &Client, tables: &[&str], epoch: Epoch) -> Result<ShardMap, CitusError> {
    let [first, ..] = tables else {
        return Err(CitusError::Table {
            table: "(none)".into(),
            problem: "was not named",
        });
    };
    check_tables(client, tables).await?;
    let map = read_map(client, first, epoch).await?;
    self_test(client, first, &map).await?;
    tracing::debug!(
        shards = map.shards().len(),
        nodes = map.nodes().len(),
        "Citus map loaded"
    );
    Ok(map)
}

pub(crate) async fn check_tables(
    client: &impl GenericClient,
    tables: &[&str],
) -> Result<(), CitusError> {
    let rows = client
        .query(include_str!("sql/tables.sql"), &[&tables])
        .await
        .map_err(CitusError::Metadata)?;
    let mut group: Option<(String, i32)> = None;
    for table in tables {
        let problem = |problem| CitusError::Table {
            table: (*table).to_owned(),
            problem,
        };
        let row = rows
            .iter()
            .find(|row| row.get::<_, String>(0) == *table)
            .ok_or_else(|| problem("does not exist"))?;
        match row.get::<_, Option<String>>(1).as_deref() {
            Some("h") => {}
            Some(_) => return Err(problem("is not distributed by hash")),
            None => return Err(problem("is not distributed")),
        }
        let (column, found): (String, String) = (row.get(3), row.get(4));
        if found != "uuid" {
            return Err(CitusError::ColumnType {
                table: (*table).to_owned(),
                column,
                found,
            });
        }
        if !row.get::<_, bool>(5) {
            return Err(CitusError::Collation((*table).to_owned()));
        }
        let colocation: i32 = row.get(2);
        match &group {
            None => group = Some(((*table).to_owned(), colocation)),
            Some((first, expected)) if *expected != colocation => {
                return Err(CitusError::NotColocated {
                    first: first.clone(),
                    second: (*table).to_owned(),
                });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

pub(crate) async fn read_map(
    client: &impl GenericClient,
    table: &str,
    epoch: Epoch,
) -> Result<ShardMap, CitusError> {
    let rows = client
        .query(include_str!("sql/shards.sql"), &[&table])
        .await
        .map_err(CitusError::Metadata)?;
    let mut nodes: Vec<Node> = Vec::new();
    let mut ranges: Vec<ShardRange> = Vec::with_capacity(rows.len());
    for row in &rows {
        let shard: i64 = row.get(0);
        if ranges
            .last()
            .is_some_and(|range| range.shard == ShardId(shard))
        {
            return Err(CitusError::Replicated(shard));
        }
        let port: i32 = row.get(5);
        let node = Node {
            group: row.get(3),
            host: row.get(4),
            port: u16::try_from(port).map_err(|_| CitusError::Table {
                table: table.to_owned(),
                problem: "lies on a node whose port is no port",
            })?,
        };
        let index = nodes
            .iter()
            .position(|known| *known == node)
            .unwrap_or_else(|| {
                nodes.push(node);
                nodes.len() - 1
            });
        let range = KeyRange::from_hash_bounds(row.get(1), row.get(2))?;
        ranges.push(ShardRange {
            shard: ShardId(shard),
            range,
            node: index,
        });
    }
    Ok(ShardMap::new(
        epoch,
        TokenHash::Postgres,
        KeyType::Uuid,
        nodes,
        ranges,
    )?)
}

/// Asks the server where it would put a probe set of keys, and compares.
///
/// # Errors
/// [`CitusError::SelfTest`] at the first key that is placed differently.
pub async fn self_test(client: &Client, table: &str, map: &ShardMap) -> Result<(), CitusError> {
    // Multiples of the 128-bit golden ratio: spread over all shards, the same in every run.
    const STEP: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
    let probes: Vec<Uuid> = (0..PROBE_COUNT)
        .map(|n| Uuid::from_u128(n.wrapping_mul(STEP)))
        .collect();
    let rows = client
        .query(
            "select k, get_shard_id_for_distribution_column($1::text::regclass, k) \
             from unnest($2::uuid[]) as k",
            &[&table, &probes],
        )
        .await
        .map_err(CitusError::Metadata)?;
    for row in rows {
        let (key, server): (Uuid, i64) = (row.get(0), row.get(1));
        let ours = map.route(&RouteKey::Uuid(key)).shard.0;
        if ours != server {
            return Err(CitusError::SelfTest { key, server, ours });
        }
    }
    Ok(())
}
