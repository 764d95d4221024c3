//! `keyspace`: creates, lists, shows, changes and deletes keyspaces, the stores that etcd's clients use.

#[cfg(test)]
mod tests;
mod view;

use std::io::{self, IsTerminal as _, Write};

use clap::{Args, Subcommand};
use serde_json::json;
use shardkv_client::{Client, Error, Keyspace, KeyspaceOptions, Keyspaces};

use self::view::{write_list, write_one};
use crate::client_error::call_failure;
use crate::exit::{Exit, Failure};
use crate::global::GlobalArgs;
use crate::output::{Format, json_line};
use crate::parse::{byte_size, is_yes, keyspace_name};

const DIALLING: &str = "\
A client names its keyspace by the host name that it dials, or by the metadata `shardkv-keyspace`. Any node takes its calls:
  etcdctl --endpoints=orders:7400 put greeting hello      `orders` must resolve to nodes (DNS, /etc/hosts)
  grpcurl -plaintext -rpc-header 'shardkv-keyspace: orders' ...";

/// The commands on keyspaces.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyspaceCommand {
    /// Create a keyspace
    #[command(
        after_help = format!("Examples:\n  shardkv keyspace create orders\n  shardkv keyspace create orders --quota 500MB\n\n{DIALLING}\n\n\
        Exit code 7: there is a keyspace with this name.")
    )]
    Create {
        /// The name: 1 to 128 of a-z, 0-9 and `-`; names with a dot belong to the Kubernetes operator
        #[arg(value_parser = keyspace_name)]
        name: String,
        #[command(flatten)]
        options: OptionArgs,
    },
    /// List all keyspaces
    #[command(
        after_help = "Examples:\n  shardkv keyspace list\n  shardkv keyspace list --output json | jq -r 'select(.no_space).name'\n\n\
        BYTES counts keys, values and versions that are not compacted. JSON has one object a line."
    )]
    List,
    /// Show a keyspace: its options, revision, use of the quota, and place
    #[command(
        after_help = "Examples:\n  shardkv keyspace show orders\n\nExit code 3: there is no such keyspace."
    )]
    Show {
        /// The name
        name: String,
    },
    /// Change options of a keyspace; those that are not given stay
    #[command(
        after_help = "Examples:\n  shardkv keyspace set orders --quota 4GB\n\n\
        A quota below what the keyspace holds refuses puts until keys are deleted and compacted.\n\nExit code 3: there is no such keyspace."
    )]
    Set {
        /// The name
        name: String,
        #[command(flatten)]
        options: OptionArgs,
    },
    /// Delete a keyspace with all its keys, after a confirmation
    #[command(
        after_help = "Examples:\n  shardkv keyspace delete orders\n  shardkv keyspace delete orders --yes\n\n\
        Ends its watches and leases. The name is free at once; the data are removed in the background.\n\nExit code 3: there is no such keyspace."
    )]
    Delete {
        /// The name
        name: String,
        /// Delete without asking
        #[arg(long)]
        yes: bool,
    },
}

impl KeyspaceCommand {
    /// Returns true if the command changes nothing.
    pub(crate) fn only_asks(&self) -> bool {
        matches!(self, Self::List | Self::Show { .. })
    }
}

/// The options of a keyspace.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct OptionArgs {
    /// The most bytes of keys, values and versions that are not compacted; default: 2 GiB
    #[arg(long, value_name = "SIZE", value_parser = quota)]
    quota: Option<u64>,
}

/// Parses a quota, which isn't 0.
fn quota(text: &str) -> Result<u64, String> {
    match byte_size(text) {
        Ok(0) => Err("the quota must be above 0".to_owned()),
        parsed => parsed.map_err(|error| error.to_string()),
    }
}

impl OptionArgs {
    /// Returns `options` with those that the arguments change.
    fn apply(self, options: KeyspaceOptions) -> KeyspaceOptions {
        KeyspaceOptions {
            quota_bytes: self.quota.or(options.quota_bytes),
            ..options
        }
    }

    fn changes_nothing(self) -> bool {
        self.quota.is_none()
    }
}

