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
//! With `--moves` the load is told apart by what happens to its shards ([`moves`]): one only has to change the groups
//! meanwhile. `bench handoff` moves a shard of a chosen size by itself, and measures that ([`handoff`]).
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
mod handoff;
mod history;
mod limits;
mod load;
mod moves;
mod operation;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::args::GlobalArgs;
use crate::exit::{Exit, Failure};

/// What is measured.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  shardkv bench --clients 64 --duration 10s\n  shardkv bench --mode unary --clients 256 --read-ratio 1 --preload --output json\n  \
    shardkv bench --rate 500 --duration 1m\n  shardkv bench --clients 8 --key-space 5 --writes put,append,delete,cas --record history.jsonl\n  \
    shardkv bench --duration 30s --moves        while `shardkv config join` or `leave` runs\n  \
    shardkv bench handoff --sizes 1MB,100MB\n  \
    shardkv bench limits --dir /var/lib/shardkv"
)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    command: Option<BenchCommand>,
    #[command(flatten)]
    load: LoadArgs,
    /// How many threads make the load; 0 chooses: one on up to 3 cores, else a third of the cores, at most 8
    #[arg(long, global = true, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=256))]
    threads: u16,
}

impl BenchArgs {
    /// How many threads make the load. Nodes on the same machine need the other cores.
    pub(crate) fn threads(&self) -> usize {
        if self.threads > 0 {
            return self.threads.into();
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (cores / 3).clamp(1, 8)
    }
}

/// What is measured besides load.
#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Measure what bounds any such store here: fsync, and a gRPC echo on loopback
    #[command(
        after_help = "Examples:\n  shardkv bench limits\n  shardkv bench limits --dir /var/lib/shardkv --clients 64 --output json"
    )]
    Limits(limits::LimitsArgs),
    /// Move a shard under load, and measure how long it can't be written and what the others notice
    #[command(
        after_help = "Examples:\n  shardkv bench handoff\n  shardkv bench handoff --sizes 1MB,10MB,100MB --output json\n\n\
        It needs a cluster of at least two groups. The shard is filled for the purpose and cleared afterwards; it stays with\n\
        the group that it was moved to."
    )]
    Handoff(handoff::HandoffArgs),
}

/// The load.
#[derive(Clone, Debug, Args)]
struct LoadArgs {
    /// How many operations are made at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: u32,
    /// The size of a value, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=(64 << 20)))]
    value_bytes: u32,
    /// How many keys there are
    #[arg(long, value_name = "KEYS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    key_space: u64,
    /// What keys begin with
    #[arg(long, value_name = "TEXT", default_value = "bench/")]
    key_prefix: String,
    /// The share of reads, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, value_parser = share)]
    read_ratio: f64,
    /// Which writes there are, in equal shares
    #[arg(
        long,
        value_name = "OP,...",
        value_enum,
        value_delimiter = ',',
        default_value = "put"
    )]
    writes: Vec<operation::WriteKind>,
    /// How long to measure: 500ms, 10s, 2m
    #[arg(long, value_parser = duration, default_value = "10s", conflicts_with = "count")]
    duration: Duration,
    /// How many operations to measure, instead of a duration
    #[arg(long, value_name = "OPERATIONS", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// How long to run before measuring
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1s")]
    warmup: Duration,
    /// How calls travel: a gRPC call each, or many together on a stream
    #[arg(long, value_enum, default_value_t = Mode::Batch)]
    mode: Mode,
    /// Over how many batch streams, each on a connection of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,
    /// Start this many operations a second, whether or not earlier ones have ended
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rate: Option<u32>,
    /// Write every key once before anything else
    #[arg(long)]
    preload: bool,
    /// Equal seeds draw equal keys and operations
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write each operation to this file as a line of JSON, for a checker of linearizability
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Report what writes notice of shards that change their owner meanwhile: the pause of each, the effect on the others
    #[arg(long)]
    moves: bool,
    /// Give up after this many failed operations
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    max_errors: u64,
}

/// How calls travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// A gRPC call each
    Unary,
    /// Many calls together on a stream
    Batch,
}

/// Measures, and writes the result to standard output.
pub(crate) async fn run(args: &BenchArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    match &args.command {
        Some(BenchCommand::Limits(args)) => limits::run(args, global.output).await,
        Some(BenchCommand::Handoff(args)) => handoff::run(args, global).await,
        None => load::run(&args.load, global).await,
    }
}

/// A share between 0 and 1.
fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a share is a number from 0 to 1".to_owned()),
    }
}

/// A duration as a whole number with a unit: `ms`, `s`, `m` or `h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let advice = || "a duration is a whole number with ms, s, m or h, like 10s".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| advice())?;
    let millis = match text.strip_prefix(digits) {
        Some("ms") => 1,
        Some("s") => 1_000,
        Some("m") => 60_000,
        Some("h") => 3_600_000,
        _ => return Err(advice()),
    };
    let total = number
        .checked_mul(millis)
        .filter(|&millis| millis <= 86_400_000 * 30);
    total
        .map(Duration::from_millis)
        .ok_or_else(|| "that is more than 30 days".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, millis) in [
            ("0s", 0),
            ("250ms", 250),
            ("10s", 10_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in [
            "",
            "10",
            "s",
            "-1s",
            "1.5s",
            "1 s",
            "10sec",
            "99999999999999999999s",
            "10000h",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares_are_from_0_to_1() {
        assert_eq!(share("0.25"), Ok(0.25));
        for bad in ["-0.1", "1.1", "NaN", "half", ""] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }
}
