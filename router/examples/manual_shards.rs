//! A pool a shard, and each user's row in the shard that the map names.
//!
//! ```text
//! cargo run -p shardlane-router --example manual_shards -- \
//!     "host=db0 user=me dbname=shop" "host=db1 user=me dbname=shop"
//! ```
//!
//! One DSN a shard, in the order of the shards: the first is shard 0. It makes the table
//! `shardlane_example_users` in each database, and a second run changes nothing.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;

use bb8_postgres::PostgresConnectionManager;
use bb8_postgres::bb8::Pool;
use shardlane_router::{Epoch, ShardId, SlotMap, TokenHash, group_by_shard};
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

type ShardPool = Pool<PostgresConnectionManager<NoTls>>;

/// The pools, and the map that says which one.
struct Shards {
    map: SlotMap,
    pools: BTreeMap<ShardId, ShardPool>,
}

#[derive(Debug, Clone)]
struct User {
    id: Uuid,
    name: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dsns: Vec<String> = std::env::args().skip(1).collect();
    print!("{}", run(&dsns).await?);
    Ok(())
}

/// Makes the tables, writes 100 users to their shards, reads one back, and has a foreign row refused.
pub(crate) async fn run(dsns: &[String]) -> Result<String, Box<dyn Error>> {
    let shards = Shards::connect(dsns).await?;
    let mut report = String::new();
    for shard in shards.map.shards() {
        shards.make_table(*shard).await?;
        let check = slot_check(&shards.map, *shard);
        writeln!(report, "shard {shard} checks {check}")?;
    }

    // Small numbers, so that a second run meets the same users. Yours are random, and no worse.
    let users: Vec<User> = (0..100)
        .map(|n| User {
            id: Uuid::from_u128(n),
            name: format!("user {n}"),
        })
        .collect();
    for (shard, written) in shards.save(users.clone()).await? {
        writeln!(report, "shard {shard} holds {written} of the users")?;
    }

    let user = &users[42];
    let (shard, name) = shards.name_of(user.id).await?;
    writeln!(report, "{} is \"{name}\", on shard {shard}", user.id)?;

    if let Some(other) = shards.map.shards().iter().find(|id| **id != shard) {
        let refused = shards.save_to(*other, std::slice::from_ref(user)).await;
        match refused.as_ref().map_err(|error| error.code()) {
            Err(Some(&SqlState::CHECK_VIOLATION)) => {
                writeln!(report, "shard {other} refuses that user's row")?;
            }
            _ => return Err(format!("shard {other} took a foreign row: {refused:?}").into()),
        }
    }
    Ok(report)
}

impl Shards {
    async fn connect(dsns: &[String]) -> Result<Shards, Box<dyn Error>> {
        let ids: Vec<ShardId> = (0..).map(ShardId).take(dsns.len()).collect();
        // A service loads the map as JSON from where its operator keeps it; all its instances must
        // have the same one. Without Kafka one partition is enough.
        let map = SlotMap::aligned(Epoch(1), TokenHash::Postgres, 1, &ids)
            .map_err(|error| format!("{error}; give one DSN a shard"))?;
        let mut pools = BTreeMap::new();
        for (shard, dsn) in ids.into_iter().zip(dsns) {
            let manager = PostgresConnectionManager::new_from_stringlike(dsn, NoTls)?;
            pools.insert(shard, Pool::builder().max_size(4).build(manager).await?);
        }
        Ok(Shards { map, pools })
    }

    async fn make_table(&self, shard: ShardId) -> Result<(), Box<dyn Error>> {
        let client = self.pools[&shard].get().await?;
        let check = slot_check(&self.map, shard);
        // Dropped and added, so that a map with other slots is obeyed. If a row of the table is not
        // of these slots, adding fails: such a row must be moved first.
        client
            .batch_execute(&format!(
                "create table if not exists shardlane_example_users
                     (user_id uuid primary key, name text not null);
                 alter table shardlane_example_users
                     drop constraint if exists of_this_shard,
                     add constraint of_this_shard check ({check})"
            ))
            .await?;
        Ok(())
    }

    /// Writes the users, one statement a shard; answers how many went to which shard.
    async fn save(&self, users: Vec<User>) -> Result<Vec<(ShardId, u64)>, Box<dyn Error>> {
        let mut written = Vec::new();
        for (shard, users) in group_by_shard(users, |user| self.map.shard_for(&user.id.into())) {
            written.push((shard, self.save_to(shard, &users).await?));
        }
        written.sort_unstable();
        Ok(written)
    }

    /// Writes to the shard that it is told, right or wrong. Everybody else calls [`Shards::save`].
    async fn save_to(&self, shard: ShardId, users: &[User]) -> Result<u64, tokio_postgres::Error> {
        let ids: Vec<Uuid> = users.iter().map(|user| user.id).collect();
        let names: Vec<&str> = users.iter().map(|user| user.name.as_str()).collect();
        let client = self.pools[&shard].dedicated_connection().await?;
        client
            .execute(
                "insert into shardlane_example_users (user_id, name)
                 select * from unnest($1::uuid[], $2::text[])
                 on conflict (user_id) do update set name = excluded.name",
                &[&ids, &names],
            )
            .await
    }

    async fn name_of(&self, user: Uuid) -> Result<(ShardId, String), Box<dyn Error>> {
        let shard = self.map.shard_for(&user.into());
        let client = self.pools[&shard].get().await?;
        let statement = "select name from shardlane_example_users where user_id = $1";
        let row = client.query_one(statement, &[&user]).await?;
        Ok((shard, row.get(0)))
    }
}

/// The condition that every row of `shard` fulfils, for a CHECK on each of its tables: Postgres
/// computes the slot as the router does. A service with an old map is refused, not obeyed.
fn slot_check(map: &SlotMap, shard: ShardId) -> String {
    let runs: Vec<String> = map
        .slot_ranges_of(shard)
        .iter()
        .map(|run| {
            let slot = "((uuid_hash(user_id)::int8 + 2147483648) >> 20)";
            format!("{slot} between {} and {}", run.start(), run.end())
        })
        .collect();
    runs.join(" or ")
}
