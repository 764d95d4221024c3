//! The scenarios of MIT 6.5840, labs 3A to 5, under their own names, in simulated time.
//!
//! Each test is deterministic, and all of the simulator's invariants are checked at every step. MIT's testers check a
//! few commands; here every entry on every disk is checked. Limits are the public ones or stricter.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "helpers of tests may fail a test"
)]

mod cluster;
mod forget;
mod kvraft_4b_4c;
mod no_majority;
mod persistence_3c;
mod raft_3a;
mod raft_3b;
mod rsm_4a;
mod shardctrler_4a;
mod shardkv_4b;
mod shards;
mod shards_5;
mod snapshot_3d;
