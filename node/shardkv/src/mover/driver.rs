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

mod answers;
mod hedges;
mod messages;
mod nodes;
mod pending;
mod requests;

use std::collections::BTreeMap;
use std::sync::Arc;

use request::{Leader, Refused};
use types::Gid;

use super::{Action, ActionId, Mover, MoverOptions, Outcome, Room};
use crate::Ownership;
use crate::bug::{Bug, Bugs};
use hedges::Hedge;
pub use messages::{Answer, CallId, Effect, Request};
use nodes::Nodes;
use pending::{Pending, needs_leader};

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

#[cfg(test)]
mod tests;
