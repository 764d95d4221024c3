//! The calls of one batch stream: named, queued, sent, answered, retried.
//!
//! A call is in exactly one place:
//!
//! ```text
//! admit -> unnamed -> ready -> wire -> answered
//!   |         ^         ^       |
//!   |         |         +-------+  the connection broke, or the node does not lead
//!   |         +----- delayed <--+  the node is busy, or the session expired
//!   |         +----- stalled <--+  the shard isn't served there
//!   +-> moved: to the stream of another group, from any place but the wire
//! ```
//!
//! Only writes with a session pass through `unnamed`. A write gets its name once and keeps it on every retry, also in another
//! group's stream; only the certainty that no attempt took effect allows another name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use types::{Gid, ShardConfig};

use crate::Time;
use crate::attempts::Attempts;
use crate::backoff::Backoff;
use crate::bug::{Bug, Bugs};
use crate::refusal::{Failure, Rejection, Repeat};
use crate::route::{owner, shard};
use crate::sequences::{Name, SequenceAllocator, Stamp};

mod call;
#[cfg(test)]
pub(crate) mod harness;
mod invariants;
mod results;
mod stalled;
#[cfg(test)]
mod tests;

use stalled::Stalls;

pub use call::{Call, Consequence, Ended, Limits, Reroute, Tracked};

/// The number of calls that may be delayed or wait for their shard, in multiples of `max_in_flight`, before they keep other calls out.
const MAX_DELAYED: usize = 8;

#[derive(Debug)]
struct Pending<C> {
    it: Tracked<C>,
    on_wire: bool,
    /// True if the call was sent at least once.
    sent: bool,
}

impl<C: Call> Pending<C> {
    /// Returns true if the call has a name or needs none.
    fn can_be_sent(&self) -> bool {
        self.it.call.repeat() != Repeat::ByName || self.it.attempts.name.is_some()
    }
}

/// The unanswered calls of one batch stream to one group.
///
/// # Invariants
///
/// - Every admitted call is answered exactly once, at the latest in the first sweep after its deadline, or moved.
/// - A call is in exactly one of: the unnamed queue, the ready queue, the delayed set, the stalls, the wire.
/// - A name is finished exactly when its call ends, or gets another name.
/// - No call waits here whose shard belongs to another group in the known configuration.
/// - At most `max_in_flight` calls are on the wire. [`PendingCalls::room`] bounds the other calls. Those that wait for their
///   shard count extra, up to [`MAX_DELAYED`] times `max_in_flight`, so that they don't keep calls for other shards out.
/// - At most one call of a shard that isn't served is repeated at a time.
#[derive(Debug)]
pub struct PendingCalls<C> {
    gid: Gid,
    config: Arc<ShardConfig>,
    limits: Limits,
    bugs: Bugs,
    pending: BTreeMap<u64, Pending<C>>,
    last_id: u64,
    ready: VecDeque<u64>,
    unnamed: VecDeque<u64>,
    delayed: BTreeSet<(Time, u64)>,
    stalls: Stalls,
    moved: Vec<Tracked<C>>,
    ended: Vec<Ended<C>>,
    on_wire: usize,
    allocator: Arc<SequenceAllocator>,
    session_wanted: bool,
    busy: Backoff,
    mutations: usize,
}

impl<C: Call> PendingCalls<C> {
    /// Creates the calls of a new stream to group `gid`, none yet.
    pub fn new(
        limits: Limits,
        backoff: Backoff,
        gid: Gid,
        config: Arc<ShardConfig>,
        bugs: Bugs,
    ) -> Self {
        Self {
            gid,
            config,
            limits,
            bugs,
            pending: BTreeMap::new(),
            last_id: 0,
            ready: VecDeque::new(),
            unnamed: VecDeque::new(),
            delayed: BTreeSet::new(),
            stalls: Stalls::default(),
            moved: Vec::new(),
            ended: Vec::new(),
            on_wire: 0,
            allocator: SequenceAllocator::new(limits.max_unacknowledged, bugs),
            session_wanted: false,
            busy: backoff,
            mutations: 0,
        }
    }

