//! Refused messages of peers that an operator must know of: those that contradict what the group has agreed on, and those
//! that this version can't read.
//!
//! No fault of the network explains a contradiction of a committed entry, or of the leader of a term. A disk was restored
//! from a copy, two processes use one data directory, or there is a fault in this program. The message was refused and changed
//! nothing here. A peer may send many such messages in a second, so the log names each peer from time to time, for each kind of
//! refusal.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use raft::StepError;
use types::NodeId;

use crate::metrics::ReplicaMetrics;

/// The shortest time between two log lines about one peer.
const REPEAT_AFTER: Duration = Duration::from_mins(10);
/// The most peers of which the last line is remembered. A group has fewer members.
const MOST_PEERS: usize = 64;

/// The kind of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Contradiction,
    Unreadable,
}

/// The peers that were named in the log, for each kind of refusal.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    named: BTreeMap<(NodeId, Kind), Instant>,
}

impl Refusals {
    /// Counts the refusal of a message if an operator must know of it, and logs it as an error, for each peer from time to
    /// time.
    pub(crate) fn note(&mut self, refusal: &StepError, metrics: &ReplicaMetrics, now: Instant) {
        let (peer, kind, advice) = match refusal {
            StepError::ContradictsCommitted { from, .. } | StepError::TwoLeaders { from, .. } => {
                metrics.peer_contradictions.inc();
                let advice = "the message was refused and changed nothing here. Check that no volume of this group was \
                              restored from a copy and that no two pods use one volume; keep the volumes of all nodes \
                              until the cause is known";
                (*from, Kind::Contradiction, advice)
            }
            StepError::Unreadable { from, .. } => {
                metrics.unreadable_messages.inc();
                (
                    *from,
                    Kind::Unreadable,
                    "this node keeps what it has, and goes on after the upgrade",
                )
            }
            StepError::NotForThisNode { .. } | StepError::Malformed { .. } => return,
        };
        if self.is_due((peer, kind), now) {
            tracing::error!(%peer, "{refusal}: {advice}");
        }
    }

    /// Returns true, and remembers it, if the peer is to be named in the log now.
    fn is_due(&mut self, peer: (NodeId, Kind), now: Instant) -> bool {
        self.named
            .retain(|_, named| now.duration_since(*named) < REPEAT_AFTER);
        if self.named.contains_key(&peer) || self.named.len() >= MOST_PEERS {
            return false;
        }
        self.named.insert(peer, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use raft::{EntryId, Index, Term};

    use super::*;

    const ENTRY: EntryId = EntryId::new(Term(2), Index(7));

    #[test]
    fn each_peer_is_named_once_in_a_while_and_every_message_is_counted() {
        let mut seen = Refusals::default();
        let metrics = ReplicaMetrics::default();
        let start = Instant::now();
        let contradiction = StepError::ContradictsCommitted {
            from: NodeId(1),
            committed: ENTRY,
        };
        for _ in 0..1_000 {
            seen.note(&contradiction, &metrics, start);
        }
        assert_eq!(metrics.peer_contradictions.get(), 1_000);
        assert_eq!(seen.named.len(), 1);
        let contradicts = (NodeId(1), Kind::Contradiction);
        assert!(!seen.is_due(contradicts, start + REPEAT_AFTER / 2));
        // Another kind of the same peer is told, too.
        assert!(seen.is_due((NodeId(1), Kind::Unreadable), start));
        assert!(seen.is_due(contradicts, start + REPEAT_AFTER));
        let unreadable = StepError::Unreadable {
            from: NodeId(2),
            entry: ENTRY,
            what: "feature level 2".to_owned(),
        };
        seen.note(&unreadable, &metrics, start);
        assert_eq!(metrics.unreadable_messages.get(), 1);
        // Other refusals are the business of the network.
        let malformed = StepError::Malformed {
            from: NodeId(3),
            what: "x",
        };
        seen.note(&malformed, &metrics, start);
        assert_eq!(metrics.peer_contradictions.get(), 1_000);
        assert_eq!(metrics.unreadable_messages.get(), 1);
        assert!(seen.named.keys().all(|(peer, _)| *peer != NodeId(3)));
    }

    #[test]
    fn many_peers_are_bounded() {
        let mut seen = Refusals::default();
        let now = Instant::now();
        let named = (1..1_000).filter(|peer| seen.is_due((NodeId(*peer), Kind::Unreadable), now));
        assert_eq!(named.count(), MOST_PEERS);
    }
}
