//! The seeds that judge a mutant of a pure crate. `make mutants` runs them; `make sim` runs many more of the unchanged code.

use shardkv_sim::runner::{Plan, run_all};

#[test]
#[ignore = "takes seconds, and judges mutants only"]
fn two_hundred_worlds_violate_nothing() {
    let plan = Plan {
        seeds: 0..200,
        jobs: 2,
        bug: None,
        stop_early: true,
    };
    let summary = run_all(&plan, |_| {});
    assert!(summary.found.is_empty(), "{:?}", summary.found);
}
