//! The pure middle of a batch: events, what waits for them and the states they address go in, rows to write come out.
//!
//! What becomes of an event does not depend on how events fall into batches: the inbox and the queues are kept here as
//! the database would have them after each single event.

use std::collections::{HashMap, VecDeque};

use jiff::{SignedDuration, Timestamp};
use shardlane_domain::{Event, Source};
use uuid::Uuid;

use crate::fold::{Judged, Logs, RejectReason, Rejected, States};
use crate::outcome::{EventOutcome, Left, Tally};
use crate::park::{ParkLimits, Parked};
use crate::stage::{EventKey, Origin, Record, event_key};

/// What a fold may do with events that wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) limits: ParkLimits,
    pub(crate) now: Timestamp,
    pub(crate) drain: Drain,
}

/// How far queues are drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Drain {
    /// How many events may leave their queue.
    pub(crate) steps_max: usize,
    /// Whether an event that is too early after its deadline becomes a dead letter.
    pub(crate) deadlines: bool,
    /// Whether what could leave its queue as a row becomes a dead letter instead: the database refuses the row.
    pub(crate) refuse: bool,
}

impl Drain {
    /// Of a batch: what its events release.
    pub(crate) const RELEASE: Drain = Drain {
        steps_max: usize::MAX,
        deadlines: false,
        refuse: false,
    };
    /// Nothing leaves its queue.
    pub(crate) const OFF: Drain = Drain {
        steps_max: 0,
        ..Drain::RELEASE
    };
    /// Of a sweep.
    pub(crate) const SWEEP: Drain = Drain {
        deadlines: true,
        ..Drain::RELEASE
    };
}

/// An event as the inbox has it after the events so far.
pub(crate) struct Seen {
    /// The first record of this event in the batch.
    pub(crate) first: usize,
    /// The payload under which it is known; `None` if it is not.
    pub(crate) hash: Option<u128>,
}

/// What a batch came to.
#[derive(Default)]
pub(crate) struct Folded<'a> {
    pub(crate) logs: Logs<'a>,
    /// One an event of the batch, in its order.
    pub(crate) outcomes: Vec<EventOutcome>,
    /// Events of the batch that are dead letters.
    pub(crate) rejected: Vec<Rejected>,
    /// Stored events that are dead letters.
    pub(crate) letters: Vec<(&'a Parked, RejectReason)>,
    /// Events that were parked and are rows now.
    pub(crate) released: usize,
    /// Stored events that left their queue.
    pub(crate) unparked: Vec<&'a Parked>,
    /// Events of the batch to park: index, place in the queue, deadline.
    pub(crate) park: Vec<(usize, i64, Timestamp)>,
    /// Events that the inbox must not know, taken again or not.
    pub(crate) forgotten: Vec<EventKey<'a>>,
    /// Those of them that were taken again, from this record.
    pub(crate) retaken: HashMap<EventKey<'a>, usize>,
    pub(crate) tally: Tally,
    /// A queue is full and will move, so the next event of it must wait in Kafka.
    pub(crate) held: bool,
}

/// The queue of a user and source.
struct Queue<'a> {
    waiting: VecDeque<Waiting<'a>>,
    next_seq: i64,
}

struct Waiting<'a> {
    seq: i64,
    order_id: &'a str,
    opens: bool,
    deadline: Timestamp,
    /// `None` where it was not read: nothing moves past it.
    event: Option<&'a Event>,
    origin: Option<&'a Origin>,
    place: Place<'a>,
}

#[derive(Clone, Copy)]
enum Place<'a> {
    /// In the batch.
    Batch(usize),
    /// In the database.
    Stored(&'a Parked),
}

impl<'a> From<&'a Parked> for Waiting<'a> {
    fn from(parked: &'a Parked) -> Self {
        let content = parked.content.as_ref();
        Waiting {
            seq: parked.seq,
            order_id: &parked.order_id,
            opens: parked.opens,
            deadline: parked.deadline,
            event: content.map(|content| &content.event),
            origin: content.and_then(|content| content.origin.as_ref()),
            place: Place::Stored(parked),
        }
    }
}

impl Default for Queue<'_> {
    fn default() -> Self {
        Queue {
            waiting: VecDeque::new(),
            next_seq: 1,
        }
    }
}

