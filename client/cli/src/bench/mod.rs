//! A load generator, and the measure of what the machine could do at best.
//!
//! # How load is made
//!
//! `--clients` tasks each do one operation after the other on a random key of `--key-space`; with `--rate` they start them
//! on a common schedule instead, and latency counts from the scheduled start, so that a pause of the cluster is
//! not hidden by a generator that politely waits. All tasks share the client library's connections, as the tasks of
//! an application would. After `--warmup`, which is not counted, the run lasts `--duration` or `--count`.
//!
//! # Shards that move
//!
//! `bench moves` moves shards of chosen sizes by itself, and measures their write gaps and the effect on the others ([`moves`]).
//! With `--moves` any other load reports the same of the shards that the user moves meanwhile ([`move_watch`]).
//!
//! # The history file
//!
//! With `--record FILE` every operation (those of the warm-up too) is written as one line of JSON, for a checker of
//! linearizability:
//!
//! ```json
//! {"client":1,"op":"put","key":"bench/7","value":"1.0.3;xx","call":123,"return":456,"outcome":"ok","result":null}
//! ```
//!
//! | field | meaning |
//! |---|---|
//! | `client` | a number whose operations never overlap. After an unknown outcome a task goes on as a new client, since the old operation may still take effect |
//! | `op` | `put`, `get`, `append`, `delete`, `cas` |
//! | `key` | text |
//! | `value` | text: of `put` the new value, of `append` the suffix, of `cas` the new value; null for `get` and `delete` |
//! | `expected` | only of `cas`: text, or null for "no such key" |
//! | `call` | the machine's monotonic clock in nanoseconds just before the call; comparable between processes of one boot |
//! | `return` | the same just after it; null if the outcome is unknown |
//! | `outcome` | `ok`; `failed`: certainly not applied; `unknown`: applied once, at any time after `call`, or never |
//! | `result` | of `get` the value or null for "no such key", of `append` the length in bytes afterwards, of `delete` whether the key existed, of `cas` whether it swapped; else null |
//!
//! Values of a recorded run are unique, and stay so among runs with different `--seed`s; client numbers are unique in one
//! file only. The lines are in the order of the returns. The file is complete when the program has ended, also after Ctrl-C
//! or SIGTERM, which wait for what is in flight.

mod echo;
mod history;
mod latencies;
mod limits;
mod load;
mod move_watch;
mod moves;
mod operation;
mod report;

use clap::{Args, Subcommand};

use crate::exit::{Exit, Failure};
use crate::global::GlobalArgs;

/// The arguments of `bench`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  shardkv bench --clients 64 --duration 10s\n  shardkv bench --mode unary --clients 256 --read-ratio 1 --preload --output json\n  \
    shardkv bench --rate 500 --duration 1m\n  shardkv bench --clients 8 --key-space 5 --writes put,append,delete,cas --record history.jsonl\n  \
    shardkv bench --duration 30s --moves        while `shardkv config join` or `leave` runs\n  \
    shardkv bench moves --size 1MB,100MB,1GB\n  \
    shardkv bench limits --dir /var/lib/shardkv"
)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    command: Option<BenchCommand>,
    #[command(flatten)]
    load: load::LoadArgs,
    /// Number of threads that generate load; 0: one on up to 3 cores, else a third of the cores, at most 8
    #[arg(long, global = true, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=256))]
    threads: u16,
}

impl BenchArgs {
    /// Number of threads that generate load. Nodes on the same machine need the other cores.
    pub(crate) fn threads(&self) -> usize {
        if self.threads > 0 {
            return self.threads.into();
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (cores / 3).clamp(1, 8)
    }
}

/// The measurements other than load.
#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Measure the limits of this machine: fsync of its disk, and a gRPC echo on loopback
    #[command(
        after_help = "Examples:\n  shardkv bench limits\n  shardkv bench limits --dir /var/lib/shardkv --clients 64 --output json"
    )]
    Limits(limits::LimitsArgs),
    /// Move shards of chosen sizes under load, and measure their write gaps and the effect on other shards
    #[command(
        after_help = "Examples:\n  shardkv bench moves\n  shardkv bench moves --size 1MB,100MB,1GB --output json\n  \
        shardkv bench moves --size 10MB --rate 1000 --other-rate 2000 --duration 10s\n\n\
        It needs a cluster of at least two groups, and disk space for three times the size. For each size it fills a shard and\n\
        moves it between two groups under two loads: `closed` (other shards are written as fast as --clients writers can) and\n\
        `open` (other shards are written at a fixed rate, by default half of that). At the end it deletes its keys and moves the\n\
        shard back.\n\n\
        How to read the report:\n  \
        WRITE GAP           the longest time without an acknowledged write of the moving shard that overlaps a move. Compare it\n                      \
        with GAP BEFORE, which is chance: --rate 200 makes gaps of at least 5 ms\n  \
        WRITE P99           the 99th percentile of writes of the moving shard, from the request to move until all is settled\n  \
        ARRIVED             the time until the new owner serves the shard (median of the moves)\n  \
        SETTLED             the time until the former owner has deleted the shard\n  \
        OTHERS' THROUGHPUT  during the moves, as a share of the baseline. Only the closed load shows it\n  \
        OTHERS' P99         during the moves. Compare it with P99 BEFORE, in the open load\n\n\
        Latency counts from a write's scheduled time, so a pause can't hide. Nodes on this machine share it with the load: then\n\
        compare only figures of one run."
    )]
    Moves(moves::MovesArgs),
}

/// Measures, and writes the result to standard output.
pub(crate) async fn run(args: &BenchArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    match &args.command {
        Some(BenchCommand::Limits(args)) => limits::run(args, global.output).await,
        Some(BenchCommand::Moves(args)) => moves::run(args, global).await,
        None => load::run(&args.load, global).await,
    }
}
