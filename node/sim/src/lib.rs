//! A seeded simulator of whole clusters under faults. It runs `raft`, `replica`, `shardkv` and `shardctrler` unchanged;
//! only the world around them is made up.
//!
//! # What a world is
//!
//! A seed draws a [`scenario`]: how many hosts, which options, how many clients, and which faults are on. Half of
//! the worlds have one group that owns all shards, the others two to four groups and the controllers'. A [`world`] plays it in one thread, event by event in the order of virtual time. Equal seeds give equal worlds,
//! bit for bit: nothing reads a clock, nothing is drawn but from [`rng`] (one stream of the seed for each
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
//! # How shards move
//!
//! ConfigClients ([`config_client`]) join groups, let them leave and move shards. The mover of each group's leader is driven over the
//! same network as all else (`mover_driver`): its calls are lost, doubled and cut off. Clients route by configurations that
//! they fetch and that grow old, and take their sessions from group to group. Beside single nodes, whole groups and the
//! controllers go down for a while, and steps come a second time, late. `replay --trace` prints each step of a hand-off.
//!
//! # What is checked
//!
//! The [`invariants`] sees every disk, every message and every applied operation, and checks Raft's promises at each
//! step; its page lists them. What clients saw goes to a [`history`] and at the end to a linearizability checker
//! ([`linear`]). What groups and controllers promise each other about shards is checked by [`shard_checker`], and writes are
//! done once over all groups ([`write_checker`]). The end of a world is a phase without faults, in which within ten simulated
//! seconds (and a mover's longest pause for each configuration that was still open) there must be a leader, every operation must finish, lost disks must have rejoined as voters, all states
//! must be equal, and each group must have settled the latest configuration and keep nothing of shards that it doesn't
//! own. Some worlds end in two such phases: in the first one group stays down, and all that doesn't need it must be well.
//!
//! # Known bugs
//!
//! A simulator that finds nothing proves nothing. [`bug::Bug`] lists mistakes that known systems made; built with
//! the feature `bugs`, which the product never has, the crates under test can make them again, and
//! `shardkv-sim bugs` shows that each is found.
//!
//! # What it doesn't do
//!
//! It doesn't test the stores on `RocksDB`, the server's event loop or the wire format: other tests do. Time passes for a
//! host by its writes and not by their size, so it measures who waits for whom, never how much fits through.
#![allow(
    clippy::indexing_slicing,
    reason = "hosts and clients are numbered by the world itself; a wrong number is a bug of the simulator, which should stop the run at once"
)]

pub mod bug;
pub mod client;
pub mod config_client;
pub mod disk;
mod faults;
mod group;
pub mod history;
mod host;
pub mod invariants;
pub mod linear;
mod liveness;
pub mod machine;
mod mover_driver;
mod moves;
pub mod network;
mod process;
pub mod queue;
pub mod recorder;
pub mod rng;
pub mod runner;
pub mod scenario;
pub mod script;
pub mod shard_checker;
pub mod traffic;
pub mod world;
pub mod write_checker;
