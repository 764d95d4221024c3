//! The mover's driver: turns the mover's actions into calls, and the answers into outcomes.
//!
//! The driver is pure as well. It decides which node of another group is asked, in which order the nodes follow each
//! other, how long an answer may take, and what a refusal means. Its own driver (the server's tasks, or the simulator's
//! network) only proposes steps, sends calls, and passes answers and the time in.
//!
//! # The contract
//!
//! - Call [`Driver::poll`] as [`super`] demands it of [`Mover::poll`], after [`Driver::handle_answer`] instead of
//!   [`Mover::ended`], and when [`Driver::next_due`] is reached. Carry out the returned effects in order.
//! - Pass each answer to [`Driver::handle_answer`]. An answer that comes late, twice or never does no harm: each call ends
//!   at its deadline at the latest, and an answer without a pending call is dropped.
//! - After a poll without an ownership, the pending calls may be cancelled.
//!
//! # Which node is asked
//!
//! Deletes, steps of journals and reports go to the leader of the source or of the controllers, pulls and fetches to any node. The
//! node that answered last is asked first, then the node that a refusal names, then the others in turn. A pull goes to the
//! source's leader last, which has more to do than its followers, or at once if a follower hasn't applied the fence. These guesses, and
//! the meaning of a refusal, are the request engine's ([`request`]). An action that another node may serve at once is
//! repeated there at once. Every longer pause is the mover's: the action fails, and the mover starts it anew.

mod messages;
mod nodes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use request::{Jitter, Leader, Next as NextStep, Policy, Refusal, Refused, Repeat, SingleCall};
use types::Gid;

use super::{Action, ActionId, Mover, MoverOptions, Outcome, Room};
use crate::bug::{Bug, Bugs};
use crate::{JournalError, Ownership};
pub use messages::{Answer, CallId, Effect, Request};
use nodes::Nodes;

/// The rules of an action's calls. All may be repeated. The pauses don't matter: an action that needs a pause fails.
const POLICY: Policy = Policy {
    max_attempts: 4,
    reports_delays: true,
    min_backoff: Duration::from_millis(1),
    max_backoff: Duration::from_millis(1),
    doubling: true,
    bugs: request::Bugs::NONE,
};

/// Options of a mover's driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverOptions {
    /// The addresses of the controllers.
    pub controllers: Vec<String>,
    /// The position of the address that is asked first, so that not all nodes ask the same one.
    pub first_node: usize,
    /// The longest time that an action waits for another group, in milliseconds.
    pub call_timeout_ms: u64,
    /// The longest time until a proposal's outcome counts as unknown, in milliseconds. Must be below 30 seconds.
    pub propose_timeout_ms: u64,
    /// The time for which a controller may wait for a new configuration before it answers, in milliseconds. Together with
    /// `call_timeout_ms` it must be below a minute.
    pub news_wait_ms: u64,
}

/// A mover with its pending calls. See the module's documentation.
///
/// # Invariants
///
/// - Each pending call belongs to one action, and each action has one pending call.
/// - Each pending call has a deadline, at which it ends.
#[derive(Debug)]
pub struct Driver {
    gid: Gid,
    mover: Mover,
    options: DriverOptions,
    bugs: Bugs,
    pending: BTreeMap<CallId, Pending>,
    answers: Vec<(CallId, Result<Answer, Refused>)>,
    effects: Vec<Effect>,
    next_id: u64,
    /// The leaders, for requests that only a leader serves.
    leaders: Nodes,
    /// The nodes that answered last, for requests that any node serves.
    members: Nodes,
}

/// An action whose call is pending.
#[derive(Debug)]
struct Pending {
    id: ActionId,
    action: Action,
    attempts: SingleCall,
    /// The node that was asked; `None` for a proposal.
    node: Option<Leader>,
    /// The deadline.
    until: u64,
}

impl Driver {
    /// Creates a driver, with a mover without pending actions, for group `gid`, which was created for `shards` shards.
    pub fn new(gid: Gid, shards: u32, mover: MoverOptions, options: DriverOptions) -> Self {
        let mover = Mover::new(gid, shards, mover);
        Self::of(gid, mover, options, Bugs::default())
    }

