//! End-to-end tests: the operator and real stores on a real Kubernetes of three machines, without fakes.
//!
//! `make e2e` runs these tests; `run.sh` lists the requirements. Each [scenario](scenario::scenario) gets its own namespace, which
//! admits only pods of the profile `restricted`. All scenarios share the operator, which Helm installs once. Two scenarios run side
//! by side, unless one must run [alone](scenario::Company::Alone) because it stops a machine or the operator. When a scenario
//! fails, logs, events and objects of its namespaces are in `target/e2e/<scenario>/`.
//!
//! The tests use the tools of users: `kubectl`, `helm`, and pods that run `shardkv`. A [`Load`](load::Load) is such a pod; it
//! records its calls and their results, and porcupine checks that the history is linearizable and no write was lost.
//!
//! No test sleeps for a guessed time: every wait is for a condition, with a time limit that only a bug reaches.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test's helpers fail the test"
)]

mod cluster;
mod dump;
mod load;
mod machines;
mod operator;
mod scenario;
mod space;
mod surroundings;
mod tools;

mod backup;
mod failures;
mod idle;
mod installs;
mod isolation;
mod losses;
mod scaling;
