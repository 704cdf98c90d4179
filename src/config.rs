//! `shardlane.toml`, variables, and `shardlane config`: what flags would say otherwise.
//!
//! A flag goes before the environment, the environment before the file, the file before the defaults. There is no second list
//! of settings: a section is a subcommand, a setting one of its flags, and what the file says is given to the subcommand's own
//! parser. `docs/settings/shardlane.toml` is what `shardlane config show --documented` prints.

mod file;
mod show;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, CommandFactory, FromArgMatches, Subcommand};

use self::file::{File, Place, Said};
use crate::Cli;

/// Flags that are no settings: what is meant for one time must not lie in a file.
const NO_SETTINGS: [&str; 13] = [
    "config", "help", "version", "json", "abort", "fix", "again", "dry-run", "diff", "add",
    "remove", "move", "to",
];
/// Subcommands that have none.
const NO_SECTIONS: [&str; 8] = [
    "config",
    "doctor",
    "help",
    "down",
    "status",
    "check",
    "experiment",
    "health",
];

/// Show what a command would work with and where each value comes from, or check a settings file
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Look for what is unknown or wrong in the settings file that --config names; exits with 2 if something is
    Check,
    /// Print settings as a settings file, each with where its value comes from; passwords are left out
    Show {
        /// Only these sections, such as worker or topics.create
        sections: Vec<String>,
        /// All settings with their defaults and what they are, whatever is set: the manual
        #[arg(long)]
        documented: bool,
    },
}

impl ConfigArgs {
    pub(crate) fn run(self, path: Option<PathBuf>) -> anyhow::Result<ExitCode> {
        let command = built();
        let file = path.map(|path| File::read(path, &command)).transpose()?;
        match self.action {
            Action::Check => {
                let Some(file) = file else {
                    anyhow::bail!(
                        "no settings file is named; give --config FILE or set SHARDLANE_CONFIG"
                    );
                };
                file.check(&command)?;
                println!(
                    "{}: {} settings, all of them known and sound",
                    file.path(),
                    file.count()
                );
            }
            Action::Show {
                documented: true, ..
            } => print!("{}", show::documented(&command)),
            Action::Show { sections, .. } => {
                let file = file.unwrap_or_default();
                print!("{}", show::effective(&command, &file, &sections)?);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The command line with what the settings file says.
///
/// # Errors
/// The exit code; what is wrong has been said.
pub(crate) fn parse() -> Result<Cli, ExitCode> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let parsed = with_file(arguments).and_then(|matches| Ok(Cli::from_arg_matches(&matches)?));
    parsed.map_err(|error| match error.downcast::<clap::Error>() {
        Ok(error) => {
            // A closed terminal is no reason to say more.
            error.print().ok();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    })
}

fn built() -> Command {
    let mut command = Cli::command();
    command.build();
    command
}

fn with_file(mut arguments: Vec<OsString>) -> anyhow::Result<ArgMatches> {
    // What was given, without what the file may add.
    let given = Cli::command()
        .ignore_errors(true)
        .try_get_matches_from(&arguments);
    let path = given
        .as_ref()
        .ok()
        .and_then(|given| given.get_one::<PathBuf>("config").cloned());
    let Ok(given) = given else {
        return Ok(Cli::command().try_get_matches_from(arguments)?);
    };
    let command = built();
    let (section, leaf, given) = leaf_of(&command, &given);
    if NO_SECTIONS
        .iter()
        .any(|none| section.split('.').next() == Some(*none))
    {
        return Ok(Cli::command().try_get_matches_from(arguments)?);
    }
    let file = path.map(|path| File::read(path, &command)).transpose()?;
    let file = file.unwrap_or_default();
    let added: Vec<Said> = file
        .of(&section, leaf)
        .into_iter()
        .filter(|said| !is_overruled(leaf, given, &said.flag))
        .collect();
    // Before a `--`, behind which nothing is a flag.
    let end = arguments
        .iter()
        .position(|it| it == "--")
        .unwrap_or(arguments.len());
    let flags = added.iter().flat_map(Said::arguments).map(OsString::from);
    arguments.splice(end..end, flags);
    Cli::command()
        .try_get_matches_from(arguments)
        .map_err(|error| explain(error, &file, &section, &added))
}

/// The subcommand that was asked for, by its section's name.
fn leaf_of<'a>(
    command: &'a Command,
    matches: &'a ArgMatches,
) -> (String, &'a Command, &'a ArgMatches) {
    let (mut path, mut leaf, mut given) = (Vec::new(), command, matches);
    while let Some((name, inner)) = given.subcommand() {
        let Some(next) = leaf.find_subcommand(name) else {
            break;
        };
        path.push(name);
        (leaf, given) = (next, inner);
    }
    (path.join("."), leaf, given)
}

/// Whether a flag or the environment says something else, or something that contradicts it.
fn is_overruled(leaf: &Command, given: &ArgMatches, flag: &str) -> bool {
    let is_given = |arg: &Arg| {
        let source = given.value_source(arg.get_id().as_str());
        source.is_some_and(|source| source != ValueSource::DefaultValue)
    };
    let Some(own) = settings(leaf).find(|arg| arg.get_long() == Some(flag)) else {
        return false;
    };
    let contradicts = |other: &Arg| {
        leaf.get_arg_conflicts_with(own)
            .iter()
            .any(|it| it.get_id() == other.get_id())
            || leaf
                .get_arg_conflicts_with(other)
                .iter()
                .any(|it| it.get_id() == own.get_id())
    };
    is_given(own) || settings(leaf).any(|other| is_given(other) && contradicts(other))
}

/// The flags of a subcommand that may stand in the file.
fn settings(leaf: &Command) -> impl Iterator<Item = &Arg> {
    leaf.get_arguments().filter(|arg| {
        arg.get_long()
            .is_some_and(|flag| !NO_SETTINGS.contains(&flag))
    })
}

/// What a flag is called in the file.
fn key_of(flag: &str) -> String {
    flag.replace('-', "_")
}

/// The parser does not know that a value stands in a file.
fn explain(error: clap::Error, file: &File, section: &str, added: &[Said]) -> anyhow::Error {
    let named = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => argument.clone(),
        _ => return error.into(),
    };
    let flag = named
        .trim_start_matches('-')
        .split([' ', '='])
        .next()
        .unwrap_or_default();
    let Some(said) = added.iter().find(|said| said.flag == flag) else {
        return error.into();
    };
    let reason = std::error::Error::source(&error).map_or_else(
        || {
            error
                .to_string()
                .lines()
                .next()
                .unwrap_or_default()
                .replacen("error: ", "", 1)
        },
        ToString::to_string,
    );
    let place = match &said.place {
        Place::Section(section) => format!("{} sets {} in [{section}]", file.path(), key_of(flag)),
        Place::Variable(name) => format!("{name} sets {}", key_of(flag)),
    };
    anyhow::anyhow!(
        "{place} to what {section} does not take: {reason}; change it there, or overrule it with --{flag}",
    )
}
