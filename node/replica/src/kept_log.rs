//! The part of the log that a leader keeps for followers that are behind.
//!
//! A follower continues with the entry after its match index or after its snapshot. If that entry were cut while the follower
//! is on the way to it, it would need another snapshot, and under steady writes again and again. So the leader keeps the
//! log from there, within a bound of bytes, and only for a follower that makes progress.

use std::collections::BTreeMap;

use raft::{Index, ProgressState, Raft};
use types::NodeId;

/// The number of heartbeat intervals without progress after which the log isn't kept for a follower any more.
const STALLED_AFTER_HEARTBEATS: u32 = 600;

/// The progress of followers, by which the leader decides for whom it keeps the log.
#[derive(Debug, Default)]
pub(crate) struct KeptLog {
    /// The match index of each follower, and the ticks for which it lacked entries and did not advance.
    followers: BTreeMap<NodeId, (Index, u32)>,
    /// The bytes that are kept beyond what compaction alone would keep.
    pub(crate) bytes: u64,
}

impl KeptLog {
    pub(crate) fn tick(&mut self, raft: &Raft) {
        let last = raft.last_id().index;
        let before = std::mem::take(&mut self.followers);
        self.followers = raft
            .progress()
            .map(|(node, matched, _)| {
                let stalled = before
                    .get(&node)
                    .filter(|(at, _)| *at == matched && matched < last)
                    .map_or(0, |(_, ticks)| ticks.saturating_add(1));
                (node, (matched, stalled))
            })
            .collect();
    }

    /// Returns the match indexes of the followers that are on the way to the log's end and answer.
    pub(crate) fn wanted<'a>(
        &'a self,
        raft: &'a Raft,
        heartbeat_ticks: u32,
    ) -> impl Iterator<Item = Index> + 'a {
        // A follower that has just installed a snapshot has advanced since the last tick.
        let goes_on = move |node, matched| {
            let counted = self.followers.get(&node);
            let stalled = counted
                .filter(|(at, _)| *at == matched)
                .map_or(0, |(_, ticks)| *ticks);
            stalled < heartbeat_ticks * STALLED_AFTER_HEARTBEATS
        };
        raft.progress()
            .filter(move |(node, matched, state)| {
                *state != ProgressState::Snapshot
                    && raft.is_active(*node)
                    && goes_on(*node, *matched)
            })
            .map(|(_, matched, _)| matched)
    }
}
