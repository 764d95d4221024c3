//! One round of questions to all known nodes of a group: which of them leads, and in which term.
//!
//! The search asks all nodes for their status at the same time, and accepts the claim of a node that *it* leads: the claim
//! with the highest term, if there are several. The statements of nodes about other nodes are only hints: a follower goes on naming a dead
//! leader until it notices. A node that hangs does not hold up the round, which ends soon after the first answers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use types::Gid;

use crate::Time;

/// The time that a claim to lead waits for one of a higher term, if its own term is not new.
const GRACE: Duration = Duration::from_millis(5);

/// The least time that slower nodes get after the first has answered.
const PATIENCE: Duration = Duration::from_millis(20);

/// A node's answer about its status.
#[derive(Clone, Debug)]
pub struct Report {
    /// The address that the node calls its own.
    pub own_address: Arc<str>,
    /// True if the node claims to lead.
    pub leads: bool,
    /// Its term.
    pub term: u64,
    /// The address of the leader that it knows; empty if it knows none.
    pub leader_address: String,
    /// The reason why the node can't serve; empty if it can.
    pub trouble: String,
}

/// The reason why a search found no leader.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SearchError {
    /// No node answered in time.
    #[error("no node of {0} answered")]
    NoAnswer(Gid),
    /// The nodes that answered don't lead.
    #[error("no node leads {gid} ({said})")]
    NoLeader {
        /// The group.
        gid: Gid,
        /// The answers.
        said: String,
    },
}

/// The answers of one round so far.
#[derive(Debug)]
pub struct LeaderSearch {
    start: Time,
    deadline: Time,
    /// The driver's time without a leader: the longer, the more time slow nodes get.
    outage: Duration,
    known_term: u64,
    /// The addresses of the nodes to ask.
    known: BTreeSet<Arc<str>>,
    best: Option<(Arc<str>, u64)>,
    /// A leader at an address that isn't its own: several nodes may share that address, so the next connection may lead to
    /// another node.
    shared: Option<(u64, Arc<str>)>,
    said: Vec<String>,
    done: bool,
}

impl LeaderSearch {
    /// Begins a round in which the nodes at `known` are asked, each for `patience` at most. `known_term` is the highest term in
    /// which a leader was found before.
    pub fn new(
        now: Time,
        known: BTreeSet<Arc<str>>,
        known_term: u64,
        patience: Duration,
        outage: Duration,
    ) -> Self {
        Self {
            start: now,
            deadline: now + patience,
            outage,
            known_term,
            known,
            best: None,
            shared: None,
            said: Vec::new(),
            done: false,
        }
    }

    /// Returns the moment at which the round ends, whatever is still unanswered.
    pub fn deadline(&self) -> Time {
        self.deadline
    }

    /// Returns true if no further answer can improve the result.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Takes in the answer of the node at `address`, or the reason why there is none.
    pub fn handle_answer<E: std::fmt::Display>(
        &mut self,
        now: Time,
        address: Arc<str>,
        answer: Result<Report, E>,
    ) {
        let report = match answer {
            Ok(report) => report,
            Err(error) => {
                self.said.push(format!("{address}: {error}"));
                return;
            }
        };
        let taken = now.saturating_sub(self.start);
        let patience = taken.max(PATIENCE) + self.outage / 4;
        self.deadline = self.deadline.min(now + patience);
        let own = &report.own_address;
        if report.leads && *own != address && self.known.contains(own) {
            let claim = Some((report.term, address));
            self.shared = self.shared.take().max(claim);
        } else if report.leads {
            let best = self.best.as_ref();
            if best.is_none_or(|(_, term)| report.term > *term) {
                self.best = Some((address, report.term));
            }
            self.done |= report.term > self.known_term;
            self.deadline = self.deadline.min(now + GRACE);
        } else if report.trouble.is_empty() {
            let leader = &report.leader_address;
            self.said
                .push(format!("{address}: knows no leader but {leader:?}"));
        } else {
            self.said.push(format!("{address}: {}", report.trouble));
        }
    }

    /// Ends the round. Returns the leader's address and term. The leader's own address is preferred to a shared one, which is
    /// used only if the leader is reached there alone.
    pub fn finish(self, gid: Gid) -> Result<(Arc<str>, u64), SearchError> {
        let shared = self.shared.map(|(term, address)| (address, term));
        // Of the same term, the leader's own address comes last and wins.
        let found = shared.into_iter().chain(self.best).max_by_key(|it| it.1);
        found.ok_or_else(|| {
            if self.said.is_empty() {
                SearchError::NoAnswer(gid)
            } else {
                let said = self.said.join("; ");
                SearchError::NoLeader { gid, said }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Duration::from_secs(50);

    fn search(known_term: u64) -> LeaderSearch {
        let known = ["a:1", "b:1", "c:1"].into_iter().map(Arc::from).collect();
        let second = Duration::from_secs(1);
        LeaderSearch::new(NOW, known, known_term, second, Duration::ZERO)
    }

    fn report(own: &str, leads: bool, term: u64) -> Report {
        Report {
            own_address: own.into(),
            leads,
            term,
            leader_address: String::new(),
            trouble: String::new(),
        }
    }

    #[test]
    fn a_leader_of_a_new_term_ends_the_round_at_once() {
        let mut search = search(3);
        search.handle_answer(NOW, "a:1".into(), Ok::<_, String>(report("a:1", true, 3)));
        assert!(!search.is_done(), "perhaps another leads a later term");
        assert_eq!(search.deadline(), NOW + GRACE);
        search.handle_answer(NOW, "b:1".into(), Ok::<_, String>(report("b:1", true, 4)));
        assert!(search.is_done());
        assert_eq!(search.finish(Gid(1)), Ok(("b:1".into(), 4)));
    }

    #[test]
    fn the_leaders_own_address_is_preferred_to_a_shared_one() {
        let mut search = search(0);
        search.handle_answer(NOW, "c:1".into(), Ok::<_, String>(report("a:1", true, 4)));
        assert!(!search.is_done());
        search.handle_answer(NOW, "a:1".into(), Ok::<_, String>(report("a:1", true, 4)));
        assert_eq!(search.finish(Gid(1)), Ok(("a:1".into(), 4)));
    }

    #[test]
    fn a_round_without_a_leader_tells_the_answers() {
        assert_eq!(search(0).finish(Gid(1)), Err(SearchError::NoAnswer(Gid(1))));
        let mut search = search(0);
        search.handle_answer(NOW, "a:1".into(), Ok::<_, String>(report("a:1", false, 4)));
        search.handle_answer(NOW, "b:1".into(), Err("refused"));
        let error = search.finish(Gid(1)).unwrap_err().to_string();
        let expected = "no node leads g1 (a:1: knows no leader but \"\"; b:1: refused)";
        assert_eq!(error, expected);
    }
}
