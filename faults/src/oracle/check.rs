//! The comparisons.

use std::collections::{BTreeMap, HashMap, HashSet};

use uuid::Uuid;

use super::model::{EventKey, Fate, Model, Said, StateKey, read};
use super::read::{EventRow, Held, home_of};
use super::{Rules, Verdict, Wrong};
use crate::door::Answer;
use crate::load::Sent;
use crate::log::LogRecord;
use crate::world::{Offsets, World};

/// Of so many users with a finding the history is told.
const HISTORIES: usize = 2;
/// Each in so many lines, around the first record that went wrong.
const HISTORY_LINES: usize = 100;

/// A record of the log with what it says and what it must have become.
struct Place<'a> {
    source: &'static str,
    record: &'a LogRecord,
    said: Option<Said>,
    fate: Fate,
}

impl Place<'_> {
    fn user(&self) -> Option<Uuid> {
        self.said.as_ref().map(|said| said.event.1)
    }

    fn name(&self) -> String {
        let id = self.said.as_ref().map_or("?", |said| &said.event.2);
        let LogRecord {
            partition, offset, ..
        } = self.record;
        format!("{} {id} at {partition}/{offset}", self.source)
    }
}

/// Where a dead letter says that it comes from: source, partition, offset.
type Origin = (&'static str, i32, i64);

pub(super) struct Check<'a> {
    world: &'a World<'a>,
    pub(super) held: &'a Held,
    rules: Rules,
    pub(super) model: Model,
    places: Vec<Place<'a>>,
    letters: HashMap<Origin, Vec<&'a LogRecord>>,
    pub(super) verdict: Verdict,
}

