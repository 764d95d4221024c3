//! Chooses the node of a group that is asked next.

use std::collections::BTreeMap;
use std::sync::Arc;

use request::{Leader, LeaderTable};
use types::Gid;

use crate::bug::Bugs;

/// The nodes of each group, and the guess which of them serves.
#[derive(Debug)]
pub(super) struct Nodes {
    guesses: LeaderTable,
    /// The number of failures of each group's nodes.
    failures: BTreeMap<Gid, usize>,
    /// The position of the address that is asked first.
    first: usize,
}

impl Nodes {
    pub(super) fn new(first: usize, bugs: Bugs) -> Self {
        Self {
            guesses: LeaderTable::new(bugs.of_requests()),
            failures: BTreeMap::new(),
            first,
        }
    }

    /// Returns the node to ask next.
    pub(super) fn next(&self, gid: Gid, addresses: &[String]) -> Option<Leader> {
        let failures = self.failures.get(&gid).copied().unwrap_or_default();
        let turn = self.first.wrapping_add(failures);
        self.guesses.next(gid, addresses, turn)
    }

    /// Records that a node answered.
    pub(super) fn found(&mut self, node: &Leader) {
        self.guesses.found(node.gid, &node.address);
    }

    /// Drops a node that refused and named another one. Returns true if that one is asked next.
    pub(super) fn follow(&mut self, node: &Leader, hint: &Arc<str>) -> bool {
        self.guesses.failed(node, Some(hint))
    }

    /// Drops a node that can't serve, so that the next one is asked.
    pub(super) fn failed(&mut self, node: &Leader) {
        self.guesses.failed(node, None);
        let failures = self.failures.entry(node.gid).or_default();
        *failures = failures.wrapping_add(1);
    }
}
