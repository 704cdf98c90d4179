//! What is asked of all users.

use super::gather::Gather;

/// A question about all users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    Count,
    ByCurrency,
    TopUsers,
    Users,
    LostDisputes,
    SharedCards,
}

impl Question {
    pub(super) const ALL: [Question; 6] = [
        Question::Count,
        Question::ByCurrency,
        Question::TopUsers,
        Question::Users,
        Question::LostDisputes,
        Question::SharedCards,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Question::Count => "count",
            Question::ByCurrency => "by-currency",
            Question::TopUsers => "top-users",
            Question::Users => "users",
            Question::LostDisputes => "join",
            Question::SharedCards => "shared-cards",
        }
    }

    pub(super) const fn title(self) -> &'static str {
        match self {
            Question::Count => "How many orders are there?",
            Question::ByCurrency => "Sums by currency",
            Question::TopUsers => "The ten users with the largest sums",
            Question::Users => "How many users are there?",
            Question::LostDisputes => "Orders joined with their lost disputes, by reason",
            Question::SharedCards => "Cards that more than one user has used",
        }
    }

    pub(super) const fn what(self) -> &'static str {
        match self {
            Question::Count => "One number a shard comes back.",
            Question::ByCurrency => "One row a currency and shard comes back; sums add up.",
            Question::TopUsers => {
                "A user is on one shard, so the ten of all are among the ten of each."
            }
            Question::Users => {
                "A distinct count of the sharding column: the shards' numbers add up, because no user is on two."
            }
            Question::LostDisputes => {
                "Both tables are cut by user, so each shard joins for itself."
            }
            Question::SharedCards => {
                "The card is not what the tables are cut by: a card of two users is on two shards, and every shard's list of \
                 cards has to come together in one place. This is where sharding loses."
            }
        }
    }

    /// Rows of a key and two numbers. What a server is asked that holds all, or some, of the users.
    pub(super) const fn sql(self, holds_all: bool) -> &'static str {
        match self {
            Question::Count => "select '', count(*), 0::bigint from orders",
            Question::ByCurrency => {
                "select currency, count(*), sum(amount_minor)::bigint from orders group by currency order by currency"
            }
            Question::TopUsers => {
                "select user_id::text, sum(amount_minor)::bigint as total, count(*) from orders group by user_id \
                 order by total desc, user_id limit 10"
            }
            Question::Users => "select '', count(distinct user_id), 0::bigint from orders",
            Question::LostDisputes => {
                "select d.reason, count(*), sum(o.amount_minor)::bigint from orders o join disputes d using (user_id, order_id) \
                 where d.status = 'lost' group by d.reason order by d.reason"
            }
            Question::SharedCards if holds_all => {
                "select '', count(*), 0::bigint from \
                 (select card from orders group by card having count(distinct user_id) > 1) as shared"
            }
            Question::SharedCards => {
                "select card, count(distinct user_id), 0::bigint from orders group by card"
            }
        }
    }

    pub(super) const fn gather(self) -> Gather {
        match self {
            Question::TopUsers => Gather::Largest(10),
            Question::SharedCards => Gather::CountAboveOne,
            Question::Count | Question::ByCurrency | Question::Users | Question::LostDisputes => {
                Gather::Add
            }
        }
    }
}