impl<'a> Check<'a> {
    pub(super) fn new(world: &'a World<'a>, held: &'a Held, rules: Rules) -> Check<'a> {
        let mut model = Model::new(rules);
        let mut read_places = Vec::new();
        for (source, records) in &held.log {
            for record in records {
                let said = read(source, record);
                model.take(said.as_ref(), record);
                read_places.push((source, record, said));
            }
        }
        let fates = std::mem::take(&mut model.fates);
        let places = read_places
            .into_iter()
            .zip(fates)
            .map(|((source, record, said), fate)| Place {
                source,
                record,
                said,
                fate,
            })
            .collect();
        Check {
            world,
            held,
            rules,
            model,
            places,
            letters: HashMap::new(),
            verdict: Verdict::default(),
        }
    }

    pub(super) fn run(
        mut self,
        sent: &[Sent],
        committed: &Offsets,
        fences: &Offsets,
        ends: &Offsets,
    ) -> Verdict {
        self.verdict.events = self.places.len();
        self.collect_letters();
        self.each_record_has_its_fate();
        self.nothing_else_is_there();
        if self.rules.unordered {
            self.versions_are_contiguous();
        } else {
            self.states_are_those_of_the_model();
        }
        self.outbox_and_inbox_agree_with_rows();
        if self.rules.relayed {
            self.feed_has_every_applied_event();
        }
        self.every_user_is_at_home();
        self.offsets_fit(committed, fences, ends);
        self.answers_were_kept(sent);
        self.tell_histories();
        self.verdict
    }

    fn collect_letters(&mut self) {
        for (source, letters) in &self.held.dead {
            for letter in letters {
                let number = |name: &str| letter.header(name)?.parse::<i64>().ok();
                let origin = number("shardlane-origin-partition")
                    .and_then(|partition| i32::try_from(partition).ok())
                    .zip(number("shardlane-origin-offset"));
                match origin {
                    Some((partition, offset)) => {
                        self.letters
                            .entry((source, partition, offset))
                            .or_default()
                            .push(letter);
                    }
                    None => self.verdict.add(
                        Wrong::Other,
                        None,
                        format!(
                            "a dead letter of {source} names no origin: {:?}",
                            letter.headers
                        ),
                    ),
                }
            }
        }
        self.verdict.letters_again = self.letters.values().map(|it| it.len() - 1).sum();
    }

    /// Each record is a row, a dead letter, or a duplicate of one that is a row: exactly one of these, and the right one.
    fn each_record_has_its_fate(&mut self) {
        let mut found: Vec<(Wrong, Option<Uuid>, String)> = Vec::new();
        for place in &self.places {
            let LogRecord {
                partition, offset, ..
            } = *place.record;
            let letters = self.letters.get(&(place.source, partition, offset));
            let letter = letters.and_then(|letters| letters.first().copied());
            let rows = place
                .said
                .as_ref()
                .and_then(|said| self.held.rows.get(&said.event));
            let rows: &[EventRow] = rows.map_or(&[], |rows| rows);
            let fate = match &place.fate {
                Fate::Row { stale: false, .. } => "applied",
                Fate::Row { stale: true, .. } => "stale",
                Fate::Duplicate => "duplicate",
                Fate::Dead(class) => class,
                Fate::RefusedAgain => "refused again",
                Fate::Parked => "parked",
            };
            *self.verdict.fates.entry(fate.to_owned()).or_default() += 1;
            let mut wrong = |wrong, sentence: String| {
                found.push((wrong, place.user(), format!("{} {sentence}", place.name())));
            };
            if self.rules.unordered {
                if letter.is_none() && rows.is_empty() {
                    wrong(Wrong::Lost, "is neither a row nor a dead letter".to_owned());
                }
                if rows.len() > 1 {
                    wrong(Wrong::Twice, format!("has {} rows", rows.len()));
                }
                continue;
            }
            match (&place.fate, letter) {
                (Fate::Row { stale, version }, None) => match rows {
                    [] => wrong(Wrong::Lost, "has no row".to_owned()),
                    [row] => {
                        let outcome = if *stale { "stale" } else { "applied" };
                        if (row.outcome.as_str(), row.version) != (outcome, *version) {
                            let is = format!("{} v{}", row.outcome, row.version);
                            wrong(
                                Wrong::OutOfOrder,
                                format!("is {is}, not {outcome} v{version}"),
                            );
                        }
                        if Some(row.payload.as_bytes()) != place.record.value.as_deref() {
                            wrong(Wrong::Other, "has other bytes in its row".to_owned());
                        }
                        if Some(row.received_ms) != place.record.timestamp {
                            let times = format!("{} {:?}", row.received_ms, place.record.timestamp);
                            wrong(
                                Wrong::Other,
                                format!("was received at another time: {times}"),
                            );
                        }
                    }
                    rows => wrong(Wrong::Twice, format!("has {} rows", rows.len())),
                },
                (Fate::Row { .. }, Some(letter)) => {
                    let class = letter.header("shardlane-error-class").unwrap_or("?");
                    let kind = if rows.is_empty() {
                        Wrong::Lost
                    } else {
                        Wrong::Twice
                    };
                    wrong(
                        kind,
                        format!("is a dead letter ({class}) and has {} rows", rows.len()),
                    );
                }
                (Fate::Parked, _) => wrong(Wrong::Other, "waits for ever".to_owned()),
                (Fate::RefusedAgain, _) => {
                    if !rows.is_empty() {
                        wrong(
                            Wrong::Other,
                            "was refused before, and is a row now".to_owned(),
                        );
                    }
                }
                (Fate::Duplicate, None) => {
                    if rows.is_empty() {
                        wrong(
                            Wrong::Lost,
                            "is counted as a duplicate of nothing".to_owned(),
                        );
                    }
                }
                (Fate::Duplicate, Some(letter)) => {
                    let class = letter.header("shardlane-error-class").unwrap_or("?");
                    wrong(
                        Wrong::Twice,
                        format!("repeats a known event, and is a dead letter ({class})"),
                    );
                }
                (Fate::Dead(class), None) => {
                    let text = format!(
                        "should be a dead letter ({class}), and is none; {} rows",
                        rows.len()
                    );
                    wrong(Wrong::Lost, text);
                }
                (Fate::Dead(class), Some(letter)) => {
                    if letter.header("shardlane-error-class") != Some(class) {
                        let is = letter.header("shardlane-error-class");
                        wrong(
                            Wrong::Other,
                            format!("is a dead letter of {is:?}, not of {class}"),
                        );
                    }
                    if (&letter.key, &letter.value, letter.timestamp)
                        != (
                            &place.record.key,
                            &place.record.value,
                            place.record.timestamp,
                        )
                    {
                        wrong(Wrong::Other, "is a dead letter with other bytes".to_owned());
                    }
                }
            }
        }
        for (wrong, user, sentence) in found {
            self.verdict.add(wrong, user, sentence);
        }
    }

    /// No row and no letter comes from nowhere.
    fn nothing_else_is_there(&mut self) {
        let known: HashSet<&EventKey> = self
            .places
            .iter()
            .filter_map(|place| place.said.as_ref())
            .map(|said| &said.event)
            .collect();
        for key in self
            .held
            .rows
            .keys()
            .chain(self.held.inbox.keys())
            .chain(self.held.outbox.keys())
        {
            if !known.contains(key) {
                let sentence =
                    format!("{} {} is in a table and was never in a topic", key.0, key.2);
                self.verdict.add(Wrong::Other, Some(key.1), sentence);
            }
        }
        let records: HashSet<Origin> = self
            .places
            .iter()
            .map(|place| (place.source, place.record.partition, place.record.offset))
            .collect();
        for origin in self
            .letters
            .keys()
            .filter(|origin| !records.contains(*origin))
        {
            let sentence = format!("a dead letter comes from {origin:?}, where nothing was");
            self.verdict.add(Wrong::Other, None, sentence);
        }
    }

    fn states_are_those_of_the_model(&mut self) {
        let mut found = Vec::new();
        for (key, state) in &self.model.states {
            match self.held.states.get(key).map(Vec::as_slice) {
                Some([(_, held)]) if held == state => {}
                other => found.push((
                    key.1,
                    format!("{} {} is {other:?}, not {state:?}", key.0, key.2),
                )),
            }
        }
        for key in self
            .held
            .states
            .keys()
            .filter(|key| !self.model.states.contains_key(*key))
        {
            found.push((
                key.1,
                format!("{} {} has a state and no event", key.0, key.2),
            ));
        }
        let orders = self.model.states.keys().filter(|key| key.0 == "orders");
        for (_, user, order) in orders {
            let count = self
                .held
                .directory
                .get(&(*user, order.clone()))
                .copied()
                .unwrap_or(0);
            if count != 1 {
                found.push((
                    *user,
                    format!("order {order} is {count} times in the directory"),
                ));
            }
        }
        for (user, sentence) in found {
            self.verdict.add(Wrong::Other, Some(user), sentence);
        }
    }

    /// Where nobody promises an order: each state has the versions 1, 2, ..., each once.
    fn versions_are_contiguous(&mut self) {
        let mut versions: HashMap<StateKey, Vec<i64>> = HashMap::new();
        let mut seen: HashSet<&EventKey> = HashSet::new();
        for said in self.places.iter().filter_map(|place| place.said.as_ref()) {
            if !seen.insert(&said.event) {
                continue;
            }
            for row in self.held.rows.get(&said.event).into_iter().flatten() {
                if row.outcome == "applied" {
                    let key = (said.event.0, said.event.1, said.order.clone());
                    versions.entry(key).or_default().push(row.version);
                }
            }
        }
        let mut found = Vec::new();
        for (key, mut versions) in versions {
            versions.sort_unstable();
            let state = self
                .held
                .states
                .get(&key)
                .and_then(|it| it.first())
                .map(|(_, it)| it.version);
            let top = i64::try_from(versions.len()).ok();
            if !versions.iter().copied().eq(1..=top.unwrap_or(0)) || state != top {
                found.push((
                    key.1,
                    format!(
                        "{} {}: versions {versions:?}, state {state:?}",
                        key.0, key.2
                    ),
                ));
            }
        }
        for (user, sentence) in found {
            self.verdict.add(Wrong::OutOfOrder, Some(user), sentence);
        }
    }

    /// One inbox row an event with a row, one outbox row an applied event, of the same version.
    fn outbox_and_inbox_agree_with_rows(&mut self) {
        let mut found = Vec::new();
        for (key, rows) in &self.held.rows {
            let inbox = self.held.inbox.get(key).map_or(0, Vec::len);
            if inbox != 1 {
                found.push((key, format!("has {inbox} inbox rows")));
            }
            let applied = rows.iter().filter(|row| row.outcome == "applied");
            let versions: Vec<i64> = applied.map(|row| row.version).collect();
            let outbox = self.held.outbox.get(key).map_or(&[][..], |rows| rows);
            let waiting: Vec<i64> = outbox.iter().map(|(version, _)| *version).collect();
            let expected = if self.rules.relayed {
                &[][..]
            } else {
                &versions
            };
            if waiting != expected {
                found.push((
                    key,
                    format!("has outbox rows {waiting:?}, and applied rows {versions:?}"),
                ));
            }
        }
        let orphans = self.held.inbox.keys().chain(self.held.outbox.keys());
        for key in orphans.filter(|key| !self.held.rows.contains_key(*key)) {
            found.push((key, "is in inbox or outbox, and has no row".to_owned()));
        }
        for (key, sentence) in found {
            let sentence = format!("{} {} {sentence}", key.0, key.2);
            self.verdict.add(Wrong::Other, Some(key.1), sentence);
        }
    }

    /// Every row of a user lies on the shard that the map names for the slot, which Postgres itself computes.
    fn every_user_is_at_home(&mut self) {
        for (user, places) in &self.held.homes {
            for (shard, slot) in places {
                let home = home_of(self.world, *slot);
                if home != Some(*shard) {
                    let sentence =
                        format!("has rows on shard {shard}, but slot {slot} is of {home:?}");
                    self.verdict.add(Wrong::Other, Some(*user), sentence);
                }
            }
        }
    }

    /// Offset <= fence <= end. And each partition adds up: a record has one outcome, whatever it is.
    fn offsets_fit(&mut self, committed: &Offsets, fences: &Offsets, ends: &Offsets) {
        let mut counts: BTreeMap<(&'static str, i32), i64> = BTreeMap::new();
        for place in &self.places {
            let key = (place.source, place.record.partition);
            *counts.entry(key).or_default() += 1;
        }
        for (key, end) in ends {
            let (fence, offset) = (fences.get(key).copied().unwrap_or(0), committed[key]);
            if fence > *end || offset > *end {
                let sentence = format!("{key:?}: fence {fence}, offset {offset}, end {end}");
                self.verdict.add(Wrong::Other, None, sentence);
            }
            if !self.rules.unordered && fence < offset {
                let sentence = format!("{key:?}: offset {offset} is past the fence {fence}");
                self.verdict.add(Wrong::Other, None, sentence);
            }
            let (counted, waiting) = self.held.outcomes.get(key).copied().unwrap_or_default();
            if self.rules.parks && (counted, waiting) != (*end, 0) {
                let sentence =
                    format!("{key:?}: {counted} outcomes, {waiting} waiting, {end} records");
                self.verdict.add(Wrong::Other, None, sentence);
            }
            if counts.get(key).copied().unwrap_or(0) != *end {
                let sentence = format!("{key:?}: {:?} records read of {end}", counts.get(key));
                self.verdict.add(Wrong::Other, None, sentence);
            }
        }
    }

    /// What was acknowledged is in the log, and nothing that was refused or never sent.
    fn answers_were_kept(&mut self, sent: &[Sent]) {
        type Body<'b> = (&'static str, Uuid, &'b [u8]);
        let mut answers: HashMap<Body<'_>, (usize, usize)> = HashMap::new();
        for Sent { webhook, answer } in sent {
            let key = (webhook.source.as_str(), webhook.user, &webhook.payload[..]);
            let (ok, info) = answers.entry(key).or_default();
            match answer {
                Answer::Ok => *ok += 1,
                Answer::Info => *info += 1,
                Answer::Fail => {}
            }
        }
        let mut logged: HashMap<Body<'_>, usize> = HashMap::new();
        for place in &self.places {
            let key = place
                .record
                .key
                .as_deref()
                .and_then(|key| Uuid::try_parse_ascii(key).ok());
            let value = place.record.value.as_deref().unwrap_or_default();
            *logged
                .entry((place.source, key.unwrap_or_default(), value))
                .or_default() += 1;
        }
        for (key, (ok, info)) in &answers {
            let there = logged.get(key).copied().unwrap_or(0);
            let text = String::from_utf8_lossy(&key.2[..key.2.len().min(60)]).into_owned();
            if there < *ok {
                let sentence = format!(
                    "{} acknowledged {ok} times, {there} times in the topic: {text}",
                    key.0
                );
                self.verdict.add(Wrong::Lost, Some(key.1), sentence);
            }
            // librdkafka may append a batch again when a record beside it has timed out; the inbox knows it.
            self.verdict.records_again += there.saturating_sub(ok + info);
        }
        for key in logged.keys().filter(|key| !answers.contains_key(*key)) {
            let sentence = format!("{} is in the topic, and nobody sent it", key.0);
            self.verdict.add(Wrong::Other, Some(key.1), sentence);
        }
    }

    fn tell_histories(&mut self) {
        let mut users: Vec<Uuid> = Vec::new();
        for user in self
            .verdict
            .findings
            .iter()
            .filter_map(|finding| finding.user)
        {
            if !users.contains(&user) && users.len() < HISTORIES {
                users.push(user);
            }
        }
        for user in users {
            let of_user = |place: &&Place<'_>| place.user() == Some(user);
            let places: Vec<&Place<'_>> = self.places.iter().filter(of_user).collect();
            let findings = self.verdict.findings.iter();
            let wrong = findings
                .filter(|finding| finding.user == Some(user))
                .find_map(|finding| {
                    let names = |place: &&Place<'_>| finding.sentence.contains(&place.name());
                    places.iter().position(names)
                });
            let begin = wrong.unwrap_or(0).saturating_sub(HISTORY_LINES / 2);
            let mut text = format!("  history of {user}, from its record {begin} on:\n");
            for place in places.into_iter().skip(begin).take(HISTORY_LINES) {
                text.push_str(&self.line_of(place));
            }
            self.verdict.histories.push(text);
        }
    }

    fn line_of(&self, place: &Place<'_>) -> String {
        let said = place.said.as_ref();
        let rows = said.and_then(|said| self.held.rows.get(&said.event));
        let rows: Vec<String> = rows
            .into_iter()
            .flatten()
            .map(|row| format!("{} v{} on shard {}", row.outcome, row.version, row.shard))
            .collect();
        let LogRecord {
            partition, offset, ..
        } = *place.record;
        let letters = self.letters.get(&(place.source, partition, offset));
        format!(
            "    {}: expected {:?}; rows {rows:?}, dead letters {}\n",
            place.name(),
            place.fate,
            letters.map_or(0, Vec::len)
        )
    }
}
