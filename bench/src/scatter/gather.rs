//! The answers of all shards, put together.

use std::collections::{BTreeMap, HashMap};

/// A key and two numbers.
pub(super) type Row = (String, i64, i64);

/// How parts become a whole.
#[derive(Debug, Clone, Copy)]
pub(super) enum Gather {
    /// Numbers of the same key add up.
    Add,
    /// The rows with the largest first numbers.
    Largest(usize),
    /// How many keys have a first number above one, once those of the same key are added up.
    CountAboveOne,
}

impl Gather {
    /// In the order in which one server would give it.
    pub(super) fn whole(self, parts: Vec<Vec<Row>>) -> Vec<Row> {
        let rows = parts.into_iter().flatten();
        match self {
            Gather::Add => {
                let mut sums: BTreeMap<String, (i64, i64)> = BTreeMap::new();
                for (key, first, second) in rows {
                    let sum = sums.entry(key).or_default();
                    *sum = (sum.0 + first, sum.1 + second);
                }
                let sums = sums.into_iter();
                sums.map(|(key, (first, second))| (key, first, second))
                    .collect()
            }
            Gather::Largest(most) => {
                let mut rows: Vec<Row> = rows.collect();
                rows.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
                rows.truncate(most);
                rows
            }
            Gather::CountAboveOne => {
                let mut sums: HashMap<String, i64> = HashMap::new();
                for (key, first, _) in rows {
                    *sums.entry(key).or_default() += first;
                }
                let above = sums.values().filter(|sum| **sum > 1).count();
                vec![(String::new(), i64::try_from(above).unwrap_or(i64::MAX), 0)]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &str, first: i64, second: i64) -> Row {
        (key.to_owned(), first, second)
    }

    #[test]
    fn parts_become_what_one_server_would_say() {
        let parts = || {
            vec![
                vec![row("b", 1, 10), row("c", 5, 1)],
                vec![row("a", 5, 2), row("b", 1, 20)],
            ]
        };
        assert_eq!(
            Gather::Add.whole(parts()),
            [row("a", 5, 2), row("b", 2, 30), row("c", 5, 1)]
        );
        // Of equal numbers the smaller key is first.
        assert_eq!(
            Gather::Largest(2).whole(parts()),
            [row("a", 5, 2), row("c", 5, 1)]
        );
        // b is above one only because two parts have it.
        assert_eq!(Gather::CountAboveOne.whole(parts()), [row("", 3, 0)]);
    }
}
