//! The command line: what can be asked, with help that teaches by examples.
//!
//! Only shapes stand here. Each command's module owns what it does; the verbs on keys ([`KvCommand`]) are
//! shared with the interactive shell, so that both speak one language.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use shardkv_client::Gid;

use crate::admin::parse_group_name;
use crate::bench::BenchArgs;
use crate::config::ConfigCommand;
use crate::encoding::Encoding;
use crate::exit::EXIT_CODES_HELP;
use crate::output::Format;
use crate::playground::PlaygroundArgs;
use crate::shards::ShardsArgs;
use crate::transfer::{ExportArgs, ImportArgs};

const EXAMPLES: &str = "\
Examples:
  shardkv playground                        start three replicas on this machine
  export SHARDKV_ENDPOINTS=127.0.0.1:7401   what the playground prints
  shardkv put greeting hello
  shardkv get greeting
  shardkv cas greeting --expect hello --set goodbye
  shardkv scan --prefix greet --output json
  shardkv import names.tsv && shardkv export > copy.jsonl
  shardkv bench --clients 64 --duration 10s --read-ratio 0.9
  shardkv playground --groups 2             controllers and two groups that share the shards
  shardkv shards --watch
  shardkv config leave 2 --wait
  shardkv shell";

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "shardkv",
    about = "The command line of ShardKV, a sharded, linearizable key-value store",
    version,
    after_help = format!("{EXAMPLES}\n\n{EXIT_CODES_HELP}"),
    subcommand_required = true,
    arg_required_else_help = true,
    propagate_version = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command understands.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArgs {
    /// Where nodes answer; any of them will do, the others are found from there
    #[arg(
        long,
        global = true,
        env = "SHARDKV_ENDPOINTS",
        hide_env_values = true,
        value_name = "HOST:PORT,...",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400"
    )]
    pub(crate) endpoints: Vec<String>,
    /// How long one request may take with all its retries, in milliseconds
    #[arg(
        long,
        global = true,
        value_name = "MS",
        default_value_t = 10_000,
        value_parser = clap::value_parser!(u64).range(1..=86_400_000)
    )]
    pub(crate) timeout_ms: u64,
    /// How results are written: for people, for programs, or as bytes
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// How keys and values are written in arguments, tables and JSON
    #[arg(long, global = true, value_enum, default_value_t = Encoding::Utf8)]
    pub(crate) encoding: Encoding,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Kv(KvCommand),
    #[command(flatten)]
    Admin(AdminCommand),
    /// Write the pairs of a file or of standard input, JSON Lines or TSV
    Import(ImportArgs),
    /// Read all pairs into a file or standard output, JSON Lines or TSV, shard by shard
    Export(ExportArgs),
    /// Type commands at a prompt, or pipe a script of them into it
    #[command(after_help = "Examples:\n  shardkv shell\n  echo 'put a 1' | shardkv shell")]
    Shell,
    /// Generate load and measure it
    Bench(BenchArgs),
    /// Run a whole cluster on this machine, or control one that runs
    Playground(PlaygroundArgs),
    /// Print a completion script for a shell
    #[command(
        after_help = "Examples:\n  source <(shardkv completion bash)\n  shardkv completion zsh > ~/.zfunc/_shardkv"
    )]
    Completion {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// The verbs on keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KvCommand {
    /// Read a key's value
    #[command(
        after_help = "Examples:\n  shardkv get greeting\n  shardkv get photo --output raw > photo.jpg\n\nExit code 3: the key does not exist."
    )]
    Get {
        /// The key
        key: OsString,
    },
    /// Set a key's value
    #[command(
        override_usage = "shardkv put <KEY> <VALUE|-|--file FILE>",
        after_help = "Examples:\n  shardkv put greeting hello\n  date | shardkv put now -\n  shardkv put photo --file photo.jpg\n  shardkv put --encoding hex 00ff 0102"
    )]
    Put {
        /// The key
        key: OsString,
        #[command(flatten)]
        value: ValueArgs,
    },
    /// Add to the end of a key's value; a missing key counts as empty
    #[command(
        override_usage = "shardkv append <KEY> <VALUE|-|--file FILE>",
        after_help = "Examples:\n  shardkv append log 'one more line'\n\nPrints the value's length in bytes afterwards."
    )]
    Append {
        /// The key
        key: OsString,
        #[command(flatten)]
        value: ValueArgs,
    },
    /// Remove a key
    #[command(
        visible_alias = "del",
        after_help = "Examples:\n  shardkv delete greeting\n\nExit code 3: the key did not exist."
    )]
    Delete {
        /// The key
        key: OsString,
    },
    /// Change a key only if its value is what you expect (compare and swap)
    #[command(
        override_usage = "shardkv cas <KEY> <--expect VALUE|--expect-file FILE|--expect-absent> <--set VALUE|--set-file FILE|--delete>",
        after_help = "Examples:\n  shardkv cas lock --expect-absent --set me      take it if nobody has\n  shardkv cas lock --expect me --delete          give it back\n  shardkv cas count --expect 1 --set 2\n\nExit code 4: the value was something else; nothing was changed."
    )]
    Cas(CasArgs),
    /// List pairs in key order
    #[command(
        after_help = "Examples:\n  shardkv scan --prefix user: --limit 20\n  shardkv scan a c --keys-only\n\nEach page is consistent; a long scan as a whole is not one cut in time."
    )]
    Scan(ScanArgs),
}

