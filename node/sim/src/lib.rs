//! A seeded simulator of whole groups under faults. It runs `raft`, `replica` and `shardkv` unchanged; only the
//! world around them is made up.
//!
//! # What a world is
//!
//! A seed draws a [`scenario`]: how many hosts, which options, how many clients, and which faults are on. A
//! [`world`] plays it in one thread, event by event in the order of virtual time. Equal seeds give equal worlds,
//! bit for bit: nothing reads a clock, nothing is drawn but from [`dice`] (one stream of the seed for each
//! concern), and nothing depends on the order of a hash table.
//!
//! # How an event flows
//!
//! A message leaves a process, crosses the [`network`] (lost, late, twice, overtaken, cut off) and waits in the
//! inbox of a host. When the host is free, all that waits goes into its replica, and one `poll` does what is
//! due. What it writes goes to the [`disk`], which takes its time, may be full, may lose power in the middle, and
//! may come back empty. What it sends and answers leaves as late as the writes before it took. Clients
//! ([`client`]) do as the real library does, and some things that it wouldn't.
//!
//! # What is checked
//!
//! The [`oracle`] sees every disk, every message and every applied operation, and checks Raft's promises at each
//! step; its page lists them. What clients saw goes to a [`history`] and at the end to a linearizability checker
//! ([`linear`]). The end of a world is a phase without faults, in which within ten simulated seconds there must
//! be a leader, every operation must finish, lost disks must have rejoined as voters, and all states must be
//! equal.
//!
//! # Known bugs
//!
//! A simulator that finds nothing proves nothing. `raft::Bug` lists mistakes that known systems made; built with
//! the feature `bugs`, which the product never has, the crates under test can make them again, and
//! `shardkv-sim bugs` shows that each is found.
//!
//! # What it doesn't do
//!
//! It doesn't test the stores on `RocksDB`, the server's event loop or the wire format: other tests do. It knows
//! one group; several groups would be several oracles over one network, which nothing here stands against.
#![allow(
    clippy::indexing_slicing,
    reason = "hosts and clients are numbered by the world itself; a wrong number is a bug of the simulator, which should stop the run at once"
)]

pub mod client;
pub mod custody;
pub mod dice;
pub mod disk;
mod errands;
mod faults;
mod finale;
mod group;
pub mod history;
mod host;
pub mod ledger;
pub mod linear;
pub mod machine;
pub mod network;
pub mod oracle;
mod process;
pub mod queue;
pub mod runner;
pub mod scenario;
pub mod script;
pub mod steward;
pub mod traffic;
pub mod watched;
pub mod world;
