//! Turns answers and refusals into the outcomes of actions, or into calls of other nodes.

use std::time::Duration;

use request::{Leader, Next as NextStep, Refusal, Refused};

use super::pending::Pending;
use super::{Action, Answer, Driver, Outcome};
use crate::{JournalError, Ownership};

impl Driver {
    pub(super) fn answered(
        &mut self,
        now: u64,
        ownership: &Ownership,
        pending: Pending,
        answer: Result<Answer, Refused>,
    ) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(refused) => return self.refused(now, ownership, pending, refused),
        };
        if let Some(node) = &pending.node {
            let leads = self.leaders.guess(node.gid);
            let leads = leads.is_some_and(|leader| leader.address == node.address);
            match &pending.action {
                Action::Pull { .. } | Action::Copy { .. } if !leads => {
                    self.members.found_follower(node);
                }
                // A controller that is behind this group may stay so for long.
                Action::FetchConfigs { after }
                    if answer.latest_config(*after) < ownership.config =>
                {
                    self.members.failed(node);
                }
                _ => self.nodes(&pending.action).found(node),
            }
        }
        if !pending.fits(&answer) {
            let why = "the answer is of another kind: a bug in this version".to_owned();
            return self.fail(&pending, why);
        }
        if let Answer::Refused(JournalError::Unknown { .. } | JournalError::NotSealed { .. }) =
            answer
            && let Some(node) = &pending.node
            && let Some(leader) = self.asks_another(&pending, node)
            && let Some(request) = self.request(ownership, &pending)
        {
            return self.send(pending, leader, request);
        }
        let outcome = match answer {
            Answer::Part(part) => Outcome::Part(part),
            Answer::Begun {
                journal,
                shard_bytes,
            } => {
                if let Action::Journal { step, .. } = &pending.action {
                    self.mover.copy_measured(step.shard(), shard_bytes);
                }
                Outcome::Begun(journal)
            }
            Answer::Refused(error) => Outcome::Refused(error),
            Answer::Stepped | Answer::Reported => Outcome::Done,
            Answer::Chunk { chunk, shard_bytes } => {
                let (shard, config) = (chunk.shard, chunk.config);
                self.mover.shard_measured(shard, config, shard_bytes);
                Outcome::Pulled(chunk)
            }
            Answer::Configs {
                controller,
                shards,
                settled,
                held,
                full,
                deltas,
            } => Outcome::Configs {
                controller,
                shards,
                settled,
                held,
                full,
                deltas,
            },
        };
        self.end(pending.id, outcome);
    }

    /// Handles a refusal: asks another node at once if that may do, otherwise fails the action.
    fn refused(&mut self, now: u64, ownership: &Ownership, mut pending: Pending, refused: Refused) {
        let Some(node) = pending.node.take() else {
            return self.fail(&pending, refused.message);
        };
        let why = format!("{}: {}", node.address, refused.message);
        if matches!(refused.refusal, Refusal::ShardNotReady { .. })
            && let Some(other) = self.asks_another(&pending, &node)
            && let Some(request) = self.request(ownership, &pending)
        {
            // The node hasn't applied the fence yet.
            return self.send(pending, other, request);
        }
        let needs_leader = pending.needs_leader();
        let is_busy = matches!(refused.refusal, Refusal::Overloaded { .. });
        let nodes = self.nodes(&pending.action);
        let hint = refused.refusal.hint().cloned();
        let followed = hint.is_some_and(|hint| nodes.follow(&node, &hint));
        let time = Duration::from_millis(now);
        let next = pending
            .attempts
            .handle_refusal(time, refused, None, followed);
        let (at_once, leader_failed) = match next {
            NextStep::Retry {
                pause,
                leader_failed,
            } => (pause.is_zero(), leader_failed),
            NextStep::AwaitConfig { leader_failed, .. } => (false, leader_failed),
            NextStep::Report | NextStep::Fail(_) => (false, false),
        };
        if !followed && (leader_failed || !needs_leader) {
            nodes.failed(&node);
        }
        if leader_failed && pending.is_hurried() {
            self.silent(&pending.action, &node);
        }
        if at_once {
            self.call(ownership, pending);
        } else if is_busy && self.hedges.contains_key(&pending.id) {
            self.busy(&pending, why);
        } else {
            self.fail(&pending, why);
        }
    }

    /// Returns the node to ask at once after one that hasn't applied yet what a request for a chunk or a part names: the leader after a
    /// follower. After the leader, which may have been deposed, a shard that nobody serves asks one of the others.
    fn asks_another(&self, pending: &Pending, asked: &Leader) -> Option<Leader> {
        let reads = matches!(pending.action, Action::Pull { .. } | Action::Copy { .. });
        let leader = self.leaders.guess(asked.gid).filter(|_| reads)?;
        let other = match (leader.address == asked.address, pending.is_hurried()) {
            (true, true) => {
                let addresses = pending.addresses();
                self.members
                    .next_but(asked.gid, addresses, Some(&leader.address))
            }
            (false, false) => Some(leader),
            _ => None,
        };
        other.filter(|other| other.address != asked.address && !self.is_asked(pending.id, other))
    }
}
