//! The driver's effects: proposals, and requests to other groups and to controllers, with the answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use raft::Index;
use types::{ClusterId, ConfigDelta, ConfigNum, Cut, Gid, ShardConfig, ShardId};

use crate::{Chunk, CopyRequest, Cursor, JournalError, JournalStep, Part, Step};

/// The driver's identifier of a proposal or a call; passed back with the answer. Never used twice by one driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// An effect that the driver's own driver carries out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Propose a step to this group's log. Steps enter the log in the order of the effects.
    Propose {
        /// The id of the answer.
        id: CallId,
        /// The step.
        step: Step,
        /// The time from which no answer is awaited.
        until_ms: u64,
    },
    /// Send a request to a node, which must not forward it.
    Call {
        /// The id of the answer.
        id: CallId,
        /// The node's address.
        address: Arc<str>,
        /// The request.
        request: Request,
        /// The time from which no answer is awaited.
        until_ms: u64,
    },
    /// Count an action that failed for this reason, and log it. The mover repeats the action.
    Failed(String),
}

/// A request to a node of another group or to a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Any controller: the configurations after `after`.
    Configs {
        /// The group that asks.
        gid: Gid,
        /// The latest configuration that the group's leader knows; 0 for none.
        after: ConfigNum,
        /// True if the group has accepted a configuration. Otherwise the answer must be recent.
        begun: bool,
        /// The time for which the controller may wait for news, in milliseconds.
        wait_ms: u64,
    },
    /// Any node of the source: the next chunk of a shard.
    Pull {
        /// The controllers of both groups.
        controller: ClusterId,
        /// The group that has the shard.
        source: Gid,
        /// The shard.
        shard: ShardId,
        /// The configuration that moves it.
        config: ConfigNum,
        /// The cursor up to which the shard has arrived.
        after: Cursor,
        /// The approximate size of the chunk.
        max_bytes: u32,
    },
    /// The source's leader: delete a shard.
    Delete {
        /// The controllers of both groups.
        controller: ClusterId,
        /// The group that is to delete the shard.
        source: Gid,
        /// The shard.
        shard: ShardId,
        /// The configuration that moved it.
        config: ConfigNum,
    },
    /// Any node of the source: the next part of a copy.
    Copy {
        /// The controllers of both groups.
        controller: ClusterId,
        /// The group that serves the shard, or has fenced it.
        source: Gid,
        /// The request.
        request: CopyRequest,
    },
    /// The source's leader: a step of a journal.
    Journal {
        /// The controllers of both groups.
        controller: ClusterId,
        /// The group that serves the shard.
        source: Gid,
        /// The step.
        step: JournalStep,
    },
    /// The controllers' leader: these copies have caught up, so cut each whose move is still planned exactly so.
    ReportCut {
        /// The controllers that are meant.
        controller: ClusterId,
        /// The shards; at most [`types::MAX_CUTS`].
        cuts: BTreeMap<ShardId, Cut>,
    },
    /// The controllers' leader: take a progress report.
    Report {
        /// The controllers that are meant.
        controller: ClusterId,
        /// The group that reports.
        gid: Gid,
        /// The value of [`crate::Ownership::settled`].
        settled: ConfigNum,
        /// The value of [`crate::Ownership::held`].
        held: ConfigNum,
    },
}

/// The answer to a proposal or a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// [`super::Effect::Propose`]: the step was applied here. [`Request::Journal`]: it was applied there. [`Request::Delete`]: the source has
    /// deleted the shard, now or before.
    Stepped,
    /// [`Request::Configs`]: as [`crate::mover::Outcome::Configs`].
    Configs {
        /// The controllers' incarnation.
        controller: ClusterId,
        /// The number of shards of the cluster.
        shards: u32,
        /// The configuration that they know the group to have settled.
        settled: ConfigNum,
        /// The latest configuration by which they know the group to have served a shard.
        held: ConfigNum,
        /// The latest configuration, if the request named none, or if the one that follows it is no longer kept.
        full: Option<ShardConfig>,
        /// The configurations that follow.
        deltas: Vec<ConfigDelta>,
    },
    /// [`Request::Pull`].
    Chunk {
        /// The chunk.
        chunk: Chunk,
        /// The source's estimate of the bytes of the whole shard.
        shard_bytes: u64,
    },
    /// [`Request::Copy`]: the part.
    Part(Part),
    /// [`Request::Journal`] that begins one.
    Begun {
        /// The journal's id.
        journal: Index,
        /// The source's estimate of the bytes of the whole shard.
        shard_bytes: u64,
    },
    /// [`Request::Copy`] or [`Request::Journal`]: the source's state machine refused it.
    Refused(JournalError),
    /// [`Request::Report`] or [`Request::ReportCut`]: accepted.
    Reported,
}

impl Answer {
    /// Returns the latest configuration to which an answer to a fetch of those after `after` leads.
    pub(super) fn latest_config(&self, after: ConfigNum) -> ConfigNum {
        let Self::Configs { full, deltas, .. } = self else {
            return after;
        };
        let last = deltas.last().map(|delta| delta.num);
        let full = full.as_ref().map(ShardConfig::num);
        last.or(full).unwrap_or(after)
    }
}
