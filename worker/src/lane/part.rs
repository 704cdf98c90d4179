//! One target's part of a batch, and how it is cut into transactions.

use std::ops::Range;

use shardlane_sql::{Origin, Record};
use uuid::Uuid;

use crate::dead_letter::{MALFORMED, Reason};
use crate::record::RawRecord;

/// What a raw record was decoded to; a dead letter needs the raw one.
pub(super) enum Decoded {
    Event(Record, RawRecord),
    Malformed(Malformed),
}

/// A record that is no event.
pub(super) struct Malformed {
    /// In whose slot it is counted: the user that its key names, or else one of the lowest slot of its partition. So a
    /// fence covers it as it covers the events of that slot.
    pub(super) user: Uuid,
    pub(super) origin: Origin,
    pub(super) sentence: String,
    pub(super) raw: RawRecord,
}

impl Decoded {
    /// Whose slot it belongs to.
    pub(super) fn user(&self) -> Uuid {
        match self {
            Decoded::Event(record, _) => record.event.user_id,
            Decoded::Malformed(malformed) => malformed.user,
        }
    }

    pub(super) fn raw(&self) -> &RawRecord {
        match self {
            Decoded::Event(_, raw) => raw,
            Decoded::Malformed(malformed) => &malformed.raw,
        }
    }
}

/// The records of a batch that go to one target: events, and apart from them what is none, each in order.
#[derive(Default)]
pub(super) struct Group {
    pub(super) records: Vec<Record>,
    /// Those of `records`.
    pub(super) raws: Vec<RawRecord>,
    malformed: Vec<Malformed>,
}

/// What one transaction takes of a group.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) events: Range<usize>,
    malformed: Range<usize>,
}

impl Part {
    pub(super) fn len(&self) -> usize {
        self.events.len() + self.malformed.len()
    }
}

impl Group {
    pub(super) fn push(&mut self, decoded: Decoded) {
        match decoded {
            Decoded::Event(record, raw) => {
                self.records.push(record);
                self.raws.push(raw);
            }
            Decoded::Malformed(malformed) => self.malformed.push(malformed),
        }
    }

    /// The offset behind the last record.
    pub(super) fn next(&self) -> i64 {
        let malformed = self.malformed.last().map(|it| it.raw.offset);
        let last = self.raws.last().map(|raw| raw.offset).max(malformed);
        last.map_or(0, |last| last + 1)
    }

    pub(super) fn all(&self) -> Part {
        Part {
            events: 0..self.records.len(),
            malformed: 0..self.malformed.len(),
        }
    }

    /// A part whose events are cut in the middle.
    pub(super) fn halves(&self, part: &Part) -> (Part, Part) {
        let middle = part.events.start + part.events.len() / 2;
        let cut = self.malformed_before(part, self.raws[middle].offset);
        let first = Part {
            events: part.events.start..middle,
            malformed: part.malformed.start..cut,
        };
        let second = Part {
            events: middle..part.events.end,
            malformed: cut..part.malformed.end,
        };
        (first, second)
    }

    /// What a part has from this offset on.
    pub(super) fn from(&self, part: &Part, offset: i64) -> Part {
        let raws = &self.raws[part.events.clone()];
        let covered = raws.partition_point(|raw| raw.offset < offset);
        Part {
            events: part.events.start + covered..part.events.end,
            malformed: self.malformed_before(part, offset)..part.malformed.end,
        }
    }

    fn malformed_before(&self, part: &Part, offset: i64) -> usize {
        let malformed = &self.malformed[part.malformed.clone()];
        part.malformed.start + malformed.partition_point(|it| it.raw.offset < offset)
    }

    /// Where the records of a part stand that are no events.
    pub(super) fn dead(&self, part: &Part) -> Vec<Origin> {
        let malformed = self.malformed[part.malformed.clone()].iter();
        malformed.map(|it| it.origin.clone()).collect()
    }

    /// Their dead letters.
    pub(super) fn letters(&self, part: &Part, attempts: u32) -> Vec<(&RawRecord, Reason)> {
        let malformed = self.malformed[part.malformed.clone()].iter();
        let letter = |it: &'_ Malformed| Reason {
            class: MALFORMED,
            sentence: it.sentence.clone(),
            attempts,
        };
        malformed.map(|it| (&it.raw, letter(it))).collect()
    }

    /// What these parts hold.
    pub(super) fn into_parts(self, parts: &[Part]) -> Vec<Decoded> {
        let is_event = |index| parts.iter().any(|part| part.events.contains(&index));
        let is_malformed = |index| parts.iter().any(|part| part.malformed.contains(&index));
        let events = self.records.into_iter().zip(self.raws).enumerate();
        let events = events.filter(|(index, _)| is_event(*index));
        let malformed = self.malformed.into_iter().enumerate();
        let malformed = malformed.filter(|(index, _)| is_malformed(*index));
        events
            .map(|(_, (record, raw))| Decoded::Event(record, raw))
            .chain(malformed.map(|(_, malformed)| Decoded::Malformed(malformed)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use jiff::Timestamp;
    use shardlane_domain::{Event, Source};

    use super::*;
    use crate::headers::PackedHeaders;

    fn raw(offset: i64) -> RawRecord {
        RawRecord::again(
            offset,
            None,
            Bytes::new(),
            Timestamp::UNIX_EPOCH,
            PackedHeaders::default(),
        )
    }

    fn event(offset: i64) -> Decoded {
        let json = format!(
            r#"{{"provider_event_id":"{offset}","order_id":"o","user_id":"{}","status":"created",
               "created_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z"}}"#,
            Uuid::nil()
        );
        let event = Event::decode(Source::Orders, json.into(), Timestamp::UNIX_EPOCH).unwrap();
        let origin = None;
        Decoded::Event(Record { event, origin }, raw(offset))
    }

    fn malformed(offset: i64) -> Decoded {
        Decoded::Malformed(Malformed {
            user: Uuid::nil(),
            origin: Origin {
                topic: Arc::from("orders"),
                partition: 0,
                offset,
            },
            sentence: String::new(),
            raw: raw(offset),
        })
    }

    fn group(events: &[i64], dead: &[i64]) -> Group {
        let mut group = Group::default();
        events.iter().for_each(|it| group.push(event(*it)));
        dead.iter().for_each(|it| group.push(malformed(*it)));
        group
    }

    fn offsets(group: &Group, part: &Part) -> (Vec<i64>, Vec<i64>) {
        let events = group.raws[part.events.clone()].iter();
        let dead = group.dead(part).into_iter();
        (
            events.map(|raw| raw.offset).collect(),
            dead.map(|it| it.offset).collect(),
        )
    }

    #[test]
    fn a_part_is_cut_where_its_events_are_and_no_record_is_in_two() {
        let group = group(&[2, 4, 6, 8], &[1, 3, 5, 7, 9]);
        assert_eq!(group.next(), 10);
        let (first, second) = group.halves(&group.all());
        assert_eq!(offsets(&group, &first), (vec![2, 4], vec![1, 3, 5]));
        assert_eq!(offsets(&group, &second), (vec![6, 8], vec![7, 9]));
        let left = group.from(&second, 8);
        assert_eq!(offsets(&group, &left), (vec![8], vec![9]));
        assert_eq!(group.from(&left, 10).len(), 0);
        let parts = group.into_parts(&[left, first]);
        let mut left: Vec<i64> = parts.iter().map(|it| it.raw().offset).collect();
        left.sort_unstable();
        assert_eq!(left, [1, 2, 3, 4, 5, 8, 9]);
    }
}