    /// Creates a driver with a known bug put back, for the simulator.
    #[cfg(feature = "bugs")]
    pub fn with_bug(
        gid: Gid,
        shards: u32,
        mover: MoverOptions,
        options: DriverOptions,
        bug: Option<Bug>,
    ) -> Self {
        let mover = Mover::with_bug(gid, shards, mover, bug);
        Self::of(gid, mover, options, Bugs::new(bug))
    }

    fn of(gid: Gid, mover: Mover, options: DriverOptions, bugs: Bugs) -> Self {
        let nodes = || Nodes::new(options.first_node, bugs);
        Self {
            gid,
            mover,
            bugs,
            pending: BTreeMap::new(),
            answers: Vec::new(),
            effects: Vec::new(),
            next_id: 0,
            leaders: nodes(),
            members: nodes(),
            options,
        }
    }

    /// Returns the mover, which says why a shard waits and if the node must stop.
    pub fn mover(&self) -> &Mover {
        &self.mover
    }

    /// Sets the room for shards on the disks of the group, as [`Mover::set_room`].
    pub fn set_room(&mut self, room: Option<Room>) {
        self.mover.set_room(room);
    }

    /// Sets the time for which the slowest live follower is behind, as [`Mover::set_lag`].
    pub fn set_lag(&mut self, lag_ms: u64) {
        self.mover.set_lag(lag_ms);
    }

    /// Returns the actions whose calls are pending.
    pub fn pending_actions(&self) -> impl Iterator<Item = &Action> {
        self.pending.values().map(|pending| &pending.action)
    }

    /// Returns the time at which [`Driver::poll`] has work without new input, if any.
    pub fn next_due(&self) -> Option<u64> {
        if !self.answers.is_empty() {
            return Some(0);
        }
        let deadlines = self.pending.values().map(|pending| pending.until);
        let first = deadlines.min().filter(|_| self.ends_lost_calls());
        first.into_iter().chain(self.mover.next_due()).min()
    }

    /// Takes the answer to a proposal or a call. Call [`Driver::poll`] next.
    pub fn handle_answer(&mut self, id: CallId, answer: Result<Answer, Refused>) {
        if self.pending.contains_key(&id) {
            self.answers.push((id, answer));
        } else if self.bugs.has(Bug::LateAnswerTaken)
            && let Ok(answer) = answer
        {
            let mut present = self.pending.iter().filter(|(_, it)| it.fits(&answer));
            if let Some((id, _)) = present.next() {
                self.answers.push((*id, Ok(answer)));
            }
        }
    }

    /// Returns the effects to carry out now. The arguments are those of [`Mover::poll`].
    pub fn poll(&mut self, now_ms: u64, ownership: Option<&Arc<Ownership>>) -> Vec<Effect> {
        let answers = std::mem::take(&mut self.answers);
        if let Some(ownership) = ownership {
            for (id, answer) in answers {
                if let Some(pending) = self.pending.remove(&id) {
                    self.answered(now_ms, ownership, pending, answer);
                }
            }
            self.end_lost_calls(now_ms);
        } else {
            self.pending.clear();
        }
        for (id, action) in self.mover.poll(now_ms, ownership) {
            if let Some(ownership) = ownership {
                self.start(now_ms, ownership, id, action);
            }
        }
        std::mem::take(&mut self.effects)
    }

    fn start(&mut self, now: u64, ownership: &Ownership, id: ActionId, action: Action) {
        let timeout = self.options.call_timeout_ms;
        let patience = match &action {
            Action::Propose(_) => self.options.propose_timeout_ms,
            Action::FetchConfigs { .. } => self.options.news_wait_ms.saturating_add(timeout),
            Action::Pull { .. }
            | Action::Delete { .. }
            | Action::Copy { .. }
            | Action::Journal { .. }
            | Action::ReportCut { .. }
            | Action::Report { .. } => timeout,
        };
        let pending = Pending {
            id,
            action,
            attempts: attempts(),
            node: None,
            until: now.saturating_add(patience),
        };
        if let Action::Propose(step) = &pending.action {
            let (step, until_ms) = (step.clone(), pending.until);
            let id = self.insert(pending);
            self.effects.push(Effect::Propose { id, step, until_ms });
        } else {
            self.call(ownership, pending);
        }
    }