impl Queue<'_> {
    /// Whether one of the first `before` waits for this order or dispute to be opened, and none of them opens it.
    fn is_awaited(&self, order_id: &str, before: usize) -> bool {
        let mut same = self
            .waiting
            .iter()
            .take(before)
            .filter(|waiting| waiting.order_id == order_id)
            .peekable();
        same.peek().is_some() && same.all(|waiting| !waiting.opens)
    }

    /// Whether the queue moves without what stands behind it in its partition, which can wait therefore. A head that opens
    /// its state waits for another topic. One that is not too early was left by two transactions of which one parked it
    /// while the other released what stood before it, and leaves with the next sweep. At the head's deadline the queue
    /// moves in any case.
    fn will_move(&self, states: &States<'_>) -> bool {
        self.waiting.front().is_some_and(|head| {
            head.opens || head.event.is_none_or(|event| !states.is_too_early(event))
        })
    }
}

pub(crate) struct Fold<'a, 's> {
    records: &'a [Record],
    seen: &'s mut HashMap<EventKey<'a>, Seen>,
    states: &'s mut States<'a>,
    rules: Rules,
    queues: HashMap<(Uuid, Source), Queue<'a>>,
    steps_left: usize,
    folded: Folded<'a>,
}

impl<'a, 's> Fold<'a, 's> {
    /// `stored` has each queue in its order.
    pub(crate) fn new(
        records: &'a [Record],
        stored: &'a [Parked],
        seen: &'s mut HashMap<EventKey<'a>, Seen>,
        states: &'s mut States<'a>,
        tally: Tally,
        rules: Rules,
    ) -> Self {
        let mut queues: HashMap<(Uuid, Source), Queue<'a>> = HashMap::new();
        for parked in stored {
            let queue = queues.entry((parked.user_id, parked.source)).or_default();
            queue.next_seq = parked.seq + 1;
            queue.waiting.push_back(parked.into());
        }
        Fold {
            records,
            seen,
            states,
            rules,
            queues,
            steps_left: rules.drain.steps_max,
            folded: Folded {
                outcomes: Vec::with_capacity(records.len()),
                tally,
                ..Folded::default()
            },
        }
    }

    /// Takes the events in their order; `fresh` are those that the inbox got to know by this batch.
    pub(crate) fn take_all(&mut self, fresh: &[bool]) {
        for (index, record) in self.records.iter().enumerate() {
            let outcome = self.take(index, fresh[index]);
            if let Some(origin) = &record.origin {
                self.folded.tally.ended(origin, outcome);
            }
            self.folded.outcomes.push(outcome);
        }
    }

    /// Lets go whatever can move in these users' queues.
    pub(crate) fn sweep(&mut self, users: &[Uuid]) {
        for user in users {
            self.drain(*user, Source::ALL);
        }
    }

