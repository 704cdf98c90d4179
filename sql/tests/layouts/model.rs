//! An independent account of what a stream of webhooks must leave behind. It reads the JSON itself and knows the
//! machines from DESIGN.md, not from the domain crate, so that the two can disagree.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;
use shardlane_domain::{Event, Source};
use shardlane_sql::testing::TestDb;
use uuid::Uuid;

use crate::ground::connect;

/// The rows of each table, each as one line of text.
pub(crate) type Rows = BTreeMap<&'static str, BTreeSet<String>>;

/// How each table is turned into the same lines. Times are `YYYY-MM-DDTHH:MM:SSZ`, which sorts as they do.
const LINES: [(&str, &str); 8] = [
    (
        "inbox",
        "concat_ws('|', user_id, source, event_id, replace(payload_hash::text, '-', ''), {received_at})",
    ),
    (
        "orders",
        "concat_ws('|', user_id, order_id, status, version, coalesce(amount_minor::text, '-'), \
         coalesce(currency, '-'), {created_at}, {updated_at})",
    ),
    (
        "disputes",
        "concat_ws('|', user_id, order_id, status, version, reason, amount_minor, currency, {opened_at}, \
         {updated_at}, coalesce({evidence_due_at}, '-'))",
    ),
    (
        "order_events",
        "concat_ws('|', user_id, order_id, event_id, status, outcome, version, {occurred_at}, {received_at})",
    ),
    (
        "dispute_events",
        "concat_ws('|', user_id, order_id, event_id, action, outcome, version, {occurred_at}, {received_at})",
    ),
    (
        "outbox",
        "concat_ws('|', user_id, source, event_id, order_id, version, status, {received_at})",
    ),
    ("order_directory", "concat_ws('|', order_id, user_id)"),
    (
        "parked",
        "concat_ws('|', user_id, source, row_number() over (partition by user_id, source order by seq), event_id, \
         order_id, {received_at})",
    ),
];

#[derive(Default)]
struct OrderModel {
    status: String,
    version: i64,
    money: Option<(i64, String)>,
    created_at: String,
    updated_at: String,
}

#[derive(Default)]
struct DisputeModel {
    status: String,
    version: i64,
    reason: String,
    minor: i64,
    currency: String,
    opened_at: String,
    updated_at: String,
    due: Option<String>,
}

/// What must be there after the events that were shown to it.
#[derive(Default)]
pub(crate) struct Model {
    orders: HashMap<(Uuid, String), OrderModel>,
    disputes: HashMap<(Uuid, String), DisputeModel>,
    logs: Rows,
    payloads: BTreeMap<(Uuid, String), Value>,
    /// What is known, under which bytes.
    inbox: HashMap<(Uuid, Source, String), Event>,
    /// What waits, in order.
    queues: BTreeMap<(Uuid, Source), Vec<Event>>,
    pub(crate) applied: usize,
    pub(crate) stale: usize,
    pub(crate) duplicates: usize,
    /// Events that had to wait.
    pub(crate) parked: usize,
    /// Dead letters.
    pub(crate) rejected: usize,
}

impl Model {
    /// Takes the next event: it stands behind all that wait, and then moves whatever can.
    pub(crate) fn take(&mut self, event: &Event) {
        let known = (event.user_id, event.source, event.event_id.clone());
        match self.inbox.get(&known) {
            Some(first) if first.payload == event.payload => self.duplicates += 1,
            Some(_) => self.rejected += 1,
            None => {
                self.inbox.insert(known, event.clone());
                let queue = (event.user_id, event.source);
                self.queues.entry(queue).or_default().push(event.clone());
                while self.move_one(event.user_id) {}
                let still = self.queues[&queue].last();
                if still.is_some_and(|last| last.event_id == event.event_id) {
                    self.parked += 1;
                }
            }
        }
    }

    /// All deadlines are over.
    pub(crate) fn expire(&mut self) {
        let users: BTreeSet<Uuid> = self.queues.keys().map(|(user, _)| *user).collect();
        for user in users {
            for source in [Source::Orders, Source::Chargebacks] {
                while self
                    .queues
                    .get(&(user, source))
                    .is_some_and(|it| !it.is_empty())
                {
                    if !self.move_one(user) {
                        let head = self.queues.get_mut(&(user, source)).unwrap().remove(0);
                        self.die(&head);
                    }
                }
            }
        }
    }

