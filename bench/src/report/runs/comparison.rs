//! What a rerun made of the ratios: within 10 %, or said that they are not.

use serde_json::Value;

use super::Ran;
use crate::report::text::{DASH, esc, list, num, plural};

/// A rerun that lands within this share of the first run repeats it.
const REPEATS: f64 = 0.1;

/// Results of one experiment with the same settings, and their ratios.
struct Reruns<'a> {
    ran: Vec<&'a Ran>,
    rows: Vec<Row<'a>>,
}

/// One ratio in each of the runs.
struct Row<'a> {
    name: &'a str,
    values: Vec<Option<f64>>,
    /// The run that is furthest from the first one, as a share of it.
    off: f64,
}

/// The section; empty where there is one result of each experiment.
pub(super) fn section(ran: &[Ran]) -> String {
    let experiments = |ran: &Ran| ran.told.head.experiment.clone();
    let repeated = ran
        .chunk_by(|a, b| experiments(a) == experiments(b))
        .any(|of| of.len() > 1);
    if !repeated {
        return String::new();
    }
    let reruns = reruns(ran);
    let mut out = format!(
        "<section id=\"reruns\"><h2>Did a rerun say the same?</h2>\n<p>{}</p>\n",
        esc(&summary(&reruns))
    );
    for one in &reruns {
        out.push_str(&table(one));
    }
    out.push_str("</section>\n");
    out
}

fn reruns(ran: &[Ran]) -> Vec<Reruns<'_>> {
    let mut groups: Vec<Vec<&Ran>> = Vec::new();
    let key = |ran: &Ran| {
        (
            ran.told.head.experiment.clone(),
            plain(&ran.told.head.settings),
        )
    };
    for one in ran {
        match groups.iter_mut().find(|group| key(group[0]) == key(one)) {
            Some(group) => group.push(one),
            None => groups.push(vec![one]),
        }
    }
    groups.retain(|group| group.len() > 1);
    let with_rows = groups.into_iter().map(|mut ran| {
        // RFC 3339 in UTC sorts as text.
        ran.sort_by(|a, b| a.told.head.started_at.cmp(&b.told.head.started_at));
        Reruns {
            rows: rows(&ran),
            ran,
        }
    });
    with_rows.filter(|one| !one.rows.is_empty()).collect()
}

/// The settings so that those of an older version compare: 0 is 0.0, and what is null was not there.
pub(super) fn plain(settings: &Value) -> Value {
    match settings {
        Value::Number(number) => number.as_f64().map_or(Value::Null, Value::from),
        Value::Array(all) => all.iter().map(plain).collect(),
        Value::Object(all) => {
            let known = all.iter().filter(|(_, value)| !value.is_null());
            known
                .map(|(name, value)| (name.clone(), plain(value)))
                .collect()
        }
        other => other.clone(),
    }
}

/// Each ratio of the first run that another one has too.
fn rows<'a>(ran: &[&'a Ran]) -> Vec<Row<'a>> {
    let value = |ran: &Ran, name: &str| {
        let found = ran.told.ratios.iter().find(|(other, _)| other == name);
        found
            .map(|(_, value)| *value)
            .filter(|value| value.is_finite())
    };
    let row = |(name, first): &'a (String, f64)| {
        let values: Vec<Option<f64>> = ran.iter().map(|one| value(one, name)).collect();
        let others = values.iter().skip(1).flatten();
        let off = others
            .map(|other| (other / first - 1.0).abs())
            .reduce(f64::max)?;
        Some(Row { name, values, off })
    };
    ran.first()
        .into_iter()
        .flat_map(|first| &first.told.ratios)
        .filter_map(row)
        .collect()
}

fn summary(reruns: &[Reruns<'_>]) -> String {
    let rows: Vec<&Row<'_>> = reruns.iter().flat_map(|one| &one.rows).collect();
    if rows.is_empty() {
        return "No two results of one experiment have the same settings and a ratio in common, so nothing is compared."
            .to_owned();
    }
    let share = num(REPEATS * 100.0, 0);
    let off: Vec<String> = reruns
        .iter()
        .filter_map(|one| {
            let off = one.rows.iter().filter(|row| !row.repeats()).count();
            let experiment = &one.ran[0].told.head.experiment;
            (off > 0).then(|| format!("{off} of {experiment}'s {}", one.rows.len()))
        })
        .collect();
    let compared = plural(rows.len() as u64, "ratio was", "ratios were");
    if off.is_empty() {
        format!(
            "{compared} measured again with the same settings, and each landed within {share} % of the first run."
        )
    } else {
        format!(
            "{compared} measured again with the same settings. Not within {share} % of the first run: {}. What is off by \
             more is marked; a changed commit may be the reason, or other work on the machine, or runs that were too few and short.",
            list(&off)
        )
    }
}

fn table(reruns: &Reruns<'_>) -> String {
    let experiment = esc(&reruns.ran[0].told.head.experiment);
    let mut out = format!(
        "<h3>{experiment}</h3>\n<div class=\"scroll\" role=\"region\" aria-label=\"Reruns of {experiment}\" tabindex=\"0\">\
         <table><thead><tr><th scope=\"col\">Ratio</th>"
    );
    for ran in &reruns.ran {
        let head = &ran.told.head;
        let load = head.load_average_before;
        let load = load.map_or(String::new(), |load| {
            format!("<br>load before {}", num(load, 1))
        });
        out.push_str(&format!(
            "<th scope=\"col\">{}<br>commit {}{load}</th>",
            esc(&ran.file),
            esc(&head.commit)
        ));
    }
    out.push_str("<th scope=\"col\">off by</th><th class=\"text\" scope=\"col\">repeats</th></tr></thead><tbody>\n");
    for row in &reruns.rows {
        out.push_str(&format!("<tr><th scope=\"row\">{}</th>", esc(row.name)));
        for value in &row.values {
            let value = value.map_or(DASH.to_owned(), |value| num(value, 2));
            out.push_str(&format!("<td>{value}</td>"));
        }
        let verdict = if row.repeats() {
            "<td class=\"text\">yes</td>"
        } else {
            "<td class=\"text bad\">no</td>"
        };
        out.push_str(&format!(
            "<td>{} %</td>{verdict}</tr>\n",
            num(row.off * 100.0, 1)
        ));
    }
    out.push_str("</tbody></table></div>\n");
    out
}

impl Row<'_> {
    fn repeats(&self) -> bool {
        self.off <= REPEATS
    }
}
