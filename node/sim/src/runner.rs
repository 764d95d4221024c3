//! Runs many worlds, one seed each, on several threads.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::bug::Bug;
use crate::report::{Failure, Report};
use crate::scenario::Scenario;
use crate::violation::Violation;
use crate::world::World;

/// A seed whose world violated an invariant.
#[derive(Clone, Debug)]
pub struct Found {
    /// The seed.
    pub seed: u64,
    /// The violation.
    pub failure: Failure,
}

/// The results of many seeds.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// The number of worlds that ran.
    pub worlds: u64,
    /// The sums of their reports' counts.
    pub counts: BTreeMap<&'static str, u64>,
    /// The failures, by seed.
    pub found: Vec<Found>,
}

/// The worlds to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seeds.
    pub seeds: Range<u64>,
    /// The number of threads.
    pub jobs: usize,
    /// The bug that is put back in all worlds.
    pub bug: Option<Bug>,
    /// True to stop at the first failure.
    pub stop_early: bool,
}

/// Runs one seed's world to its end.
pub fn run_seed(seed: u64, bug: Option<Bug>, tracing: bool) -> Result<Report, Failure> {
    let mut scenario = Scenario::draw(seed);
    if let Some(bug) = bug {
        scenario.put_back(bug);
    }
    if tracing {
        println!("{scenario:#?}");
    }
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::begin(scenario)?;
        world.set_tracing(tracing);
        world.run()
    }));
    caught.unwrap_or_else(|panic| {
        Err(Failure {
            at: 0,
            violation: Violation::new("nothing panics", message(panic.as_ref())),
        })
    })
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a message".to_owned())
}

/// Runs all seeds of a plan, and calls `progress` with each seed that finished.
pub fn run_all(plan: &Plan, progress: impl Fn(u64) + Sync) -> Summary {
    let next = AtomicU64::new(plan.seeds.start);
    let stop = AtomicBool::new(false);
    let summary = Mutex::new(Summary::default());
    thread::scope(|scope| {
        for _ in 0..plan.jobs.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= plan.seeds.end {
                        return;
                    }
                    let result = run_seed(seed, plan.bug, false);
                    let failed = result.is_err();
                    add(&summary, seed, result);
                    if failed && plan.stop_early {
                        stop.store(true, Ordering::Relaxed);
                    }
                    progress(seed);
                }
            });
        }
    });
    let mut summary = summary
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    summary.found.sort_by_key(|found| found.seed);
    summary
}

fn add(summary: &Mutex<Summary>, seed: u64, result: Result<Report, Failure>) {
    let mut summary = summary
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    summary.worlds += 1;
    match result {
        Ok(report) => {
            for (what, count) in report.counts {
                *summary.counts.entry(what).or_default() += count;
            }
        }
        Err(failure) => summary.found.push(Found { seed, failure }),
    }
}