    fn insert(&mut self, pending: Pending) -> CallId {
        let id = CallId(self.next_id);
        self.next_id += 1;
        self.pending.insert(id, pending);
        id
    }

    /// Sends an action's request to the next node.
    fn call(&mut self, ownership: &Ownership, pending: Pending) {
        let Some(request) = self.request(ownership, &pending) else {
            let why = "the group follows no controllers yet".to_owned();
            return self.fail(&pending, why);
        };
        let (gid, addresses) = match &pending.action {
            Action::Pull {
                source, addresses, ..
            }
            | Action::Copy {
                source, addresses, ..
            }
            | Action::Journal {
                source, addresses, ..
            }
            | Action::Delete {
                source, addresses, ..
            } => (*source, addresses),
            _ => (Gid::NONE, &self.options.controllers),
        };
        let node = match &pending.action {
            Action::Pull { .. } | Action::Copy { .. } => {
                let leader = self.leaders.guess(gid);
                let leader = leader.as_ref().map(|leader| &*leader.address);
                self.members.next_but(gid, addresses, leader)
            }
            _ if pending.needs_leader() => self.leaders.next(gid, addresses),
            _ => self.members.next(gid, addresses),
        };
        let Some(node) = node else {
            let why = match gid {
                Gid::NONE => "no controllers are configured".to_owned(),
                gid => format!("no address of {gid} is known"),
            };
            return self.fail(&pending, why);
        };
        self.send(pending, node, request);
    }

    fn send(&mut self, mut pending: Pending, node: Leader, request: Request) {
        pending.attempts.handle_sent();
        let (address, until_ms) = (Arc::clone(&node.address), pending.until);
        pending.node = Some(node);
        let id = self.insert(pending);
        self.effects.push(Effect::Call {
            id,
            address,
            request,
            until_ms,
        });
    }

    /// Returns the request of an action. Only a fetch is possible before the group follows controllers.
    fn request(&self, ownership: &Ownership, pending: &Pending) -> Option<Request> {
        let gid = self.gid;
        Some(match &pending.action {
            Action::FetchConfigs { after } => Request::Configs {
                gid,
                after: *after,
                begun: ownership.controller.is_some(),
                wait_ms: self.options.news_wait_ms,
            },
            Action::Pull {
                shard,
                config,
                source,
                after,
                max_bytes,
                ..
            } => Request::Pull {
                controller: ownership.controller?,
                source: *source,
                shard: *shard,
                config: *config,
                after: after.clone(),
                max_bytes: *max_bytes,
            },
            Action::Delete {
                shard,
                config,
                source,
                ..
            } => Request::Delete {
                controller: ownership.controller?,
                source: *source,
                shard: *shard,
                config: *config,
            },
            Action::Copy {
                source, request, ..
            } => Request::Copy {
                controller: ownership.controller?,
                source: *source,
                request: request.clone(),
            },
            Action::Journal { source, step, .. } => Request::Journal {
                controller: ownership.controller?,
                source: *source,
                step: *step,
            },
            Action::ReportCut { cuts } => Request::ReportCut {
                controller: ownership.controller?,
                cuts: cuts.clone(),
            },
            Action::Report { settled } => Request::Report {
                controller: ownership.controller?,
                gid,
                settled: *settled,
            },
            // A proposal is not a call.
            Action::Propose(_) => return None,
        })
    }

