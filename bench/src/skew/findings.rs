//! What skew costs each layout, and what the cure gives back.

use super::Shape;
use crate::study::{MainRatio, Study};

const WAYS: [(&str, &str, &str); 3] = [
    ("one Postgres", "single", "worker"),
    ("manual shards", "shards", "aligned"),
    ("Citus by the owner", "citus", "owner"),
];
const CURES: [(&str, &str, &str, &str); 2] = [
    ("manual shards", "shards", "aligned", "neighbours-moved"),
    ("Citus", "citus", "owner", "isolated"),
];

pub(super) fn findings(study: &Study, zipf: &[f64]) -> Vec<String> {
    let even = zipf.iter().copied().find(|exponent| *exponent == 0.0);
    let steepest = zipf.iter().copied().fold(0.0, f64::max);
    let mut findings = Vec::new();
    if let Some(even) = even {
        let even = Shape::Zipf(even);
        findings.extend(against_even(
            study,
            even,
            Shape::Tenant,
            "One user with half of the traffic",
        ));
        if steepest > 0.0 {
            let title = format!("Zipf {steepest}");
            findings.extend(against_even(study, even, Shape::Zipf(steepest), &title));
        }
    }
    findings.extend(CURES.iter().filter_map(|cure| cured(study, *cure)));
    findings
}

/// What a hot user costs where one shard has to take it.
pub(super) fn main_ratio(study: &Study) -> Option<MainRatio> {
    let [(_, _, _), (_, layout, path), _] = WAYS;
    let (tenant, even) = (Shape::Tenant.name(), Shape::Zipf(0.0).name());
    let ratio = study.across(
        "events_per_s",
        (&tenant, layout, path),
        (&even, layout, path),
    );
    MainRatio::of("events/s on shards, one hot user / all alike", ratio)
}

/// Rates against those of users who are all alike.
fn against_even(study: &Study, even: Shape, shape: Shape, title: &str) -> Option<String> {
    let (even, skewed) = (even.name(), shape.name());
    let said: Vec<String> = WAYS
        .into_iter()
        .filter_map(|(name, layout, path)| {
            let over = |figure| {
                let (one, other) = ((&*skewed, layout, path), (&*even, layout, path));
                Some(study.across(figure, one, other)?.median)
            };
            Some(format!(
                "{name} {:.2} and {:.2}",
                over("events_per_s")?,
                over("p99_ms")?
            ))
        })
        .collect();
    (!said.is_empty()).then(|| {
        format!(
            "{title}, in times the rate and the p99 of a batch when all users are alike: {}.",
            said.join("; ")
        )
    })
}

/// Where the load lies before and after the cure, and whether that shows in the rate.
fn cured(study: &Study, (name, layout, before, after): (&str, &str, &str, &str)) -> Option<String> {
    let part = Shape::Tenant.name();
    let figure = |path, figure: &str| {
        let cell = study.cell(&part, layout, path)?;
        Some(cell.figures.get(figure)?.median)
    };
    let rate = study.over(&part, "events_per_s", (layout, after), (layout, before))?;
    Some(format!(
        "The cure on {name} took {:.1} s: the busiest server's CPU goes from {:.2} to {:.2} times the mean, its rows from {:.0} % to \
         {:.0} %, and the rate is {:.2} times what it was.",
        figure(after, "cure_s")?,
        figure(before, "busiest_cpu")?,
        figure(after, "busiest_cpu")?,
        figure(before, "busiest_server")?,
        figure(after, "busiest_server")?,
        rate.median
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::{CellResult, Run, Started};

    fn cell(part: &str, layout: &str, path: &str, rates: [f64; 2]) -> CellResult {
        let run = |rate: f64| {
            Run::from([
                ("events_per_s".to_owned(), rate),
                ("p99_ms".to_owned(), 1e5 / rate),
            ])
        };
        CellResult::new(part, layout, path, rates.map(run).to_vec())
    }

    #[test]
    fn skew_is_told_against_users_who_are_alike_within_a_round() {
        let mut study = Study::new("skew", "shardlane experiment skew", Started::now());
        // The second round was ten times slower, for all.
        study.results = vec![
            cell("zipf-0", "single", "worker", [1000.0, 100.0]),
            cell("zipf-1.5", "single", "worker", [500.0, 50.0]),
            cell("tenant", "single", "worker", [250.0, 25.0]),
        ];
        assert_eq!(
            findings(&study, &[0.0, 1.5]),
            [
                "One user with half of the traffic, in times the rate and the p99 of a batch when all users are alike: one Postgres \
                 0.25 and 4.00.",
                "Zipf 1.5, in times the rate and the p99 of a batch when all users are alike: one Postgres 0.50 and 2.00.",
            ]
        );
        assert_eq!(findings(&study, &[1.5]), Vec::<String>::new());
    }
}
