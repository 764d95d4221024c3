//! The shards that aren't served at the moment, and the calls that wait for them.
//!
//! A shard that is being moved refuses each call. So only one call of the shard, the *probe*, is repeated, and the others wait
//! for its result. A probe that is answered lets them all go on. A probe that a busy node refuses says nothing about the shard,
//! so another call is the next probe.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use types::ShardId;

use super::{Call, Pending, PendingCalls};
use crate::Time;
use crate::route::shard;

/// A shard that isn't served.
#[derive(Debug)]
struct Stall {
    /// The moment since which the shard keeps a call waiting.
    since: Time,
    /// The moment of the next probe.
    due: Time,
    /// The call that asks, or is about to ask, whether the shard is served again.
    probe: Option<u64>,
    /// The other calls of the shard, in the order of their admission.
    waiting: BTreeSet<u64>,
    /// The waiting calls that a busy node refused as probes. They ask again after all others have asked.
    asked: BTreeSet<u64>,
    /// The text of the latest refusal, for calls that time out before they were sent.
    message: Option<String>,
}

/// The shards that aren't served.
///
/// # Invariants
///
/// - A shard is here only while a call waits for it or probes it.
/// - A shard without a probe is in `due`, and one with a probe is not.
/// - `waiting` is the number of all waiting calls. Probes don't count.
#[derive(Debug, Default)]
pub(super) struct Stalls {
    shards: BTreeMap<ShardId, Stall>,
    due: BTreeSet<(Time, ShardId)>,
    waiting: usize,
}

impl Stalls {
    /// Returns the number of calls that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Returns the moment of the next probe.
    pub(super) fn next_due(&self) -> Option<Time> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Returns the waiting calls.
    pub(super) fn iter(&self) -> impl Iterator<Item = &u64> {
        self.shards.values().flat_map(|stall| &stall.waiting)
    }

    /// Returns true if the call has to wait for its shard.
    fn holds(&self, shard: ShardId, id: u64) -> bool {
        let stall = self.shards.get(&shard);
        stall.is_some_and(|stall| stall.probe != Some(id))
    }

    fn probe(&self, shard: ShardId) -> Option<u64> {
        self.shards.get(&shard)?.probe
    }

    fn is_probe(&self, shard: ShardId, id: u64) -> bool {
        let stall = self.shards.get(&shard);
        stall.is_some_and(|stall| stall.probe == Some(id))
    }

    /// Returns the moment since which the shard keeps calls waiting.
    fn since(&self, shard: ShardId) -> Option<Time> {
        self.shards.get(&shard).map(|stall| stall.since)
    }

    /// Notes that the shard refused call `id`. The next probe is made at `due`, unless one is under way.
    fn refused(
        &mut self,
        shard: ShardId,
        id: u64,
        since: Time,
        due: Time,
        message: Option<String>,
    ) {
        let known = self.shards.contains_key(&shard);
        let stall = self.shards.entry(shard).or_insert_with(|| Stall {
            since,
            due,
            probe: None,
            waiting: BTreeSet::new(),
            asked: BTreeSet::new(),
            message: None,
        });
        stall.since = stall.since.min(since);
        stall.message = message;
        if !known || stall.probe == Some(id) {
            stall.probe = None;
            stall.due = due;
            self.due.insert((due, shard));
        }
        self.waiting += usize::from(stall.waiting.insert(id));
    }

    /// Adds a call of a stalled shard. Returns the text of the shard's latest refusal.
    fn add(&mut self, shard: ShardId, id: u64) -> Option<&str> {
        let stall = self.shards.get_mut(&shard)?;
        self.waiting += usize::from(stall.waiting.insert(id));
        stall.message.as_deref()
    }

    /// Notes that a busy node refused the probe of the shard.
    fn probe_met_busy_node(&mut self, shard: ShardId, id: u64) {
        if let Some(stall) = self.shards.get_mut(&shard) {
            stall.asked.insert(id);
        }
    }

