//! The command line as a whole: the global options and all commands.
//!
//! Only this module and the crate's root know every command. Each command's module declares its own arguments.

use clap::{Parser, Subcommand};

use crate::admin::AdminCommand;
use crate::bench::BenchArgs;
use crate::exit::EXIT_CODES_HELP;
use crate::global::GlobalArgs;
use crate::kv::KvCommand;
use crate::playground::PlaygroundArgs;
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
  shardkv --endpoints db.example:7400 --ca ca.crt --cert me.crt --key me.key status   over TLS
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

/// All commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Kv(KvCommand),
    #[command(flatten)]
    Admin(AdminCommand),
    /// Write all pairs of a file (JSON Lines or TSV) to the cluster
    Import(ImportArgs),
    /// Write all pairs of the cluster to a file (JSON Lines or TSV), shard by shard
    Export(ExportArgs),
    /// Run commands interactively, or from a script on standard input
    #[command(after_help = "Examples:\n  shardkv shell\n  echo 'put a 1' | shardkv shell")]
    Shell,
    /// Generate load and measure throughput and latency
    Bench(BenchArgs),
    /// Run a whole cluster on this machine, or control a running one
    Playground(PlaygroundArgs),
    /// Print a completion script for a shell
    #[command(
        after_help = "Examples:\n  source <(shardkv completion bash)\n  shardkv completion zsh > ~/.zfunc/_shardkv"
    )]
    Completion {
        /// The shell to generate the script for
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}
