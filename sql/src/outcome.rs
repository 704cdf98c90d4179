//! How events end, and how many of a Kafka partition ended how.

use std::sync::Arc;

use uuid::Uuid;

use crate::stage::Origin;

/// What became of one event of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventOutcome {
    /// It changed a state.
    Applied,
    /// It was taken before, with the same payload.
    Duplicate,
    /// Its id was taken before with another payload: a dead letter.
    DuplicateWithDifferentPayload,
    /// It is older than its state: kept in the log.
    Stale,
    /// The state machine has no such transition: a dead letter.
    Illegal,
    /// It waits in the table `parked`, or waited there within this batch.
    Parked,
    /// It may not wait, because its queue is full, or is no event, or none that the database takes: a dead letter.
    DeadLettered,
}

impl EventOutcome {
    /// Every outcome, in the order of the columns of `kafka_outcomes`.
    pub const ALL: [EventOutcome; 7] = [
        EventOutcome::Applied,
        EventOutcome::Duplicate,
        EventOutcome::DuplicateWithDifferentPayload,
        EventOutcome::Stale,
        EventOutcome::Illegal,
        EventOutcome::Parked,
        EventOutcome::DeadLettered,
    ];

    /// The name of its column and label.
    pub const fn as_str(self) -> &'static str {
        match self {
            EventOutcome::Applied => "applied",
            EventOutcome::Duplicate => "duplicate",
            EventOutcome::DuplicateWithDifferentPayload => "duplicate_with_different_payload",
            EventOutcome::Stale => "stale",
            EventOutcome::Illegal => "illegal",
            EventOutcome::Parked => "parked",
            EventOutcome::DeadLettered => "dead_lettered",
        }
    }
}

/// How a parked event left its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// It is a row now.
    Released,
    /// It is a dead letter now.
    Expired,
}

/// What one transaction adds to one row of `kafka_outcomes`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    /// By outcome, in the order of [`EventOutcome::ALL`].
    pub(crate) outcomes: [i64; EventOutcome::ALL.len()],
    pub(crate) released: i64,
    pub(crate) expired: i64,
}

/// What one transaction adds to `kafka_outcomes`.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// The `user_id` of the rows.
    pub(crate) anchor: Uuid,
    rows: Vec<Counted>,
}

impl Tally {
    pub(crate) fn new(anchor: Uuid) -> Tally {
        Tally {
            anchor,
            rows: Vec::new(),
        }
    }

    /// Counts an event of the batch.
    pub(crate) fn ended(&mut self, origin: &Origin, outcome: EventOutcome) {
        self.row(origin).outcomes[outcome as usize] += 1;
    }

    /// Counts an event that was parked, in this batch or before.
    pub(crate) fn left(&mut self, origin: &Origin, left: Left) {
        let row = self.row(origin);
        match left {
            Left::Released => row.released += 1,
            Left::Expired => row.expired += 1,
        }
    }

    /// In one order everywhere, so that two transactions cannot deadlock.
    pub(crate) fn rows(&mut self) -> &[Counted] {
        self.rows
            .sort_unstable_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        &self.rows
    }

    fn row(&mut self, origin: &Origin) -> &mut Counted {
        let same = |row: &Counted| row.partition == origin.partition && row.topic == origin.topic;
        let index = self.rows.iter().position(same).unwrap_or_else(|| {
            self.rows.push(Counted {
                topic: Arc::clone(&origin.topic),
                partition: origin.partition,
                outcomes: [0; EventOutcome::ALL.len()],
                released: 0,
                expired: 0,
            });
            self.rows.len() - 1
        });
        &mut self.rows[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_stand_where_their_columns_are() {
        for (index, outcome) in EventOutcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index, "{outcome:?}");
        }
        let statement = include_str!("statements/count_outcomes.sql");
        let columns: Vec<&str> = statement
            .split_once('(')
            .and_then(|(_, rest)| rest.split_once(')'))
            .map(|(columns, _)| columns.split(',').map(str::trim).collect())
            .unwrap();
        let names = EventOutcome::ALL.map(EventOutcome::as_str);
        assert_eq!(columns[3..10], names);
        assert_eq!(columns[10..], ["released", "expired"]);
    }
}
