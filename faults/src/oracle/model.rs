//! What should become of each record: the order and the dispute machine written anew from the design's words, for one
//! reader who takes one record after the other.

use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

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
    /// Which events have a row, and under which body.
    taken: HashMap<EventKey, Vec<u8>>,
    /// A scenario's databases refuse events with the mark.
    pub refuses: bool,
}

enum Judged {
    Applied(State),
    Stale,
    TooEarly,
    Illegal,
}

impl Model {
    /// Takes the next record of its partition.
    pub fn take(&mut self, said: Option<&Said>, record: &LogRecord) -> Fate {
        let Some(said) = said else {
            return Fate::Dead("malformed");
        };
        let body = record.value.as_deref().unwrap_or_default();
        if let Some(known) = self.taken.get(&said.event) {
            return if known == body {
                Fate::Duplicate
            } else {
                Fate::Dead("duplicate_with_different_payload")
            };
        }
        let key = (said.event.0, said.event.1, said.order.clone());
        let state = self.states.get(&key);
        let fate = match judge(state, said) {
            Judged::TooEarly => return Fate::Dead("out_of_order"),
            Judged::Illegal => return Fate::Dead("illegal"),
            // Both kinds would be rows, which the database refuses.
            Judged::Applied(_) | Judged::Stale if self.refuses && said.refused => {
                return Fate::Dead("data");
            }
            Judged::Stale => Fate::Row {
                stale: true,
                version: state.map_or(0, |state| state.version),
            },
            Judged::Applied(next) => {
                let version = next.version;
                self.states.insert(key, next);
                Fate::Row {
                    stale: false,
                    version,
                }
            }
        };
        self.taken.insert(said.event.clone(), body.to_vec());
        fate
    }
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

    #[test]
    fn one_order_meets_everything() {
        let mut model = Model::default();
        let mut take = |record: LogRecord| model.take(read("orders", &record).as_ref(), &record);
        let row = |version| Fate::Row {
            stale: false,
            version,
        };
        assert_eq!(take(order("e1", "updated", 5)), Fate::Dead("out_of_order"));
        assert_eq!(take(order("e2", "created", 1)), row(1));
        assert_eq!(take(order("e2", "created", 1)), Fate::Duplicate);
        assert_eq!(
            take(order("e2", "created", 2)),
            Fate::Dead("duplicate_with_different_payload")
        );
        assert_eq!(take(order("e3", "created", 2)), Fate::Dead("illegal"));
        assert_eq!(take(order("e1", "updated", 5)), row(2));
        assert_eq!(
            take(order("e4", "updated", 4)),
            Fate::Row {
                stale: true,
                version: 2
            }
        );
        assert_eq!(take(order("e5", "success", 6)), row(3));
        assert_eq!(take(order("e6", "updated", 7)), Fate::Dead("illegal"));
        assert_eq!(
            model.states.values().next().unwrap().amount_minor,
            Some(1230)
        );
        let mut foreign = order("e7", "created", 1);
        foreign.key = None;
        assert_eq!(
            model.take(read("orders", &foreign).as_ref(), &foreign),
            Fate::Dead("malformed")
        );
    }
}
