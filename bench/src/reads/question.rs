//! What is read, and by which ways.

use jiff::Timestamp;
use shardlane_sql::Layout;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

/// Rows of a page.
pub(super) const PAGE_ROWS: u64 = 20;

/// One kind of read. Each answers with rows of one text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    User,
    Latest,
    Page,
    Directory,
    Scan,
}

/// One way to the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    OneServer,
    /// The manual shard, or the Citus node, that owns the user.
    Owner,
    /// All manual shards at once, by the application.
    ScatterGather,
    Coordinator,
    /// The workers in turn.
    AnyNode,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) user: Uuid,
    pub(super) order_id: String,
    /// The event before which a page begins.
    pub(super) received_at: Timestamp,
    pub(super) event_id: String,
    /// Rows that the answer has.
    pub(super) rows: usize,
}

impl Question {
    pub(super) const ALL: [Question; 5] = [
        Question::User,
        Question::Latest,
        Question::Page,
        Question::Directory,
        Question::Scan,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Question::User => "user",
            Question::Latest => "latest",
            Question::Page => "page",
            Question::Directory => "order-directory",
            Question::Scan => "order-scan",
        }
    }

    pub(super) const fn title(self) -> &'static str {
        match self {
            Question::User => "All orders of a user",
            Question::Latest => "The latest events of a user",
            Question::Page => "A further page of a user's events",
            Question::Directory => "An order without its user, by the directory",
            Question::Scan => "An order without its user, without the directory",
        }
    }

    pub(super) const fn what(self) -> &'static str {
        match self {
            Question::User => "One index range on one shard.",
            Question::Latest => {
                "The log's key has the order before the time, so all events of the user are read and the newest 20 kept."
            }
            Question::Page => "20 events before a known one, by keyset (time, order, event).",
            Question::Directory => {
                "Nobody knows the shard: order_directory is asked on all of them, one index probe each."
            }
            Question::Scan => {
                "Nobody knows the shard, and the key of orders begins with the user: every shard searches its whole index. \
                 This is what the directory saves."
            }
        }
    }

    /// Whether the user is known, and so the shard.
    pub(super) const fn is_by_user(self) -> bool {
        matches!(self, Question::User | Question::Latest | Question::Page)
    }

    /// What a session prepares.
    pub(super) const fn statements(self) -> &'static [&'static str] {
        match self {
            Question::User => &[
                "select concat_ws('|', order_id, status, version, amount_minor, currency) from orders \
                   where user_id = $1 order by order_id",
            ],
            Question::Latest => &[
                "select concat_ws('|', order_id, event_id, status, version) from order_events where user_id = $1 \
                   order by received_at desc, order_id desc, event_id desc limit 20",
            ],
            Question::Page => &[
                "select concat_ws('|', order_id, event_id, status, version) from order_events where user_id = $1 \
                   and (received_at, order_id, event_id) < ($2, $3, $4) \
                   order by received_at desc, order_id desc, event_id desc limit 20",
            ],
            Question::Directory => &[
                "select concat_ws('|', user_id, order_id, o.status, o.version) \
                   from order_directory d join orders o using (user_id, order_id) where d.order_id = $1",
            ],
            Question::Scan => &[
                "select concat_ws('|', user_id, order_id, status, version) from orders where order_id = $1",
            ],
        }
    }

    pub(super) fn parameters(self, key: &Key) -> Vec<&(dyn ToSql + Sync)> {
        match self {
            Question::User | Question::Latest => vec![&key.user],
            Question::Page => vec![&key.user, &key.received_at, &key.order_id, &key.event_id],
            Question::Directory | Question::Scan => vec![&key.order_id],
        }
    }

    /// The ways of a layout to the answer.
    pub(super) const fn paths(self, layout: Layout) -> &'static [Path] {
        match (layout, self.is_by_user()) {
            (Layout::Single | Layout::Partman, _) => &[Path::OneServer],
            (Layout::Shards, true) => &[Path::Owner],
            (Layout::Shards, false) => &[Path::ScatterGather],
            (Layout::Citus, true) => &[Path::Coordinator, Path::AnyNode, Path::Owner],
            (Layout::Citus, false) => &[Path::Coordinator, Path::AnyNode],
        }
    }
}

impl Path {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Path::OneServer => "one-server",
            Path::Owner => "owner",
            Path::ScatterGather => "scatter-gather",
            Path::Coordinator => "coordinator",
            Path::AnyNode => "any-node",
        }
    }
}
