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
//! 4. The rules give the groups and the *targets* of the next configuration (`rules::plan`). A change that names many groups
//!    is carried out whole or not at all, and a change without effect makes no configuration. When groups join
//!    or leave, the targets are rebalanced ([`rebalance()`]): evenly, with the fewest changes, and without touching a shard that
//!    a `Move` placed, unless it must.
//! 5. The *owners* of shards at rest follow at once; the others follow when groups report, or by a [`Change::Cut`] (the module
//!    `configure`).
//! 6. The delta is written and takes effect.
//!
//! Groups carry out configurations by themselves: each follows the deltas and moves its shards at its own pace. People's changes
//! never wait for them, but the owner of a shard changes only once the change before is settled.
//!
//! # Groups that leave
//!
//! A group that was told to leave stays in the configurations, marked as leaving, until it owns no shard, has none fenced and owes
//! nothing. Then the next configuration is without it, and its incarnation is recorded as drained
//! ([`QueryAnswer::is_drained`]). A group that joins again while it is leaving is the same group; after that it is another
//! incarnation. A group's absence proves nothing.
//!
//! # History
//!
//! A group that is behind continues with the deltas after its configuration. So groups report their progress
//! ([`Change::Report`]): a group has *settled* a configuration when it has completed all hand-offs of the configurations up to
//! it. [`GroupProgress`] is tracked for every group, leaving ones included, with the last configuration that concerned it.
//!
//! Configurations before the least settled one are dropped, except for the last few changes of people, which are kept for
//! operators, with a limit of its own for the cuts among them ([`HistoryLimits`]). While a group stays behind, the history grows,
//! until further changes are refused with [`CtrlError::HistoryFull`], which names the group.
//!
//! A group that joins has settled the configuration before, which asked nothing of it.
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
mod configure;
mod history;
mod keys;
mod load;
mod machine;
mod outcome;
mod rebalance;
mod rules;

pub use bug::{BUGS_COMPILED_IN, Bug};
pub use command::{
    Change, Command, Configs, CtrlError, Cut, Drained, GroupProgress, Query, QueryAnswer, Response,
};
pub use history::HistoryLimits;
pub use machine::Shardctrler;
pub use rebalance::rebalance;
pub use replica::session::SessionRef;
pub use replica::{Genesis, GroupKind};

/// The most deltas in an answer to [`Query::After`]; a greater limit counts as this one.
pub const MAX_DELTAS: u32 = 1_024;

/// The most shards of a [`Change::Cut`].
pub const MAX_CUTS: usize = 1_024;

/// The shortest time between two configurations that [`Change::Cut`] makes, in milliseconds of log time: ten a second at most.
pub const MIN_CUT_INTERVAL_MS: u64 = 100;

/// The most gids whose last drained incarnation is remembered. Beyond it those that were drained the longest ago are forgotten:
/// then their data are never reported as free to delete.
pub const MAX_DRAINED: usize = 10_000;

/// Deltas in an answer to [`Query::After`] end before this many bytes, as stored; but one is always there.
pub const MAX_ANSWER_BYTES: usize = 1 << 20;
