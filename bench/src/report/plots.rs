//! The plots, each as a figure with its title and what it shows.

use super::bars::{Bar, Names, Part, bars, open_svg};
use super::headline::balance_sentence;
use super::latency::{batches_min, latency};
use super::look::{Look, Palette};
use super::text::{clip, column_decimals, count, esc, list, num, short, times};
use crate::results::{LayoutResult, Results};

const NOTHING: &str = "<p class=\"none\">Nothing was measured for this plot.</p>\n";
/// Up to so many bars of a balance have room for a name and a number each.
const NAMED_SHARDS_MAX: usize = 4;

/// All plots of one experiment.
pub(super) fn plots(results: &Results, palette: &Palette, id: &str) -> String {
    let mut out = String::from("<div class=\"figures\">\n");
    out.push_str(&figure(
        "Events per second",
        "",
        &rates(results, palette, &format!("{id}-rate")),
        if results.results.iter().any(|row| row.runs.len() > 1) {
            "Bar: median. Whisker: slowest to fastest run. Dots: the runs."
        } else {
            "One run each, so nothing is known of the spread."
        },
    ));
    out.push_str(&figure(
        "CPU per event, µs",
        "",
        &cpu(results, palette, &format!("{id}-cpu")),
        "Median of each part, stacked. Where every core is busy, this is what sets the rate.",
    ));
    let tail = batches_min(results).map_or(String::new(), |batches| {
        if batches < 1000 {
            format!(
                " The run with the fewest batches had {}, so what lies to the right of p{} is a single batch a run.",
                count(batches),
                num(100.0 - 100.0 / batches as f64, 1)
            )
        } else {
            String::new()
        }
    });
    out.push_str(&figure(
        "Batch latency by quantile, ms",
        "wide",
        &latency(results, palette, &format!("{id}-latency")),
        &format!(
            "The time of one transaction. Median over the runs at each \
             quantile, on a logarithmic scale that is the same in every panel; the other layouts in grey.{tail}"
        ),
    ));
    out.push_str(&figure(
        "Shard balance",
        "wide",
        &balance(results, palette, &format!("{id}-balance")),
        "Share of the inbox rows after the last run. Dashed: the even share.",
    ));
    out.push_str(&figure(
        "Write-ahead log per event, bytes",
        "",
        &wal(results, palette, &format!("{id}-wal")),
        "Median, all servers of the layout together.",
    ));
    out.push_str(&figure(
        "Replay against fresh",
        "",
        &replays(results, palette, &format!("{id}-replay")),
        "The same topic read again by a new consumer group into the database that has it all, against the fresh rate of \
         the same layout and path. The upright lines are 1×.",
    ));
    out.push_str("</div>\n");
    out
}

fn figure(title: &str, class: &str, body: &str, caption: &str) -> String {
    // What an empty plot would have shown explains nothing.
    let caption = if caption.is_empty() || body.starts_with("<p class=\"none\">") {
        String::new()
    } else {
        format!("<figcaption>{}</figcaption>\n", esc(caption))
    };
    format!("<figure class=\"{class}\"><h3>{title}</h3>\n{body}{caption}</figure>\n")
}

fn describe<'a>(items: impl Iterator<Item = (&'a str, &'a str, String)>) -> String {
    let items: Vec<String> = items
        .map(|(layout, path, value)| format!("{layout} {path} {value}"))
        .collect();
    format!("{}.", items.join("; "))
}

