//! What should become of each record: the order and the dispute machine written anew from the design's words, for one
//! reader who takes one record after the other.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use super::Rules;
use crate::log::LogRecord;
use crate::webhook::REFUSED_MARK;

/// An order or a dispute: source, user, order.
pub type StateKey = (&'static str, Uuid, String);
/// An event: source, user, the provider's id.
pub type EventKey = (&'static str, Uuid, String);

/// What a record must have become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// A row of the event log; `stale`: one that changed nothing.
    Row {
        /// The event was older than the state.
        stale: bool,
        /// The state's version after it.
        version: i64,
    },
    /// Counted, and nothing else.
    Duplicate,
    /// A dead letter of this class.
    Dead(&'static str),
    /// No row: a dead letter, or a mere duplicate if the one that was refused first still waited behind others when this
    /// one came, which depends on another topic.
    RefusedAgain,
    /// It waits for ever: nothing opens its order or dispute.
    Parked,
}

/// What a webhook says, as the oracle reads it.
#[derive(Debug, Clone)]
pub struct Said {
    /// Its event.
    pub event: EventKey,
    /// Its order.
    pub order: String,
    status: String,
    resolution: Option<String>,
    at: Timestamp,
    opened_at: Timestamp,
    amount_minor: Option<i64>,
    refused: bool,
}

/// A state, as a row of `orders` or `disputes` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Its status.
    pub status: String,
    /// How many events were applied.
    pub version: i64,
    /// The newest amount.
    pub amount_minor: Option<i64>,
    /// When it was opened.
    pub opened_at: Timestamp,
    /// The newest applied event's time.
    pub updated_at: Timestamp,
}

/// Reads a record as a webhook of `source`; `None` is malformed.
#[must_use]
pub fn read(source: &'static str, record: &LogRecord) -> Option<Said> {
    let value: Value = serde_json::from_slice(record.value.as_ref()?).ok()?;
    let text = |field: &str| value[field].as_str().map(str::to_owned);
    let time = |field: &str| value[field].as_str()?.parse::<Timestamp>().ok();
    let user: Uuid = value["user_id"].as_str()?.parse().ok()?;
    if record.key.as_deref() != Some(user.to_string().as_bytes()) {
        return None;
    }
    let of_orders = source == "orders";
    let (at, amount) = if of_orders {
        (
            time("updated_at")?,
            value["meta"]["amount"].as_str().map(str::to_owned),
        )
    } else {
        (time("occurred_at")?, Some(value["amount"].to_string()))
    };
    Some(Said {
        event: (source, user, text("provider_event_id")?),
        order: text("order_id")?,
        status: text("status")?,
        resolution: value["meta"]["resolution"].as_str().map(str::to_owned),
        at,
        opened_at: if of_orders { time("created_at")? } else { at },
        amount_minor: amount.and_then(|amount| minor(&amount)),
        refused: value["meta"]["note"].as_str() == Some(REFUSED_MARK),
    })
}

/// "12.34" -> 1234: all amounts of the load have two decimals or fewer.
fn minor(amount: &str) -> Option<i64> {
    let (whole, rest) = amount.split_once('.').unwrap_or((amount, ""));
    let cents = format!("{rest:0<2}");
    Some(whole.parse::<i64>().ok()? * 100 + cents.parse::<i64>().ok()?)
}

/// What has become of everything so far.
#[derive(Debug, Default)]
pub struct Model {
    /// Orders and disputes.
    pub states: HashMap<StateKey, State>,
    /// One a record, in the order in which they were taken.
    pub fates: Vec<Fate>,
    /// Which events have a row or wait for one, and under which body.
    taken: HashMap<EventKey, Vec<u8>>,
    /// Records that wait for their order or dispute to be opened.
    waiting: HashMap<StateKey, Vec<(usize, Said)>>,
    /// Events that were refused once.
    refused: HashSet<EventKey>,
    rules: Rules,
}

enum Judged {
    Applied(State),
    Stale,
    TooEarly,
    Illegal,
}

impl Model {
    /// A model of nothing.
    #[must_use]
    pub fn new(rules: Rules) -> Model {
        Model {
            rules,
            ..Model::default()
        }
    }

    /// Takes the next record of its partition. All orders come before all disputes: between two topics there is no order,
    /// so what becomes of a dispute must not depend on when its order comes.
    pub fn take(&mut self, said: Option<&Said>, record: &LogRecord) {
        let place = self.fates.len();
        let body = record.value.as_deref().unwrap_or_default();
        let fate = match said {
            None => Fate::Dead("malformed"),
            Some(said) => match self.taken.get(&said.event) {
                Some(known) if known == body => Fate::Duplicate,
                Some(_) => Fate::Dead("duplicate_with_different_payload"),
                None => {
                    self.taken.insert(said.event.clone(), body.to_vec());
                    self.settle(place, said)
                }
            },
        };
        self.fates.push(fate);
        let Some(said) = said else { return };
        let key = key_of(said);
        if self.states.contains_key(&key) {
            // The one that they waited for.
            for (place, said) in self.waiting.remove(&key).unwrap_or_default() {
                self.fates[place] = self.settle(place, &said);
            }
        }
    }

    fn settle(&mut self, place: usize, said: &Said) -> Fate {
        let key = key_of(said);
        let state = self.states.get(&key);
        let judged = if self.rules.parks && !self.has_order(said) {
            Judged::TooEarly
        } else {
            judge(state, said)
        };
        let dead = match judged {
            Judged::TooEarly if self.rules.parks => {
                self.waiting
                    .entry(key)
                    .or_default()
                    .push((place, said.clone()));
                return Fate::Parked;
            }
            Judged::TooEarly => "out_of_order",
            Judged::Illegal => "illegal",
            // Both kinds would be rows, which the database refuses.
            Judged::Applied(_) | Judged::Stale if self.rules.refuses && said.refused => "data",
            Judged::Stale => {
                return Fate::Row {
                    stale: true,
                    version: state.map_or(0, |state| state.version),
                };
            }
            Judged::Applied(next) => {
                let version = next.version;
                self.states.insert(key, next);
                return Fate::Row {
                    stale: false,
                    version,
                };
            }
        };
        // It may come again, and is judged anew.
        self.taken.remove(&said.event);
        if self.refused.insert(said.event.clone()) || !self.rules.parks {
            Fate::Dead(dead)
        } else {
            Fate::RefusedAgain
        }
    }

    fn has_order(&self, said: &Said) -> bool {
        let order = ("orders", said.event.1, said.order.clone());
        said.event.0 == "orders" || self.states.contains_key(&order)
    }
}

fn key_of(said: &Said) -> StateKey {
    (said.event.0, said.event.1, said.order.clone())
}

fn judge(state: Option<&State>, said: &Said) -> Judged {
    let of_orders = said.event.0 == "orders";
    let opener = if of_orders { "created" } else { "opened" };
    let Some(state) = state else {
        if said.status != opener {
            return Judged::TooEarly;
        }
        return Judged::Applied(State {
            status: if of_orders { "created" } else { "open" }.to_owned(),
            version: 1,
            amount_minor: said.amount_minor,
            opened_at: said.opened_at,
            updated_at: said.at,
        });
    };
    if said.at < state.updated_at {
        return Judged::Stale;
    }
    let ends = ["success", "failed", "won", "lost", "closed"];
    if said.status == opener || ends.contains(&state.status.as_str()) {
        return Judged::Illegal;
    }
    let status = match (of_orders, said.status.as_str()) {
        (true, status) => status.to_owned(),
        (false, "closed") => said
            .resolution
            .clone()
            .unwrap_or_else(|| "closed".to_owned()),
        // A provider's update leaves a dispute where it is.
        (false, _) => state.status.clone(),
    };
    Judged::Applied(State {
        status,
        version: state.version + 1,
        amount_minor: said.amount_minor.or(state.amount_minor),
        opened_at: state.opened_at,
        updated_at: said.at,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const USER: &str = "550e8400-e29b-41d4-a716-446655440000";

    fn order(id: &str, status: &str, second: i64) -> LogRecord {
        let at = Timestamp::from_second(second).unwrap();
        let json = serde_json::json!({
            "provider_event_id": id, "order_id": "o", "user_id": USER, "status": status,
            "created_at": at.to_string(), "updated_at": at.to_string(),
            "meta": {"amount": "12.3", "currency": "EUR"},
        });
        LogRecord {
            partition: 0,
            offset: 0,
            timestamp: Some(0),
            key: Some(Bytes::from_static(USER.as_bytes())),
            value: Some(Bytes::from(json.to_string())),
            headers: Vec::new(),
        }
    }

    /// What becomes of the records of one order, in their order.
    #[track_caller]
    fn check(parks: bool, records: &[(&str, &str, i64)], expect: &[Fate]) {
        let mut model = Model::new(Rules {
            parks,
            ..Rules::default()
        });
        for (id, status, second) in records {
            let record = order(id, status, *second);
            model.take(read("orders", &record).as_ref(), &record);
        }
        assert_eq!(model.fates, expect);
    }

    const fn row(version: i64) -> Fate {
        Fate::Row {
            stale: false,
            version,
        }
    }

    #[test]
    fn one_order_meets_everything() {
        let records = [
            ("e2", "created", 1),
            ("e2", "created", 1),
            ("e2", "created", 2),
            ("e3", "created", 2),
            ("e1", "updated", 5),
            ("e4", "updated", 4),
            ("e5", "success", 6),
            ("e6", "updated", 7),
        ];
        let fates = [
            row(1),
            Fate::Duplicate,
            Fate::Dead("duplicate_with_different_payload"),
            Fate::Dead("illegal"),
            row(2),
            Fate::Row {
                stale: true,
                version: 2,
            },
            row(3),
            Fate::Dead("illegal"),
        ];
        check(false, &records, &fates);
        check(true, &records, &fates);
    }

    #[test]
    fn what_comes_too_early_is_dead_or_waits() {
        let records = [
            ("e1", "updated", 5),
            ("e1", "updated", 5),
            ("e2", "success", 6),
            ("e0", "created", 1),
            ("e1", "updated", 5),
        ];
        let early = || Fate::Dead("out_of_order");
        check(
            false,
            &records,
            &[early(), early(), early(), row(1), row(2)],
        );
        check(
            true,
            &records,
            &[row(2), Fate::Duplicate, row(3), row(1), Fate::Duplicate],
        );
        check(true, &records[..1], &[Fate::Parked]);
    }

    #[test]
    fn a_record_without_its_users_key_is_malformed() {
        let mut foreign = order("e7", "created", 1);
        foreign.key = None;
        let mut model = Model::default();
        model.take(read("orders", &foreign).as_ref(), &foreign);
        assert_eq!(model.fates, [Fate::Dead("malformed")]);
    }
}
