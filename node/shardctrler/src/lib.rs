//! The controllers' state machine: numbered configurations, and the changes that make the next one.
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
//! 2. Changes that no configuration would allow are refused (`rules::check`).
//! 3. The session table tells a new change from a retry. A retry gets the answer of the first attempt, refusals included;
//!    the module `outcome` gives the reason.
//! 4. The rules give the groups and the owners of the next configuration (`rules::plan`). A change that names many groups
//!    is carried out whole or not at all, and a change without effect makes no configuration. When groups join
//!    or leave, the shards are rebalanced ([`rebalance()`]): evenly, with the fewest moves, and without moving a shard that a
//!    `Move` placed, unless it must.
//! 5. The delta is written and takes effect.
//!
//! Groups carry out configurations by themselves: each follows the deltas and moves its shards at its own pace. Nothing here
//! waits for them, so the configurations may be many steps ahead of a group that is down.
//!
//! # History
//!
//! A group that is behind needs each delta after its configuration, because it may have to hand on a shard that it gains by
//! one delta and loses by the next. So groups report their progress ([`Change::Report`]): a group has *settled* a
//! configuration when it has completed all hand-offs of the configurations up to it. [`GroupProgress`] is tracked for every
//! group of the cluster. A group that left is tracked until it is *drained*: it has settled the configuration in
//! which it left, so its shards are with their new owners.
//!
//! Configurations before the least settled one are dropped, except for the last few, which are kept for operators
//! ([`HistoryLimits`]). While a group stays behind, the history grows, until further changes are refused
//! with [`CtrlError::HistoryFull`], which names the group.
//!
//! A group that joins has settled the configuration before, which asked nothing of it. A group that joins again before it is
//! drained keeps its progress, because its earlier hand-offs are still to be done.
//!
//! # The first configuration of a group
//!
//! A group whose nodes are empty (new disks) asks for the configurations after 0 and names its gid. It is
//! given the whole configuration that its gid has settled ([`Query::After`]), and continues from there. Consider the
//! alternative, the oldest kept configuration: if an earlier group with the same gid had joined and left since, the new group
//! would repeat that group's hand-offs. It would create empty shards that other groups have long taken over, and wait for
//! deletes that no group owes it. If the new group owns a shard in the configuration that it is given, then the group has
//! lost its disks: data are lost, and the group must refuse to continue.
//!
//! # What it doesn't do
//!
//! The machine does no I/O except through the reader and the transaction that the replica passes in. It reads no clock and
//! sends no messages. It doesn't know whether a group is up: the groups of a configuration are those that were joined.

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