    /// Lets one of a user's events go, if one can.
    fn move_one(&mut self, user: Uuid) -> bool {
        for source in [Source::Orders, Source::Chargebacks] {
            let queue = self.queues.entry((user, source)).or_default();
            let opens = |event: &Event| {
                let payload: Value = serde_json::from_slice(&event.payload).unwrap();
                matches!(payload["status"].as_str(), Some("created" | "opened"))
            };
            let (orders, disputes) = (&self.orders, &self.disputes);
            let is_there = |event: &Event, source| {
                let key = (user, event.order_id.clone());
                match source {
                    Source::Orders => orders.get(&key).is_some_and(|it| it.version > 0),
                    Source::Chargebacks => disputes.get(&key).is_some_and(|it| it.version > 0),
                }
            };
            let may_open = |event: &Event| {
                opens(event)
                    && !is_there(event, source)
                    && (source == Source::Orders || is_there(event, Source::Orders))
            };
            let head = queue
                .first()
                .is_some_and(|head| is_there(head, source) || may_open(head));
            let next = if head {
                Some(0)
            } else {
                (0..queue.len()).find(|at| {
                    let mut same = queue[..*at]
                        .iter()
                        .filter(|it| it.order_id == queue[*at].order_id)
                        .map(opens);
                    let waits = same.next();
                    may_open(&queue[*at]) && waits == Some(false) && !same.any(|opens| opens)
                })
            };
            if let Some(next) = next {
                let event = queue.remove(next);
                self.judge(&event);
                return true;
            }
        }
        false
    }

    fn die(&mut self, event: &Event) {
        self.inbox
            .remove(&(event.user_id, event.source, event.event_id.clone()));
        self.rejected += 1;
    }

    fn judge(&mut self, event: &Event) {
        let payload: Value = serde_json::from_slice(&event.payload).unwrap();
        let text = |field: &str| payload[field].as_str().unwrap_or_default().to_owned();
        let (user, order, id) = (event.user_id, text("order_id"), text("provider_event_id"));
        let status = text("status");
        let received = event.received_at.to_string();
        let key = (user, order.clone());
        // (log, kind in the log, outcome, version, state's status, time)
        let (log, kind, outcome, version, state, at) = match event.source {
            Source::Orders => {
                let at = text("updated_at");
                let held = self.orders.entry(key).or_default();
                let outcome = match (held.version, held.status.as_str(), status.as_str()) {
                    (0, _, "created") => "applied",
                    (0, ..) => panic!("{id} is too early and was let go"),
                    _ if at < held.updated_at => "stale",
                    (_, "created" | "updated", "updated" | "success" | "failed") => "applied",
                    _ => "rejected",
                };
                if outcome == "applied" {
                    held.version += 1;
                    held.status.clone_from(&status);
                    held.updated_at.clone_from(&at);
                    if held.version == 1 {
                        held.created_at = text("created_at");
                    }
                    if let Some(amount) = payload["meta"]["amount"].as_str() {
                        let cents: i64 = amount.replace('.', "").parse().unwrap();
                        let currency = payload["meta"]["currency"].as_str().unwrap().to_owned();
                        held.money = Some((cents, currency));
                    }
                }
                (
                    "order_events",
                    status,
                    outcome,
                    held.version,
                    held.status.clone(),
                    at,
                )
            }
            Source::Chargebacks => {
                let at = text("occurred_at");
                let resolution = payload["meta"]["resolution"].as_str();
                let held = self.disputes.entry(key).or_default();
                let open = held.status == "open";
                let outcome = match (held.version, status.as_str()) {
                    (0, "opened") => "applied",
                    (0, _) => panic!("{id} is too early and was let go"),
                    _ if at < held.updated_at => "stale",
                    (_, "updated" | "closed") if open => "applied",
                    _ => "rejected",
                };
                let kind = match (status.as_str(), resolution) {
                    ("closed", Some(resolution)) => format!("closed_{resolution}"),
                    _ => status.clone(),
                };
                if outcome == "applied" {
                    held.version += 1;
                    held.status = match (status.as_str(), resolution) {
                        ("closed", Some(resolution)) => resolution.to_owned(),
                        ("closed", None) => "closed".to_owned(),
                        _ => "open".to_owned(),
                    };
                    held.updated_at.clone_from(&at);
                    if held.version == 1 {
                        held.opened_at.clone_from(&at);
                    }
                    held.reason = text("reason");
                    held.currency = text("currency");
                    // Two decimals at most, which a double holds well enough to be rounded back.
                    held.minor = format!("{:.2}", payload["amount"].as_f64().unwrap())
                        .replace('.', "")
                        .parse()
                        .unwrap();
                    if let Some(due) = payload["evidence_due_at"].as_str() {
                        held.due = Some(due.to_owned());
                    }
                }
                (
                    "dispute_events",
                    kind,
                    outcome,
                    held.version,
                    held.status.clone(),
                    at,
                )
            }
        };
        if outcome == "rejected" {
            self.die(event);
            return;
        }
        let source = if log == "order_events" {
            "orders"
        } else {
            "chargebacks"
        };
        let mut line = |table, line| {
            assert!(
                self.logs.entry(table).or_default().insert(line),
                "the model was shown {id} twice"
            );
        };
        line(
            log,
            format!("{user}|{order}|{id}|{kind}|{outcome}|{version}|{at}|{received}"),
        );
        if outcome == "applied" {
            line(
                "outbox",
                format!("{user}|{source}|{id}|{order}|{version}|{state}|{received}"),
            );
            self.applied += 1;
        } else {
            self.stale += 1;
        }
        self.payloads.insert((user, id), payload);
    }

