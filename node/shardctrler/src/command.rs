//! Commands, queries and responses of the controllers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use replica::session::SessionRef;
use types::{
    BadAddresses, ConfigDelta, ConfigNum, Cut, Gid, Incarnation, Sequence, ShardConfig, ShardId,
};

use crate::Loss;

/// A change with the session that makes it exactly once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Without a session a change is applied each time it is proposed.
    pub session: Option<SessionRef>,
    /// The change.
    pub change: Change,
}

/// A change of the configuration, or a group's report. People change targets; groups report their progress, and cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Adds groups, or gives groups other addresses, and rebalances.
    Join {
        /// The nodes of each group.
        groups: BTreeMap<Gid, Vec<String>>,
    },
    /// Takes all shards from groups, and rebalances. Each is gone once it is drained.
    Leave {
        /// The groups.
        gids: BTreeSet<Gid>,
    },
    /// Makes a group the target of one shard, until a rebalance must touch it.
    Move {
        /// The shard.
        shard: ShardId,
        /// The new target.
        gid: Gid,
    },
    /// Removes groups that are gone for good, with all that only they had. See the module `forget`.
    Forget {
        /// The groups.
        gids: BTreeSet<Gid>,
        /// True if whoever asks knows that data are lost. Without it the change is refused if any are.
        accept_data_loss: bool,
    },
    /// Retires the number of a drained or forgotten group: no group joins under it any more.
    Retire {
        /// The group.
        gid: Gid,
        /// The last incarnation that is to be drained.
        incarnation: Incarnation,
    },
    /// A group has completed all hand-offs of the configurations up to `settled`, and a shard became served there by `held`. Needs no
    /// session: the greatest values count.
    Report {
        /// The group.
        gid: Gid,
        /// The last configuration that the group has settled.
        settled: ConfigNum,
        /// The latest configuration by which a shard became served there.
        held: ConfigNum,
    },
    /// Shards whose targets have a copy that has caught up, so that they may become the owners. Needs no session: each cut names exactly
    /// the state that it ends, so it takes effect once at most.
    Cut {
        /// The shards; at most [`types::MAX_CUTS`].
        cuts: BTreeMap<ShardId, Cut>,
    },
}

/// A read of the configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// A configuration; `None` is the latest.
    Config {
        /// The number.
        num: Option<ConfigNum>,
    },
    /// The deltas after a configuration, or a whole one. Correct on any replica ([`replica::Request::ReadLocal`]): a replica that is
    /// behind returns fewer deltas, and refuses a caller that is ahead of it with [`CtrlError::Future`]. Only a group without
    /// configuration (`num` is 0, with a `gid`) must read linearizably ([`replica::Request::Read`]). Such a group compares
    /// [`Configs::settled`] and [`Configs::held`] with the shards that it owns, and thereby finds that it has lost its data. A stale answer could hide that: it
    /// may be from before the group settled anything, so the group would begin with empty shards.
    After {
        /// The caller's configuration; 0 for none.
        num: ConfigNum,
        /// The most deltas in the answer; more than [`crate::MAX_DELTAS`] count as that many.
        limit: u32,
        /// The replica group that follows, if the caller is one. A group without configuration, or with one that is older than the
        /// oldest kept, is given the latest whole configuration, which says all that the group still has to do. Any other
        /// caller whose configuration is older than the oldest kept is given the oldest, and the deltas after it.
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
        /// True if the change made a configuration.
        changed: bool,
        /// The number of shards with another target in it.
        moved_shards: u32,
    },
    /// `Forget` was carried out, now or when it was first applied.
    Forgotten {
        /// The configuration that it made.
        num: ConfigNum,
        /// The shards that were lost or given back.
        loss: Loss,
    },
    /// `Retire` was carried out, now or before.
    Retired,
    /// `Report`.
    Reported,
    /// `Cut`.
    Cut {
        /// The latest configuration.
        num: ConfigNum,
        /// The number of shards whose owner changed in it. It is 0 if none was in the state that the cut named. The caller repeats
        /// what still holds.
        cut: u32,
    },
    /// The request was refused and changed nothing.
    Refused(CtrlError),
}

/// A configuration with its place in the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryAnswer {
    /// The configuration.
    pub config: Arc<ShardConfig>,
    /// The number of the latest.
    pub latest: ConfigNum,
    /// The oldest that is kept.
    pub oldest: ConfigNum,
    /// Of every group that is part of the latest configuration, leaving ones included.
    pub progress: BTreeMap<Gid, GroupProgress>,
    /// The last drained incarnation of each gid, for the groups that were drained last.
    pub drained: BTreeMap<Gid, Drained>,
}

impl QueryAnswer {
    /// Returns true if this incarnation of a group is known to have left and to hold nothing that is needed. Only this, and never a
    /// group's absence, permits to delete its data. A forgotten group isn't drained: nothing says that its data are elsewhere.
    pub fn is_drained(&self, gid: Gid, incarnation: Incarnation) -> bool {
        let last = self.drained.get(&gid);
        last.is_some_and(|last| last.incarnation >= incarnation && !last.forgotten)
    }
}

/// A group that left and handed over all that it had, or that was forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// The incarnation; all earlier ones of this gid are drained too.
    pub incarnation: Incarnation,
    /// The first configuration without it.
    pub gone_in: ConfigNum,
    /// True if it handed nothing over, because it is gone for good.
    pub forgotten: bool,
    /// True if no group may join under this gid any more.
    pub retired: bool,
}

/// The progress of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupProgress {
    /// The group has completed all hand-offs of the configurations up to this one.
    pub settled: ConfigNum,
    /// The latest configuration by which a shard became served there. The group may have later ones that wait, and hence have settled less.
    pub held: ConfigNum,
    /// The last configuration that gave it a shard or took one from it. The group has nothing to do once `settled` reaches this.
    pub due: ConfigNum,
}

