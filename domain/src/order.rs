//! The order machine: created -> updated -> success | failed.

use jiff::Timestamp;

use crate::{Money, Outcome, stored_as_text};

/// An order's status; `Success` and `Failed` are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OrderStatus {
    /// The provider opened the order.
    Created,
    /// The provider changed something about it.
    Updated,
    /// It was paid: final.
    Success,
    /// It was not: final.
    Failed,
}

stored_as_text!(OrderStatus {
    Created = "created",
    Updated = "updated",
    Success = "success",
    Failed = "failed",
});

/// What a webhook says about an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderChange {
    /// The status that the provider reports.
    pub status: OrderStatus,
    /// When the provider opened the order.
    pub created_at: Timestamp,
    /// When this change happened at the provider: the order of events.
    pub updated_at: Timestamp,
    /// The amount, where `meta` carries one.
    pub amount: Option<Money>,
}

/// An order as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderState {
    /// The status after the newest applied event.
    pub status: OrderStatus,
    /// How many events were applied; the first makes it 1.
    pub version: i64,
    /// The newest amount that an event carried.
    pub amount: Option<Money>,
    /// When the provider opened the order.
    pub created_at: Timestamp,
    /// The newest applied event's time at the provider.
    pub updated_at: Timestamp,
}

impl OrderState {
    /// Applies one change; `None` is an order that nothing is known of.
    pub fn apply(state: Option<&OrderState>, change: &OrderChange) -> Outcome<OrderState> {
        use OrderStatus::{Created, Failed, Success, Updated};
        let Some(state) = state else {
            return match change.status {
                Created => Outcome::Applied(OrderState {
                    status: Created,
                    version: 1,
                    amount: change.amount,
                    created_at: change.created_at,
                    updated_at: change.updated_at,
                }),
                Updated | Success | Failed => Outcome::TooEarly,
            };
        };
        if change.updated_at < state.updated_at {
            return Outcome::Stale;
        }
        match (state.status, change.status) {
            (Created | Updated, Updated | Success | Failed) => Outcome::Applied(OrderState {
                status: change.status,
                version: state.version + 1,
                amount: change.amount.or(state.amount),
                created_at: state.created_at,
                updated_at: change.updated_at,
            }),
            (Created | Updated, Created) | (Success | Failed, _) => Outcome::Illegal {
                from: state.status.as_str(),
                asked: change.status.as_str(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(status: &str, second: i64) -> OrderChange {
        OrderChange {
            status: OrderStatus::from_text(status).unwrap(),
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::from_second(second).unwrap(),
            amount: None,
        }
    }

    /// Runs `walk` (status at second 10, 20, ...), then one more event, and names its outcome.
    fn check(walk: &[&str], event: (&str, i64), expect: &str) {
        let mut state = None;
        for (status, second) in walk.iter().zip((1..).map(|step| step * 10)) {
            let Outcome::Applied(next) = OrderState::apply(state.as_ref(), &change(status, second))
            else {
                panic!("{status} must apply in {walk:?}");
            };
            state = Some(next);
        }
        let outcome = match OrderState::apply(state.as_ref(), &change(event.0, event.1)) {
            Outcome::Applied(next) => format!("{} v{}", next.status, next.version),
            Outcome::Stale => "stale".into(),
            Outcome::TooEarly => "too early".into(),
            Outcome::Illegal { from, asked } => format!("illegal {from} -> {asked}"),
        };
        assert_eq!(outcome, expect, "{walk:?} then {event:?}");
    }

    #[test]
    fn every_state_meets_every_event() {
        check(&[], ("created", 10), "created v1");
        for early in ["updated", "success", "failed"] {
            check(&[], (early, 10), "too early");
        }
        for walk in [&["created"][..], &["created", "updated"]] {
            let version = walk.len() + 1;
            let from = walk[walk.len() - 1];
            for next in ["updated", "success", "failed"] {
                check(walk, (next, 90), &format!("{next} v{version}"));
            }
            check(walk, ("created", 90), &format!("illegal {from} -> created"));
        }
        for last in ["success", "failed"] {
            for status in OrderStatus::ALL {
                check(
                    &["created", last],
                    (status.as_str(), 90),
                    &format!("illegal {last} -> {status}"),
                );
            }
        }
    }

    #[test]
    fn an_older_event_is_stale_in_every_state_and_an_equal_time_is_not() {
        for walk in [
            &["created"][..],
            &["created", "updated"],
            &["created", "failed"],
        ] {
            for status in OrderStatus::ALL {
                check(walk, (status.as_str(), 5), "stale");
            }
        }
        check(&["created"], ("updated", 10), "updated v2");
    }
}
