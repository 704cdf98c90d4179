//! Compares what is there with what the model says.

use std::collections::HashMap;

use shardlane_domain::Source;

use super::ground::{Ground, LANES, Struck};
use super::model::{EventKey, Fate, Model, State, StateKey};
use super::places;
use super::shard::Row;
use crate::outcome::EventOutcome;

/// The first thing that is wrong.
pub(super) fn check(ground: &Ground) -> Result<Struck, String> {
    let model = Model::of(ground);
    for (index, shard) in ground.shards.iter().enumerate() {
        let inbox = shard.inbox.keys().map(|key| key.0);
        let mut users = inbox
            .chain(shard.orders.keys().map(|key| key.0))
            .chain(shard.rows.iter().map(|it| it.user));
        let owner = |user| places::target(ground.version, user).map(super::ground::index);
        if let Some(user) = users.find(|user| owner(*user) != Some(index)) {
            return Err(format!("user {user} has rows on shard {index}"));
        }
        if let Some(key) = shard.parked.keys().next() {
            return Err(format!("waits for ever: {key:?}"));
        }
    }
    records(ground, &model)?;
    states(ground, &model)?;
    known(ground, &model)?;
    sums(ground)?;
    let counts = |index: usize| {
        let counts = ground.shards.iter().flat_map(|shard| shard.counts);
        counts.map(|it| usize::try_from(it[index]).unwrap()).sum()
    };
    let outcomes = || ground.outcomes.values();
    Ok(Struck {
        parked: outcomes()
            .flatten()
            .filter(|it| **it == EventOutcome::Parked)
            .count(),
        released: counts(1),
        expired: counts(2),
        half_dead: ground.doubtful.len(),
        ..ground.struck
    })
}

/// Each record has exactly one end, and the one that its place in the log gives it.
fn records(ground: &Ground, model: &Model) -> Result<(), String> {
    let mut rows: HashMap<usize, Vec<&Row>> = HashMap::new();
    for row in ground.shards.iter().flat_map(|shard| &shard.rows) {
        rows.entry(row.number).or_default().push(row);
    }
    for entry in ground.logs.iter().flatten() {
        let number = entry.number;
        let rows = rows.get(&number).map_or(&[][..], Vec::as_slice);
        let said = &entry.said;
        let outcomes = ground.outcomes.get(&number);
        let wrong = |what: String| {
            Err(format!(
                "{} {} of order {} (record {number}, {outcomes:?}): {what}",
                said.id, said.status, said.order
            ))
        };
        let dead: Vec<&str> = ground
            .letters
            .iter()
            .filter(|it| it.0 == number)
            .map(|it| it.1)
            .collect();
        if !ground.outcomes.contains_key(&number) {
            return wrong("lost: no transaction has taken it".to_owned());
        }
        let is_letter = |class: &str| {
            dead.contains(&class) && (dead.len() == 1 || ground.doubtful.contains(&number))
        };
        let as_expected = match &model.fates[&number] {
            Fate::Row { stale, version } => {
                let row = |row: &&Row| row.stale == *stale && row.version == *version;
                rows.len() == 1 && rows.iter().all(row) && is_forgiven(ground, number, &dead)
            }
            Fate::Duplicate => rows.is_empty() && is_forgiven(ground, number, &dead),
            Fate::Dead(class) => rows.is_empty() && is_letter(class),
            Fate::Waits => rows.is_empty() && is_letter("out_of_order"),
        };
        if !as_expected {
            return wrong(format!(
                "{:?} expected, rows {rows:?}, dead letters {dead:?}",
                model.fates[&number]
            ));
        }
    }
    Ok(())
}

/// A letter beside another end is one of a worker that died between the two.
fn is_forgiven(ground: &Ground, number: usize, dead: &[&str]) -> bool {
    dead.is_empty() || ground.doubtful.contains(&number)
}

fn states(ground: &Ground, model: &Model) -> Result<(), String> {
    let mut found: HashMap<StateKey, State> = HashMap::new();
    let order = |text: &str| if text == "a" { "a" } else { "b" };
    for shard in &ground.shards {
        for ((user, id), it) in &shard.orders {
            let state = (it.status.as_str(), it.version, it.updated_at.as_second());
            found.insert((Source::Orders as usize, user.as_u128(), order(id)), state);
        }
        for ((user, id), it) in &shard.disputes {
            let state = (it.status.as_str(), it.version, it.updated_at.as_second());
            found.insert(
                (Source::Chargebacks as usize, user.as_u128(), order(id)),
                state,
            );
        }
    }
    if found == model.states {
        return Ok(());
    }
    Err(format!("states are {found:?}, expected {:?}", model.states))
}

/// The inbox knows what is a row, and nothing else.
fn known(ground: &Ground, model: &Model) -> Result<(), String> {
    let mut found: HashMap<EventKey, u128> = HashMap::new();
    for ((user, source, id), payload) in ground.shards.iter().flat_map(|shard| &shard.inbox) {
        let source = Source::from_text(source).ok_or("a source that nobody knows")? as usize;
        found.insert((source, user.as_u128(), id.clone()), *payload);
    }
    if found == model.taken {
        return Ok(());
    }
    Err(format!(
        "the inbox knows {found:?}, expected {:?}",
        model.taken
    ))
}

/// Each record was counted once, on whichever shard.
fn sums(ground: &Ground) -> Result<(), String> {
    for place in 0..LANES {
        let mut sums = [0; 3];
        for shard in &ground.shards {
            for (sum, count) in sums.iter_mut().zip(shard.counts[place]) {
                *sum += count;
            }
        }
        let outcomes = |entry: &super::ground::Entry| ground.outcomes[&entry.number].iter();
        let taken = || ground.logs[place].iter().flat_map(outcomes);
        let parked = taken().filter(|it| **it == EventOutcome::Parked).count();
        let all = ground.logs[place].len();
        let [counted, released, expired] = sums;
        if usize::try_from(counted) != Ok(all) || usize::try_from(released + expired) != Ok(parked)
        {
            return Err(format!(
                "partition {place}: {counted} outcomes of {all} records, {released} released and {expired} expired of {parked}"
            ));
        }
    }
    Ok(())
}
