//! The calls of one lane: named, queued, sent, answered, retried. Pure: no socket, and time is passed in.
//!
//! A call is in exactly one place:
//!
//! ```text
//! admit -> unnamed -> ready -> wire -> answered
//!   |         ^         ^       |
//!   |         |         +-------+  the connection broke, or the node does not lead
//!   |         +----- delayed <--+  the node is busy, the session expired, the shard isn't served there
//!   +-> moved: to the lane of another group, from any place but the wire
//! ```
//!
//! Reads skip `unnamed`. A write gets its name once and keeps it on every retry, also in another group's lane; only
//! the certainty that no attempt took effect allows another name.
//!
//! # Invariants
//!
//! - Every admitted call is answered exactly once, at the latest in the first sweep after its deadline, or moved.
//! - A name is finished exactly when its call is answered, or gets another.
//! - No call waits here whose shard is another group's by the configuration that the book has.
//! - At most `max_in_flight` calls are on the wire. [`Book::room`] bounds the others: those that wait for their shard count
//!   extra, so that they don't keep calls for other shards out, up to [`MAX_DELAYED`] times `max_in_flight`.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use api::v1::{BatchItem, BatchRequest, BatchResult, OpenSessionResponse};
use tokio::time::Instant;
use types::{ConfigNum, Gid, ShardConfig};

use crate::backoff::Backoff;
use crate::call::{Answer, Call, from_wire, mismatch};
use crate::route::owner;
use crate::session::{Name, Naming};
use crate::verdict::{self, Action, Verdict};
use crate::{ClientOptions, Error};

/// How many calls may wait for their shard, in multiples of `max_in_flight`, before they keep others out.
const MAX_DELAYED: usize = 8;

#[derive(Debug)]
struct Pending {
    call: Call,
    on_wire: bool,
}

/// What a batch of results means for the connection.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Consequence {
    /// At least one call was served.
    pub(crate) served: bool,
    /// This node is the wrong one.
    pub(crate) reroute: Option<Reroute>,
    /// The node knows a later configuration than the book.
    pub(crate) behind: Option<ConfigNum>,
}

/// Go elsewhere: to this address, if the node named one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reroute(pub(crate) Option<String>);

#[derive(Debug)]
pub(crate) struct Book {
    gid: Gid,
    config: Arc<ShardConfig>,
    max_in_flight: usize,
    max_batch_items: usize,
    max_batch_bytes: usize,
    pending: HashMap<u64, Pending>,
    last_id: u64,
    ready: VecDeque<u64>,
    unnamed: VecDeque<u64>,
    delayed: BTreeSet<(Instant, u64)>,
    moved: Vec<Call>,
    on_wire: usize,
    naming: Arc<Naming>,
    session_wanted: bool,
    busy: Backoff,
}

impl Book {
    pub(crate) fn new(options: &ClientOptions, gid: Gid, config: Arc<ShardConfig>) -> Self {
        Self {
            gid,
            config,
            max_in_flight: options.max_in_flight,
            max_batch_items: options.max_batch_items,
            max_batch_bytes: options.max_batch_bytes,
            pending: HashMap::new(),
            last_id: 0,
            ready: VecDeque::new(),
            unnamed: VecDeque::new(),
            delayed: BTreeSet::new(),
            moved: Vec::new(),
            on_wire: 0,
            naming: Naming::new(options.max_unacknowledged),
            session_wanted: false,
            busy: Backoff::new(options.min_backoff, options.max_backoff),
        }
    }

    /// How many more calls may be admitted.
    pub(crate) fn room(&self) -> usize {
        let extra = self.delayed.len().min(MAX_DELAYED * self.max_in_flight);
        (self.max_in_flight + extra).saturating_sub(self.pending.len())
    }

    /// Whether no call waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Calls that were sent and not answered.
    pub(crate) fn on_wire(&self) -> usize {
        self.on_wire
    }

