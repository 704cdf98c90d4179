//! Settings as text.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::bail;
use clap::{Arg, ArgAction, Command};
use toml::Value;

use super::file::{COMMON, File, Place, Said, sections, shown};
use super::{key_of, settings};

/// The manual: every setting with what it is and its default. What several sections have in the same words stands once, in the
/// common one.
pub(super) fn documented(command: &Command) -> String {
    let mut sections: Vec<(String, Vec<(String, String)>)> = sections(command)
        .into_iter()
        .map(|(section, leaf)| {
            let of = settings(leaf).map(|arg| (key(arg), manual_of(arg)));
            (section, of.collect())
        })
        .collect();
    sections.retain(|(_, of)| !of.is_empty());
    let mut places: BTreeMap<(String, String), usize> = BTreeMap::new();
    for setting in sections.iter().flat_map(|(_, of)| of) {
        *places.entry(setting.clone()).or_default() += 1;
    }
    let is_common = |setting: &(String, String)| places[setting] > 1;

    let mut text = format!(
        "# Settings of `shardlane`: `--config FILE` or SHARDLANE_CONFIG. A flag goes before the environment, the environment\n\
         # before the file, the file before the default. `shardlane config check` and `config show` look at one.\n\
         #\n\
         # A section is a subcommand. The variable of batch_rows_max in [worker] is SHARDLANE_WORKER_BATCH_ROWS_MAX, and so on,\n\
         # but where a shorter one stands behind it. Lines that begin with \"#:\" show a setting with its default, or what it takes.\n\
         # Printed by `shardlane config show --documented`.\n\n\
         # Holds for every subcommand that has such a setting, and whose own section does not say otherwise.\n[{COMMON}]\n"
    );
    text.extend(
        places
            .keys()
            .filter(|it| is_common(it))
            .map(|(_, lines)| &**lines),
    );
    for (section, of) in &sections {
        writeln!(text, "\n[{section}]").ok();
        let (common, own): (Vec<_>, Vec<_>) = of.iter().partition(|it| is_common(it));
        // What holds everywhere need not be named everywhere.
        let common = common.iter().filter(|it| places[**it] < sections.len());
        let names: Vec<&str> = common.map(|(key, _)| &**key).collect();
        if !names.is_empty() {
            writeln!(text, "# See [{COMMON}]: {}", names.join(", ")).ok();
        }
        text.extend(own.iter().map(|(_, lines)| &**lines));
    }
    text
}

/// What a setting is, and its default or what it takes.
fn manual_of(arg: &Arg) -> String {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let variable = arg
        .get_env()
        .map(|name| format!(" ({})", name.to_string_lossy()));
    let value = default_of(arg).unwrap_or_else(|| takes(arg));
    format!(
        "# {help}{}\n#: {} = {value}\n",
        variable.unwrap_or_default(),
        key(arg)
    )
}

/// What subcommands would work with now, each value with its source.
pub(super) fn effective(
    command: &Command,
    file: &File,
    wanted: &[String],
) -> anyhow::Result<String> {
    let all = sections(command);
    let unknown = wanted
        .iter()
        .find(|name| all.iter().all(|(section, _)| section != *name));
    if let Some(unknown) = unknown {
        bail!("there is no section {unknown}; `shardlane config show --documented` has them all");
    }
    let mut text = String::new();
    for (section, leaf) in all {
        if !wanted.is_empty() && !wanted.contains(&section) {
            continue;
        }
        let said = file.of(&section, leaf);
        let lines: Vec<String> = settings(leaf).filter_map(|arg| line(arg, &said)).collect();
        if !lines.is_empty() {
            writeln!(text, "[{section}]\n{}\n", lines.join("\n")).ok();
        }
    }
    Ok(text)
}

fn line(arg: &Arg, said: &[Said]) -> Option<String> {
    let key = key(arg);
    let set = arg
        .get_env()
        .and_then(|name| Some((name, std::env::var(name).ok()?)));
    if let Some((name, value)) = set {
        let value = shown(&Value::String(redacted(&value)));
        return Some(format!("{key} = {value}  # {}", name.to_string_lossy()));
    }
    if let Some(said) = said.iter().find(|said| Some(&*said.flag) == arg.get_long()) {
        let value = shown(&hidden(&said.value));
        return Some(match &said.place {
            Place::Section(section) => format!("{key} = {value}  # the file, [{section}]"),
            Place::Variable(name) => format!("{key} = {value}  # {name}"),
        });
    }
    Some(format!("{key} = {}  # default", default_of(arg)?))
}

fn key(arg: &Arg) -> String {
    arg.get_long().map(key_of).unwrap_or_default()
}

/// As TOML; none: there is no default.
fn default_of(arg: &Arg) -> Option<String> {
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return Some("false".to_owned());
    }
    let values: Vec<String> = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy().into_owned())
        .collect();
    let [value] = &values[..] else {
        return None;
    };
    Some(value.parse::<i64>().map_or_else(
        |_| shown(&Value::from(&**value)),
        |number| number.to_string(),
    ))
}

/// What stands in the place of a default where there is none.
fn takes(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    let name = names.first().map_or("VALUE", |name| name.as_str());
    shown(&Value::from(name))
}

fn hidden(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(redacted(text)),
        Value::Array(values) => Value::Array(values.iter().map(hidden).collect()),
        other => other.clone(),
    }
}

/// DSNs without their passwords, of either form, and no signing secret.
fn redacted(text: &str) -> String {
    if text.starts_with("whsec_") {
        return "***".to_owned();
    }
    let each = text.split(',').map(|dsn| {
        if let Some((scheme, rest)) = dsn.split_once("://")
            && let Some((login, place)) = rest.rsplit_once('@')
            && let Some((user, _)) = login.split_once(':')
        {
            return format!("{scheme}://{user}:***@{place}");
        }
        let words = dsn.split(' ').map(|word| {
            if word.starts_with("password=") {
                "password=***"
            } else {
                word
            }
        });
        words.collect::<Vec<_>>().join(" ")
    });
    each.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        for (dsn, shown) in [
            ("postgres://me:s3cret@a:1/x", "postgres://me:***@a:1/x"),
            (
                "postgres://me:p@ss:w@a/x,postgres://b/y",
                "postgres://me:***@a/x,postgres://b/y",
            ),
            (
                "host=a password=s3cret user=me",
                "host=a password=*** user=me",
            ),
            ("whsec_c2VjcmV0", "***"),
            ("127.0.0.1:9092,b:9092", "127.0.0.1:9092,b:9092"),
        ] {
            assert_eq!(redacted(dsn), shown);
        }
    }
}
