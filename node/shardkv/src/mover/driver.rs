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
//! node that answered last is asked first, then the node that a refusal names, then the others in turn. A pull, and a part of a copy
//! that isn't cut, goes to the source's leader last, which has more to do than its followers, or at once if a follower hasn't applied the
//! fence. After a cut nobody serves the shard: the rest of its copy comes from the leader, which applies the fence first, and a node
//! that is silent for a tenth of a second is followed by another (see [`hedges`]). These guesses, and
//! the meaning of a refusal, are the request engine's ([`request`]). An action that another node may serve at once is
//! repeated there at once. Every longer pause is the mover's: the action fails, and the mover starts it anew.

mod hedges;
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
use hedges::Hedge;
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
/// - Each pending call belongs to one action, and each action has a pending call: one, or some to different nodes if it is repeated.
/// - Each pending call has a deadline, at which it ends.
#[derive(Debug)]
pub struct Driver {
    gid: Gid,
    mover: Mover,
    options: DriverOptions,
    bugs: Bugs,
    pending: BTreeMap<CallId, Pending>,
    /// The actions whose calls are repeated at other nodes.
    hedges: BTreeMap<ActionId, Hedge>,
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
            hedges: BTreeMap::new(),
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
        let first = deadlines.min().into_iter().chain(self.next_hedge());
        let first = first.filter(|_| self.ends_lost_calls());
        first.chain(self.mover.next_due()).min()
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
            if self.ends_lost_calls() {
                self.hedge(now_ms, ownership);
                self.end_lost_calls(now_ms);
            }
        } else {
            self.pending.clear();
            self.hedges.clear();
        }
        let actions = self.mover.poll(now_ms, ownership);
        self.drop_unexpected();
        for (id, action) in actions {
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
        let mut pending = Pending::new(id, action, now.saturating_add(patience));
        if let Some(hedge) = Hedge::of(&pending.action, now, timeout) {
            if !pending.is_hurried() {
                pending.until = hedge.until;
            }
            self.hedges.insert(id, hedge);
        }
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
        let node = self.next_node(&pending);
        let Some(node) = node else {
            let why = match pending.gid() {
                Gid::NONE => "no controllers are configured".to_owned(),
                gid => format!("no address of {gid} is known"),
            };
            return self.fail(&pending, why);
        };
        self.send(pending, node, request);
    }

    /// Returns the node to ask next.
    fn next_node(&self, pending: &Pending) -> Option<Leader> {
        let gid = pending.gid();
        let addresses = match gid {
            Gid::NONE => &*self.options.controllers,
            _ => pending.addresses(),
        };
        match &pending.action {
            Action::Copy { .. } if pending.is_hurried() => {
                let leader = self.leaders.guess(gid);
                leader.or_else(|| self.members.next(gid, addresses))
            }
            Action::Pull { .. } | Action::Copy { .. } => {
                let leader = self.leaders.guess(gid);
                let leader = leader.as_ref().map(|leader| &*leader.address);
                self.members.next_but(gid, addresses, leader)
            }
            _ if pending.needs_leader() => self.leaders.next(gid, addresses),
            _ => self.members.next(gid, addresses),
        }
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
            Action::Report { settled, held } => Request::Report {
                controller: ownership.controller?,
                gid,
                settled: *settled,
                held: *held,
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

    /// Returns true if a call of the action to this node is pending.
    fn is_asked(&self, id: ActionId, node: &Leader) -> bool {
        let mut calls = self.pending.values().filter(|it| it.id == id);
        calls.any(|it| {
            it.node
                .as_ref()
                .is_some_and(|it| it.address == node.address)
        })
    }

    /// Returns true unless [`Bug::LostAnswerKeepsSlot`] was put back.
    fn ends_lost_calls(&self) -> bool {
        !self.bugs.has(Bug::LostAnswerKeepsSlot)
    }

    /// Fails the actions whose calls got no answer in time. Another node is asked next.
    fn end_lost_calls(&mut self, now: u64) {
        let lost = self.pending.iter().filter(|(_, it)| it.until <= now);
        let lost: Vec<CallId> = lost.map(|(id, _)| *id).collect();
        for id in lost {
            let Some(mut pending) = self.pending.remove(&id) else {
                continue;
            };
            let why = match pending.node.take() {
                None => "the outcome of the step is unknown".to_owned(),
                Some(node) => {
                    self.silent(&pending.action, &node);
                    format!("{}: no answer in time", node.address)
                }
            };
            self.fail(&pending, why);
        }
    }

    /// Ends an action of a copy whose source is busy, unless another call of it is pending.
    fn busy(&mut self, pending: &Pending, why: String) {
        if !self.is_pending(pending.id) {
            self.end(pending.id, Outcome::Busy(why));
        }
    }

    fn is_pending(&self, id: ActionId) -> bool {
        self.pending.values().any(|it| it.id == id)
    }

    /// Fails an action, unless another call of it is pending.
    fn fail(&mut self, pending: &Pending, why: String) {
        if self.is_pending(pending.id) {
            return;
        }
        self.effects.push(Effect::Failed(why.clone()));
        self.end(pending.id, Outcome::Failed(why));
    }

    /// Ends an action with all its calls.
    fn end(&mut self, id: ActionId, outcome: Outcome) {
        if self.hedges.remove(&id).is_some() {
            self.pending.retain(|_, it| it.id != id);
        }
        self.mover.ended(id, outcome);
    }

    fn nodes(&mut self, action: &Action) -> &mut Nodes {
        if needs_leader(action) {
            &mut self.leaders
        } else {
            &mut self.members
        }
    }
}

impl Pending {
    fn new(id: ActionId, action: Action, until: u64) -> Self {
        Self {
            id,
            action,
            attempts: attempts(),
            node: None,
            until,
        }
    }

    fn needs_leader(&self) -> bool {
        needs_leader(&self.action)
    }

    /// Returns true for a part of a shard that was cut: nobody serves it.
    fn is_hurried(&self) -> bool {
        matches!(&self.action, Action::Copy { request, .. } if request.fence.is_some())
    }

    /// Returns the group that is asked; none for the controllers.
    fn gid(&self) -> Gid {
        match &self.action {
            Action::Pull { source, .. }
            | Action::Copy { source, .. }
            | Action::Journal { source, .. }
            | Action::Delete { source, .. } => *source,
            _ => Gid::NONE,
        }
    }

    /// Returns the addresses of the group that is asked.
    fn addresses(&self) -> &[String] {
        match &self.action {
            Action::Pull { addresses, .. }
            | Action::Copy { addresses, .. }
            | Action::Journal { addresses, .. }
            | Action::Delete { addresses, .. } => addresses,
            _ => &[],
        }
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

fn needs_leader(action: &Action) -> bool {
    matches!(
        action,
        Action::Delete { .. }
            | Action::Journal { .. }
            | Action::ReportCut { .. }
            | Action::Report { .. }
    )
}

fn attempts() -> SingleCall {
    SingleCall::new(Repeat::Freely, POLICY, Jitter::new(0))
}

#[cfg(test)]
mod tests;