    /// Whether a call can be sent now.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty() && self.on_wire < self.max_in_flight
    }

    /// Whether a session should be opened.
    pub(crate) fn wants_session(&self) -> bool {
        self.session_wanted
    }

    /// When the next delayed call is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.delayed.first().map(|(at, _)| *at)
    }

    /// Whether the group is part of the configuration.
    pub(crate) fn is_part(&self) -> bool {
        self.config.groups().contains_key(&self.gid)
    }

    /// The calls that belong to other groups' lanes now.
    pub(crate) fn take_moved(&mut self) -> Vec<Call> {
        std::mem::take(&mut self.moved)
    }

    /// Whether a call is this group's. A shard that nobody owns stays where it is.
    fn is_ours(&self, call: &Call) -> bool {
        let owner = owner(&self.config, call.hash);
        owner == self.gid || owner == Gid::NONE
    }

    /// Takes a call in.
    pub(crate) fn admit(&mut self, call: Call) {
        if !self.is_ours(&call) {
            self.moved.push(call);
            return;
        }
        self.last_id += 1;
        let id = self.last_id;
        let pending = Pending {
            call,
            on_wire: false,
        };
        self.pending.insert(id, pending);
        self.queue(id);
    }

    /// Puts a call into the queue where it waits to be sent.
    fn queue(&mut self, id: u64) {
        let Some(Pending { call, .. }) = self.pending.get(&id) else {
            return;
        };
        if call.request.is_write() && call.trial.name.is_none() {
            self.unnamed.push_back(id);
        } else {
            self.ready.push_back(id);
        }
    }

    /// There is another configuration: calls of shards that are elsewhere now are moved.
    pub(crate) fn reconfigure(&mut self, config: Arc<ShardConfig>) {
        self.config = config;
        self.move_away();
    }

    /// Moves what isn't ours and not on the wire.
    fn move_away(&mut self) {
        let gone = |(_, it): &(&u64, &Pending)| !it.on_wire && !self.is_ours(&it.call);
        let mut gone: Vec<u64> = self
            .pending
            .iter()
            .filter(gone)
            .map(|(id, _)| *id)
            .collect();
        if gone.is_empty() {
            return;
        }
        gone.sort_unstable();
        for id in gone {
            let call = self.take(id);
            self.moved.extend(call);
        }
        self.forget_ended();
    }

    /// Drops calls that are not in the book any more from the queues.
    fn forget_ended(&mut self) {
        let pending = &self.pending;
        self.ready.retain(|id| pending.contains_key(id));
        self.unnamed.retain(|id| pending.contains_key(id));
        self.delayed.retain(|(_, id)| pending.contains_key(id));
    }

    /// Moves calls on whose time has come: delayed ones that are due, and writes that can be named.
    pub(crate) fn advance(&mut self, now: Instant) {
        while let Some((at, id)) = self.delayed.first().copied() {
            if at > now {
                break;
            }
            self.delayed.pop_first();
            self.queue(id);
        }
        if self.unnamed.is_empty() {
            return;
        }
        self.session_wanted = self.naming.sessions().wants_another(now);
        while let Some(id) = self.unnamed.front() {
            let Some(pending) = self.pending.get_mut(id) else {
                self.unnamed.pop_front();
                continue;
            };
            let Ok(name) = self.naming.begin(now) else {
                break;
            };
            pending.call.trial.name = Some(name);
            self.ready.push_back(*id);
            self.unnamed.pop_front();
        }
    }

    /// The next message of the stream, from the calls that are ready, oldest first.
    pub(crate) fn next_batch(&mut self) -> Option<BatchRequest> {
        let most = self.max_in_flight.saturating_sub(self.on_wire);
        let most = most.min(self.max_batch_items);
        let mut items = Vec::with_capacity(self.ready.len().min(most));
        let mut bytes = 0;
        while items.len() < most {
            let Some(id) = self.ready.pop_front() else {
                break;
            };
            let Some(pending) = self.pending.get_mut(&id) else {
                continue;
            };
            let Call { request, trial, .. } = &pending.call;
            bytes += request.cost();
            if bytes > self.max_batch_bytes && !items.is_empty() {
                // A large call goes alone, so that only its own size decides whether a node takes it.
                self.ready.push_front(id);
                break;
            }
            let session = trial.name.as_ref().and_then(Name::stamp);
            items.push(BatchItem {
                id,
                request: Some(request.to_wire(session)),
            });
            pending.on_wire = true;
            self.on_wire += 1;
        }
        (!items.is_empty()).then_some(BatchRequest { items })
    }

    /// Takes in what a node answered.
    pub(crate) fn results(&mut self, now: Instant, results: Vec<BatchResult>) -> Consequence {
        let mut consequence = Consequence::default();
        for result in results {
            let id = result.id;
            // Answers to calls that were given up are of no use, and an unknown kind of answer is none.
            let (true, Some(response)) = (self.is_on_wire(id), result.response) else {
                continue;
            };
            match from_wire(response) {
                Ok(answer) => {
                    consequence.served = true;
                    self.served(id, answer);
                }
                Err(detail) => {
                    let last = detail.message.clone();
                    let verdict = verdict::of_detail(detail);
                    self.judged(now, id, verdict, last, &mut consequence);
                }
            }
        }
        consequence
    }

    fn is_on_wire(&self, id: u64) -> bool {
        self.pending.get(&id).is_some_and(|it| it.on_wire)
    }

    fn served(&mut self, id: u64, answer: Answer) {
        self.busy.reset();
        if let Some(call) = self.take(id) {
            let fits = call.request.fits(&answer);
            let result = if fits {
                Ok(answer)
            } else {
                Err(mismatch(call.request.is_write()))
            };
            // The caller may have gone; then nobody wants to know.
            let _ = call.answer.send(result);
        }
    }

    /// Acts on a failure of one call.
    fn judged(
        &mut self,
        now: Instant,
        id: u64,
        verdict: Verdict,
        last: String,
        consequence: &mut Consequence,
    ) {
        let Some(pending) = self.pending.get_mut(&id) else {
            return;
        };
        self.on_wire -= usize::from(pending.on_wire);
        pending.on_wire = false;
        let Call { request, trial, .. } = &mut pending.call;
        trial.doubt |= verdict.doubt && request.is_write();
        trial.last = Some(last);
        consequence.served |= !matches!(verdict.action, Action::Reroute(_));
        match verdict.action {
            Action::Reroute(hint) => {
                self.ready.push_back(id);
                if hint.is_some() || consequence.reroute.is_none() {
                    consequence.reroute = Some(Reroute(hint));
                }
            }
            Action::WrongGroup(num) => {
                if num > self.config.num() {
                    consequence.behind = consequence.behind.max(Some(num));
                }
                self.turned_away(now, id, 0);
            }
            Action::NotReady(ms) => self.turned_away(now, id, ms),
            Action::Wait(ms) => {
                let pause = self.busy.pause_at_least(now, ms);
                self.delay(now + pause, id);
            }
            Action::NewSession => self.session_expired(now, id),
            Action::Fail(error) => self.fail(id, error),
        }
    }

    /// The shard isn't served there now: the call waits without standing in the way of others.
    fn turned_away(&mut self, now: Instant, id: u64, ms: u32) {
        let spare = self.delayed.len() < MAX_DELAYED * self.max_in_flight;
        let Some(Pending { call, .. }) = self.pending.get_mut(&id) else {
            return;
        };
        if spare {
            call.permit = None;
        }
        let age = call.trial.turn_away(now);
        let pause = self.busy.pause_of(age, ms);
        self.delay(now + pause, id);
    }

    /// Asks again at `at`, or hands the call over if its shard is elsewhere.
    fn delay(&mut self, at: Instant, id: u64) {
        let ours = |it: &Pending| self.is_ours(&it.call);
        if self.pending.get(&id).is_some_and(ours) {
            self.delayed.insert((at, id));
        } else {
            let call = self.take(id);
            self.moved.extend(call);
        }
    }

    fn session_expired(&mut self, now: Instant, id: u64) {
        let Some(Pending { call, .. }) = self.pending.get_mut(&id) else {
            return;
        };
        let name = call.trial.name.take();
        if let Some(name) = &name {
            name.expire();
        }
        if call.trial.doubt || name.is_none() {
            self.fail(id, verdict::expired());
        } else {
            // The pause keeps a node that refuses every session from being asked without end.
            let pause = self.busy.pause_at_least(now, 0);
            self.delay(now + pause, id);
        }
    }

    /// The connection is lost, or leads to the wrong node: what was sent and not answered is ready again, in
    /// its old order and under its old names, and in doubt.
    pub(crate) fn connection_lost(&mut self, why: &str) {
        let mut again: Vec<u64> = Vec::with_capacity(self.on_wire);
        for (id, pending) in &mut self.pending {
            if pending.on_wire {
                pending.on_wire = false;
                let Call { request, trial, .. } = &mut pending.call;
                trial.doubt = request.is_write();
                trial.last = Some(why.to_owned());
                again.push(*id);
            }
        }
        self.on_wire = 0;
        // Those that were refused one by one are in `ready` already; the order of ids is that of admission.
        again.extend(self.ready.drain(..));
        again.sort_unstable();
        self.ready.extend(again);
        self.move_away();
    }

    /// Notes why nothing can be sent now, for the error of calls that give up.
    pub(crate) fn note(&mut self, why: &str) {
        for Pending { call, .. } in self.pending.values_mut() {
            if call.trial.last.as_deref() != Some(why) {
                call.trial.last = Some(why.to_owned());
            }
        }
    }

    /// Ends the calls whose deadline passed or whose callers went away.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let ended: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, it)| it.call.deadline <= now || it.call.answer.is_closed())
            .map(|(id, _)| *id)
            .collect();
        if ended.is_empty() {
            return;
        }
        for id in ended {
            let on_wire = self.is_on_wire(id);
            if let Some(mut call) = self.take(id) {
                let sent = on_wire && call.request.is_write();
                let doubt = call.trial.doubt || sent;
                let error = verdict::timeout(call.timeout, doubt, call.trial.last.take());
                let _ = call.answer.send(Err(error));
            }
        }
        self.forget_ended();
    }

    /// A session that was asked for at `asked` is open.
    pub(crate) fn session_opened(&mut self, asked: Instant, response: OpenSessionResponse) {
        let ttl = Duration::from_millis(response.ttl_ms);
        let mut sessions = self.naming.sessions();
        sessions.opened(asked, response.client_id, ttl);
        self.session_wanted = false;
    }

    /// No session can be had, and no retry will help: fails the writes that wait for one.
    pub(crate) fn session_refused(&mut self, error: &Error) {
        self.session_wanted = false;
        for id in std::mem::take(&mut self.unnamed) {
            self.fail(id, error.clone());
        }
    }

    /// Fails all that is on the wire: the stream was refused in a way that no retry cures.
    pub(crate) fn fail_wire(&mut self, error: &Error) {
        let mut failed: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, it)| it.on_wire)
            .map(|(id, _)| *id)
            .collect();
        failed.sort_unstable();
        for id in failed {
            self.fail(id, error.clone());
        }
    }

    /// Fails the largest call on the wire: a message was too large for the other end, and one stubborn call
    /// must not hold up the others until its deadline.
    pub(crate) fn fail_largest(&mut self, error: Error) {
        let largest = self
            .pending
            .iter()
            .filter(|(_, it)| it.on_wire)
            .max_by_key(|(id, it)| (it.call.request.cost(), **id))
            .map(|(id, _)| *id);
        if let Some(id) = largest {
            self.fail(id, error);
        }
    }

    fn fail(&mut self, id: u64, error: Error) {
        if let Some(call) = self.take(id) {
            let error = verdict::with_doubt(error, call.trial.doubt);
            let _ = call.answer.send(Err(error));
        }
    }

    /// Takes a call out of the book.
    fn take(&mut self, id: u64) -> Option<Call> {
        let pending = self.pending.remove(&id)?;
        self.on_wire -= usize::from(pending.on_wire);
        Some(pending.call)
    }
}

#[cfg(test)]
mod tests;