/// Runs `command` and writes the result to `out`.
pub(crate) async fn run(
    command: &KeyspaceCommand,
    client: &Client,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    let (keyspaces, format) = (client.keyspaces(), global.output);
    match command {
        KeyspaceCommand::Create { name, options } => {
            let options = options.apply(KeyspaceOptions::default());
            let made = keyspaces.create(name, options).await;
            let made = made.map_err(|error| failure(&error, name))?;
            changed(&made, "created", format, out)
        }
        KeyspaceCommand::List => {
            let all = keyspaces.list().await?;
            write_list(&all, format, out)?;
            Ok(Exit::Ok)
        }
        KeyspaceCommand::Show { name } => {
            write_one(&get(&keyspaces, name).await?, format, out)?;
            Ok(Exit::Ok)
        }
        KeyspaceCommand::Set { options, .. } if options.changes_nothing() => Err(Failure::usage(
            "no option is given, so there is nothing to change",
            "give --quota",
        )),
        KeyspaceCommand::Set { name, options } => {
            let before = get(&keyspaces, name).await?;
            let options = options.apply(before.options);
            let set = keyspaces.set_options(&before, options).await;
            let set = set.map_err(|error| failure(&error, name))?;
            changed(&set, "changed", format, out)
        }
        KeyspaceCommand::Delete { name, yes } => {
            let found = get(&keyspaces, name).await?;
            if !yes {
                confirm(&found)?;
            }
            let deleted = keyspaces.delete(&found).await;
            deleted.map_err(|error| failure(&error, name))?;
            match format {
                Format::Json => json_line(out, &json!({"name": name, "deleted": true}))?,
                Format::Table | Format::Raw => writeln!(out, "ok: keyspace {name} deleted")?,
            }
            Ok(Exit::Ok)
        }
    }
}

/// Writes a keyspace that was created or changed.
fn changed(
    keyspace: &Keyspace,
    what: &str,
    format: Format,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    match format {
        Format::Json => write_one(keyspace, format, out)?,
        Format::Table | Format::Raw => writeln!(out, "ok: keyspace {} {what}", keyspace.name)?,
    }
    Ok(Exit::Ok)
}

async fn get(keyspaces: &Keyspaces, name: &str) -> Result<Keyspace, Failure> {
    let found = keyspaces.get(name).await;
    found.map_err(|error| failure(&error, name))
}

/// Converts an error of a call about a keyspace.
fn failure(error: &Error, name: &str) -> Failure {
    let failure = call_failure(error);
    match error {
        Error::NotFound { .. } => Failure::new(
            Exit::NotFound,
            format!("there is no keyspace {name}"),
            format!("`shardkv keyspace list` shows all; `shardkv keyspace create {name}` makes it"),
        ),
        Error::AlreadyExists { .. } => failure.with_next(format!(
            "`shardkv keyspace show {name}` shows it; choose another name for another keyspace"
        )),
        Error::BadRequest { .. } => {
            failure.with_next("correct the name or the option; see `shardkv help keyspace`")
        }
        Error::Conflict { .. } => {
            failure.with_next("delete keyspaces that are not needed, or choose another name")
        }
        _ if failure.exit() == Exit::OutcomeUnknown => failure.with_next(format!(
            "look with `shardkv keyspace show {name}`, and repeat the command if it is not done"
        )),
        _ => failure,
    }
}

/// Asks the person at the terminal.
fn confirm(keyspace: &Keyspace) -> Result<(), Failure> {
    let name = &keyspace.name;
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(
            format!(
                "keyspace {name} would be deleted with all its keys, and nobody is there to confirm it"
            ),
            format!("look with `shardkv keyspace show {name}`, then repeat the command with --yes"),
        ));
    }
    eprint!(
        "delete keyspace {name} with all its keys ({} at revision {})? [y/N] ",
        crate::output::size(keyspace.bytes),
        keyspace.revision
    );
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|error| {
        let next = "repeat the command with --yes";
        Failure::failed(format!("can't read the answer: {error}"), next)
    })?;
    if is_yes(&answer) {
        return Ok(());
    }
    Err(Failure::failed(
        "nothing was deleted",
        "repeat the command and answer y",
    ))
}
