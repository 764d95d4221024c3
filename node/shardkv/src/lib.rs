//! The sharded key-value state machine: what the entries of a group's log do, and what its state says.
//!
//! # What it is
//!
//! [`ShardKv`] is a [`replica::StateMachine`]. Its state lives in three keyspaces ([`replica::Keyspace`])
//! whose layout the module `keys` owns: users' pairs under their shard, the session records under their
//! shard, and the [`Genesis`], which is written once when the group is created. It is deterministic: equal
//! logs give equal bytes, however entries are grouped into batches and however often a replica restarts.
//!
//! # How a write flows through
//!
//! 1. A server encodes a [`Command`] ([`Command::encode`]) and proposes it. What comes back from the log
//!    is decoded here; bytes that aren't a command are answered with [`KvError::Malformed`] and change
//!    nothing, because a panic would stop every replica alike.
//! 2. The key's size is checked, and the key gives the shard.
//! 3. A few sessions that expired are forgotten. Which ones depends on the entry alone.
//! 4. The shard's session table decides ([`replica::session`], where the argument for exactly once is
//!    written): carry out, answer as the first time, or refuse. A write without a session is always carried
//!    out.
//! 5. The write is carried out against the batch's transaction and its outcome remembered, also when the
//!    outcome is that a value would be too large (the module `outcome` says why).
//! 6. At the end of the batch the record of each session that was used is written once.
//!
//! Value sizes are limited by what the leader stamped into the entry, never by a replica's own options.
//!
//! # How a question is answered
//!
//! From the state as of the last commit; that this is recent enough is the replica's business (`ReadIndex`).
//! `Get` is one lookup. `Scan` merges the shards into the order of users' keys, page by page; what that
//! costs stands in the module `scan`. A page is one consistent cut, a whole scan isn't.
//!
//! # What it doesn't do
//!
//! It does no I/O beside the reader and the transaction it is given, reads no clock, talks to no one. It
//! doesn't know which group owns which shard: at present a group serves all. Everything of a shard has the
//! shard's prefix and sits in a table of its own, so that a shard can be fenced, copied as two ranges with
//! the table's clock, and cleared.

mod bugs;
mod codec;
mod command;
mod execute;
mod install;
mod keys;
mod machine;
mod mover;
mod outcome;
mod ownership;
mod query;
mod records;
mod scan;
mod step;
mod step_codec;
mod transition;

pub use command::{
    Command, KvError, MAX_KEY_BYTES, MAX_SCAN_BYTES, MAX_SCAN_PAIRS, Query, Response, Write,
    Written,
};
pub use machine::ShardKv;
pub use mover::{Action, ActionId, Mover, MoverOptions, Outcome as ActionOutcome};
pub use ownership::{Ownership, QueuedStep, Shard, ShardState};
pub use query::user_key;
pub use replica::session::SessionRef;
pub use replica::{Genesis, GenesisError, GroupKind, MAX_BIRTH_AHEAD_MS};
pub use step::{Chunk, Cursor, Next, Step};
