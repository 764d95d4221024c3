//! `shardkv-sim`: runs seeds, replays one seed, and checks that known bugs are found.

use std::io::Write as _;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::{Parser, Subcommand};
use shardkv_sim::bug::Bug;
use shardkv_sim::runner::{Found, Plan, Summary, run_all, run_seed};

/// Simulate whole clusters under faults, each from one seed.
#[derive(Debug, Parser)]
#[command(name = "shardkv-sim", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a range of seeds, and list those that violate an invariant.
    Run {
        /// The range of seeds; its end is excluded.
        #[arg(long, default_value = "0..1000", value_parser = parse_seeds)]
        seeds: Range<u64>,
        /// The number of threads [default: the number of cores].
        #[arg(long)]
        jobs: Option<usize>,
        /// A known bug to put back in every world.
        #[arg(long)]
        bug: Option<Bug>,
        /// Continue after the first failure.
        #[arg(long)]
        keep_going: bool,
    },
    /// Run one seed again, bit for bit.
    Replay {
        /// The seed.
        #[arg(long)]
        seed: u64,
        /// Print every event.
        #[arg(long)]
        trace: bool,
        /// A known bug to put back in the world.
        #[arg(long)]
        bug: Option<Bug>,
    },
    /// Put each known bug back, one at a time, and check that the simulator finds it.
    Bugs {
        /// The range of seeds for each bug; its end is excluded.
        #[arg(long, default_value = "0..300", value_parser = parse_seeds)]
        seeds: Range<u64>,
        /// The number of threads [default: the number of cores].
        #[arg(long)]
        jobs: Option<usize>,
        /// The only bug to put back.
        #[arg(long)]
        bug: Option<Bug>,
    },
}

/// A range of seeds that can't be run.
#[derive(Debug, thiserror::Error)]
enum SeedsError {
    #[error("{0:?} is not a range of seeds. Write START..END, such as 0..1000.")]
    Malformed(String),
    #[error("The range {0} is empty. Its start must be below its end.")]
    Empty(String),
}

fn parse_seeds(text: &str) -> Result<Range<u64>, SeedsError> {
    let number = |text: &str| text.parse::<u64>().ok();
    let ends = text.split_once("..");
    let ends = ends.and_then(|(start, end)| Some(number(start)?..number(end)?));
    let seeds = ends.ok_or_else(|| SeedsError::Malformed(text.to_owned()))?;
    if seeds.is_empty() {
        return Err(SeedsError::Empty(text.to_owned()));
    }
    Ok(seeds)
}

fn main() -> ExitCode {
    // The runner reports a panic inside a world as a failure with its seed, so the default message is noise.
    std::panic::set_hook(Box::new(|_| {}));
    match Arguments::parse().command {
        Command::Run {
            seeds,
            jobs,
            bug,
            keep_going,
        } => run(&Plan {
            seeds,
            jobs: jobs.unwrap_or_else(cores),
            bug,
            stop_early: !keep_going,
        }),
        Command::Replay { seed, trace, bug } => replay(seed, trace, bug),
        Command::Bugs { seeds, jobs, bug } => bugs(&seeds, jobs.unwrap_or_else(cores), bug),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn run(plan: &Plan) -> ExitCode {
    #[allow(
        clippy::disallowed_methods,
        reason = "the rate of worlds is measured in real time"
    )]
    let begun = Instant::now();
    let done = AtomicU64::new(0);
    let total = plan.seeds.end - plan.seeds.start;
    let summary = run_all(plan, |_| {
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(100) || done == total {
            let rate = rate(done, &begun);
            eprint!("\r{done} of {total} seeds, {rate} seeds/s ");
            let _ = std::io::stderr().flush();
        }
    });
    eprintln!();
    print_summary(&summary, plan.bug);
    println!(
        "{} worlds, {} failed, {} seeds/s",
        summary.worlds,
        summary.found.len(),
        rate(summary.worlds, &begun)
    );
    if summary.found.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn rate(done: u64, since: &Instant) -> u64 {
    let millis = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    done * 1_000 / millis.max(1)
}

fn print_summary(summary: &Summary, bug: Option<Bug>) {
    let bug = bug.map_or_else(String::new, |bug| format!(" --bug {bug}"));
    for (what, count) in &summary.counts {
        println!("{count:>12} {what}");
    }
    for found in &summary.found {
        let failure = &found.failure;
        println!(
            "\nseed {} violated \"{}\" after {} us: {}",
            found.seed, failure.violation.invariant, failure.at, failure.violation.detail
        );
        println!(
            "  cargo run --release -p shardkv-sim -- replay --trace --seed {}{bug}",
            found.seed
        );
    }
}

fn replay(seed: u64, trace: bool, bug: Option<Bug>) -> ExitCode {
    match run_seed(seed, bug, trace) {
        Ok(report) => {
            for (what, count) in &report.counts {
                println!("{count:>12} {what}");
            }
            println!(
                "seed {seed} violated no invariant; fingerprint {:016x}",
                report.fingerprint
            );
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!(
                "seed {seed} violated \"{}\" after {} us: {}",
                failure.violation.invariant, failure.at, failure.violation.detail
            );
            ExitCode::FAILURE
        }
    }
}

/// Describes the first violation other than of liveness, if the first of all is one of liveness.
fn describe_safety(summary: &Summary) -> String {
    let invariant = |found: &Found| found.failure.violation.invariant;
    let is_safety = |found: &&Found| invariant(found) != "liveness";
    match summary.found.iter().find(is_safety) {
        Some(first) if summary.found.first().is_some_and(|it| !is_safety(&it)) => {
            let of_safety = summary.found.iter().filter(is_safety).count();
            let (seed, what) = (first.seed, invariant(first));
            format!("; {of_safety} of them violate safety, first {seed}: {what}")
        }
        _ => String::new(),
    }
}

/// The factor of further seeds for a bug that the given range doesn't show. Some bugs need several rare faults in a
/// row.
const LONGER: u64 = 40;

fn bugs(seeds: &Range<u64>, jobs: usize, only: Option<Bug>) -> ExitCode {
    let mut missed = 0;
    for bug in Bug::all() {
        if only.is_some_and(|only| only != bug) {
            continue;
        }
        let plan = Plan {
            seeds: seeds.clone(),
            jobs,
            bug: Some(bug),
            stop_early: false,
        };
        let name = bug.to_string();
        let summary = run_all(&plan, |_| {});
        if let Some(first) = summary.found.first() {
            println!(
                "{name:<28} found in {} of {} seeds, first in {}: {}{}",
                summary.found.len(),
                summary.worlds,
                first.seed,
                first.failure.violation.invariant,
                describe_safety(&summary)
            );
            continue;
        }
        let end = seeds.end + (seeds.end - seeds.start) * LONGER;
        let longer = run_all(
            &Plan {
                seeds: seeds.end..end,
                stop_early: true,
                ..plan
            },
            |_| {},
        );
        if let Some(first) = longer.found.first() {
            println!(
                "{name:<28} found in none of {} seeds, but in {}: {}",
                summary.worlds, first.seed, first.failure.violation.invariant
            );
        } else {
            println!(
                "{name:<28} NOT FOUND in {} seeds",
                summary.worlds + longer.worlds
            );
            missed += 1;
        }
    }
    if missed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