    /// The rows of every table but the fence.
    pub(crate) fn rows(&self) -> Rows {
        let mut rows = self.logs.clone();
        for (table, _) in LINES {
            rows.entry(table).or_default();
        }
        for ((user, source, id), event) in &self.inbox {
            let (hash, received) = (event.payload_hash, event.received_at);
            let line = format!("{user}|{source}|{id}|{hash:032x}|{received}");
            rows.get_mut("inbox").unwrap().insert(line);
        }
        for ((user, source), queue) in &self.queues {
            for (nth, event) in (1..).zip(queue) {
                let Event {
                    event_id,
                    order_id,
                    received_at,
                    ..
                } = event;
                let line = format!("{user}|{source}|{nth}|{event_id}|{order_id}|{received_at}");
                rows.get_mut("parked").unwrap().insert(line);
            }
        }
        for ((user, order), held) in self.orders.iter().filter(|(_, held)| held.version > 0) {
            let OrderModel {
                status,
                version,
                money,
                created_at,
                updated_at,
            } = held;
            let (minor, currency) = money
                .as_ref()
                .map_or(("-".to_owned(), "-"), |(minor, currency)| {
                    (minor.to_string(), currency)
                });
            let line = format!(
                "{user}|{order}|{status}|{version}|{minor}|{currency}|{created_at}|{updated_at}"
            );
            rows.get_mut("orders").unwrap().insert(line);
            rows.get_mut("order_directory")
                .unwrap()
                .insert(format!("{order}|{user}"));
        }
        for ((user, order), held) in self.disputes.iter().filter(|(_, held)| held.version > 0) {
            let DisputeModel {
                status,
                version,
                reason,
                minor,
                currency,
                opened_at,
                updated_at,
                due,
            } = held;
            let due = due.as_deref().unwrap_or("-");
            let line = format!(
                "{user}|{order}|{status}|{version}|{reason}|{minor}|{currency}|{opened_at}|{updated_at}|{due}"
            );
            rows.get_mut("disputes").unwrap().insert(line);
        }
        rows
    }

    /// Compares with what the database holds, table by table, and names the first differences.
    pub(crate) async fn check(&self, db: &TestDb) {
        let (expected, found) = (self.rows(), rows_of(db).await);
        for (table, _) in LINES {
            let (expected, (found, count)) = (&expected[table], &found[table]);
            let missing: Vec<_> = expected.difference(found).take(3).collect();
            let extra: Vec<_> = found.difference(expected).take(3).collect();
            assert!(
                missing.is_empty() && extra.is_empty(),
                "{table} differs from the model\n  missing (first 3): {missing:#?}\n  extra (first 3): {extra:#?}"
            );
            assert_eq!(*count, expected.len(), "{table} holds a row twice");
        }
        let stored = payloads_of(db).await;
        for (key, payload) in &self.payloads {
            assert_eq!(
                stored.get(key),
                Some(payload),
                "the payload of event {key:?}"
            );
        }
    }
}

/// The lines of each table with how many rows gave them; every shard is read directly.
async fn rows_of(db: &TestDb) -> BTreeMap<&'static str, (BTreeSet<String>, usize)> {
    let mut rows: BTreeMap<&'static str, (BTreeSet<String>, usize)> = BTreeMap::new();
    for url in db.urls() {
        let client = connect(url).await;
        for (table, line) in LINES {
            let mut line = line.to_owned();
            for time in [
                "received_at",
                "created_at",
                "updated_at",
                "opened_at",
                "evidence_due_at",
                "occurred_at",
            ] {
                let utc =
                    format!("to_char({time} at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')");
                line = line.replace(&format!("{{{time}}}"), &utc);
            }
            let entry = rows.entry(table).or_default();
            for row in client
                .query(&format!("select {line} from {table}"), &[])
                .await
                .unwrap()
            {
                entry.0.insert(row.get(0));
                entry.1 += 1;
            }
        }
    }
    rows
}

async fn payloads_of(db: &TestDb) -> HashMap<(Uuid, String), Value> {
    let mut payloads = HashMap::new();
    for url in db.urls() {
        let client = connect(url).await;
        for table in ["order_events", "dispute_events"] {
            let rows = client
                .query(
                    &format!("select user_id, event_id, payload from {table}"),
                    &[],
                )
                .await
                .unwrap();
            payloads.extend(
                rows.iter()
                    .map(|row| ((row.get(0), row.get(1)), row.get(2))),
            );
        }
    }
    payloads
}
