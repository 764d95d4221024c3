//! Peers that contradict what their group has agreed on: a committed entry, or the leader of a term.
//!
//! No fault of the network explains such a message. A disk was restored from a copy, two processes use one data directory,
//! or there is a fault in this program. The message was refused and changed nothing here. An operator must know of it, but a
//! peer may send many such messages in a second.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use raft::StepError;
use types::NodeId;

/// The shortest time between two log lines about one peer.
const REPEAT_AFTER: Duration = Duration::from_mins(10);
/// The most peers of which the last line is remembered. A group has fewer members.
const MOST_PEERS: usize = 64;

/// The peers that were named in the log.
#[derive(Debug, Default)]
pub(crate) struct Contradictions {
    named: BTreeMap<NodeId, Instant>,
}

impl Contradictions {
    /// Counts the refusal of a message if it shows a contradiction, and logs it as an error, for each peer from time to
    /// time.
    pub(crate) fn note(&mut self, refusal: &StepError, count: &Counter, now: Instant) {
        let Some(peer) = refusal.contradicting_peer() else {
            return;
        };
        count.inc();
        if self.is_due(peer, now) {
            tracing::error!(
                %peer,
                "{refusal}: the message was refused and changed nothing here. Check that no volume of this group was \
                 restored from a copy and that no two pods use one volume; keep the volumes of all nodes until the cause \
                 is known"
            );
        }
    }

    /// Returns true, and remembers it, if the peer is to be named in the log now.
    fn is_due(&mut self, peer: NodeId, now: Instant) -> bool {
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

    fn refusal(peer: u64) -> StepError {
        StepError::ContradictsCommitted {
            from: NodeId(peer),
            committed: EntryId::new(Term(2), Index(7)),
        }
    }

    #[test]
    fn each_peer_is_named_once_in_a_while_and_every_message_is_counted() {
        let mut seen = Contradictions::default();
        let count = Counter::default();
        let start = Instant::now();
        for _ in 0..1_000 {
            seen.note(&refusal(1), &count, start);
        }
        assert_eq!((count.get(), seen.named.len()), (1_000, 1));
        assert!(seen.is_due(NodeId(2), start));
        assert!(!seen.is_due(NodeId(1), start + REPEAT_AFTER / 2));
        assert!(seen.is_due(NodeId(1), start + REPEAT_AFTER));
        // Other refusals are the business of the network.
        let malformed = StepError::Malformed {
            from: NodeId(3),
            what: "x",
        };
        seen.note(&malformed, &count, start);
        assert_eq!(count.get(), 1_000);
    }

    #[test]
    fn many_peers_are_bounded() {
        let mut seen = Contradictions::default();
        let now = Instant::now();
        let named = (1..1_000).filter(|peer| seen.is_due(NodeId(*peer), now));
        assert_eq!(named.count(), MOST_PEERS);
    }
}