    /// What it all came to.
    pub(crate) fn end(mut self) -> Folded<'a> {
        for queue in self.queues.values() {
            for waiting in &queue.waiting {
                if let Place::Batch(index) = waiting.place {
                    self.folded
                        .park
                        .push((index, waiting.seq, waiting.deadline));
                }
            }
        }
        // In one order everywhere, so that two batches wait for each other rather than deadlock.
        let of = |index: usize| &self.records[index].event;
        self.folded
            .park
            .sort_unstable_by_key(|(index, seq, _)| (of(*index).user_id, of(*index).source, *seq));
        self.folded
            .unparked
            .sort_unstable_by_key(|it| (it.user_id, it.source, it.seq));
        self.folded.rejected.sort_unstable_by_key(|it| it.index);
        self.folded
    }

    fn take(&mut self, index: usize, fresh: bool) -> EventOutcome {
        let event = &self.records[index].event;
        if !fresh && let Some(seen) = self.seen.get_mut(&event_key(event)) {
            match seen.hash {
                Some(hash) if hash == event.payload_hash => return EventOutcome::Duplicate,
                Some(_) => {
                    let reason = RejectReason::DifferentPayload;
                    self.folded.rejected.push(Rejected { index, reason });
                    return EventOutcome::DuplicateWithDifferentPayload;
                }
                // It was rejected before in this batch, and is judged anew, as it would be in the next one.
                None => {
                    seen.hash = Some(event.payload_hash);
                    self.folded.retaken.insert(event_key(event), index);
                }
            }
        }
        let queue = self.queues.get(&(event.user_id, event.source));
        if let Some(queue) = queue.filter(|queue| !queue.waiting.is_empty())
            && !(self.states.can_open(event)
                && queue.is_awaited(&event.order_id, queue.waiting.len()))
        {
            return self.park(index, RejectReason::QueueFull);
        }
        match self.states.judge(event, &mut self.folded.logs) {
            Judged::Applied => EventOutcome::Applied,
            Judged::Opened => {
                self.drain(event.user_id, released_by(event.source));
                EventOutcome::Applied
            }
            Judged::Stale => EventOutcome::Stale,
            Judged::TooEarly => self.park(index, RejectReason::TooEarly),
            Judged::Illegal { from, asked } => {
                self.reject(index, RejectReason::Illegal { from, asked });
                EventOutcome::Illegal
            }
        }
    }

    /// Puts an event behind all that wait; where there is no room, it is a dead letter for `reason`.
    fn park(&mut self, index: usize, reason: RejectReason) -> EventOutcome {
        let Record { event, origin } = &self.records[index];
        let ParkLimits {
            park_max,
            park_rows_max,
        } = self.rules.limits;
        let queue = self
            .queues
            .entry((event.user_id, event.source))
            .or_default();
        if queue.waiting.len() >= park_rows_max {
            if origin.is_some() && queue.will_move(self.states) {
                self.folded.held = true;
            }
            self.reject(index, reason);
            return EventOutcome::DeadLettered;
        }
        let park_max = SignedDuration::try_from(park_max).unwrap_or(SignedDuration::MAX);
        queue.waiting.push_back(Waiting {
            seq: queue.next_seq,
            order_id: &event.order_id,
            opens: event.opens(),
            deadline: self
                .rules
                .now
                .saturating_add(park_max)
                .unwrap_or(Timestamp::MAX),
            event: Some(event),
            origin: origin.as_ref(),
            place: Place::Batch(index),
        });
        queue.next_seq += 1;
        EventOutcome::Parked
    }

    fn reject(&mut self, index: usize, reason: RejectReason) {
        self.folded.rejected.push(Rejected { index, reason });
        self.forget(&self.records[index].event);
    }

    /// What became no row may come again, and then it is judged anew.
    fn forget(&mut self, event: &'a Event) {
        let key = event_key(event);
        if let Some(seen) = self.seen.get_mut(&key) {
            seen.hash = None;
        }
        self.folded.retaken.remove(&key);
        self.folded.forgotten.push(key);
    }

    fn drain(&mut self, user: Uuid, sources: &[Source]) {
        for source in sources {
            while self.step(user, *source) {}
        }
    }

    /// Lets one event go, if one can.
    fn step(&mut self, user: Uuid, source: Source) -> bool {
        if self.steps_left == 0 {
            return false;
        }
        let next = self.next_of(user, source);
        let queue = self.queues.get_mut(&(user, source));
        let Some((waiting, event)) = next
            .and_then(|at| queue?.waiting.remove(at))
            .and_then(|waiting| waiting.event.map(|event| (waiting, event)))
        else {
            return false;
        };
        self.steps_left -= 1;
        let reason = if self.rules.drain.refuse && !self.states.is_too_early(event) {
            Some(RejectReason::Refused)
        } else {
            match self.states.judge(event, &mut self.folded.logs) {
                Judged::Applied | Judged::Opened | Judged::Stale => None,
                Judged::TooEarly => Some(RejectReason::TooEarly),
                Judged::Illegal { from, asked } => Some(RejectReason::Illegal { from, asked }),
            }
        };
        self.leave(&waiting, event, reason);
        true
    }

    /// What leaves the queue next: the head, unless it is too early; then the first that opens what one before it waits
    /// for; then the head again, if its time is over.
    fn next_of(&self, user: Uuid, source: Source) -> Option<usize> {
        let queue = self.queues.get(&(user, source))?;
        let head = queue.waiting.front()?;
        if !self.states.is_too_early(head.event?) {
            return Some(0);
        }
        let opener = queue.waiting.iter().enumerate().position(|(at, waiting)| {
            waiting
                .event
                .is_some_and(|event| self.states.can_open(event))
                && queue.is_awaited(waiting.order_id, at)
        });
        let is_over = self.rules.drain.deadlines && head.deadline <= self.rules.now;
        opener.or_else(|| is_over.then_some(0))
    }

    /// Notes an event that left its queue: as a row, or as a dead letter for `reason`.
    fn leave(&mut self, waiting: &Waiting<'a>, event: &'a Event, reason: Option<RejectReason>) {
        let left = match reason {
            None => {
                self.folded.released += 1;
                Left::Released
            }
            Some(_) => Left::Expired,
        };
        if let Some(origin) = waiting.origin {
            self.folded.tally.left(origin, left);
        }
        match (waiting.place, reason) {
            (Place::Batch(_), None) => {}
            (Place::Batch(index), Some(reason)) => self.reject(index, reason),
            (Place::Stored(parked), None) => self.folded.unparked.push(parked),
            (Place::Stored(parked), Some(reason)) => {
                self.folded.unparked.push(parked);
                self.folded.letters.push((parked, reason));
                self.forget(event);
            }
        }
    }
}

/// The sources of which a user's queues may wait for what an event of this source opens.
const fn released_by(opener: Source) -> &'static [Source] {
    match opener {
        Source::Orders => &[Source::Orders, Source::Chargebacks],
        Source::Chargebacks => &[Source::Chargebacks],
    }
}
