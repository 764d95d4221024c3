//! The last known leader of each group, shared by all forwarded calls.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use request::{Leader, LeaderTable};
use types::Gid;

/// A [`LeaderTable`] that tasks share. [`Gid::NONE`] stands for the controllers.
#[derive(Debug, Default)]
pub(crate) struct Leaders {
    table: Mutex<LeaderTable>,
}

impl Leaders {
    /// Returns the node to ask next of a group whose nodes are at `addresses`: the guess first, then the others in turn. `turn`
    /// is the number of nodes that were asked in vain.
    pub(crate) fn next(&self, gid: Gid, addresses: &[String], turn: usize) -> Option<Leader> {
        self.lock().next(gid, addresses, turn)
    }

    /// Makes `address` the guess. Ignored unless it is a valid address.
    pub(crate) fn found(&self, gid: Gid, address: &str) {
        self.lock().found(gid, address);
    }

    /// Drops a guess that does not lead or can't be reached. Returns true if the hint is followed.
    pub(crate) fn failed(&self, leader: &Leader, hint: Option<&Arc<str>>) -> bool {
        self.lock().failed(leader, hint)
    }

    fn lock(&self) -> MutexGuard<'_, LeaderTable> {
        // No method leaves the table half changed, so a poisoned lock is as good.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
