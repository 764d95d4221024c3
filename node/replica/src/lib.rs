//! A service made of a replicated log and a state machine.
//!
//! A [`Replica`] is one member of one group. It owns a [`raft::Raft`], a log store, a state store and a [`StateMachine`],
//! and turns requests into answers. It is synchronous, with no clock, thread or network. A driver passes messages, requests
//! and ticks in, and calls [`Replica::poll`], which does all work that is due:
//!
//! ```text
//!   requests ──▶ queue ─┐                        ┌─▶ messages that promise nothing leave at once
//!   messages ──▶ raft ──┼─▶ poll: propose, ready ┼─▶ one durable write ─▶ messages that waited for it
//!   ticks ─────▶ raft ──┘                        └─▶ committed entries ─▶ one state batch ─▶ answers
//! ```
//!
//! All requests that arrive between two polls share one log entry, one write and one state batch. Under load this makes
//! large batches; without load no timer delays a request.
//!
//! # Guarantees
//!
//! - **A write** is answered when this replica has applied the entry that carries it, matched by index and term. If
//!   leadership is lost before that, the outcome is unknown, and the client repeats the write under the same session and
//!   sequence.
//! - **A read** is answered when a quorum has confirmed this leader after the read arrived, from a state that has applied
//!   everything that was committed then. It costs no log entry.
//! - **Compaction** cuts the log below what the state store holds durably. A follower that needs what was cut gets a snapshot.
//! - **A lost disk** comes back as a new node. It asks to be added, and then replaces its former self.
//!
//! # Exactly once
//!
//! A [`session::SessionTable`] per shard remembers the result of each write until its client acknowledges it, so a copy of a
//! write gets the first result instead of a second execution. [`session`] has the proof. The life of one session:
//!
//! ```
//! use replica::session::{Admission, Remembered, SessionLimits, SessionRef, SessionRefusal, SessionTable};
//! use types::{ClientId, DecodeError, LogTime, Reader, Sequence, Writer};
//!
//! /// The result of a write: a new length, say.
//! #[derive(Clone, Debug, PartialEq)]
//! struct Length(u64);
//!
//! impl Remembered for Length {
//!     fn encode(&self, out: &mut Writer) {
//!         out.number(self.0);
//!     }
//!     fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
//!         input.number("length").map(Self)
//!     }
//! }
//!
//! let limits = SessionLimits { ttl_ms: 600_000, max_birth_ahead_ms: 60_000, max_sessions: 10, max_results: 4 };
//! let client = ClientId { birth: LogTime(1_000), nonce: 7 };
//! let write = |sequence, acked_below| SessionRef {
//!     client,
//!     sequence: Sequence(sequence),
//!     acked_below: Sequence(acked_below),
//! };
//! let mut table = SessionTable::default();
//!
//! // A new write is executed and recorded.
//! let Admission::Execute(permit) = table.admit(write(1, 1), LogTime(2_000), &limits) else { panic!() };
//! table.record(permit, Length(5));
//!
//! // A copy of it gets the same result.
//! assert_eq!(table.admit(write(1, 1), LogTime(2_001), &limits), Admission::Replay(Length(5)));
//!
//! // The next write acknowledges the first, whose result is dropped. Later copies of the first are refused.
//! let Admission::Execute(permit) = table.admit(write(2, 2), LogTime(2_002), &limits) else { panic!() };
//! table.record(permit, Length(9));
//! assert!(matches!(
//!     table.admit(write(1, 1), LogTime(2_003), &limits),
//!     Admission::Refuse(SessionRefusal::Stale { .. })
//! ));
//!
//! // A silent session is forgotten. Its copies are still refused, because its birth lies too far back.
//! let later = LogTime(700_000);
//! assert_eq!(table.expire(later, &limits, 10).len(), 1);
//! assert_eq!(table.admit(write(2, 2), later, &limits), Admission::Refuse(SessionRefusal::Expired));
//! ```
//!
//! # What the driver must never do
//!
//! - Use a replica after [`Replica::poll`] gave an error other than [`raft::StoreError::Full`]: stop the process.
//! - Give two replicas one directory, or an empty directory the id of a lost one.
//! - Let time pass without ticks and without [`Replica::handle_pause`].
//!
//! The simulator runs this code unchanged. Therefore no part of it reads a clock.

mod admin;
mod apply;
mod bug;
pub mod chunk;
mod compaction;
mod comparison;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod cursor;
mod digest;
mod entry;
mod first_start;
mod follower_reads;
mod genesis;
mod kept_log;
mod level;
mod machine;
pub mod memory;
mod options;
mod pending;
mod recover;
mod replica;
mod sender;
mod service;
pub mod session;
mod snapshots;
mod status;
mod store;
mod table;
mod transaction;
mod upkeep;
mod work;

pub use bug::{BUGS_COMPILED_IN, Bug, Bugs};
pub use comparison::StateComparison;
pub use cursor::{Bounds, Cursor, EmptyCursor, Listed, MAX_LISTED_BYTES, Order, PairReader};
pub use digest::{DIGEST_LEVEL, Digest};
pub use first_start::{
    BadFirstMembership, Decision, FirstMembership, FirstStart, Introduction, NodeRecord,
    are_strangers, decide,
};
pub use genesis::{Genesis, GenesisError, GroupKind, MAX_BIRTH_AHEAD_MS};
pub use level::FEATURE_LEVEL;
pub use machine::{Applying, StateMachine};
pub use options::Options;
pub use recover::{RecoverError, initialise};
pub use replica::Replica;
pub use service::{Answer, Outlet, Refusal, Request, RequestId};
pub use status::Status;
pub use store::{
    Applied, PageSource, SNAPSHOT_CHUNK_BYTES, SnapshotSource, StateReader, StateStore, View,
    WriteBatch,
};
pub use table::Table;
pub use transaction::Transaction;
pub use work::{LOOKUP_WORK, WRITE_WORK, work_of_bytes};
