//! Numbers and untrusted strings as the page writes them.

use serde::Serialize;

/// What stands where there is no number.
pub(super) const DASH: &str = "–";
/// Between groups of three digits: a thin space that does not break.
const GROUP: char = '\u{202f}';

/// Text that is safe between tags and inside a quoted attribute.
pub(super) fn esc(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// The text, cut after so many characters. SVG text neither wraps nor clips by itself.
pub(super) fn clip(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    let mut out: String = text.chars().take(chars_max.saturating_sub(1)).collect();
    out.push('…');
    out
}

/// A number with so many decimals and grouped thousands; a dash where it is not finite.
pub(super) fn num(value: f64, decimals: usize) -> String {
    if !value.is_finite() {
        return DASH.to_owned();
    }
    let text = format!("{value:.decimals$}");
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) if digits.chars().all(|c| matches!(c, '0' | '.')) => ("", digits),
        Some(digits) => ("\u{2212}", digits),
        None => ("", text.as_str()),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mut out = format!("{sign}{}", group(whole));
    if !fraction.is_empty() {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

/// A whole number with grouped thousands.
pub(super) fn count(value: u64) -> String {
    group(&value.to_string())
}

/// A number alone, with about three digits that carry meaning.
pub(super) fn short(value: f64) -> String {
    num(
        value,
        if value == 0.0 {
            0
        } else {
            decimals(value.abs())
        },
    )
}

/// How many decimals one column needs so that its smallest number still says something.
pub(super) fn column_decimals(values: impl IntoIterator<Item = f64>) -> usize {
    values
        .into_iter()
        .filter(|value| value.is_finite() && *value > 0.0)
        .reduce(f64::min)
        .map_or(0, decimals)
}

fn decimals(value: f64) -> usize {
    match value {
        v if v >= 99.95 => 0,
        v if v >= 0.995 => 1,
        v if v >= 0.0995 => 2,
        _ => 3,
    }
}

/// `5.1×`, `0.97×`.
pub(super) fn times(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        v if v >= 1.995 => 1,
        v if v >= 0.0995 => 2,
        _ => 3,
    };
    format!("{}×", num(value, decimals))
}

/// A value and its goal with enough decimals that a goal just missed does not look like one that was met.
pub(super) fn value_and_goal(value: f64, goal: f64) -> (String, String) {
    let mut decimals = 2;
    while decimals < 6 && value != goal && num(value, decimals) == num(goal, decimals) {
        decimals += 1;
    }
    (num(value, decimals), num(goal, decimals))
}

/// `a / b` where that is a number.
pub(super) fn ratio(a: f64, b: f64) -> Option<f64> {
    let ratio = a / b;
    (b > 0.0 && ratio.is_finite()).then_some(ratio)
}

/// Of sorted numbers.
pub(super) fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// `18 min 54 s`.
pub(super) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return DASH.to_owned();
    }
    if seconds < 60.0 {
        return format!("{} s", short(seconds));
    }
    let whole = seconds.round();
    let (hours, minutes, rest) = (
        (whole / 3600.0).floor(),
        (whole % 3600.0 / 60.0).floor(),
        whole % 60.0,
    );
    if hours > 0.0 {
        format!("{} h {minutes} min", num(hours, 0))
    } else {
        format!("{minutes} min {rest} s")
    }
}

/// `1 core`, `2 cores`.
pub(super) fn plural(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(n), if n == 1 { one } else { many })
}

/// `a`, `a and b`, `a, b and c`.
pub(super) fn list(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [front @ .., last] => format!("{} and {last}", front.join(", ")),
    }
}

/// JSON that may stand inside a script element: still the same JSON, but nothing in it can end the element.
pub(super) fn json_for_script<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<String> {
    let json = serde_json::to_string_pretty(value)?;
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            // Outside strings JSON has none of these, so the escape of a string is right wherever they stand.
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    Ok(out)
}

fn group(digits: &str) -> String {
    let mut out = String::with_capacity(digits.len() + digits.len() / 2);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(GROUP);
        }
        out.push(digit);
    }
    out
}