    /// Returns the probe of the first shard that is due: the oldest call that `can_be_sent` says can be sent at once, otherwise the
    /// oldest call. Calls that a busy node refused as probes come last.
    fn next_probe(&mut self, now: Time, can_be_sent: impl Fn(u64) -> bool) -> Option<u64> {
        let (_, shard) = self.due.first().copied().filter(|(at, _)| *at <= now)?;
        self.due.pop_first();
        let stall = self.shards.get_mut(&shard)?;
        if stall.waiting.is_subset(&stall.asked) {
            stall.asked.clear();
        }
        let mut fresh = stall.waiting.difference(&stall.asked).copied();
        let oldest = fresh.clone().next()?;
        let probe = fresh.find(|id| can_be_sent(*id)).unwrap_or(oldest);
        self.waiting -= usize::from(stall.waiting.remove(&probe));
        stall.probe = Some(probe);
        Some(probe)
    }

    /// Makes another call of a shard its probe, one that can be sent at once, and lets the probe wait. Returns the new probe.
    fn replace_probe(&mut self, shard: ShardId, can_be_sent: impl Fn(u64) -> bool) -> Option<u64> {
        let stall = self.shards.get_mut(&shard)?;
        let probe = stall.waiting.iter().copied().find(|id| can_be_sent(*id))?;
        stall.waiting.remove(&probe);
        let before = stall.probe.replace(probe);
        stall.waiting.extend(before);
        self.waiting -= usize::from(before.is_none());
        Some(probe)
    }

    /// Drops a call that left. If it was the probe, another one is due at once.
    pub(super) fn remove(&mut self, shard: ShardId, id: u64) {
        let Some(stall) = self.shards.get_mut(&shard) else {
            return;
        };
        self.waiting -= usize::from(stall.waiting.remove(&id));
        stall.asked.remove(&id);
        if stall.probe == Some(id) {
            stall.probe = None;
            stall.due = Time::ZERO;
            self.due.insert((Time::ZERO, shard));
        }
        if stall.probe.is_none() && stall.waiting.is_empty() {
            self.due.remove(&(stall.due, shard));
            self.shards.remove(&shard);
        }
    }

    /// Ends the stall of a shard, and returns the calls that waited, in their order.
    fn end(&mut self, shard: ShardId) -> BTreeSet<u64> {
        let Some(stall) = self.shards.remove(&shard) else {
            return BTreeSet::new();
        };
        self.due.remove(&(stall.due, shard));
        self.waiting -= stall.waiting.len();
        stall.waiting
    }

    /// Ends all stalls, and returns the calls that waited, in their order.
    fn end_all(&mut self) -> BTreeSet<u64> {
        let shards = std::mem::take(self).shards.into_values();
        shards.flat_map(|stall| stall.waiting).collect()
    }

    /// Panics if an invariant is broken.
    pub(super) fn check_invariants(&self) {
        for (shard, stall) in &self.shards {
            assert!(
                stall.probe.is_some() || !stall.waiting.is_empty(),
                "no call waits for shard {shard}"
            );
            assert_ne!(
                self.due.contains(&(stall.due, *shard)),
                stall.probe.is_some(),
                "shard {shard} has a probe and is due, or neither"
            );
        }
        assert!(self.due.len() <= self.shards.len(), "a shard is due twice");
        assert_eq!(self.iter().count(), self.waiting, "the count is wrong");
    }
}

impl<C: Call> PendingCalls<C> {
    /// Returns the shard of a call; `None` if the call is gone.
    fn shard(&self, id: u64) -> Option<ShardId> {
        let pending = self.pending.get(&id)?;
        Some(shard(&self.config, pending.it.call.hash()))
    }

    /// Notes that the shard of a call isn't served at the node. The call waits, and gives back its share of the bytes in flight,
    /// so that it doesn't keep calls of other shards out.
    pub(super) fn turned_away(&mut self, now: Time, id: u64, asked: Duration) {
        let Some(Pending { it, .. }) = self.pending.get_mut(&id) else {
            return;
        };
        let since = now.saturating_sub(it.attempts.turn_away(now));
        let message = it.attempts.last.clone();
        if !self.stays(id) {
            return;
        }
        if let Some(Pending { it, .. }) = self.pending.get_mut(&id) {
            it.call.release_budget();
        }
        let Some(shard) = self.shard(id) else { return };
        let oldest = self.stalls.since(shard).map_or(since, |it| it.min(since));
        let pause = self.busy.pause_of(now.saturating_sub(oldest), asked);
        self.stalls.refused(shard, id, since, now + pause, message);
    }

