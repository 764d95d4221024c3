//! Tests with real processes: several `shardkv-node` on loopback, each with its own data directory, driven by the client
//! library while the tests inject faults.
//!
//! A [`Cluster`](cluster::Cluster) starts the nodes and knows their addresses; a [`Node`](node::Node) is one process, which
//! is killed when its handle is dropped; a [`Load`](load::Load) writes and reads while a test injects faults, and records
//! calls and answers; [`History::check`](history::History::check) has an independent checker (porcupine, built by `make
//! checker`) decide whether the history was linearizable.
//!
//! No test sleeps for a guessed time: every wait is for a condition, with a deadline that only a bug reaches. Everything is
//! on loopback, and each cluster has an address of its own there (`127.x.y.z`), so that no other process can take a port
//! between its choice and its use.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test's helpers fail the test"
)]

mod cluster;
mod history;
mod keeper;
mod load;
mod node;
mod outages;
mod proxy;
mod wait;
mod world;

mod bad_input;
mod borders;
mod bounds;
mod connections;
mod controllers;
mod disks;
mod diverged;
mod faults;
mod joins;
mod keyspace_admin;
mod keyspace_auth;
mod keyspace_faults;
mod keyspace_shares;
mod keyspaces;
mod lifecycle;
mod logs;
mod names;
mod pods;
mod power;
mod scans;
mod shards;
mod slow_links;
mod storm;
mod watch_bounds;
mod watch_replicas;
mod watches;
