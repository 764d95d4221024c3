//! The controllers' state machine: numbered configurations, and the changes that make the next one.
//!
//! # What it is
//!
//! [`Shardctrler`] is a [`replica::StateMachine`], run by the controllers' own Raft group. A configuration
//! ([`types::ShardConfig`]) says which groups there are, where their nodes are, and for each shard which group serves it, its *owner*,
//! and which group is to serve it, its *target*.
//! Configurations are numbered without gaps from 0, which has no groups, and never change. The module `keys` owns the
//! layout of the state; equal logs give equal bytes, however entries are grouped into batches and however often a replica restarts.
//!
//! # How a change flows through
//!
//! 1. A server encodes a [`Command`] and proposes it. Bytes that aren't one are answered with [`CtrlError::Malformed`].
//! 2. Changes that no configuration would allow are refused (`rules::check`).
//! 3. The session table tells a new change from a retry. A retry gets the answer of the first attempt, refusals included;
//!    the module `outcome` gives the reason.
//! 4. The rules give the groups and the *targets* of the next configuration (`rules::plan`). A change that names many groups
//!    is carried out whole or not at all, and a change without effect makes no configuration. When groups join
//!    or leave, the targets are rebalanced ([`rebalance()`]): evenly, with the fewest changes, and without touching a shard that
//!    a `Move` placed, unless it must.
//! 5. Shards that nobody has owned get their targets as *owners*. All other owners stay.
//! 6. The delta is written and takes effect.
//!
//! Groups carry out configurations by themselves, each at its own pace. The target of a shard copies it from the owner. Once the copy
//! has caught up, the target proposes a [`Change::Cut`], and the next configuration makes it the owner (the module `configure`).
//! People's changes never wait for groups, and a cut waits for nothing but the report. Yet the owner of a shard changes only after the change before:
//! the copy needs a journal of the owner, and the owner begins one only while it serves the shard, after the owner before has fenced it.
//!
//! The machine doesn't limit how often owners change. The leader's server does, by its own clock: by log time a limit would hold
//! for as long as a clock was ahead.
//!
//! # Groups that leave
//!
//! A group that was told to leave stays in the configurations, marked as leaving, until it owns no shard, has none fenced and owes
//! nothing. Then the next configuration is without it, and its incarnation is recorded as drained
//! ([`QueryAnswer::is_drained`]). A group that joins again while it is leaving is the same group; after that it is another
//! incarnation. A group's absence proves nothing.
//!
//! # Groups that are gone for good
//!
//! A group that is lost can't hand anything over. [`Change::Forget`] removes it, and its shards go on without it: the module
//! `forget` says where, and what is lost. The number of a group that is drained or forgotten can be retired ([`Change::Retire`]), so that
//! no group joins under it, for as long as the group is remembered.
//!
//! # Progress
//!
//! Groups report their progress ([`Change::Report`]): a group has *settled* a configuration when it has completed all hand-offs of
//! the configurations up to it. [`GroupProgress`] is tracked for every group, leaving ones included, with the last configuration that
//! concerned it. The ends of leaving groups wait for it; cuts don't. A group that joins has settled the configuration before, which
//! asked nothing of it.
//!
//! # History
//!
//! The last few changes of people are kept for operators, and the last cuts, within a limit of bytes ([`HistoryLimits`]). No
//! group holds older configurations back. A group that is behind continues with the deltas after its configuration; if these
//! are no longer kept, it takes the latest whole configuration. That one is enough, because a group has at most one change of the
//! owner of each shard before it (the module `configure` has the proof), and a row says when the owner changed, and from which group.
//!
//! # The first configuration of a group
//!
//! A group whose nodes are empty (new disks) asks for the configurations after 0 and names its gid. It is given the latest
//! configuration, and the number of the one that its gid has settled ([`Query::After`]). If the group owns a shard since a configuration
//! up to that number, or gave a shard away by a later one, then it has had the shard and has lost its disks: data are lost, and the group
//! must refuse to continue. An earlier group with the same gid doesn't matter. It was drained before this one joined, so all that it had
//! is elsewhere, and what the latest configuration says of the gid is about the present group.
//!
//! # What it doesn't do
//!
//! The machine does no I/O except through the reader and the transaction that the replica passes in. It reads no clock and
//! sends no messages. It doesn't know whether a group is up: the groups of a configuration are those that were joined.

mod bug;
mod codec;
mod command;
mod configure;
mod forget;
mod history;
mod keys;
mod load;
mod machine;
mod outcome;
mod rebalance;
mod rules;

pub use bug::{BUGS_COMPILED_IN, Bug};
pub use command::{
    Change, Command, Configs, CtrlError, Drained, GroupProgress, Query, QueryAnswer, Response,
};
pub use forget::{Loss, MAX_LISTED_RUNS, ShardList};
pub use history::HistoryLimits;
pub use machine::Shardctrler;
pub use rebalance::rebalance;
pub use replica::session::SessionRef;
pub use replica::{Genesis, GroupKind};
pub use rules::MAX_ALL_ADDRESS_BYTES;
pub use types::{Cut, MAX_CUTS};

/// The most deltas in an answer to [`Query::After`]; a greater limit counts as this one.
pub const MAX_DELTAS: u32 = 1_024;

/// The most gids whose last drained incarnation is remembered. Beyond it those that were drained the longest ago are forgotten:
/// then their data are never reported as free to delete.
pub const MAX_DRAINED: usize = 10_000;

/// Deltas in an answer to [`Query::After`] end before this many bytes, as stored; but one is always there.
pub const MAX_ANSWER_BYTES: usize = 1 << 20;