    fn answered(
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
                _ => self.nodes(&pending).found(node),
            }
        }
        if !pending.fits(&answer) {
            let why = "the answer is of another kind: a bug in this version".to_owned();
            return self.fail(&pending, why);
        }
        if let Answer::Refused(JournalError::Unknown { .. } | JournalError::NotSealed { .. }) =
            answer
            && let Some(node) = &pending.node
            && let Some(leader) = self.asks_leader_next(&pending, node)
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
                full,
                deltas,
            } => Outcome::Configs {
                controller,
                shards,
                settled,
                full,
                deltas,
            },
        };
        self.mover.ended(pending.id, outcome);
    }

    /// Handles a refusal: asks another node at once if that may do, otherwise fails the action.
    fn refused(&mut self, now: u64, ownership: &Ownership, mut pending: Pending, refused: Refused) {
        let Some(node) = pending.node.take() else {
            return self.fail(&pending, refused.message);
        };
        let why = format!("{}: {}", node.address, refused.message);
        if matches!(refused.refusal, Refusal::ShardNotReady { .. })
            && let Some(leader) = self.asks_leader_next(&pending, &node)
            && let Some(request) = self.request(ownership, &pending)
        {
            // The follower hasn't applied the fence yet. The leader is the first to apply it.
            return self.send(pending, leader, request);
        }
        let needs_leader = pending.needs_leader();
        let nodes = self.nodes(&pending);
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
        if at_once {
            self.call(ownership, pending);
        } else {
            self.fail(&pending, why);
        }
    }

    /// Returns the leader, if another node was asked for a chunk or a part. A follower may not have applied yet what the request
    /// names.
    fn asks_leader_next(&self, pending: &Pending, asked: &Leader) -> Option<Leader> {
        let reads = matches!(pending.action, Action::Pull { .. } | Action::Copy { .. });
        let leader = self.leaders.guess(asked.gid);
        leader.filter(|leader| reads && leader.address != asked.address)
    }

    /// Returns true unless [`Bug::LostAnswerKeepsSlot`] was put back.
    fn ends_lost_calls(&self) -> bool {
        !self.bugs.has(Bug::LostAnswerKeepsSlot)
    }

    /// Fails the actions whose calls got no answer in time. Another node is asked next.
    fn end_lost_calls(&mut self, now: u64) {
        if !self.ends_lost_calls() {
            return;
        }
        let lost = self.pending.iter().filter(|(_, it)| it.until <= now);
        let lost: Vec<CallId> = lost.map(|(id, _)| *id).collect();
        for id in lost {
            let Some(mut pending) = self.pending.remove(&id) else {
                continue;
            };
            let why = match pending.node.take() {
                None => "the outcome of the step is unknown".to_owned(),
                Some(node) => {
                    self.nodes(&pending).failed(&node);
                    format!("{}: no answer in time", node.address)
                }
            };
            self.fail(&pending, why);
        }
    }

    /// Fails an action.
    fn fail(&mut self, pending: &Pending, why: String) {
        self.effects.push(Effect::Failed(why.clone()));
        self.mover.ended(pending.id, Outcome::Failed(why));
    }

    fn nodes(&mut self, pending: &Pending) -> &mut Nodes {
        if pending.needs_leader() {
            &mut self.leaders
        } else {
            &mut self.members
        }
    }
}

impl Pending {
    fn needs_leader(&self) -> bool {
        matches!(
            self.action,
            Action::Delete { .. }
                | Action::Journal { .. }
                | Action::ReportCut { .. }
                | Action::Report { .. }
        )
    }

    /// Returns true if `answer` answers this call.
    fn fits(&self, answer: &Answer) -> bool {
        match answer {
            Answer::Stepped => matches!(
                self.action,
                Action::Delete { .. } | Action::Propose(_) | Action::Journal { .. }
            ),
            Answer::Configs { .. } => matches!(self.action, Action::FetchConfigs { .. }),
            Answer::Chunk { .. } => matches!(self.action, Action::Pull { .. }),
            Answer::Part(_) => matches!(self.action, Action::Copy { .. }),
            Answer::Begun { .. } => matches!(self.action, Action::Journal { .. }),
            Answer::Refused(_) => {
                matches!(self.action, Action::Copy { .. } | Action::Journal { .. })
            }
            Answer::Reported => {
                matches!(
                    self.action,
                    Action::Report { .. } | Action::ReportCut { .. }
                )
            }
        }
    }
}

fn attempts() -> SingleCall {
    SingleCall::new(Repeat::Freely, POLICY, Jitter::new(0))
}

#[cfg(test)]
mod tests;
