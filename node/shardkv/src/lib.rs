//! The sharded key-value state machine of a replica group: applies the entries of the group's log and answers queries.
//!
//! # What it is
//!
//! [`ShardKv`] is a [`replica::StateMachine`]. Its state lives in four tables ([`replica::Table`])
//! whose layout the module `keys` owns: users' pairs and the rows of keyspaces under their shard, the session records under their
//! shard, the journals of shards that are copied, and facts: the [`Genesis`], which is written once when the group is created, and how each shard
//! stands ([`Ownership`]). It is deterministic: equal logs give equal bytes, however entries are grouped into
//! batches and however often a replica restarts.
//!
//! A group is *standalone* and serves all shards for ever, or one of many and serves what the controllers'
//! configurations give it. In the first case nothing below about moves applies, and nothing of it is stored.
//!
//! # How a write flows through
//!
//! 1. A server encodes a [`Command`] ([`Command::encode`]) and proposes it. What comes back from the log
//!    is decoded here; bytes that aren't an operation are answered with [`KvError::Malformed`] and change
//!    nothing, because a panic would stop every replica alike.
//! 2. The key's size is checked, and the key gives the shard.
//! 3. The shard must be served here, now: in the entry's turn, not when the write was proposed. Otherwise the
//!    write is refused, and nothing remembers it.
//! 4. A few sessions that expired are forgotten. Which ones depends on the entry alone.
//! 5. The shard's session table decides ([`replica::session`], where the argument for exactly once is
//!    written): carry out, answer as the first time, or refuse. A write without a session is always carried
//!    out.
//! 6. The write is carried out against the batch's transaction and its outcome remembered, also when the
//!    outcome is that a value would be too large (the module `outcome` says why).
//! 7. At the end of the batch the record of each session that was used is written once.
//!
//! Value sizes are limited by what the leader stamped into the entry, never by a replica's own options.
//!
//! # The life of a shard
//!
//! All that belongs to a shard has the shard's prefix, so a shard is a range of pairs, one of keyspaces' rows and one of sessions, a
//! table and a record. A configuration names each shard's *owner*, which serves it, and its *target*, which is to serve it.
//! The target copies the shard while the owner serves it, and becomes the owner by a cut, once the copy has caught up. All steps
//! are entries of the groups' logs like writes:
//!
//! 1. [`Step::Configure`] tells both groups of the planned move. Owner and target are now *source* and *destination*.
//! 2. The source begins a journal ([`JournalStep::Begin`]), which names each row that changes. The destination begins a copy
//!    ([`CopyStep::Start`]) and takes its parts ([`CopyStep::Take`]): the rows in key order, then what changed meanwhile, generation by
//!    generation. They are stored at their final keys, invisible to clients. A part is taken only if it begins exactly at the cursor
//!    in the shard's record, so a part may arrive twice or late. The modules `journal` and `copy` have the contract.
//! 3. The destination reports that its copy has caught up ([`mover::Action::ReportCut`]), and the controllers make it the owner.
//! 4. Both groups' logs get this configuration. At the source that is the fence: what was written before is in what moves, what
//!    comes after is refused. It also seals the journal's last generation. At the destination the copy is to be completed.
//! 5. The destination asks for what is left. Any replica of the source that has applied the fence can answer, because a fenced shard
//!    doesn't change. The entry with the last part makes the shard served. Data, sessions and their clock become visible at that moment.
//! 6. The destination asks the source to delete the shard ([`Step::Delete`]). The source clears its ranges and
//!    confirms. The destination, whose delete was pending, records the confirmation ([`Step::Deleted`]). Both are settled.
//!
//! If the journal had ended at the fence, the destination drops its copy ([`CopyStep::Restart`]) and pulls the whole fenced shard: it asks for
//! one chunk after the other ([`Query::Pull`]), each goes through its log ([`Step::Install`]), is stored and taken as a part is, and the
//! last one makes the shard served. A destination that has no copy at the cut pulls, too.
//!
//! A shard that nobody has owned is served from the configuration that names its first owner. A group that is behind goes to the latest
//! configuration by one step; the module `configure` says why that is enough. The states, what leaves each of
//! them, and what becomes of a step that isn't due stand in the module `ownership`; who proposes the steps in the module `mover`.
//!
//! # Exactly once across moves
//!
//! [`replica::session`] argues for one table that lives in one log. A table that moves goes on in another log,
//! and copies of a write may arrive in both groups. The argument needs five things more:
//!
//! 1. *One history.* At any time at most one group carries out a shard's writes. A configuration has one owner
//!    of each shard; the owner serves from the last part or chunk of the shard's arrival for that configuration to the `Configure` that
//!    takes the shard away. (If nobody has owned the shard, it serves from the `Configure` that gives it.) A last part or chunk is what a
//!    replica gave that had the shard fenced by just this configuration, so the owner before had stopped, in its log, for good: it serves
//!    the shard again only by a last part or chunk of its own. A copy alone serves nothing: before the cut its rows are invisible, and
//!    after the cut only a part from a fenced replica ends it.
//! 2. *The fence leaves nothing behind.* Data and sessions of a write are in one batch. A write before the
//!    fence is in both, a write after it in neither: a refusal for the shard's sake is not recorded. Nor is a
//!    session of a fenced shard forgotten any more. So all replicas give the same chunks, and the chunks together
//!    are the shard at the fence. So is a copy when its last part is taken, sessions included, because each change since the journal began is
//!    named in it by the entry that makes it (the module `journal` has the proof).
//! 3. *Each chunk and part once.* Installed chunks follow each other without gap or overlap, and all are of one fence,
//!    because config numbers are compared exactly. Parts that are taken follow each other in the same way, and all are of one journal, whose
//!    id is compared exactly. So a served shard began as the shard at the fence. No chunk or part
//!    can be installed later, because a served shard accepts none.
//! 4. *The horizon goes along.* It is in the state of the fence, and comes with the last chunk or part. The destination keeps it in a record
//!    of its own, and every table of the shard begins with it: after a restart, and after the table was dropped for being
//!    empty. Before, no session of a copy or of a pulled shard is forgotten.
//! 5. *A silence stays one.* A session that was silent for too long is refused before it is removed, and that must stay so at the
//!    destination. So the table's time at the fence comes along, too, and continues with the destination's log. If the destination has another
//!    time to live, the time is shifted by the difference. The module `clocks` has both.
//!
//! Hence the tables of a shard, one after the other, are one table in the sense of that argument. Limits of
//! sessions and results may differ between groups: a table that is over them refuses, it never drops.
//!
//! # Queries
//!
//! The machine answers from the state as of the last commit. The replica ensures that this is recent enough (`ReadIndex`).
//! `Get` is one lookup. `Scan` merges the shards into the order of users' keys, page by page; what that
//! costs stands in the module `scan`. A page is one consistent cut, a whole scan isn't. `Export` gives a view
//! of one shard as of one moment. All three need the shards to be served here, as of that state.
//!
//! The server reads pages ([`read_page`]), counts ([`read_count`]), chunks of fenced shards ([`read_chunk`]) and parts of copies
//! ([`read_part`]) on other threads than the replica's, because they need nothing but a state as of one commit. A page is
//! linearizable if that commit is not older than the answer to a [`Query::Confirm`] that was asked for the page.
//!
//! # Keyspaces
//!
//! A shard may hold keyspaces, whose state machine is the crate `keyspace`. Their rows are in `Data`, too, in a range of the shard of its
//! own. The module `keyspaces` has what this crate adds: the shard must be served, journals name the rows, and a server is told of
//! the changes.
//!
//! # What it doesn't do
//!
//! The machine does no I/O except through the reader and the transaction that the replica passes in. It reads no clock and
//! sends no messages: a [`mover::Driver`] returns effects, which the server carries out. The controllers, not this crate, choose
//! the owner of each shard.

