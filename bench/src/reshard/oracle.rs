//! What the shards hold, against what was sent.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use shardlane_local::Durability;
use shardlane_router::SlotMap;
use shardlane_sql::servers::LayoutServers;
use shardlane_sql::{CitusPath, Digest, Layout, Store, StoreOptions, digest};
use uuid::Uuid;

use super::load::{Numbered, user};
use crate::lab::connect;
use crate::raw;

/// One event, as the shards have it.
#[derive(Clone, Copy, Default)]
struct Fate {
    rows: u32,
    /// The order's version after this event is the event's place in the order.
    in_order: bool,
}

/// The fate of each event, by number.
pub(crate) struct Verdict(Vec<Fate>);

/// What is wrong with a range of events.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) lost: u64,
    pub(crate) twice: u64,
    pub(crate) out_of_order: u64,
}

impl Verdict {
    /// Reads every shard directly, not through the router.
    pub(crate) async fn read(urls: &[String], users: u64, sent: u64) -> anyhow::Result<Verdict> {
        let index_of: HashMap<Uuid, u64> = (0..users).map(|n| (user(n), n)).collect();
        let mut fates = vec![Fate::default(); usize::try_from(sent)?];
        for url in urls {
            let client = connect(url).await?;
            let query = "select user_id, event_id, version, outcome from order_events";
            for row in client.query(query, &[]).await? {
                let (sequence, version): (String, i64) = (row.get(1), row.get(2));
                let sequence: u64 = sequence.parse()?;
                let index = index_of.get(&row.get(0)).copied();
                let number = index.map(|n| Numbered::number_of(n, sequence, users));
                // What was never sent would be a row too many: the digest says so.
                let Some(fate) = number.and_then(|n| fates.get_mut(usize::try_from(n).ok()?))
                else {
                    continue;
                };
                fate.rows += 1;
                let place = i64::try_from(Numbered::step(sequence) + 1)?;
                fate.in_order = version == place && row.get::<_, &str>(3) == "applied";
            }
        }
        Ok(Verdict(fates))
    }

    pub(crate) fn of(&self, events: &Range<u64>) -> Found {
        let mut found = Found::default();
        let index = |number: u64| {
            usize::try_from(number)
                .unwrap_or(usize::MAX)
                .min(self.0.len())
        };
        for fate in &self.0[index(events.start)..index(events.end)] {
            match fate.rows {
                0 => found.lost += 1,
                1 => {}
                _ => found.twice += 1,
            }
            if fate.rows > 0 && !fate.in_order {
                found.out_of_order += 1;
            }
        }
        found
    }
}

/// The digest of the same events in one plain Postgres that nobody disturbed.
pub(crate) async fn undisturbed(users: u64, sent: u64, map: &SlotMap) -> anyhow::Result<Digest> {
    let servers = LayoutServers::start(Layout::Single, Durability::Fast, 1, &[]).await?;
    let database = servers.create("undisturbed", map, 1).await?;
    let options = StoreOptions {
        connections_max: 2,
        connect_timeout: std::time::Duration::from_secs(60),
        ..StoreOptions::default()
    };
    let store = Store::connect(database.backend(CitusPath::Owner), options).await?;
    let stream: Vec<_> = (0..sent)
        .map(|number| Numbered::new(number, users).webhook())
        .collect();
    let lanes = Arc::new(raw::lanes(&stream, map)?);
    drop(stream);
    raw::run(Arc::new(store), lanes, 4_000).await?;
    Ok(digest(database.urls()).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_counted_once() {
        let good = Fate {
            rows: 1,
            in_order: true,
        };
        let verdict = Verdict(vec![
            good,
            Fate::default(),
            Fate { rows: 2, ..good },
            Fate {
                in_order: false,
                ..good
            },
        ]);
        let found = Found {
            lost: 1,
            twice: 1,
            out_of_order: 1,
        };
        assert_eq!(verdict.of(&(0..4)), found);
        assert_eq!(verdict.of(&(0..1)), Found::default());
        assert_eq!(verdict.of(&(3..9)).out_of_order, 1);
    }

    #[test]
    fn an_event_follows_from_its_number() {
        for number in [0, 1, 999, 12_345] {
            let event = Numbered::new(number, 100);
            let index = (0..100).find(|index| user(*index) == event.user).unwrap();
            assert_eq!(Numbered::number_of(index, event.sequence, 100), number);
        }
    }
}
