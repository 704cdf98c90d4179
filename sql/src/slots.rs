//! [`SlotSet`]: some of the 4096 slots, as SQL and the documents write them.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shardlane_router::{SLOT_COUNT, Slot};

/// A set of slots. As text its runs, both ends included: `0-1023,2048-3071`; the empty set is the empty text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SlotSet(Box<[bool; SLOT_COUNT]>);

/// A text that is no set of slots.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no set of slots; expected runs from 0 to 4095 such as 0-1023,2048-3071")]
pub struct NotASlotSet(String);

/// The slot of a row in SQL. ROUTING: token = hash with the sign bit flipped, slot = token >> 20.
pub(crate) const SLOT_OF_ROW: &str = "((uuid_hash(user_id)::bigint + 2147483648) >> 20)";

impl SlotSet {
    /// No slot.
    #[must_use]
    pub fn empty() -> SlotSet {
        SlotSet(Box::new([false; SLOT_COUNT]))
    }

    /// The slots for which `holds` is true.
    pub fn of(holds: impl Fn(Slot) -> bool) -> SlotSet {
        Slot::all().filter(|slot| holds(*slot)).collect()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.0.contains(&true)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().filter(|held| **held).count()
    }

    /// Whether `slot` is one of them.
    #[must_use]
    pub fn contains(&self, slot: Slot) -> bool {
        self.0[slot.index()]
    }

    /// The slots in order.
    pub fn iter(&self) -> impl Iterator<Item = Slot> {
        Slot::all().filter(|slot| self.contains(*slot))
    }

    /// The slots that are in this set or in `other`.
    #[must_use]
    pub fn union(&self, other: &SlotSet) -> SlotSet {
        SlotSet::of(|slot| self.contains(slot) || other.contains(slot))
    }

    /// The slots of this set that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &SlotSet) -> SlotSet {
        SlotSet::of(|slot| self.contains(slot) && !other.contains(slot))
    }

    /// Maximal runs of slots, both ends included.
    #[must_use]
    pub fn runs(&self) -> Vec<RangeInclusive<u16>> {
        let mut runs: Vec<RangeInclusive<u16>> = Vec::new();
        for slot in self.iter() {
            match runs.last_mut() {
                Some(run) if run.end() + 1 == slot.number() => *run = *run.start()..=slot.number(),
                _ => runs.push(slot.number()..=slot.number()),
            }
        }
        runs
    }

    /// The condition that a row of these slots fulfils: what a CHECK, a publication and a query say alike.
    #[must_use]
    pub(crate) fn condition(&self) -> String {
        let runs: Vec<String> = self
            .runs()
            .iter()
            .map(|run| format!("{SLOT_OF_ROW} between {} and {}", run.start(), run.end()))
            .collect();
        if runs.is_empty() {
            "false".to_owned()
        } else {
            format!("({})", runs.join(" or "))
        }
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> SlotSet {
        let mut set = SlotSet::empty();
        for slot in slots {
            set.0[slot.index()] = true;
        }
        set
    }
}

impl fmt::Display for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, run) in self.runs().iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{}-{}", run.start(), run.end())?;
        }
        Ok(())
    }
}

impl fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlotSet({self})")
    }
}

impl FromStr for SlotSet {
    type Err = NotASlotSet;

    fn from_str(text: &str) -> Result<SlotSet, NotASlotSet> {
        let wrong = || NotASlotSet(text.to_owned());
        let mut set = SlotSet::empty();
        for run in text.split(',').filter(|run| !run.is_empty()) {
            let (first, last) = run.split_once('-').ok_or_else(wrong)?;
            let number = |text: &str| text.trim().parse::<u16>().map_err(|_| wrong());
            for slot in number(first)?..=number(last)? {
                let slot = Slot::new(slot).map_err(|_| wrong())?;
                set.0[slot.index()] = true;
            }
        }
        Ok(set)
    }
}

impl TryFrom<String> for SlotSet {
    type Error = NotASlotSet;

    fn try_from(text: String) -> Result<SlotSet, NotASlotSet> {
        text.parse()
    }
}

impl From<SlotSet> for String {
    fn from(set: SlotSet) -> String {
        set.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for text in ["", "0-0", "0-1023,2048-3071", "4095-4095", "0-4095"] {
            assert_eq!(text.parse::<SlotSet>().unwrap().to_string(), text);
        }
        for text in ["x", "1", "0-4096", "1-2;3-4", "-1-2"] {
            assert!(text.parse::<SlotSet>().is_err(), "{text}");
        }
    }

    #[test]
    fn sets_are_sets() {
        let (a, b): (SlotSet, SlotSet) = ("0-9".parse().unwrap(), "5-19".parse().unwrap());
        assert_eq!(a.union(&b).to_string(), "0-19");
        assert_eq!(a.without(&b).to_string(), "0-4");
        assert_eq!(b.without(&a).len(), 10);
        assert!(a.without(&a).is_empty());
        assert_eq!(SlotSet::empty().condition(), "false");
    }
}