fn rates(results: &Results, palette: &Palette, id: &str) -> String {
    let rows = &results.results;
    if rows.is_empty() {
        return NOTHING.to_owned();
    }
    let decimals = column_decimals(rows.iter().map(|row| row.events_per_s));
    let value = |row: &LayoutResult| num(row.events_per_s, decimals);
    let all: Vec<Bar> = rows
        .iter()
        .map(|row| {
            let several = row.runs.len() > 1;
            Bar {
                layout: row.layout.clone(),
                path: row.path.clone(),
                value: value(row),
                look: palette.look(&row.layout, &row.path),
                parts: vec![Part {
                    value: row.events_per_s,
                    class: None,
                    title: format!("median: {}", value(row)),
                }],
                range: several.then_some((row.events_per_s_min, row.events_per_s_max)),
                dots: if several {
                    row.runs.iter().map(|run| run.events_per_s).collect()
                } else {
                    Vec::new()
                },
            }
        })
        .collect();
    let description = describe(rows.iter().map(|row| {
        let range = format!(
            "{} to {}",
            num(row.events_per_s_min, decimals),
            num(row.events_per_s_max, decimals)
        );
        (
            row.layout.as_str(),
            row.path.as_str(),
            format!("{}, runs from {range}", value(row)),
        )
    }));
    bars(
        &Names {
            id,
            title: "Events per second by layout and path",
            description,
            unit: "events/s",
        },
        &all,
        None,
    )
}

fn cpu(results: &Results, palette: &Palette, id: &str) -> String {
    let rows = &results.results;
    if rows.is_empty() {
        return NOTHING.to_owned();
    }
    let parts = |row: &LayoutResult| {
        [
            (
                "database servers",
                "cpu-server",
                row.server_cpu_us_per_event,
            ),
            ("our process", "cpu-ours", row.client_cpu_us_per_event),
            ("Kafka", "cpu-kafka", row.kafka_cpu_us_per_event),
        ]
    };
    let total = |row: &LayoutResult| parts(row).iter().map(|(_, _, value)| value).sum::<f64>();
    let all: Vec<Bar> = rows
        .iter()
        .map(|row| {
            let sum: Vec<String> = parts(row)
                .iter()
                .map(|(_, _, value)| num(*value, 1))
                .collect();
            Bar {
                layout: row.layout.clone(),
                path: row.path.clone(),
                value: format!(
                    r#"<tspan class="parts">{} = </tspan><tspan class="b">{}</tspan>"#,
                    sum.join(" + "),
                    num(total(row), 1)
                ),
                look: palette.look(&row.layout, &row.path),
                parts: parts(row)
                    .into_iter()
                    .map(|(name, class, value)| Part {
                        value,
                        class: Some(class),
                        title: format!("{name}: {} µs", num(value, 1)),
                    })
                    .collect(),
                range: None,
                dots: Vec::new(),
            }
        })
        .collect();
    let description = describe(rows.iter().map(|row| {
        let sum: Vec<String> = parts(row)
            .iter()
            .map(|(name, _, value)| format!("{name} {} µs", num(*value, 1)))
            .collect();
        (row.layout.as_str(), row.path.as_str(), sum.join(", "))
    }));
    let names = Names {
        id,
        title: "CPU time per event by layout, path and process",
        description,
        unit: "µs",
    };
    let key: String = [("cpu-server", "database servers"), ("cpu-ours", "our process"), ("cpu-kafka", "Kafka")]
        .iter()
        .map(|(class, name)| {
            format!(
                r#"<li><svg class="swatch neutral" width="12" height="12" aria-hidden="true"><rect class="bar {class}" x="0.5" y="0.5" width="11" height="11"/></svg>{name}</li>"#
            )
        })
        .collect();
    format!("{}<ul class=\"key\">{key}</ul>\n", bars(&names, &all, None))
}

fn wal(results: &Results, palette: &Palette, id: &str) -> String {
    let rows = &results.results;
    if rows.is_empty() {
        return NOTHING.to_owned();
    }
    let value = |row: &LayoutResult| num(row.wal_bytes_per_event, 0);
    let all: Vec<Bar> = rows
        .iter()
        .map(|row| {
            let part = Part {
                value: row.wal_bytes_per_event,
                class: None,
                title: format!("{} bytes an event", value(row)),
            };
            plain_bar(
                &row.layout,
                &row.path,
                value(row),
                palette.look(&row.layout, &row.path),
                part,
            )
        })
        .collect();
    let description = describe(
        rows.iter()
            .map(|row| (row.layout.as_str(), row.path.as_str(), value(row))),
    );
    bars(
        &Names {
            id,
            title: "Bytes of write-ahead log per event",
            description,
            unit: "bytes",
        },
        &all,
        None,
    )
}

