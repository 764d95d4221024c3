//! Tests of the consensus core: golden scripts, the claims of the papers, and seeded random faults.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that can't go on should stop loudly"
)]

mod backlog;
mod cluster;
mod follower_reads;
mod oracle;
mod paper;
mod random;
mod script;
mod show;
mod store;
mod thesis;
