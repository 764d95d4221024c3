//! Tests with real processes: several `shardkv-node` on loopback, each with its own data directory, driven
//! by the client library and hurt from outside.
//!
//! A [`Cluster`](cluster::Cluster) starts the nodes and knows their addresses; a [`Node`](node::Node) is one
//! process, which dies with its handle; a [`Load`](load::Load) writes and reads while a test does harm, and
//! records what was called and answered; [`History::check`](history::History::check) has an independent
//! checker (porcupine, built by `make checker`) decide whether what the clients saw was linearizable.
//!
//! Nothing here sleeps for a guess: every wait is for a condition, with a deadline that only a bug reaches.
//! Everything is on loopback, and each cluster has an address of its own there (`127.x.y.z`), so that no port
//! can be taken by somebody else between its choice and its use.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test's helpers fail the test"
)]

mod cluster;
mod history;
mod load;
mod node;
mod proxy;
mod wait;
mod world;

mod bad_input;
mod borders;
mod bounds;
mod disks;
mod faults;
mod lifecycle;
mod names;
mod pods;
mod shards;
mod storm;
