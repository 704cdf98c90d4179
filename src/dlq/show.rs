//! Letters on a terminal and as JSON.

use std::collections::BTreeMap;
use std::io::Write as _;

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde_json::{Value, json};
use shardlane_domain::{DeadLetter, LetterState, Listing, ReplayEnd, Replayed};

/// The longest reason in a table.
const REASON_CHARS_MAX: usize = 60;

pub(super) fn listing(listing: &Listing) {
    let mut table = table(&["id", "state", "class", "user", "died", "reason"]);
    for letter in &listing.letters {
        let user = letter.user_id.map(|user| user.to_string());
        table.add_row([
            letter.id.clone(),
            letter.state.as_str().to_owned(),
            printable(&letter.class),
            user.unwrap_or_else(|| "-".to_owned()),
            format!("{:.0}", letter.dead_at),
            shortened(&printable(&letter.reason)),
        ]);
    }
    println!("{table}");
    let (shown, matching) = (listing.letters.len(), listing.matching);
    if shown < matching {
        println!("{shown} of {matching} dead letters; --limit shows more");
    } else {
        println!("{matching} dead letters");
    }
}

pub(super) fn listing_json(listing: &Listing) -> anyhow::Result<()> {
    let letters: Vec<Value> = listing.letters.iter().map(summary).collect();
    print_json(&json!({"matching": listing.matching, "letters": letters}))
}

pub(super) fn raw(letter: &DeadLetter) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(letter.payload.as_deref().unwrap_or_default())?;
    Ok(out.flush()?)
}

pub(super) fn letter(letter: &DeadLetter) {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "none".to_owned());
    println!("id        {}", letter.id);
    println!("state     {}", state(&letter.state));
    println!("source    {}", letter.source);
    println!(
        "user      {}",
        or_none(letter.user_id.map(|user| user.to_string()))
    );
    println!("class     {}", printable(&letter.class));
    println!("reason    {}", printable(&letter.reason));
    println!("attempts  {}", letter.attempts);
    println!("accepted  {}", letter.received_at);
    println!("died      {}", letter.dead_at);
    println!(
        "origin    {}",
        or_none(letter.origin.as_ref().map(ToString::to_string))
    );
    println!("key       {}", or_none(letter.key.as_deref().map(text)));
    println!("headers");
    for (name, value) in &letter.headers {
        println!(
            "  {}: {}",
            printable(name),
            value.as_deref().map_or("null".to_owned(), text)
        );
    }
    match letter.payload.as_deref() {
        Some(payload) => println!(
            "payload, {} bytes (--raw prints them as they are)\n{}",
            payload.len(),
            text(payload)
        ),
        None => println!("payload   null"),
    }
}

pub(super) fn letter_json(letter: &DeadLetter) -> anyhow::Result<()> {
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut value = summary(letter);
    let headers: Vec<Value> = letter
        .headers
        .iter()
        .map(|(name, value)| json!([name, value.as_deref().map(lossy)]))
        .collect();
    value["headers"] = headers.into();
    value["key"] = json!(letter.key.as_deref().map(lossy));
    // As text, for people; `--raw` has the bytes.
    value["payload"] = json!(letter.payload.as_deref().map(lossy));
    print_json(&value)
}

pub(super) fn replayed(replayed: &[Replayed], more: usize) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for Replayed { letter, end } in replayed {
        *counts.entry(end.as_str()).or_default() += 1;
        println!("{:15}  {}  {}", end.as_str(), letter.id, detail(end));
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(end, count)| format!("{count} {end}"))
        .collect();
    println!("{} letters: {}", replayed.len(), counts.join(", "));
    if more > 0 {
        println!("{more} more match; run it again, or raise --limit");
    }
}

pub(super) fn replayed_json(replayed: &[Replayed], more: usize) -> anyhow::Result<()> {
    let letters: Vec<Value> = replayed
        .iter()
        .map(|Replayed { letter, end }| json!({"id": letter.id, "end": end.as_str(), "detail": detail(end)}))
        .collect();
    print_json(&json!({"more": more, "letters": letters}))
}

fn detail(end: &ReplayEnd) -> String {
    match end {
        ReplayEnd::Taken(detail)
        | ReplayEnd::Malformed(detail)
        | ReplayEnd::Refused(detail)
        | ReplayEnd::Failed(detail) => printable(detail),
        ReplayEnd::TooOld(age) => format!(
            "accepted {} hours ago; --replay-window takes older ones, where the inbox still remembers what was applied then",
            age.as_secs() / 3600
        ),
        ReplayEnd::ReplayedBefore => "--again takes it once more".to_owned(),
        ReplayEnd::WouldTake => String::new(),
    }
}

fn summary(letter: &DeadLetter) -> Value {
    let origin = letter.origin.as_ref();
    json!({
        "id": letter.id,
        "state": letter.state.as_str(),
        "replayed_to": match &letter.state {
            LetterState::Replayed { to, .. } => Some(to),
            LetterState::Dead | LetterState::Replaying { .. } => None,
        },
        "source": letter.source.as_str(),
        "user": letter.user_id,
        "class": letter.class,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "received_at": letter.received_at.to_string(),
        "dead_at": letter.dead_at.to_string(),
        "origin": origin.map(|origin| json!({
            "topic": origin.topic, "partition": origin.partition, "offset": origin.offset,
        })),
        "bytes": letter.payload.as_ref().map(|payload| payload.len()),
    })
}

fn state(state: &LetterState) -> String {
    match state {
        LetterState::Dead => "dead".to_owned(),
        LetterState::Replaying { at } => format!("replaying since {at}; its end is not known"),
        LetterState::Replayed { at, to } => format!("replayed at {at}: {to}"),
    }
}

/// Bytes that somebody else wrote must not write to the terminal's own channel.
fn text(bytes: &[u8]) -> String {
    printable(&String::from_utf8_lossy(bytes))
}

fn printable(text: &str) -> String {
    let visible = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(visible).collect()
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(REASON_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn print_json(value: &Value) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.iter().copied());
    table
}
