//! End to end: the operator and real stores on a real Kubernetes of three machines, with nothing faked.
//!
//! `make e2e` runs these; see `run.sh` for what they need. Each [scenario](scenario::scenario) gets a namespace of its own, which
//! admits only pods of the profile `restricted`, and shares the operator, which Helm installs once. Two scenarios run side by side
//! unless one says that it wants to be [alone](scenario::Company::Alone): those that take a machine or the operator away from all others.
//! When one fails, logs, events and objects of its namespaces are in `target/e2e/<scenario>/`.
//!
//! What stands for users is what users have: `kubectl`, `helm`, and pods that run `shardkv`. A [`Load`](load::Load) is such a pod; it
//! records what it called and was answered, and porcupine judges whether that was linearizable and no write was lost.
//!
//! Nothing sleeps for a guess: every wait is for a condition, with a bound that only a bug reaches.

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

mod failures;
mod idle;
mod installs;
mod losses;
mod neighbours;
mod scaling;
