//! The work of a node beside the log for the keyspaces of its group: feeds for watches, the timers of leases, and clearing.
//!
//! The replica's thread tells [`Followers`] what each round has changed, after the commit and before the answers go out. So
//! whoever was answered finds the change in the feeds and timers.

pub(crate) mod budgets;
pub(crate) mod clearing;
mod compaction;
mod expiry;
pub(crate) mod hub;
pub(crate) mod leader_tasks;
pub(crate) mod lessor;
mod loading;
pub(crate) mod shares;
pub(crate) mod waiters;

use std::sync::Arc;

use raft::Term;
use shardkv::{KeyspaceChanges, Ownership};

use clearing::Clearer;
use hub::Hub;
use lessor::Lessor;

/// Those who follow the changes of keyspaces on this node.
pub(crate) struct Followers {
    pub(crate) hub: Arc<Hub>,
    pub(crate) lessor: Arc<Lessor>,
    pub(crate) clearer: Arc<Clearer>,
}

impl Followers {
    /// Takes in the changes of a round, with the ownership after it. `term` is that of this node if it leads. The ownership
    /// must have been published before.
    pub(crate) fn note(
        &self,
        changes: &KeyspaceChanges,
        ownership: &Ownership,
        moved: bool,
        term: Option<Term>,
    ) {
        // Feeds end after what they still have; timers begin with the shard.
        self.hub.note(changes);
        if moved || changes.replaced {
            self.hub.keep_served(ownership);
            self.lessor.keep_served(ownership);
            self.clearer.keep_served(ownership);
        }
        // Before the lessor, which publishes the term: whoever is told of it adds what is to be cleared in it.
        self.clearer.note(changes, ownership, term);
        self.lessor.note(changes, ownership, term);
    }
}

#[cfg(test)]
mod tests;