impl GroupProgress {
    /// Returns true if the group has carried out all changes of owners that concern it.
    pub fn is_settled(self) -> bool {
        self.settled >= self.due
    }
}

/// The configurations that a caller lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configs {
    /// The configuration to begin at: the latest for a group, the oldest kept one for another caller. Present if the delta after the
    /// caller's configuration is no longer kept, or if a group has no configuration yet.
    pub full: Option<Arc<ShardConfig>>,
    /// The deltas that follow, without a gap. The first applies to `full`, or to the caller's configuration.
    pub deltas: Vec<ConfigDelta>,
    /// The number of the latest.
    pub latest: ConfigNum,
    /// The configuration that the asking group has settled. The latest for a group that isn't part of the cluster, which owes
    /// nothing because only drained and forgotten groups are dropped, and for a caller that is no group.
    pub settled: ConfigNum,
    /// The latest configuration by which the asking group has served a shard, as far as it has reported that. A group without data that
    /// owns a shard since a configuration up to this one, or up to `settled`, has lost its disks.
    pub held: ConfigNum,
}

/// A refusal by the state machine, which changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CtrlError {
    /// No such group.
    #[error("{0} is not part of the cluster: `config query` shows the groups")]
    UnknownGroup(Gid),
    /// The group is leaving, and takes no shards.
    #[error("{0} is leaving, so it takes no shards: let it join again first")]
    Leaving(Gid),
    /// Gid 0.
    #[error("gid 0 means nobody: number groups from 1")]
    GidZero,
    /// A change that names no group.
    #[error("no group is named: name at least one")]
    NoGroups,
    /// Addresses of a group that can't be used.
    #[error("{gid}: {reason}")]
    BadAddresses {
        /// The group.
        gid: Gid,
        /// The reason.
        reason: BadAddresses,
    },
    /// Two groups claim an address.
    #[error("{address} belongs to {owner}: a node is part of one group")]
    AddressTaken {
        /// The address.
        address: String,
        /// The group that has it.
        owner: Gid,
    },
    /// Too many groups.
    #[error("{limit} groups are the limit")]
    TooManyGroups {
        /// The bound.
        limit: u64,
    },
    /// The groups' addresses are too long in sum.
    #[error(
        "the addresses of all groups have at most {limit} bytes: use fewer groups or shorter names"
    )]
    TooManyAddressBytes {
        /// The bound.
        limit: u64,
    },
    /// Too many cuts at once.
    #[error("a change cuts at most {limit} shards")]
    TooManyCuts {
        /// The bound.
        limit: u64,
    },
    /// No such shard.
    #[error("there is no {shard}: the cluster has {shards} shards, from 0 on")]
    NoShard {
        /// The shard.
        shard: ShardId,
        /// The number of shards.
        shards: u32,
    },
    /// The change would leave no group to own the shards.
    #[error("the last group can't leave: its shards would have no owner; join another one first")]
    LastGroup,
    /// The change would lose data.
    #[error(
        "data would be lost: {} would begin empty, and {} would go back to earlier owners without later writes: if the group is gone for \
         good, stop its nodes and accept the loss",
        .0.emptied, .0.returned
    )]
    DataLoss(Loss),
    /// The group isn't drained.
    #[error(
        "{0} is neither drained nor forgotten: let it leave, and wait until `config query` lists it as drained"
    )]
    NotDrained(Gid),
    /// The number of a joining group was retired.
    #[error("the number of {0} was retired: use a gid that no group ever had")]
    Retired(Gid),
    /// A configuration that doesn't exist yet.
    #[error("there is no configuration {num} yet: the latest is {latest}")]
    Future {
        /// The number.
        num: ConfigNum,
        /// The latest.
        latest: ConfigNum,
    },
    /// A configuration that isn't kept any more.
    #[error("configuration {num} is not kept any more: the oldest is {oldest}")]
    Compacted {
        /// The number.
        num: ConfigNum,
        /// The oldest that is kept.
        oldest: ConfigNum,
    },
    /// As `shardkv::KvError::SessionExpired`.
    #[error("the session expired: open a new one; this change may have been applied before")]
    SessionExpired,
    /// As `shardkv::KvError::SessionFromFuture`.
    #[error(
        "the session was born {ahead_ms} ms in the future of the controllers' log: check the nodes' clocks"
    )]
    SessionFromFuture {
        /// The difference, in milliseconds.
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
        /// The full table.
        what: &'static str,
        /// Its bound.
        limit: u64,
    },
    /// The operation can't be decoded.
    #[error("malformed operation: {0}")]
    Malformed(String),
}

impl CtrlError {
    /// Returns true if every other attempt of the same change, earlier or later, is refused or answered the same. If false,
    /// the refusal concerns one attempt only: while another copy may be in flight, the outcome of the change isn't known, and
    /// the client must repeat it with the same client id and sequence.
    ///
    /// Changes without a session have no identity, so the result is meaningless for them.
    pub fn is_final(&self) -> bool {
        match self {
            Self::UnknownGroup(_)
            | Self::Leaving(_)
            | Self::GidZero
            | Self::NoGroups
            | Self::BadAddresses { .. }
            | Self::AddressTaken { .. }
            | Self::TooManyGroups { .. }
            | Self::TooManyAddressBytes { .. }
            | Self::TooManyCuts { .. }
            | Self::NoShard { .. }
            | Self::LastGroup
            | Self::DataLoss(_)
            | Self::NotDrained(_)
            | Self::Retired(_)
            | Self::Compacted { .. }
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