    /// Returns the number of calls that may be admitted now.
    pub fn room(&self) -> usize {
        let most = self.limits.max_in_flight;
        let extra = self.delayed.len() + self.stalls.waiting();
        let extra = extra.min(MAX_DELAYED * most);
        (most + extra).saturating_sub(self.pending.len())
    }

    /// Returns true if no call waits.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Returns the number of calls that wait, on the wire or not.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Returns the unanswered calls, in the order of their admission.
    pub fn iter(&self) -> impl Iterator<Item = &Tracked<C>> {
        self.pending.values().map(|pending| &pending.it)
    }

    /// Changes the unanswered calls. Their hashes and their right to be repeated must stay.
    pub fn update(&mut self, update: impl FnMut(&mut C)) {
        self.pending
            .values_mut()
            .map(|pending| &mut pending.it.call)
            .for_each(update);
    }

    /// Returns the number of calls that were sent and not answered.
    pub fn on_wire(&self) -> usize {
        self.on_wire
    }

    /// Returns true if a call can be sent now.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty() && self.on_wire < self.limits.max_in_flight
    }

    /// Returns true if a session should be opened.
    pub fn wants_session(&self) -> bool {
        self.session_wanted
    }

    /// Returns the moment at which the next delayed call or probe of a shard is due.
    pub fn next_due(&self) -> Option<Time> {
        let delayed = self.delayed.first().map(|(at, _)| *at);
        delayed.into_iter().chain(self.stalls.next_due()).min()
    }

    /// Returns the earliest deadline of a call.
    pub fn next_deadline(&self) -> Option<Time> {
        self.iter().map(|it| it.call.deadline()).min()
    }

    /// Returns true if the configuration has this stream's group.
    pub fn has_group(&self) -> bool {
        self.config.groups().contains_key(&self.gid)
    }

    /// Takes the calls that belong to other groups' streams now.
    pub fn take_moved(&mut self) -> Vec<Tracked<C>> {
        std::mem::take(&mut self.moved)
    }

    /// Takes the calls that ended without an answer.
    pub fn take_ended(&mut self) -> Vec<Ended<C>> {
        std::mem::take(&mut self.ended)
    }

    /// Returns true if a call is this group's. The calls of a shard without an owner stay.
    fn is_ours(&self, call: &C) -> bool {
        let owner = owner(&self.config, call.hash());
        owner == self.gid || owner == Gid::NONE
    }

    /// Takes a call in.
    pub fn admit(&mut self, it: Tracked<C>) {
        if !self.is_ours(&it.call) {
            self.moved.push(it);
            return;
        }
        self.last_id += 1;
        let id = self.last_id;
        let pending = Pending {
            it,
            on_wire: false,
            sent: false,
        };
        self.pending.insert(id, pending);
        self.enqueue(id);
        self.check_invariants();
    }

    /// Puts a call into the queue in which it waits to be sent, or for its shard.
    fn enqueue(&mut self, id: u64) {
        if self.parked(id) {
            return;
        }
        let Some(pending) = self.pending.get(&id) else {
            return;
        };
        if pending.can_be_sent() {
            self.ready.push_back(id);
        } else {
            self.unnamed.push_back(id);
        }
    }

    /// Adopts another configuration. Calls whose shards moved to other groups leave.
    pub fn reconfigure(&mut self, config: Arc<ShardConfig>) {
        let same_shards = config.shards() == self.config.shards();
        if !same_shards {
            self.end_stalls();
        }
        self.config = config;
        self.move_away();
        self.check_invariants();
    }

    /// Moves away the calls that belong to other groups and are not on the wire.
    fn move_away(&mut self) {
        let gone = |(_, it): &(&u64, &Pending<C>)| !it.on_wire && !self.is_ours(&it.it.call);
        let gone: Vec<u64> = self
            .pending
            .iter()
            .filter(gone)
            .map(|(id, _)| *id)
            .collect();
        if gone.is_empty() {
            return;
        }
        for id in gone {
            let it = self.take(id);
            self.moved.extend(it);
        }
        self.forget_ended();
    }

    /// Drops calls that left from the queues.
    fn forget_ended(&mut self) {
        let pending = &self.pending;
        self.ready.retain(|id| pending.contains_key(id));
        self.unnamed.retain(|id| pending.contains_key(id));
        self.delayed.retain(|(_, id)| pending.contains_key(id));
    }

    /// Queues the delayed calls that are due, and names the writes that can be named.
    pub fn advance(&mut self, now: Time) {
        while let Some((at, id)) = self.delayed.first().copied() {
            if at > now {
                break;
            }
            self.delayed.pop_first();
            self.enqueue(id);
        }
        self.probe(now);
        if self.unnamed.is_empty() {
            return;
        }
        self.session_wanted = self.allocator.sequences().wants_session(now);
        while let Some(id) = self.unnamed.front().copied() {
            if !self.parked(id)
                && let Some(pending) = self.pending.get_mut(&id)
            {
                let Ok(name) = self.allocator.allocate(now) else {
                    if self.replaces_probe(id) {
                        self.unnamed.pop_front();
                        continue;
                    }
                    break;
                };
                pending.it.attempts.name = Some(name);
                self.ready.push_back(id);
            }
            self.unnamed.pop_front();
        }
        self.check_invariants();
    }

    /// Returns the next batch of calls that are ready, oldest first, each as `encode` writes it. Empty if none can be sent.
    pub fn next_batch<T>(&mut self, mut encode: impl FnMut(u64, &C, Option<Stamp>) -> T) -> Vec<T> {
        let most = self.limits.max_in_flight.saturating_sub(self.on_wire);
        let most = most.min(self.limits.max_batch_items);
        let mut items = Vec::with_capacity(self.ready.len().min(most));
        let mut bytes = 0;
        while items.len() < most {
            let Some(id) = self.ready.pop_front() else {
                break;
            };
            if self.parked(id) {
                continue;
            }
            let Some(pending) = self.pending.get_mut(&id) else {
                continue;
            };
            bytes += pending.it.call.cost();
            if bytes > self.limits.max_batch_bytes && !items.is_empty() {
                // A large call goes alone, so that only its own size decides whether a node takes it.
                self.ready.push_front(id);
                break;
            }
            let stamp = pending.it.attempts.name.as_ref().and_then(Name::stamp);
            items.push(encode(id, &pending.it.call, stamp));
            pending.on_wire = true;
            pending.sent = true;
            self.on_wire += 1;
        }
        self.check_invariants();
        items
    }

    /// Notes that another copy of a call on the wire left, whose result will not arrive: the call is in doubt.
    pub fn note_copy(&mut self, id: u64) {
        if let Some(Pending { it, .. }) = self.pending.get_mut(&id) {
            it.attempts.doubt |= it.call.repeat() != Repeat::Freely;
        }
    }

    /// Queues again, in their old order, under their old names and in doubt, the calls that were sent and not answered: the
    /// connection is lost, or leads to the wrong node. Writes that can't be repeated end.
    pub fn connection_lost(&mut self, why: &str) {
        let mut again: Vec<u64> = Vec::with_capacity(self.on_wire);
        let mut unrepeatable = Vec::new();
        for (id, pending) in &mut self.pending {
            if !pending.on_wire {
                continue;
            }
            pending.on_wire = false;
            let Tracked { call, attempts } = &mut pending.it;
            attempts.doubt = call.repeat() != Repeat::Freely;
            attempts.last = Some(why.to_owned());
            if call.repeat() == Repeat::Never && !self.bugs.has(Bug::RepeatsUnrepeatable) {
                unrepeatable.push(*id);
                continue;
            }
            if self.bugs.has(Bug::FenceForgotten)
                && let Some(name) = &attempts.name
            {
                name.forget_fence();
            }
            again.push(*id);
        }
        self.on_wire = 0;
        // Calls that were refused one by one are in `ready` already; the order of ids is that of admission.
        again.extend(self.ready.drain(..));
        again.sort_unstable();
        self.ready.extend(again);
        for id in unrepeatable {
            self.end(id, |_| Failure::Unrepeatable);
        }
        self.move_away();
        self.check_invariants();
    }

    /// Notes the reason why nothing can be sent now, for the error of calls that time out.
    pub fn note(&mut self, why: &str) {
        for Pending { it, .. } in self.pending.values_mut() {
            if it.attempts.last.as_deref() != Some(why) {
                it.attempts.last = Some(why.to_owned());
            }
        }
    }

    /// Ends the calls whose deadline passed or whose callers went away.
    pub fn sweep(&mut self, now: Time) {
        let ended: Vec<(u64, bool)> = self
            .pending
            .iter()
            .filter(|(_, it)| it.it.call.deadline() <= now || it.it.call.is_abandoned())
            .map(|(id, it)| (*id, it.on_wire && it.it.call.repeat() != Repeat::Freely))
            .collect();
        if ended.is_empty() {
            return;
        }
        for (id, sent) in ended {
            self.end(id, |attempts| Failure::TimedOut {
                doubt: attempts.doubt || sent,
                last: attempts.last.take(),
            });
        }
        self.forget_ended();
        self.check_invariants();
    }

    /// Takes a session that was asked for at `asked` into use.
    pub fn session_opened(&mut self, asked: Time, client_id: Bytes, ttl: Duration) {
        let mut sequences = self.allocator.sequences();
        sequences.session_opened(asked, client_id, ttl);
        self.session_wanted = false;
    }

    /// Fails the writes that wait for a session: none can be had, and no retry will help.
    pub fn session_refused(&mut self, rejection: &Rejection) {
        self.session_wanted = false;
        for id in std::mem::take(&mut self.unnamed) {
            self.end(id, |attempts| attempts.rejected(rejection.clone()));
        }
        self.check_invariants();
    }

    /// Fails all calls on the wire: the stream was refused in a way that no retry cures.
    pub fn fail_wire(&mut self, rejection: &Rejection) {
        let on_wire = |(_, it): &(&u64, &Pending<C>)| it.on_wire;
        let failed: Vec<u64> = self
            .pending
            .iter()
            .filter(on_wire)
            .map(|(id, _)| *id)
            .collect();
        for id in failed {
            self.end(id, |attempts| attempts.rejected(rejection.clone()));
        }
        self.check_invariants();
    }

    /// Fails the largest call on the wire, because a message was too large for the server, and this call must not delay the
    /// others until its deadline.
    pub fn fail_largest(&mut self, rejection: Rejection) {
        let largest = self
            .pending
            .iter()
            .filter(|(_, it)| it.on_wire)
            .max_by_key(|(id, it)| (it.it.call.cost(), **id))
            .map(|(id, _)| *id);
        if let Some(id) = largest {
            self.end(id, |attempts| attempts.rejected(rejection));
        }
        self.check_invariants();
    }

    fn end(&mut self, id: u64, failure: impl FnOnce(&mut Attempts) -> Failure) {
        if let Some(mut it) = self.take(id) {
            let failure = failure(&mut it.attempts);
            let call = it.call;
            self.ended.push(Ended { call, failure });
        }
    }

    /// Takes a call out.
    fn take(&mut self, id: u64) -> Option<Tracked<C>> {
        let pending = self.pending.remove(&id)?;
        self.on_wire -= usize::from(pending.on_wire);
        let shard = shard(&self.config, pending.it.call.hash());
        self.stalls.remove(shard, id);
        Some(pending.it)
    }
}
