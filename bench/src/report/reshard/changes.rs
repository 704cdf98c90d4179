//! The table of the changes, and what its columns mean.

use super::sentences::never_recovered;
use super::{LayoutRun, name, percent};
use crate::report::look::name_html;
use crate::report::text::{DASH, count, num};
use crate::reshard::ChangeResult;

const COLUMNS: &str = include_str!("columns.html");

const TABLE_HEAD: &str = "<div class=\"scroll\" role=\"region\" aria-label=\"The changes, one row each\" tabindex=\"0\">\
<table><thead>\
<tr class=\"groups\"><td></td><td colspan=\"2\"></td>\
<th class=\"open\" colspan=\"3\" scope=\"colgroup\">Events/s</th>\
<th class=\"open\" colspan=\"3\" scope=\"colgroup\">Longest stall, ms</th>\
<th class=\"open\" colspan=\"2\" scope=\"colgroup\">Owner hits</th>\
<th class=\"open\" colspan=\"6\" scope=\"colgroup\">Oracle</th></tr>\
<tr><th scope=\"col\">Layout, change</th><th scope=\"col\">Began at<br>s</th><th scope=\"col\">Took<br>s</th>\
<th class=\"open\" scope=\"col\">before</th><th scope=\"col\">during</th><th scope=\"col\">after</th>\
<th class=\"open\" scope=\"col\">all</th><th scope=\"col\">unmoved</th><th scope=\"col\">normal</th>\
<th class=\"open\" scope=\"col\">lowest</th><th scope=\"col\">back in<br>s</th>\
<th class=\"open\" scope=\"col\">Events</th><th scope=\"col\">Lost</th><th scope=\"col\">Twice</th>\
<th scope=\"col\">Out of<br>order</th><th scope=\"col\">Mis-<br>placed</th><th scope=\"col\">Equal<br>state</th></tr></thead><tbody>\n";

/// One row a change.
pub(super) fn table(layouts: &[LayoutRun<'_>]) -> String {
    if layouts.iter().all(|layout| layout.changes.is_empty()) {
        return "<p class=\"none\">No change was made, so there is nothing to tabulate.</p>\n"
            .to_owned();
    }
    let mut out = String::from(TABLE_HEAD);
    for layout in layouts {
        for (index, change) in layout.changes.iter().enumerate() {
            let first = if index == 0 { " class=\"first\"" } else { "" };
            out.push_str(&format!(
                "<tr{first}><th scope=\"row\"><span class=\"name\">{}<span>{}</span></span></th>{}</tr>\n",
                layout.look.swatch(),
                name_html(layout.name, &name(change)),
                cells(change)
            ));
        }
    }
    out.push_str("</tbody></table></div>\n");
    out.push_str(COLUMNS);
    out
}

fn cells(change: &ChangeResult) -> String {
    let wrong = |n: u64| (if n > 0 { "bad" } else { "" }, count(n));
    let recovered = if never_recovered(change) {
        ("bad", "&gt; 10".to_owned())
    } else {
        ("", optional(change.owner_hit_recovered_s, 1))
    };
    let cells = [
        ("", num(change.began_s, 1)),
        ("", num(change.took_s, 1)),
        ("open", num(change.events_per_s_before, 0)),
        ("key", num(change.events_per_s_during, 0)),
        ("", num(change.events_per_s_after, 0)),
        ("open key", num(change.stall_max_ms, 0)),
        ("", optional(change.stall_unmoved_ms, 0)),
        ("", num(change.stall_before_ms, 0)),
        (
            "open",
            change.owner_hit_min.map_or(DASH.to_owned(), percent),
        ),
        recovered,
        ("open", count(change.events)),
        wrong(change.lost),
        wrong(change.twice),
        wrong(change.out_of_order),
        wrong(change.misplaced),
        if change.equal_state {
            ("", "yes".to_owned())
        } else {
            ("bad", "NO".to_owned())
        },
    ];
    let cell = |(class, text): (&str, String)| match class {
        "" => format!("<td>{text}</td>"),
        class => format!("<td class=\"{class}\">{text}</td>"),
    };
    cells.into_iter().map(cell).collect()
}

fn optional(value: Option<f64>, decimals: usize) -> String {
    value.map_or(DASH.to_owned(), |value| num(value, decimals))
}
