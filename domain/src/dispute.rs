//! The dispute machine: open -> under_review -> submitted -> won | lost | closed.

use jiff::Timestamp;

use crate::{Money, Outcome, stored_as_text};

/// A dispute's status; the last four are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DisputeStatus {
    /// The provider told of it.
    Open,
    /// An operator works on it.
    UnderReview,
    /// Evidence was handed in.
    Submitted,
    /// Decided for us: final.
    Won,
    /// Decided against us: final.
    Lost,
    /// Closed without a resolution: final.
    Closed,
    /// Given up by an operator: final.
    Canceled,
}

stored_as_text!(DisputeStatus {
    Open = "open",
    UnderReview = "under_review",
    Submitted = "submitted",
    Won = "won",
    Lost = "lost",
    Closed = "closed",
    Canceled = "canceled",
});

/// How the provider says that a dispute ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// For us.
    Won,
    /// Against us.
    Lost,
}

stored_as_text!(Resolution { Won = "won", Lost = "lost" });

/// What happens to a dispute: the first three come from the provider, the others from an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DisputeAction {
    /// The provider opens it.
    Opened,
    /// The provider changes amount, reason or due date.
    Updated,
    /// The provider closes it.
    Closed(Option<Resolution>),
    /// An operator takes it up.
    ReviewStarted,
    /// An operator hands evidence in.
    EvidenceSubmitted,
    /// An operator gives it up.
    Canceled,
}

impl DisputeAction {
    /// The name under which an outcome and the event log mention this action.
    pub const fn as_str(self) -> &'static str {
        match self {
            DisputeAction::Opened => "opened",
            DisputeAction::Updated => "updated",
            DisputeAction::Closed(None) => "closed",
            DisputeAction::Closed(Some(Resolution::Won)) => "closed_won",
            DisputeAction::Closed(Some(Resolution::Lost)) => "closed_lost",
            DisputeAction::ReviewStarted => "review_started",
            DisputeAction::EvidenceSubmitted => "evidence_submitted",
            DisputeAction::Canceled => "canceled",
        }
    }
}

/// What an event says about a dispute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DisputeChange {
    /// What happens.
    pub action: DisputeAction,
    /// Why the customer disputes, as the provider says it.
    pub reason: String,
    /// The disputed amount.
    pub amount: Money,
    /// When this happened at the provider: the order of events.
    pub occurred_at: Timestamp,
    /// Until when evidence may be handed in.
    pub evidence_due_at: Option<Timestamp>,
}

/// A dispute as it is stored; an order has at most one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DisputeState {
    /// The status after the newest applied event.
    pub status: DisputeStatus,
    /// How many events were applied; the first makes it 1.
    pub version: i64,
    /// The newest reason.
    pub reason: String,
    /// The newest amount.
    pub amount: Money,
    /// When the dispute was opened at the provider.
    pub opened_at: Timestamp,
    /// The newest applied event's time.
    pub updated_at: Timestamp,
    /// Until when evidence may be handed in.
    pub evidence_due_at: Option<Timestamp>,
}