mod bug;
mod change;
mod chunk;
mod clocks;
mod codec;
mod command;
mod configure;
mod copy;
mod cursor;
mod encoding;
mod execute;
mod install;
mod journal;
mod keys;
mod keyspaces;
mod machine;
pub mod mover;
mod outcome;
mod ownership;
mod part;
mod pull;
mod query;
mod records;
mod scan;
mod sessions;
mod shard;
mod shard_map;
mod step;
mod targets;
mod transition;
mod upkeep;

pub use bug::{BUGS_COMPILED_IN, Bug};
pub use chunk::{Chunk, Next};
pub use clocks::{SessionClock, read_session_clock};
pub use command::{
    Command, KvError, MAX_KEY_BYTES, MAX_SCAN_BYTES, MAX_SCAN_PAIRS, PageRequest, Query, Response,
    Write, Written,
};
pub use configure::{Configure, ConfigurePart, ConfigureParts, News, Whole};
pub use copy::CopyStep;
pub use cursor::Cursor;
pub use journal::{
    JOURNAL_TTL_MS, Journal, JournalLimits, JournalStep, Journals, MAX_GENERATIONS, MAX_JOURNALS,
    MAX_NAMED_BYTES, read_part,
};
pub use keyspaces::{
    AUTH_LEVEL, KEYSPACE_LEVEL, KeyspaceChange, KeyspaceChanges, encode_keyspace_operation,
    max_keyspace_operation_bytes, read_keyspaces,
};
pub use machine::ShardKv;
pub use mover::MoverOptions;
pub use ownership::Ownership;
pub use part::{
    CopyCursor, CopyId, CopyRequest, JournalError, Part, PartNext, Position, RowChange, Upto,
};
pub use pull::{estimate_shard, read_chunk};
#[cfg(feature = "bugs")]
pub use query::read_page_with_bug;
pub use query::{read_count, read_page, user_key};
pub use replica::session::SessionRef;
pub use replica::{Genesis, GenesisError, GroupKind, MAX_BIRTH_AHEAD_MS};
pub use shard::{Shard, ShardState};
pub use shard_map::{Iter as ShardMapIter, ShardMap};
pub use step::Step;
pub use targets::{PlannedMove, Target};
pub use upkeep::Expire;
