//! A deterministic simulator of whole clusters under faults.
//!
//! It runs `raft`, `replica`, `shardkv`, `shardctrler` and `request` unchanged. Only the network, the disks, the clocks, and
//! the applications behind the clients are simulated.
//!
//! # Worlds and seeds
//!
//! A seed draws a [`scenario`]: the number of hosts, the options, the clients, and the classes of faults that happen.
//! Half of the worlds have one group that owns all shards. The other half have two to four replica groups and a group
//! of controllers. A [`world`] runs the scenario in one thread, event by event, in the order of virtual time.
//!
//! Equal seeds give equal worlds, bit for bit. No code reads a clock, all random numbers come from [`rng`] (one stream
//! of the seed for each concern), and nothing depends on the order of a hash table. Each report carries a fingerprint
//! of all events, which a test compares between two runs. `shardkv-sim replay --seed N` runs a failing seed again, and
//! `--trace` prints every event, including each step of a hand-off.
//!
//! # Events
//!
//! A message leaves a process and crosses the [`network`], which may lose, delay, duplicate, reorder or cut it off. It
//! then waits in the inbox of a host. When the host is free, the world passes the whole inbox to the host's replica and
//! polls it once, as the server does. The replica writes to the [`disk`], which takes time, may be full, may lose power
//! within the step, and may come back empty. Messages and answers leave the host only after the writes before them.
//!
//! Clients ([`client`]) drive the request engine of the client library, and also do what the library never does: they
//! send copies to other nodes, send late, and outlive their sessions. They route by configurations that they fetched
//! and that may be old.
//!
//! Clients of keyspaces ([`keyspace_client`]) send each write once, in a part of the worlds.
//!
//! Config clients ([`config_client`]) join groups, remove them and move shards. The mover of each group's leader and its
//! driver run over the same network ([`mod@mover`]), so their calls are lost, duplicated and cut off like all others.
//! All these calls may come a second time, late: a request, its answer, or a step that was proposed to a log.
//!
//! # Phases
//!
//! In the first phase faults happen: partitions, crashes within a step, pauses, full, slow, wiped and damaged disks,
//! clock jumps, membership changes and leadership transfers, outages of whole groups and of the controllers, groups with slow
//! links or without answers, strikes and new targets at the steps of moves, drained groups that are stopped for good before all
//! others have heard of it.
//!
//! The second phase is the liveness phase, without faults. Within ten simulated seconds (and the longest pause of a
//! mover for each configuration that was not settled) each group must have a leader, every operation must finish, hosts
//! with lost disks must have rejoined as voters, all replicas of a group must have equal states, and each group must
//! have settled the latest configuration and hold nothing of shards that it doesn't own. Some worlds have two such
//! phases: in the first, some groups and a minority of the hosts of others stay down, and everything that doesn't need these
//! groups must recover.
//!
//! # Checks
//!
//! At each step, [`invariants`] checks Raft's guarantees from every disk, message and applied operation; its page lists
//! them. [`shard_checker`] checks the ownership of shards across groups and controllers, [`copy_checker`] checks
//! that a shard arrives as it was fenced, and [`write_checker`] checks that each write takes effect once over all groups, [`keyspace_checker`] compares keyspaces
//! with a model. At the end, a linearizability checker ([`linear`]) searches the [`history`] of all clients' operations for a valid order.
//!
//! # Known bugs
//!
//! A simulator that finds nothing proves nothing. [`bug::Bug`] lists mistakes that known systems made. The feature
//! `bugs`, which the product is never built with, lets the crates under test make them again. `shardkv-sim bugs` puts
//! each one back and checks that it is found.
//!
//! # Layers
//!
//! Each module uses only modules of its own row and of the rows below it:
//!
//! | layer | modules |
//! |---|---|
//! | programs | `main`; [`runner`] runs many seeds, [`script`] lets a test control one world |
//! | the world | `world/*`: behaviour, from the sending of messages up to the loop over events; [`world`]: state |
//! | parts of a world | [`scenario`]; `group`, `host`, `late_calls`, `first_start` |
//! | actors | [`client`], [`config_client`], [`keyspace_client`], [`mod@mover`] |
//! | checkers | [`invariants`], [`shard_checker`], [`copy_checker`], [`write_checker`]; [`history`] over [`linear`]; [`keyspace_checker`] |
//! | the simulated environment | [`disk`], [`network`], [`machine`] and its [`recorder`]; [`caller`], `event` |
//! | basics | [`rng`], [`queue`], [`violation`], [`report`], [`bug`], [`fault`], [`traffic`] |
//!
//! Actors and checkers don't know the world: they get what they need, and return requests, effects or violations.
//!
//! # Limits
//!
//! The simulator doesn't run the stores on `RocksDB`, the server's event loop or the wire format; other tests do. A
//! host's time passes by the number of its writes and not by their size, so the simulator shows which request waits for
//! which, but not the throughput.
#![allow(
    clippy::indexing_slicing,
    reason = "hosts and clients are numbered by the world itself; a wrong number is a bug of the simulator, which should stop the run at once"
)]

pub mod bug;
pub mod caller;
pub mod client;
pub mod config_client;
pub mod copy_checker;
pub mod disk;
mod event;
pub mod fault;
mod first_start;
mod group;
pub mod history;
mod host;
pub mod invariants;
pub mod keyspace_checker;
pub mod keyspace_client;
#[path = "../../keyspace/tests/common/model.rs"]
#[allow(
    clippy::cast_possible_wrap,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::unwrap_used,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "the model of the crate's own tests, of which the simulator uses a part"
)]
mod keyspace_model;
mod late_calls;
pub mod linear;
pub mod machine;
mod mover;
pub mod network;
pub mod queue;
pub mod recorder;
pub mod report;
pub mod rng;
pub mod runner;
pub mod scenario;
pub mod script;
pub mod shard_checker;
mod tracker;
pub mod traffic;
pub mod violation;
mod watcher;
pub mod world;
pub mod write_checker;
