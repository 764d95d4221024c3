//! Merges flags, environment and file, and reads values by type. Errors name the origin of the value.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::file::Setting;
use super::table::{ROWS, find};

/// The origin of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The command line.
    Flag,
    /// An environment variable.
    Environment,
    /// The options file: its path and the line.
    File(String, Option<usize>),
    /// The value was not given anywhere.
    Default,
}

/// A value as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) text: String,
    pub(crate) origin: Origin,
}

/// A value that is not valid, or a missing one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct OptionError {
    /// The flag, the variable, or the file with its line.
    pub place: String,
    /// The reason, and a valid value.
    pub reason: String,
}

/// Builds the command line's grammar from the table.
pub(crate) fn command() -> Command {
    let mut command = Command::new("shardkv-node")
        .version(env!("CARGO_PKG_VERSION"))
        .about("One node of ShardKV, a sharded, linearizable key-value store")
        .long_about(
            "One node of ShardKV, a sharded, linearizable key-value store.\n\n\
             An option is taken from the command line, else from the environment, else from the file \
             that --config names, else from its default.",
        )
        .arg(
            Arg::new("config")
                .long("config")
                .env("SHARDKV_CONFIG")
                .hide_env_values(true)
                .value_name("PATH")
                .help("A YAML file of `option_name: value` lines; the names are as below, with _ instead of -"),
        )
        .arg(
            Arg::new("print_options")
                .long("print-options")
                .action(ArgAction::SetTrue)
                .help("Print the options in force and the origin of each, then exit"),
        );
    for row in ROWS {
        let mut help = row.help.to_owned();
        if !row.default.is_empty() {
            // Writing to a string can't fail.
            let _ = write!(help, " [default: {}]", row.default);
        }
        let mut arg = Arg::new(row.key)
            .long(row.flag())
            .env(row.variable())
            .hide_env_values(true)
            .value_name(row.unit)
            .help_heading(row.heading)
            .help(help);
        if row.unit == "BOOL" {
            arg = arg.num_args(0..=1).default_missing_value("true");
        }
        command = command.arg(arg);
    }
    command
}

/// All given values. Flags win over the environment, which wins over the file.
pub(crate) struct Values {
    given: BTreeMap<&'static str, Given>,
    read: BTreeMap<&'static str, (String, Origin)>,
}

impl Values {
    /// Takes the settings of a file.
    pub(crate) fn new(path: &str, settings: Vec<Setting>) -> Self {
        let mut given = BTreeMap::new();
        for Setting { key, value, line } in settings {
            let origin = Origin::File(path.to_owned(), line);
            given.insert(
                key,
                Given {
                    text: value,
                    origin,
                },
            );
        }
        Self {
            given,
            read: BTreeMap::new(),
        }
    }

    /// Adds the command line, with the environment, which its parser has read. Both win over the file.
    pub(crate) fn add_matches(&mut self, matches: &ArgMatches) {
        for row in ROWS {
            let origin = match matches.value_source(row.key) {
                Some(ValueSource::CommandLine) => Origin::Flag,
                Some(ValueSource::EnvVariable) => Origin::Environment,
                _ => continue,
            };
            if let Some(text) = matches.get_one::<String>(row.key) {
                let text = text.clone();
                self.given.insert(row.key, Given { text, origin });
            }
        }
    }

    /// Adds environment variables. They win over the file; variables of other programs are ignored.
    pub(crate) fn add_environment<'a>(
        &mut self,
        variables: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) {
        for (name, text) in variables {
            if let Some(row) = ROWS.iter().find(|row| row.variable() == name) {
                let (text, origin) = (text.to_owned(), Origin::Environment);
                self.given.insert(row.key, Given { text, origin });
            }
        }
    }

    /// Returns the text given for `key`, if any, and remembers the value in force for [`Values::report`].
    pub(crate) fn text(&mut self, key: &'static str) -> Option<String> {
        let given = self.given.get(key).cloned();
        let shown = match &given {
            Some(given) => (given.text.clone(), given.origin.clone()),
            None => (
                find(key).map_or(String::new(), |row| row.default.to_owned()),
                Origin::Default,
            ),
        };
        self.read.insert(key, shown);
        given.map(|given| given.text)
    }

    /// Returns the text given for `key`, or the table's default.
    pub(crate) fn text_or_default(&mut self, key: &'static str) -> String {
        self.text(key)
            .unwrap_or_else(|| find(key).map_or(String::new(), |row| row.default.to_owned()))
    }

    /// Reads a whole number in a range, or the table's default.
    pub(crate) fn number<N>(
        &mut self,
        key: &'static str,
        least: N,
        most: N,
    ) -> Result<N, OptionError>
    where
        N: FromStr + PartialOrd + fmt::Display + Copy,
    {
        let text = self.text_or_default(key);
        match text.trim().parse::<N>() {
            Ok(number) if number >= least && number <= most => Ok(number),
            _ => Err(self.error(
                key,
                format!("`{text}` is not a whole number from {least} to {most}"),
            )),
        }
    }

    /// Reads a whole number in a range, if one was given.
    pub(crate) fn optional_number<N>(
        &mut self,
        key: &'static str,
        least: N,
        most: N,
    ) -> Result<Option<N>, OptionError>
    where
        N: FromStr + PartialOrd + fmt::Display + Copy,
    {
        if self.text(key).is_none() {
            return Ok(None);
        }
        self.number(key, least, most).map(Some)
    }

    /// Reads `true` or `false`.
    pub(crate) fn flag(&mut self, key: &'static str) -> Result<bool, OptionError> {
        let text = self.text_or_default(key);
        text.trim()
            .parse()
            .map_err(|_| self.error(key, format!("`{text}` is neither true nor false")))
    }

    /// Returns an error about `key` that names the origin of its value.
    pub(crate) fn error(&self, key: &str, reason: impl fmt::Display) -> OptionError {
        let row = find(key);
        let flag = row.map_or_else(|| key.to_owned(), |row| format!("--{}", row.flag()));
        let place = match self.given.get(key).map(|given| &given.origin) {
            None | Some(Origin::Flag | Origin::Default) => flag,
            Some(Origin::Environment) => {
                row.map_or_else(|| key.to_owned(), super::table::Row::variable)
            }
            Some(Origin::File(path, Some(line))) => format!("{path} line {line}: {key}"),
            Some(Origin::File(path, None)) => format!("{path}: {key}"),
        };
        OptionError {
            place,
            reason: reason.to_string(),
        }
    }

    /// Returns every option that was read, as a YAML file that gives the same options, with origins as comments.
    pub(crate) fn report(&self) -> String {
        let mut out = String::new();
        for row in ROWS {
            let Some((text, origin)) = self.read.get(row.key) else {
                continue;
            };
            let origin = match origin {
                Origin::Flag => "flag".to_owned(),
                Origin::Environment => row.variable(),
                Origin::File(path, Some(line)) => format!("{path} line {line}"),
                Origin::File(path, None) => path.clone(),
                Origin::Default => "default".to_owned(),
            };
            // A value that stands for "not given" is written as a comment, so that the output is a valid file.
            let worded = text.contains(' ') || text == "none" || text.is_empty();
            let silent = worded || row.is_fixed_at_creation();
            let mark = if silent && origin == "default" {
                "# "
            } else {
                ""
            };
            let _ = writeln!(out, "{mark}{}: {text} # {origin}", row.key);
        }
        out
    }
}
