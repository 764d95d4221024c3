//! A replicated log and a state machine become a service.
//!
//! A [`Replica`] is one member of one group: it owns a [`raft::Raft`], a log store, a state store and a
//! [`StateMachine`], and turns requests into answers. It is synchronous and pure: no clock, no thread, no network. A
//! driver feeds it messages, requests and ticks, and calls [`Replica::poll`], which does all that is due:
//!
//! ```text
//!   requests ──▶ queue ─┐                        ┌─▶ messages that promise nothing leave at once
//!   messages ──▶ raft ──┼─▶ poll: propose, ready ┼─▶ one durable write ─▶ messages that waited for it
//!   ticks ─────▶ raft ──┘                        └─▶ committed entries ─▶ one state batch ─▶ answers
//! ```
//!
//! Whatever gathered in the queues between two polls shares one log entry, one write and one state batch. That is what
//! makes it fast under load, without a timer that would make it slow without.
//!
//! - A write is answered when the entry that carries it was applied *here*, matched by index and term. If leadership is
//!   lost before, its outcome is unknown and the client repeats it under the same session and sequence ([`session`]).
//! - A read is answered when a quorum confirmed this leader after the read arrived, from a state that has applied all
//!   that was committed then. It costs no log entry.
//! - The log is cut below what the state store holds durably, and a follower that needs what was cut gets a snapshot.
//! - A member that comes back with an empty disk is a new node; it asks to be let in and takes its old self's place.
//!
//! The same code runs under the simulator, which is why it never asks anyone for the time.

mod admin;
mod apply;
mod bug;
pub mod chunk;
mod compaction;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod entry;
mod genesis;
mod machine;
pub mod memory;
mod options;
mod recover;
mod replica;
mod service;
pub mod session;
mod snapshots;
mod status;
mod store;
mod waiting;

pub use bug::{BUGS_COMPILED_IN, Bug, Bugs};
pub use genesis::{Genesis, GenesisError, GroupKind, MAX_BIRTH_AHEAD_MS};
pub use machine::{Applying, StateMachine, Transaction};
pub use options::Options;
pub use recover::{RecoverError, initialise};
pub use replica::Replica;
pub use service::{Answer, Outlet, Refusal, Request, RequestId};
pub use status::Status;
pub use store::{
    Applied, Keyspace, PageSource, SNAPSHOT_CHUNK_BYTES, SnapshotSource, StateReader, StateStore,
    View, WriteBatch,
};