fn replays(results: &Results, palette: &Palette, id: &str) -> String {
    let rows = &results.replays;
    if rows.is_empty() {
        return "<p class=\"none\">No replay was run.</p>\n".to_owned();
    }
    let all: Vec<Bar> = rows
        .iter()
        .map(|row| {
            let changed = if row.rows_changed {
                r#"<tspan class="bad">rows changed; </tspan>"#
            } else {
                ""
            };
            let value = format!(
                r#"{changed}<tspan class="parts">{} events/s, </tspan><tspan class="b">{}</tspan>"#,
                short(row.events_per_s),
                times(row.times_fresh)
            );
            let title = format!(
                "{} events/s, {} the fresh rate",
                short(row.events_per_s),
                times(row.times_fresh)
            );
            let part = Part {
                value: row.times_fresh,
                class: None,
                title,
            };
            plain_bar(
                &row.layout,
                &row.path,
                value,
                palette.look(&row.layout, &row.path),
                part,
            )
        })
        .collect();
    let description = describe(rows.iter().map(|row| {
        let changed = if row.rows_changed {
            ", rows changed"
        } else {
            ", no row changed"
        };
        (
            row.layout.as_str(),
            row.path.as_str(),
            format!("{}{changed}", times(row.times_fresh)),
        )
    }));
    bars(
        &Names {
            id,
            title: "Replay rate as a multiple of the fresh rate",
            description,
            unit: "× fresh",
        },
        &all,
        Some(1.0),
    )
}

fn plain_bar(layout: &str, path: &str, value: String, look: Look, part: Part) -> Bar {
    Bar {
        layout: layout.to_owned(),
        path: path.to_owned(),
        value,
        look,
        parts: vec![part],
        range: None,
        dots: Vec::new(),
    }
}

/// The rows of one layout with the same balance: nearly always all its paths.
struct Balance<'a> {
    layout: &'a str,
    paths: Vec<String>,
    look: Look,
    /// Name of the shard and its share in per cent.
    shares: Vec<(&'a str, f64)>,
}

fn balance(results: &Results, palette: &Palette, id: &str) -> String {
    let mut several: Vec<Balance<'_>> = Vec::new();
    let mut alone: Vec<String> = Vec::new();
    for row in &results.results {
        let shares = shares(row);
        if shares.len() == 1 {
            if !alone.contains(&row.layout) {
                alone.push(row.layout.clone());
            }
            continue;
        }
        if let Some(same) = several
            .iter_mut()
            .find(|b| b.layout == row.layout && b.shares == shares)
        {
            same.paths.push(row.path.clone());
        } else {
            let look = Look {
                variant: 0,
                ..palette.look(&row.layout, &row.path)
            };
            several.push(Balance {
                layout: &row.layout,
                paths: vec![row.path.clone()],
                look,
                shares,
            });
        }
    }
    let mut out = String::new();
    if !several.is_empty() {
        out.push_str("<div class=\"panels broad\">\n");
        for (i, one) in several.iter().enumerate() {
            out.push_str(&balance_panel(one, &format!("{id}-{i}")));
        }
        out.push_str("</div>\n");
    }
    if !alone.is_empty() {
        let one = if alone.len() == 1 {
            "is one server and holds"
        } else {
            "are one server each and hold"
        };
        out.push_str(&format!(
            "<p class=\"small\">{} {one} every row.</p>\n",
            esc(&list(&alone))
        ));
    }
    if let Some(skew) = &results.skew {
        out.push_str(&format!(
            "<p class=\"small\">The busiest of 4096 slots had {} times the mean, the busiest user {} % of the events, \
             as a worker counted them.</p>\n",
            num(skew.busiest_slot, 1),
            num(skew.busiest_user * 100.0, 2)
        ));
    }
    if out.is_empty() {
        NOTHING.to_owned()
    } else {
        out
    }
}