impl DisputeState {
    /// Applies one change; `None` is a dispute that nothing is known of. It is opened only over an order that exists.
    pub fn apply(
        state: Option<&DisputeState>,
        order_exists: bool,
        change: &DisputeChange,
    ) -> Outcome<DisputeState> {
        use DisputeAction as Action;
        use DisputeStatus as Status;
        let Some(state) = state else {
            return match change.action {
                Action::Opened if order_exists => Outcome::Applied(DisputeState {
                    status: Status::Open,
                    version: 1,
                    reason: change.reason.clone(),
                    amount: change.amount,
                    opened_at: change.occurred_at,
                    updated_at: change.occurred_at,
                    evidence_due_at: change.evidence_due_at,
                }),
                Action::Opened
                | Action::Updated
                | Action::Closed(_)
                | Action::ReviewStarted
                | Action::EvidenceSubmitted
                | Action::Canceled => Outcome::TooEarly,
            };
        };
        if change.occurred_at < state.updated_at {
            return Outcome::Stale;
        }
        let status = match (state.status, change.action) {
            (Status::Open | Status::UnderReview | Status::Submitted, Action::Updated) => {
                state.status
            }
            (
                Status::Open | Status::UnderReview | Status::Submitted,
                Action::Closed(resolution),
            ) => match resolution {
                Some(Resolution::Won) => Status::Won,
                Some(Resolution::Lost) => Status::Lost,
                None => Status::Closed,
            },
            (Status::Open, Action::ReviewStarted) => Status::UnderReview,
            (Status::UnderReview, Action::EvidenceSubmitted) => Status::Submitted,
            (Status::UnderReview, Action::Canceled) => Status::Canceled,
            (Status::Open, Action::Opened | Action::EvidenceSubmitted | Action::Canceled)
            | (Status::UnderReview, Action::Opened | Action::ReviewStarted)
            | (
                Status::Submitted,
                Action::Opened
                | Action::ReviewStarted
                | Action::EvidenceSubmitted
                | Action::Canceled,
            )
            | (Status::Won | Status::Lost | Status::Closed | Status::Canceled, _) => {
                return Outcome::Illegal {
                    from: state.status.as_str(),
                    asked: change.action.as_str(),
                };
            }
        };
        Outcome::Applied(DisputeState {
            status,
            version: state.version + 1,
            reason: change.reason.clone(),
            amount: change.amount,
            opened_at: state.opened_at,
            updated_at: change.occurred_at,
            evidence_due_at: change.evidence_due_at.or(state.evidence_due_at),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTIONS: [DisputeAction; 8] = [
        DisputeAction::Opened,
        DisputeAction::Updated,
        DisputeAction::Closed(None),
        DisputeAction::Closed(Some(Resolution::Won)),
        DisputeAction::Closed(Some(Resolution::Lost)),
        DisputeAction::ReviewStarted,
        DisputeAction::EvidenceSubmitted,
        DisputeAction::Canceled,
    ];

    fn change(action: DisputeAction, second: i64) -> DisputeChange {
        DisputeChange {
            action,
            reason: "fraud".into(),
            amount: Money::parse_major("10.00", "EUR").unwrap(),
            occurred_at: Timestamp::from_second(second).unwrap(),
            evidence_due_at: None,
        }
    }

    fn state(status: DisputeStatus) -> DisputeState {
        DisputeState {
            status,
            version: 3,
            reason: "fraud".into(),
            amount: Money::parse_major("10.00", "EUR").unwrap(),
            opened_at: Timestamp::from_second(10).unwrap(),
            updated_at: Timestamp::from_second(10).unwrap(),
            evidence_due_at: None,
        }
    }

    /// The statuses that the eight `ACTIONS` lead to from `from`, `-` where there is no transition.
    fn check(from: DisputeStatus, expect: [&str; 8]) {
        let reached = ACTIONS.map(|action| {
            match DisputeState::apply(Some(&state(from)), true, &change(action, 20)) {
                Outcome::Applied(next) => {
                    assert_eq!(next.version, 4);
                    next.status.as_str()
                }
                Outcome::Illegal { .. } => "-",
                other => panic!("{from} x {action:?}: {other:?}"),
            }
        });
        assert_eq!(reached, expect, "from {from}");
    }

    #[test]
    fn every_state_meets_every_action() {
        use DisputeStatus::{Canceled, Closed, Lost, Open, Submitted, UnderReview, Won};
        //                    opened updated        closed    won    lost    review          evidence     cancel
        check(
            Open,
            [
                "-",
                "open",
                "closed",
                "won",
                "lost",
                "under_review",
                "-",
                "-",
            ],
        );
        check(
            UnderReview,
            [
                "-",
                "under_review",
                "closed",
                "won",
                "lost",
                "-",
                "submitted",
                "canceled",
            ],
        );
        check(
            Submitted,
            ["-", "submitted", "closed", "won", "lost", "-", "-", "-"],
        );
        for last in [Won, Lost, Closed, Canceled] {
            check(last, ["-"; 8]);
        }
    }

    #[test]
    fn only_an_opening_over_an_order_starts_a_dispute() {
        for (order_exists, action) in [true, false]
            .into_iter()
            .flat_map(|it| ACTIONS.map(|action| (it, action)))
        {
            let outcome = DisputeState::apply(None, order_exists, &change(action, 10));
            match action {
                DisputeAction::Opened if order_exists => {
                    assert!(matches!(outcome, Outcome::Applied(s) if s.version == 1));
                }
                _ => assert_eq!(outcome, Outcome::TooEarly, "{action:?}"),
            }
        }
    }

    #[test]
    fn an_older_event_is_stale_even_in_a_final_state() {
        for status in DisputeStatus::ALL {
            for action in ACTIONS {
                let outcome = DisputeState::apply(Some(&state(*status)), true, &change(action, 5));
                assert_eq!(outcome, Outcome::Stale, "{status} x {action:?}");
            }
        }
    }
}
