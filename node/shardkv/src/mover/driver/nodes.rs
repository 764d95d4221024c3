//! Chooses the node of a group that is asked next.

use std::collections::BTreeMap;
use std::sync::Arc;

use request::{Leader, LeaderTable};
use types::Gid;

use crate::bug::Bugs;

/// The most groups whose failures are counted. Beyond it all counts restart, which costs some requests.
const MAX_COUNTED: usize = 16_384;

/// The nodes of each group, and the guess which of them serves.
#[derive(Debug)]
pub(super) struct Nodes {
    guesses: LeaderTable,
    /// The number of failures of each group's nodes, for at most [`MAX_COUNTED`] groups.
    failures: BTreeMap<Gid, usize>,
    /// The number of failures of each group's nodes since one that doesn't lead answered.
    in_row: BTreeMap<Gid, usize>,
    /// The position of the address that is asked first.
    first: usize,
}

impl Nodes {
    pub(super) fn new(first: usize, bugs: Bugs) -> Self {
        Self {
            guesses: LeaderTable::new(bugs.of_requests()),
            failures: BTreeMap::new(),
            in_row: BTreeMap::new(),
            first,
        }
    }

    /// Returns the node to ask next.
    pub(super) fn next(&self, gid: Gid, addresses: &[String]) -> Option<Leader> {
        self.guesses.next(gid, addresses, self.turn(gid))
    }

    fn turn(&self, gid: Gid) -> usize {
        let failures = self.failures.get(&gid).copied().unwrap_or_default();
        self.first.wrapping_add(failures)
    }

    /// Returns the node to ask next, as [`Nodes::next`], but the node at `leader` only once as many nodes have failed in a row
    /// as there are others.
    pub(super) fn next_but(
        &self,
        gid: Gid,
        addresses: &[String],
        leader: Option<&str>,
    ) -> Option<Leader> {
        let node = self.next(gid, addresses)?;
        if leader != Some(&*node.address) {
            return Some(node);
        }
        let others = addresses.iter().filter(|it| it.as_str() != &*node.address);
        let failed = self.in_row.get(&gid).copied().unwrap_or_default();
        let turn = self.turn(gid).checked_rem(others.clone().count());
        match turn.and_then(|turn| others.clone().nth(turn)) {
            Some(other) if failed < others.count() => Some(Leader {
                address: other.as_str().into(),
                ..node
            }),
            _ => Some(node),
        }
    }

    /// Returns the node that answered last, if it hasn't failed since.
    pub(super) fn guess(&self, gid: Gid) -> Option<Leader> {
        self.guesses.next::<&str>(gid, &[], 0)
    }

    /// Records that a node answered.
    pub(super) fn found(&mut self, node: &Leader) {
        self.guesses.found(node.gid, &node.address);
    }

    /// Records that a node which doesn't lead answered.
    pub(super) fn found_follower(&mut self, node: &Leader) {
        self.in_row.remove(&node.gid);
        self.found(node);
    }

    /// Drops a node that refused and named another one. Returns true if that one is asked next.
    pub(super) fn follow(&mut self, node: &Leader, hint: &Arc<str>) -> bool {
        self.guesses.failed(node, Some(hint))
    }

    /// Drops a node that can't serve, so that the next one is asked.
    pub(super) fn failed(&mut self, node: &Leader) {
        self.guesses.failed(node, None);
        if self.failures.len() >= MAX_COUNTED && !self.failures.contains_key(&node.gid) {
            self.failures.clear();
            self.in_row.clear();
        }
        let failures = self.failures.entry(node.gid).or_default();
        *failures = failures.wrapping_add(1);
        let in_row = self.in_row.entry(node.gid).or_default();
        *in_row = in_row.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_for_a_bounded_number_of_groups() {
        let mut nodes = Nodes::new(0, Bugs::default());
        let addresses = ["a:1".to_owned(), "b:1".to_owned()];
        for gid in 1..=MAX_COUNTED as u64 + 1 {
            let first = nodes.next(Gid(gid), &addresses).unwrap();
            nodes.failed(&first);
            let second = nodes.next(Gid(gid), &addresses).unwrap();
            assert_ne!(first.address, second.address, "the next node is asked");
            assert!(nodes.failures.len() <= MAX_COUNTED);
        }
        assert_eq!(nodes.failures.len(), 1);
    }
}
