//! The state of a leader: its heartbeats, its transfer of leadership, and its uncommitted proposals.

use std::collections::VecDeque;

use types::NodeId;

use crate::Index;

/// The state that a leader keeps for its term.
#[derive(Debug, Default)]
pub(crate) struct Leading {
    /// The index of the no-op that begins the term.
    pub(crate) first_index: Index,
    /// Ticks since the last heartbeat.
    pub(crate) heartbeat_elapsed: u32,
    pub(crate) heartbeat_due: bool,
    /// The target of a leadership transfer, and the ticks since it began.
    pub(crate) transfer: Option<(NodeId, u32)>,
    /// A `TimeoutNow` left in this term. A delayed one could elect another leader during the lease, so leases are off
    /// for the rest of this term.
    pub(crate) transferred: bool,
    /// The index and size of each entry that is proposed and not committed.
    pub(crate) uncommitted: VecDeque<(Index, usize)>,
    pub(crate) uncommitted_bytes: usize,
}
