//! Answers of followers that come a second time when their receiver leads again.
//!
//! A network may deliver a copy of a message late. A copy of an acknowledgement is dangerous only for a node that leads again, in
//! a later term, after another leader truncated what was acknowledged. Copies at random times hardly ever meet that moment.

use std::collections::{BTreeMap, VecDeque};

use raft::{Envelope, Message, Term};
use types::NodeId;

use super::World;
use crate::event::Event;
use crate::network::HostId;
use crate::queue::{MILLI, Micros};

/// The most answers of a kind that are kept of each pair of nodes: the last one of as many terms.
const MOST: usize = 4;

/// The last answers that each node got in each of its terms, and the last term in which each host led.
#[derive(Debug, Default)]
pub(crate) struct OldAnswers {
    kept: BTreeMap<(NodeId, NodeId, bool), VecDeque<Envelope>>,
    led: BTreeMap<HostId, Term>,
}

impl World {
    /// Keeps an answer that a follower sends, in worlds in which old answers come again.
    pub(super) fn keep_follower_answer(&mut self, envelope: &Envelope) {
        let accepts = match envelope.message {
            Message::AppendAccepted { .. } => true,
            Message::HeartbeatReply { .. } => false,
            _ => return,
        };
        if self.scenario.old_answers == 0 {
            return;
        }
        let pair = (envelope.to, envelope.from, accepts);
        let kept = self.old_answers.kept.entry(pair).or_default();
        kept.retain(|earlier| earlier.term != envelope.term);
        if kept.len() >= MOST {
            kept.pop_front();
        }
        kept.push_back(envelope.clone());
    }

    /// Delivers answers of earlier terms again, soon, if these messages are the first of a new leader.
    pub(super) fn repeat_old_answers(&mut self, host: HostId, messages: &[(Micros, Envelope)]) {
        if self.scenario.old_answers == 0 || !self.faults_happen() {
            return;
        }
        let term = messages.iter().find_map(|(_, envelope)| {
            matches!(envelope.message, Message::Append { .. }).then_some(envelope.term)
        });
        let led = self.old_answers.led.entry(host).or_default();
        let Some(term) = term.filter(|term| *term > *led) else {
            return;
        };
        *led = term;
        let node = self.hosts[host].node;
        let pairs = (node, NodeId(0), false)..=(node, NodeId(u64::MAX), true);
        let kept = self.old_answers.kept.range(pairs);
        let kept = kept.flat_map(|(_, answers)| answers);
        let old: Vec<Envelope> = kept.filter(|it| it.term < term).cloned().collect();
        for envelope in old {
            if self.step_rng.chance(self.scenario.old_answers) {
                let at = self.now + self.step_rng.magnitude(MILLI / 2, 400 * MILLI);
                self.queue.push(at, Event::Arrive { host, envelope });
                self.count("answers of followers that came twice, late");
            }
        }
    }
}
