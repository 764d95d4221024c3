//! The bugs of all crates under test, as one list: the simulator puts them back, one at a time.

use std::fmt;

use request::Bugs;

use crate::scenario::Scenario;

/// A known bug of one of the crates under test.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A bug of the consensus library or of a crate above it.
    Node(raft::Bug),
    /// A bug of the request engine.
    Request(request::Bug),
}

impl Bug {
    /// Returns all bugs.
    pub fn all() -> impl Iterator<Item = Self> {
        let node = raft::Bug::ALL.into_iter().map(Self::Node);
        node.chain(request::Bug::ALL.into_iter().map(Self::Request))
    }

    /// Puts the bug back in a scenario.
    pub fn put_back(self, scenario: &mut Scenario) {
        match self {
            Self::Node(bug) => scenario.bug = Some(bug),
            Self::Request(bug) => scenario.client.bugs = Bugs::with(bug),
        }
    }
}

impl fmt::Debug for Bug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(bug) => bug.fmt(f),
            Self::Request(bug) => bug.fmt(f),
        }
    }
}
