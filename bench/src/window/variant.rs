//! What is compared: each variant is a schema with the same rows.

use std::fmt;

use shardlane_sql::Layout;

/// Days that the events are spread over.
pub(super) const MONTH_DAYS: u32 = 30;

/// How the events' table is cut and indexed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    /// One table with its primary key.
    Plain,
    /// And an index on kind and time.
    Indexed,
    /// A partition a day.
    Days,
    /// And the index.
    DaysIndexed,
    /// A partition a day for 400 days, of which the month has rows; and the index.
    ManyDays,
}

impl Variant {
    pub(super) const ALL: [Variant; 5] = [
        Variant::Plain,
        Variant::Indexed,
        Variant::Days,
        Variant::DaysIndexed,
        Variant::ManyDays,
    ];

    pub(super) const fn schema(self) -> &'static str {
        match self {
            Variant::Plain => "plain",
            Variant::Indexed => "indexed",
            Variant::Days => "days",
            Variant::DaysIndexed => "days_indexed",
            Variant::ManyDays => "many_days",
        }
    }

    pub(super) const fn path(self) -> &'static str {
        match self {
            Variant::Plain => "no-index",
            Variant::Indexed => "index",
            Variant::Days => "days",
            Variant::DaysIndexed => "days+index",
            Variant::ManyDays => "400-days+index",
        }
    }

    pub(super) const fn is_indexed(self) -> bool {
        matches!(
            self,
            Variant::Indexed | Variant::DaysIndexed | Variant::ManyDays
        )
    }

    /// How many days back its partitions reach; `None` without partitions.
    pub(super) const fn partition_days(self) -> Option<u32> {
        match self {
            Variant::Plain | Variant::Indexed => None,
            Variant::Days | Variant::DaysIndexed => Some(MONTH_DAYS),
            Variant::ManyDays => Some(400),
        }
    }

    /// Whether a layout has it: one Postgres is called `partman` where it has partitions.
    pub(super) const fn is_of(self, layout: Layout) -> bool {
        match layout {
            Layout::Single => self.partition_days().is_none(),
            Layout::Partman => self.partition_days().is_some(),
            // 400 partitions of 16 shards are 6,400 tables on one machine.
            Layout::Citus => !matches!(self, Variant::ManyDays),
            Layout::Shards => false,
        }
    }
}

/// Whether the pages are in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heat {
    Cold,
    Warm,
}

impl Heat {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Heat::Cold => "cold",
            Heat::Warm => "warm",
        }
    }
}

/// One measured combination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) layout: Layout,
    pub(super) variant: Variant,
    pub(super) heat: Heat,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (layout, path, heat) = (self.layout, self.variant.path(), self.heat.as_str());
        write!(f, "{layout} {path}, {heat}")
    }
}
