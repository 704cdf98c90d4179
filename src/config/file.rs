//! A settings file, read and compared with what the subcommands take.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command, CommandFactory};
use toml::{Table, Value};

use super::{NO_SECTIONS, explain, key_of, settings};
use crate::Cli;

/// Holds for every subcommand that has such a flag.
pub(super) const COMMON: &str = "common";

/// A settings file whose sections and settings are all known, or none. The environment goes before it.
#[derive(Debug, Default)]
pub(super) struct File {
    path: PathBuf,
    /// By section.
    sections: BTreeMap<String, BTreeMap<String, Value>>,
}

/// Where something is said.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// In this section of the file.
    Section(String),
    /// In this variable.
    Variable(String),
}

/// What the file or the environment says of one flag.
#[derive(Debug, Clone)]
pub(super) struct Said {
    pub(super) place: Place,
    /// Without the dashes.
    pub(super) flag: String,
    pub(super) value: Value,
    is_switch: bool,
}

impl Said {
    /// As one would type it.
    pub(super) fn arguments(&self) -> Vec<String> {
        let flag = &self.flag;
        match &self.value {
            Value::Boolean(on) if self.is_switch => {
                on.then(|| format!("--{flag}")).into_iter().collect()
            }
            Value::Array(values) => {
                let each = values
                    .iter()
                    .map(|value| format!("--{flag}={}", plain(value)));
                each.collect()
            }
            value => vec![format!("--{flag}={}", plain(value))],
        }
    }
}

/// `SHARDLANE_WORKER_BATCH_ROWS_MAX` for `batch_rows_max` of `[worker]`; a flag that has a variable reads that one itself.
fn variable(section: &str, arg: &Arg) -> Option<(Place, Value)> {
    if arg.get_env().is_some() {
        return None;
    }
    let name = format!("SHARDLANE_{section}_{}", key_of(arg.get_long()?));
    let name = name.replace(['.', '-'], "_").to_uppercase();
    let text = std::env::var(&name).ok()?;
    let value = match (is_switch(arg), text.parse()) {
        (true, Ok(on)) => Value::Boolean(on),
        _ => Value::String(text),
    };
    Some((Place::Variable(name), value))
}

/// A value as a flag has it.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => shown(other),
    }
}

fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

fn fits(arg: &Arg, value: &Value) -> bool {
    is_switch(arg) == matches!(value, Value::Boolean(_))
}

/// A value as TOML writes it: of texts, numbers and lists as JSON does.
pub(super) fn shown(value: &Value) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// The subcommands that have settings, by section.
pub(super) fn sections(command: &Command) -> Vec<(String, &Command)> {
    fn walk<'a>(path: &str, command: &'a Command, into: &mut Vec<(String, &'a Command)>) {
        for inner in command.get_subcommands() {
            let name = inner.get_name();
            if path.is_empty() && NO_SECTIONS.contains(&name) || name == "help" {
                continue;
            }
            let path = if path.is_empty() {
                name.to_owned()
            } else {
                format!("{path}.{name}")
            };
            if inner.has_subcommands() {
                walk(&path, inner, into);
            } else {
                into.push((path, inner));
            }
        }
    }
    let mut found = Vec::new();
    walk("", command, &mut found);
    found
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, is no TOML, or has a section or a setting that there is not.
    pub(super) fn read(path: PathBuf, command: &Command) -> anyhow::Result<File> {
        let shown = path.display();
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("the settings file {shown} cannot be read"))?;
        let table: Table = toml::from_str(&text).map_err(|error| {
            // Not the error's own text: it shows the line, which may hold a password.
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.map_or(1, |before| before.matches('\n').count() + 1);
            anyhow::anyhow!("{shown}, line {line}: this is no TOML")
        })?;
        let mut file = File {
            path: path.clone(),
            sections: BTreeMap::new(),
        };
        file.take("", table);
        file.refuse_unknown(command)?;
        Ok(file)
    }

    fn take(&mut self, section: &str, table: Table) {
        for (key, value) in table {
            match value {
                Value::Table(inner) if section.is_empty() => self.take(&key, inner),
                Value::Table(inner) => self.take(&format!("{section}.{key}"), inner),
                value => {
                    let of = self.sections.entry(section.to_owned()).or_default();
                    of.insert(key, value);
                }
            }
        }
    }

    fn refuse_unknown(&self, command: &Command) -> anyhow::Result<()> {
        let known = sections(command);
        for (section, values) in &self.sections {
            let own: Vec<&Command> = known
                .iter()
                .filter(|(name, _)| name == section || section == COMMON)
                .map(|(_, leaf)| *leaf)
                .collect();
            if own.is_empty() {
                let names: Vec<&str> = known.iter().map(|(name, _)| &**name).collect();
                bail!(
                    "{}: there is no section [{section}]; there are {COMMON}, {}",
                    self.path(),
                    names.join(", ")
                );
            }
            for (key, value) in values {
                let mut called = own
                    .iter()
                    .flat_map(|leaf| settings(leaf))
                    .filter(|arg| arg.get_long().map(key_of).as_ref() == Some(key))
                    .peekable();
                let Some(first) = called.peek().copied() else {
                    bail!(
                        "{}: [{section}] has no setting {key}; `shardlane config show --documented` lists all",
                        self.path()
                    );
                };
                if !called.any(|arg| fits(arg, value)) {
                    let kind = if is_switch(first) {
                        "true or false"
                    } else {
                        "a text, a number or a list"
                    };
                    bail!("{}: {key} in [{section}] must be {kind}", self.path());
                }
            }
        }
        Ok(())
    }

    /// What is said of a subcommand's flags: its own variable goes before its own section, and that before the common one.
    pub(super) fn of(&self, section: &str, leaf: &Command) -> Vec<Said> {
        settings(leaf)
            .filter_map(|arg| {
                let flag = arg.get_long()?;
                let (place, value) = variable(section, arg).or_else(|| self.find(section, arg))?;
                Some(Said {
                    place,
                    flag: flag.to_owned(),
                    value,
                    is_switch: is_switch(arg),
                })
            })
            .collect()
    }

    fn find(&self, section: &str, arg: &Arg) -> Option<(Place, Value)> {
        let key = key_of(arg.get_long()?);
        [section, COMMON]
            .into_iter()
            .filter_map(|name| Some((name, self.sections.get(name)?.get(&key)?)))
            // `kafka` is a switch of `up` and an address elsewhere.
            .find(|(_, value)| fits(arg, value))
            .map(|(name, value)| (Place::Section(name.to_owned()), value.clone()))
    }

    /// Gives each section to its subcommand's parser.
    ///
    /// # Errors
    /// What the first parser that is not content says.
    pub(super) fn check(&self, command: &Command) -> anyhow::Result<()> {
        for (section, leaf) in sections(command) {
            let said = self.of(&section, leaf);
            let mut arguments = vec!["shardlane".to_owned()];
            arguments.extend(section.split('.').map(str::to_owned));
            arguments.extend(said.iter().flat_map(Said::arguments));
            match Cli::command().try_get_matches_from(arguments) {
                Ok(_) => {}
                // Flags or the environment may say the rest.
                Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => {}
                Err(error) => return Err(explain(error, self, &section, &said)),
            }
        }
        Ok(())
    }

    pub(super) fn path(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    pub(super) fn count(&self) -> usize {
        self.sections.values().map(BTreeMap::len).sum()
    }
}