/// A value from the command line, from standard input, or from a file.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ValueArgs {
    /// The value; `-` reads it from standard input, byte by byte as it is
    #[arg(allow_negative_numbers = true)]
    pub(crate) value: Option<OsString>,
    /// Read the value from a file, byte by byte as it is
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

/// What `cas` compares and what it writes.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct CasArgs {
    /// The key
    pub(crate) key: OsString,
    #[command(flatten)]
    pub(crate) expected: ExpectedArgs,
    #[command(flatten)]
    pub(crate) new: NewArgs,
}

/// What the value must be.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ExpectedArgs {
    /// The value must be this
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    pub(crate) expect: Option<OsString>,
    /// The value must be the content of this file
    #[arg(long, value_name = "FILE")]
    pub(crate) expect_file: Option<PathBuf>,
    /// The key must not exist
    #[arg(long)]
    pub(crate) expect_absent: bool,
}

/// What the value becomes.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct NewArgs {
    /// The value becomes this; `-` reads it from standard input
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    pub(crate) set: Option<OsString>,
    /// The value becomes the content of this file
    #[arg(long, value_name = "FILE")]
    pub(crate) set_file: Option<PathBuf>,
    /// The key is removed
    #[arg(long)]
    pub(crate) delete: bool,
}

/// A range of keys.
#[derive(Clone, Debug, Args)]
pub(crate) struct RangeArgs {
    /// The first key, inclusive
    #[arg(conflicts_with = "prefix")]
    pub(crate) start: Option<OsString>,
    /// The end, exclusive
    #[arg(conflicts_with = "prefix")]
    pub(crate) end: Option<OsString>,
    /// All keys that begin so
    #[arg(long, short)]
    pub(crate) prefix: Option<OsString>,
}

/// What `scan` lists.
#[derive(Debug, Args)]
pub(crate) struct ScanArgs {
    #[command(flatten)]
    pub(crate) range: RangeArgs,
    /// The most pairs; 0 for all
    #[arg(long, short = 'n', default_value_t = 0)]
    pub(crate) limit: u64,
    /// Leave the values out
    #[arg(long, short)]
    pub(crate) keys_only: bool,
}

/// What is asked of nodes rather than of keys.
#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Show every node of every group: role, term, log, members, disk use, trouble
    #[command(
        after_help = "Examples:\n  shardkv status\n  shardkv status --output json | jq '.nodes[] | select(.role == \"leader\")'\n  shardkv status --here                   health check: of the node at --endpoints alone\n\nExit code 5: a group knows no leader, or no node answered."
    )]
    Status {
        /// Ask only the nodes that --endpoints names, and fail unless each answers and knows a leader: a health check
        #[arg(long)]
        here: bool,
    },
    /// Hand leadership to another member
    #[command(
        after_help = "Examples:\n  shardkv transfer-leader                 to the member whose log is furthest\n  shardkv transfer-leader n3f2a9c\n  shardkv transfer-leader 127.0.0.1:7402\n  shardkv transfer-leader --group g2       where there are several groups"
    )]
    TransferLeader {
        /// The member: its id as `status` shows it, or its address; default: the one whose log is furthest
        member: Option<String>,
        /// The group, as `status` shows it, if there are several and no member is named
        #[arg(long, short, value_parser = parse_group_name)]
        group: Option<Gid>,
    },
    /// Change a group's members, one at a time
    Member {
        #[command(subcommand)]
        change: MemberCommand,
        /// The group, as `status` shows it, if it can't be told from the member
        #[arg(long, short, global = true, value_parser = parse_group_name)]
        group: Option<Gid>,
    },
    /// Show which groups there are and which shards they own, and change it
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Show who owns which shard, what is on its way, and why it waits
    Shards(ShardsArgs),
}

impl AdminCommand {
    /// Whether it changes nothing.
    pub(crate) fn only_asks(&self) -> bool {
        match self {
            Self::Status { .. } | Self::Shards(_) => true,
            Self::Config { command } => command.only_asks(),
            Self::TransferLeader { .. } | Self::Member { .. } => false,
        }
    }
}

/// One step of a membership change.
#[derive(Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// Let a node receive the log without a vote
    #[command(
        after_help = "Examples:\n  shardkv member add-learner 127.0.0.1:7404\n  shardkv member add-learner 127.0.0.1:7404 --node n3f2a9c"
    )]
    AddLearner {
        /// Where the node is reached
        address: String,
        /// Its id; asked of the node itself when left out
        #[arg(long)]
        node: Option<String>,
    },
    /// Make a learner that has caught up a voter
    Promote {
        /// The member: its id as `status` shows it, or its address
        member: String,
    },
    /// Remove a member
    Remove {
        /// The member: its id as `status` shows it, or its address
        member: String,
    },
}
