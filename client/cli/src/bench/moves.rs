//! Moves shards of chosen sizes under load, and measures the effect: `bench moves`.
//!
//! # Course
//!
//! For each size, a shard is filled: its keys share a `{tag}`, so all of them are in this shard. Then two loads run, one after
//! the other. Under each load there is a *baseline* without moves. Then the shard is moved to another group, back, and so on,
//! until the moves have taken as long as the baseline. So a small shard, whose move takes less than a second, is moved several
//! times, and a large one once. At the end the keys are deleted, and the shard is moved back to its first owner.
//!
//! | load | writes to the moving shard | writes to all other shards |
//! |---|---|---|
//! | `closed` | on a schedule | by `--clients` writers, each as fast as it gets answers: the full load, and the throughput |
//! | `open` | on a schedule | on a schedule: half of the baseline throughput of the first closed load, or `--other-rate` |
//!
//! A scheduled write is made at its time, whether or not earlier ones were answered, and its latency counts from that time.
//! Otherwise a pause would delay the writes that should have measured it.
//!
//! # Bounds
//!
//! Latencies are kept in histograms, and at most [`load::WRITERS`] scheduled writes are in flight. When all of them wait, later
//! writes start late, and their latency still counts from their scheduled time.

mod cluster;
mod load;
mod record;
mod report;

use std::io;
use std::time::Duration;

use clap::Args;
use shardkv_client::Client;
use tokio::time::{Instant, sleep};

use self::cluster::{Chosen, Fill, Moved};
use self::load::{Load, Pace};
use self::report::{Measured, Report};
use super::load::interrupted;
use super::operation::Shape;
use crate::exit::{Exit, Failure};
use crate::global::GlobalArgs;
use crate::output::{grouped, size};
use crate::parse::{byte_size, duration};

/// The pause between two moves, and after the last: writes that waited for the move are answered meanwhile.
const BETWEEN_MOVES: Duration = Duration::from_millis(500);

/// The arguments of `bench moves`.
#[derive(Debug, Args)]
pub(super) struct MovesArgs {
    /// The sizes of a shard to move, one after the other: bytes, or with kB, MB or GB
    #[arg(long, value_name = "SIZE,...", value_delimiter = ',', value_parser = byte_size, default_value = "1MB,100MB")]
    size: Vec<u64>,
    /// The size of a value of the moving shard, in bytes; other shards get values of at most 256 bytes
    #[arg(long, value_name = "BYTES", default_value_t = 4_096, value_parser = clap::value_parser!(u32).range(1..=(1 << 20)))]
    value_bytes: u32,
    /// Writes a second to the shard that moves
    #[arg(long, value_name = "PER_SECOND", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Writes a second to all other shards together, in the open load; default: half of what the closed load reached
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    other_rate: Option<u32>,
    /// Number of concurrent writes to other shards, in the closed load
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Duration of each baseline; moves are repeated until they have taken as long
    #[arg(long, value_parser = duration, default_value = "5s")]
    duration: Duration,
    /// The most moves under one load
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    max_moves: u32,
    /// Time limit of one move
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10m")]
    patience: Duration,
}

/// Measures each size and writes the report.
pub(super) async fn run(args: &MovesArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let client = global.client()?;
    let mut report = Report {
        value_bytes: args.value_bytes,
        rate: args.rate,
        other_rate: args.other_rate,
        clients: args.clients,
        moves: Vec::new(),
    };
    for (number, bytes) in (0..).zip(&args.size) {
        let config = client.controller().query(None).await?.config;
        let chosen = Chosen::of(&config, number)?;
        let value_bytes = args.value_bytes as usize;
        let noise = Shape::noise(value_bytes, *bytes);
        let fill = Fill::new(&chosen, *bytes, noise.slice(..value_bytes));
        say(&format!(
            "{}: filling shard {} of {} with {} keys",
            size(fill.bytes()),
            chosen.shard.0,
            chosen.from,
            grouped(fill.keys)
        ));
        let measured = tokio::select! {
            measured = measure(args, &client, &chosen, &fill, &mut report) => measured,
            () = interrupted() => Err(Failure::failed(
                "interrupted before all sizes were measured; the report has the loads that were",
                "repeat the command with fewer sizes (--size), or fewer moves (--max-moves)",
            )),
        };
        say("deleting the keys, and moving the shard back");
        let cleared = tokio::select! {
            cleared = cluster::restore(&client, &chosen, &fill, args.patience) => cleared,
            () = interrupted() => Ok(()),
        };
        if let Err(failure) = measured.and(cleared) {
            // The loads that were measured took minutes: they are reported nevertheless.
            if !report.moves.is_empty() {
                report.write(global.output, &mut io::stdout().lock())?;
            }
            return Err(failure);
        }
    }
    report.write(global.output, &mut io::stdout().lock())?;
    Ok(Exit::Ok)
}

/// Reports a step on standard error: the results alone go to standard output.
fn say(step: &str) {
    eprintln!("{step}");
}

/// Fills the shard and measures both loads.
async fn measure(
    args: &MovesArgs,
    client: &Client,
    chosen: &Chosen,
    fill: &Fill,
    report: &mut Report,
) -> Result<(), Failure> {
    fill.put(client, chosen).await?;
    let clients = Pace::Closed(args.clients);
    let closed = under_load(args, client, chosen, fill, clients).await?;
    let reached = closed.others_before.per_second;
    report.moves.push(closed);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate between 1 and a million"
    )]
    let half = (reached / 2.0).clamp(1.0, 1e6) as u32;
    let rate = *report.other_rate.get_or_insert(half);
    let open = under_load(args, client, chosen, fill, Pace::Open(rate)).await?;
    report.moves.push(open);
    Ok(())
}

/// Measures one load: the baseline, then the moves.
async fn under_load(
    args: &MovesArgs,
    client: &Client,
    chosen: &Chosen,
    fill: &Fill,
    pace: Pace,
) -> Result<Measured, Failure> {
    let name = pace.name();
    say(&format!("{name} load: baseline of {:?}", args.duration));
    let load = Load::start(client, chosen, fill, args.rate, pace);
    sleep(args.duration).await;
    load.record.end_baseline(Instant::now());
    let mut done: Vec<Moved> = Vec::new();
    let mut taken = Duration::ZERO;
    while done.is_empty() || (taken < args.duration && done.len() < args.max_moves as usize) {
        let [from, to] = match done.len() % 2 {
            0 => [chosen.from, chosen.to],
            _ => [chosen.to, chosen.from],
        };
        let number = done.len() + 1;
        say(&format!("{name} load: move {number}, from {from} to {to}"));
        load.record.begin_move(Instant::now());
        let moved = cluster::move_to(client, chosen.shard, to, args.patience).await?;
        load.record.end_move(Instant::now());
        sleep(BETWEEN_MOVES).await;
        taken += moved.settled;
        done.push(moved);
    }
    if done.len() % 2 == 1 {
        // The next load begins at the first owner again. This move is not measured.
        cluster::move_to(client, chosen.shard, chosen.from, args.patience).await?;
    }
    let figures = load.finish().await;
    Ok(Measured::new(fill, chosen, name, &done, figures))
}
