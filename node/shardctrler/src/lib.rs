//! The configuration centre's state machine: numbered configurations, and the changes that make the next one.
//!
//! # What it is
//!
//! [`Shardctrler`] is a [`replica::StateMachine`], run by the controllers' own Raft group. A configuration
//! ([`types::ShardConfig`]) says which groups there are, where their nodes are, and which group owns which shard.
//! Configurations are numbered without gaps from 0, which has no groups, and never change. The module `keys` owns the
//! layout of the state; equal logs give equal bytes, however entries are grouped into batches and however often a replica restarts.
//!
//! # How a change flows through
//!
//! 1. A server encodes a [`Command`] and proposes it. Bytes that aren't one are answered with [`CtrlError::Malformed`].
//! 2. What no configuration would allow is refused (`rules::check`).
//! 3. The session table decides whether it is new. A retry gets the answer of the first time, refusals included; the
//!    module `outcome` says why that must be.
//! 4. The rules give the groups and the owners of the next configuration (`rules::plan`): a change that names many groups
//!    is carried out whole or not at all, and one that finds all as it wants it makes no configuration. When groups come
//!    or go the shards are spread anew ([`rebalance()`]): even, with the fewest moves, and without touching a shard that a
//!    `Move` put somewhere, unless it must.
//! 5. The delta is written and takes effect.
//!
//! Groups carry configurations out by themselves: each follows the deltas and moves its shards, at its own pace. Nothing here
//! waits for them, so the configurations may be many steps ahead of a group that is down.
//!
//! # What is kept of the past
//!
//! A group that is behind needs each delta after the configuration that it has: it may have to hand on a shard that it
//! is given by the one and loses by the next. So the groups tell how far they are ([`Change::Report`]): a group has *settled* a
//! configuration when all is done that configurations up to it ask of it. [`GroupProgress`] is tracked of every group
//! that is part of the cluster, and of one that left until it is *drained*: it has settled the configuration in
//! which it left, so its shards are with their new owners, and it is forgotten.
//!
//! What lies before the least settled configuration is let go, but for the last few, which are kept for people
//! ([`HistoryLimits`]). A group that stays behind for very long keeps more and more, until further changes are refused
//! with [`CtrlError::HistoryFull`], which names it.
//!
//! A group that joins has settled the configuration before: nothing was asked of it. One that comes back before it is drained keeps
//! its progress, because what it had to do is still to be done; it is as if it had never been away, but for the
//! shards.
//!
//! # Where a group begins
//!
//! A group whose nodes have nothing yet (new disks) asks for what follows configuration 0, and says who it is. It is
//! given whole the configuration that its gid has settled ([`Query::After`]) and goes on from there. Were it given the
//! oldest configuration that is kept, and had another group with its gid lived and left since, it would live that life again: make
//! empty shards that others have long taken over, and wait for deletes that nobody owes it. If it does own something in the
//! configuration that it is given, then the group has lost its disks: data are gone, and the group must refuse to go on.
//!
//! # What it doesn't do
//!
//! It does no I/O beside the reader and the transaction it is given, reads no clock, talks to no group. It doesn't know
//! whether a group lives: the groups of a configuration are what people asked for.

mod bug;
mod codec;
mod command;
mod history;
mod keys;
mod machine;
mod outcome;
mod rebalance;
mod rules;

pub use bug::{BUGS_COMPILED_IN, Bug};
pub use command::{
    Change, Command, Configs, CtrlError, GroupProgress, Query, QueryAnswer, Response,
};
pub use history::HistoryLimits;
pub use machine::Shardctrler;
pub use rebalance::rebalance;
pub use replica::session::SessionRef;
pub use replica::{Genesis, GroupKind};

/// The most deltas in an answer to [`Query::After`]; a greater limit counts as this one.
pub const MAX_DELTAS: u32 = 1_024;

/// Deltas in an answer to [`Query::After`] end before this many bytes, as stored; but one is always there.
pub const MAX_ANSWER_BYTES: usize = 1 << 20;
