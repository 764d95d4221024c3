//! What is asked of the configuration centre, and what it answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use replica::session::SessionRef;
use types::{ConfigDelta, ConfigNum, Gid, Sequence, ShardConfig, ShardId};

/// A change with the session that makes it exactly once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Without a session a change is applied each time it is proposed.
    pub session: Option<SessionRef>,
    /// What to do.
    pub change: Change,
}

/// A change of the configuration, or news of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Adds groups, or gives groups other addresses, and rebalances.
    Join {
        /// The nodes of each group.
        groups: BTreeMap<Gid, Vec<String>>,
    },
    /// Takes groups away, and rebalances.
    Leave {
        /// Which.
        gids: BTreeSet<Gid>,
    },
    /// Gives one shard to a group, until a rebalance must touch it.
    Move {
        /// Which.
        shard: ShardId,
        /// To whom.
        gid: Gid,
    },
    /// A group has done all that configurations up to `settled` ask of it. Takes no session: the greatest counts.
    Report {
        /// Which.
        gid: Gid,
        /// Up to where.
        settled: ConfigNum,
    },
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// A configuration; `None` is the latest.
    Config {
        /// Which.
        num: Option<ConfigNum>,
    },
    /// What leads on from a configuration. Right on any replica ([`replica::Request::ReadLocal`]): one that is behind has
    /// less to tell, and refuses one who is ahead of it with [`CtrlError::Future`]. Only a group that has nothing (`num` is
    /// 0, with a `gid`) must ask linearizably ([`replica::Request::Read`]), or it may be told to begin where a group with
    /// the same gid was before it.
    After {
        /// The configuration that the asker has; 0 for none.
        num: ConfigNum,
        /// The most deltas in the answer; more than [`crate::MAX_DELTAS`] count as that many.
        limit: u32,
        /// The replica group that asks to follow. One that has nothing, or is too far behind, is given the configuration
        /// that it is to begin at: the one up to which the controllers know it to be settled, or the latest if it isn't
        /// theirs. So a group with new disks under the gid of one that left doesn't relive its predecessor's life.
        gid: Option<Gid>,
    },
}

/// An answer of the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// `Query::Config`.
    Config(Box<QueryAnswer>),
    /// `Query::After`.
    Configs(Configs),
    /// A change was carried out, now or when it was first applied.
    Changed {
        /// The configuration that it made, or the latest if it changed nothing.
        num: ConfigNum,
        /// Whether it made one.
        changed: bool,
        /// How many shards have another owner in it.
        moved_shards: u32,
    },
    /// `Report`.
    Reported,
    /// The request was refused and changed nothing.
    Refused(CtrlError),
}

/// A configuration and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryAnswer {
    /// The configuration.
    pub config: Arc<ShardConfig>,
    /// The number of the latest.
    pub latest: ConfigNum,
    /// The oldest that is kept.
    pub oldest: ConfigNum,
    /// Of every group that is part of the cluster, or left and is not drained yet.
    pub progress: BTreeMap<Gid, GroupProgress>,
}

/// How far a group is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupProgress {
    /// All that configurations up to this one ask of the group is done.
    pub settled: ConfigNum,
    /// The configuration in which it left; `None` while it is part of the cluster. It is drained, and forgotten, when
    /// `settled` reaches this.
    pub left_in: Option<ConfigNum>,
}

/// What an asker lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configs {
    /// Where to begin, when what follows the asker's configuration is not kept any more (then it is the oldest that is
    /// kept), or when a group has nothing yet (see [`Query::After`]).
    pub full: Option<Arc<ShardConfig>>,
    /// What follows, without a gap; the first leads on from `full`, or from what the asker has.
    pub deltas: Vec<ConfigDelta>,
    /// The number of the latest.
    pub latest: ConfigNum,
}

