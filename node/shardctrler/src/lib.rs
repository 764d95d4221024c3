//! The configuration centre's state machine: numbered configurations, and the changes that make the next one.

mod codec;
mod command;
mod history;
mod keys;
mod machine;
mod outcome;
mod rebalance;
mod rules;

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