fn balance_panel(balance: &Balance<'_>, id: &str) -> String {
    const TOP: f64 = 18.0;
    const HEIGHT: f64 = 110.0;
    let heading = format!(
        "<h4>{} <span>{}</span></h4>\n",
        esc(balance.layout),
        esc(&balance.paths.join(", "))
    );
    if balance.shares.is_empty() {
        return format!(
            "<div class=\"panel\">{heading}<p class=\"none\">No rows were counted.</p></div>\n"
        );
    }
    let values: Vec<f64> = balance.shares.iter().map(|&(_, share)| share).collect();
    let shards: f64 = values.iter().map(|_| 1.0).sum();
    let even = 100.0 / shards;
    let highest = values.iter().copied().fold(even, f64::max);
    let bottom = TOP + HEIGHT;
    let named = balance.shares.len() <= NAMED_SHARDS_MAX;
    let sentence = balance_sentence(&values);
    let each: Vec<String> = balance
        .shares
        .iter()
        .map(|(name, share)| format!("{name} {} %", num(*share, 1)))
        .collect();
    let title = format!("Share of inbox rows by shard: {}", balance.layout);

    let mut out = format!("<div class=\"panel\">{heading}");
    let height = if named { bottom + 20.0 } else { bottom + 2.0 };
    out.push_str(&open_svg(id, &title, &each.join(", "), height));
    out.push_str(&format!(r#"<g class="{}">"#, balance.look.class()));
    let slot = 100.0 / shards;
    let mut left = 0.0;
    let mut labels = String::new();
    for &(name, share) in &balance.shares {
        let tall = share / highest * HEIGHT;
        let middle = left + slot / 2.0;
        out.push_str(&format!(
            r#"<rect class="bar" fill="{}" x="{:.2}%" y="{:.1}" width="{:.2}%" height="{tall:.1}"><title>{}: {} %</title></rect>"#,
            balance.look.fill(),
            left + slot * 0.1,
            bottom - tall,
            slot * 0.8,
            esc(name),
            num(share, 2),
        ));
        if named {
            labels.push_str(&format!(
                r#"<text class="mid halo" x="{middle:.2}%" y="{:.1}">{} %</text><text class="mid quiet" x="{middle:.2}%" y="{:.1}">{}</text>"#,
                bottom - tall - 5.0,
                num(share, 1),
                bottom + 15.0,
                esc(&clip(name, 10)),
            ));
        }
        left += slot;
    }
    let even_y = bottom - even / highest * HEIGHT;
    out.push_str(&format!(
        r#"</g><line class="even" x1="0" y1="{even_y:.1}" x2="100%" y2="{even_y:.1}"/><line class="floor" x1="0" y1="{bottom}" x2="100%" y2="{bottom}"/>{labels}</svg>"#
    ));
    out.push_str(&format!("\n<p class=\"small\">{sentence}</p></div>\n"));
    out
}

/// Shares in per cent, `shard-2` before `shard-10`.
fn shares(row: &LayoutResult) -> Vec<(&str, f64)> {
    let total: f64 = row.balance.values().map(|&rows| rows as f64).sum();
    if total <= 0.0 {
        return Vec::new();
    }
    let mut shares: Vec<(&str, f64)> = row
        .balance
        .iter()
        .map(|(name, &rows)| (name.as_str(), rows as f64 / total * 100.0))
        .collect();
    shares.sort_by(|a, b| natural(a.0).cmp(&natural(b.0)));
    shares
}

fn natural(name: &str) -> (&str, usize, &str) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &name[stem.len()..];
    (stem, digits.len(), digits)
}