/// Why the state machine refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CtrlError {
    /// No such group.
    #[error("{0} is not part of the cluster: `config query` shows the groups")]
    UnknownGroup(Gid),
    /// Gid 0.
    #[error("gid 0 means nobody: number groups from 1")]
    GidZero,
    /// A change that names no group.
    #[error("no group is named: name at least one")]
    NoGroups,
    /// Addresses of a group that can't be used.
    #[error("{gid}: {why}")]
    BadAddresses {
        /// Whose.
        gid: Gid,
        /// Why.
        why: String,
    },
    /// Two groups claim an address.
    #[error("{address} belongs to {owner}: a node is part of one group")]
    AddressTaken {
        /// Which.
        address: String,
        /// Who has it.
        owner: Gid,
    },
    /// Too many groups.
    #[error("{limit} groups are the limit")]
    TooManyGroups {
        /// The bound.
        limit: u64,
    },
    /// No such shard.
    #[error("there is no {shard}: the cluster has {shards} shards, from 0 on")]
    NoShard {
        /// Which.
        shard: ShardId,
        /// How many there are.
        shards: u32,
    },
    /// Nobody would be left to own the shards.
    #[error("the last group can't leave: its shards would have no owner; join another one first")]
    LastGroup,
    /// A configuration that isn't there yet.
    #[error("there is no configuration {num} yet: the latest is {latest}")]
    Future {
        /// Which.
        num: ConfigNum,
        /// The latest.
        latest: ConfigNum,
    },
    /// A configuration that isn't kept any more.
    #[error("configuration {num} is not kept any more: the oldest is {oldest}")]
    Compacted {
        /// Which.
        num: ConfigNum,
        /// The oldest that is kept.
        oldest: ConfigNum,
    },
    /// Too many configurations that a group has not passed yet.
    #[error(
        "{limit} configurations wait for {waits_for}, which has settled only {settled}: bring that group back first"
    )]
    HistoryFull {
        /// The bound.
        limit: u64,
        /// The group that is furthest behind.
        waits_for: Gid,
        /// How far it is.
        settled: ConfigNum,
    },
    /// As `shardkv::KvError::SessionExpired`.
    #[error("the session expired: open a new one; this change may have been applied before")]
    SessionExpired,
    /// As `shardkv::KvError::SessionFromFuture`.
    #[error(
        "the session was born {ahead_ms} ms in the future of the controllers' log: check the nodes' clocks"
    )]
    SessionFromFuture {
        /// How far, in milliseconds.
        ahead_ms: u64,
    },
    /// As `shardkv::KvError::StaleSequence`.
    #[error(
        "change {sequence} was acknowledged by the client before (all below {acked_below} were)"
    )]
    StaleSequence {
        /// The change's number.
        sequence: Sequence,
        /// The session's lowest unacknowledged number.
        acked_below: Sequence,
    },
    /// As `shardkv::KvError::BadSequence`.
    #[error("bad session numbers: sequence {sequence}, acknowledged below {acked_below}")]
    BadSequence {
        /// The change's number.
        sequence: Sequence,
        /// The acknowledged bound.
        acked_below: Sequence,
    },
    /// A table of sessions or results is full.
    #[error(
        "{what} are at their limit of {limit}: acknowledge results, reuse sessions, or retry later"
    )]
    SessionLimit {
        /// Which table.
        what: &'static str,
        /// Its bound.
        limit: u64,
    },
    /// The operation could not be decoded.
    #[error("malformed operation: {0}")]
    Malformed(String),
}

impl CtrlError {
    /// Whether every other attempt of the same change, earlier or later, is refused or answered the same. If not, the
    /// refusal speaks of one attempt: while another copy may be on its way the outcome of the change isn't known, and it
    /// is to be repeated with the same client id and sequence.
    ///
    /// Changes without a session have no identity, so for them this says nothing.
    pub fn is_final(&self) -> bool {
        match self {
            Self::UnknownGroup(_)
            | Self::GidZero
            | Self::NoGroups
            | Self::BadAddresses { .. }
            | Self::AddressTaken { .. }
            | Self::TooManyGroups { .. }
            | Self::NoShard { .. }
            | Self::LastGroup
            | Self::Compacted { .. }
            | Self::HistoryFull { .. }
            | Self::SessionExpired
            | Self::StaleSequence { .. }
            | Self::BadSequence { .. }
            | Self::Malformed(_) => true,
            Self::Future { .. } | Self::SessionFromFuture { .. } | Self::SessionLimit { .. } => {
                false
            }
        }
    }
}