    /// Lets the probe of a shard wait, because a node was too busy for it. Another call is the next probe: if the probe's session
    /// keeps too many results, only an older write of the same shard makes room.
    pub(super) fn probe_met_busy_node(&mut self, now: Time, id: u64, asked: Duration) {
        if let Some(shard) = self.shard(id) {
            self.stalls.probe_met_busy_node(shard, id);
        }
        self.turned_away(now, id, asked);
    }

    /// Lets a call wait that is about to be sent or named, if its shard is stalled. Returns true if it waits.
    pub(super) fn parked(&mut self, id: u64) -> bool {
        let Some(shard) = self.shard(id).filter(|it| self.stalls.holds(*it, id)) else {
            return false;
        };
        if self.relieves_probe(shard, id) {
            return false;
        }
        let message = self.stalls.add(shard, id);
        if let Some(Pending { it, .. }) = self.pending.get_mut(&id) {
            it.attempts.give_name_back();
            if it.attempts.last.is_none() {
                it.attempts.last = message.map(str::to_owned);
            }
            it.call.release_budget();
        }
        true
    }

    /// Queues the probes that are due. A call with a name is preferred: a call without one may have to wait until others end, and
    /// these may wait for the same shard.
    pub(super) fn probe(&mut self, now: Time) {
        let pending = &self.pending;
        let can_be_sent = |id| pending.get(&id).is_some_and(Pending::can_be_sent);
        while let Some(probe) = self.stalls.next_probe(now, can_be_sent) {
            let waits_for_a_name = !can_be_sent(probe);
            let queue = if waits_for_a_name {
                &mut self.unnamed
            } else {
                &mut self.ready
            };
            queue.push_back(probe);
        }
    }

    /// Lets another call probe the shard of a probe that gets no name. Returns true if there is one.
    pub(super) fn replaces_probe(&mut self, id: u64) -> bool {
        let Some(shard) = self.shard(id).filter(|it| self.stalls.is_probe(*it, id)) else {
            return false;
        };
        let pending = &self.pending;
        let can_be_sent = |id| pending.get(&id).is_some_and(Pending::can_be_sent);
        let probe = self.stalls.replace_probe(shard, can_be_sent);
        self.ready.extend(probe);
        probe.is_some()
    }

    /// Returns true if `id` is the probe of its shard.
    pub(super) fn probes(&self, id: u64) -> bool {
        let shard = self.shard(id);
        shard.is_some_and(|shard| self.stalls.is_probe(shard, id))
    }

    /// Makes a call that can be sent at once the probe of its shard, if the probe waits for a name. Returns true if it has done so.
    fn relieves_probe(&mut self, shard: ShardId, id: u64) -> bool {
        let can_be_sent = |id: &u64| self.pending.get(id).is_some_and(Pending::can_be_sent);
        let waits_for_name = |probe: &u64| !can_be_sent(probe);
        let Some(probe) = self.stalls.probe(shard).filter(waits_for_name) else {
            return false;
        };
        if !can_be_sent(&id) {
            return false;
        }
        self.stalls.add(shard, id);
        self.stalls.replace_probe(shard, |it| it == id);
        self.unnamed.retain(|it| *it != probe);
        true
    }

    /// Lets the calls of a shard go on, if `id` is its probe: the node has treated it as a call of a shard that it serves.
    pub(super) fn probe_served(&mut self, id: u64) {
        if self.probes(id)
            && let Some(shard) = self.shard(id)
        {
            let waiting = self.stalls.end(shard);
            self.resume(waiting);
        }
    }

    /// Lets the calls of all shards go on.
    pub(super) fn end_stalls(&mut self) {
        let waiting = self.stalls.end_all();
        self.resume(waiting);
    }

    fn resume(&mut self, waiting: BTreeSet<u64>) {
        for id in waiting {
            self.enqueue(id);
        }
    }
}
