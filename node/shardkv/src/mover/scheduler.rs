//! The scheduler of hand-offs: one queue for each source, with slots of its own, so that a source that is slow or doesn't
//! answer delays only its own shards.
//!
//! A hand-off holds a slot of its source while it is worked on, and has at most one pending request. The others wait in the
//! queue of their source, the oldest configuration first. No source ever uses another's slots, so nothing is taken back
//! from a slow source: its answers count whenever they come before the request's deadline.
//!
//! A source has to prove that it answers: its first request is on trial, and its other slots open with the answer. A failure
//! sends the hand-off to the back of its queue, pauses the queue, and puts the source on trial again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use types::{ConfigNum, Gid};

use super::backoff::Backoff;
use super::outbox::{HandOff, Turn};
use super::{ActionId, MoverOptions};

/// The time without an answer, in milliseconds, from which the status calls a source slow.
const SLOW_AFTER_MS: u64 = 500;
/// The shortest interval, in milliseconds, between two searches for hand-offs under one configuration while known ones wait.
const SEARCH_INTERVAL_MS: u64 = 20;

#[derive(Debug)]
pub(super) struct Scheduler {
    /// The slots of each source.
    slots: usize,
    by_source: BTreeMap<Gid, SourceQueue>,
    working: BTreeMap<HandOff, Slot>,
    /// The configuration of the last search for hand-offs.
    searched: Option<ConfigNum>,
    /// True if the ownership has changed since the last search.
    stale: bool,
    /// The earliest time of the next search, unless the configuration changes or no hand-off waits.
    next_search: u64,
}

#[derive(Debug, Default)]
struct SourceQueue {
    waiting: VecDeque<HandOff>,
    working: usize,
    /// True if the source has answered since the queue's creation and since its last failure.
    is_proven: bool,
    /// True if the last slot went to a hand-off that had failed before.
    has_retried: bool,
    backoff: Backoff,
}

#[derive(Debug)]
struct Slot {
    source: Gid,
    /// The pending request to the source, and its start.
    asked: Option<(ActionId, u64)>,
}

impl SourceQueue {
    fn has_free_slot(&self, slots: usize) -> bool {
        self.working < if self.is_proven { slots } else { 1 }
    }

    fn answered(&mut self) {
        self.is_proven = true;
        self.backoff.succeed();
    }
}

impl Scheduler {
    /// Creates a scheduler with this number of slots for each source; 0 counts as 1.
    pub(super) fn new(slots: usize) -> Self {
        Self {
            slots: slots.max(1),
            by_source: BTreeMap::new(),
            working: BTreeMap::new(),
            searched: None,
            stale: false,
            next_search: 0,
        }
    }

    /// Returns true if the caller has to search the ownership for hand-offs and pass them to [`Scheduler::refresh`]. A search
    /// costs as much as there are unfinished hand-offs, and the ownership changes with every chunk.
    pub(super) fn needs_refresh(&mut self, turn: &mut Turn<'_>) -> bool {
        self.stale |= turn.news;
        if self.searched == Some(turn.ownership.config) {
            let some_wait = self.by_source.values().any(|it| !it.waiting.is_empty());
            if !self.stale || some_wait && !turn.reached(self.next_search) {
                return false;
            }
        }
        self.searched = Some(turn.ownership.config);
        self.stale = false;
        self.next_search = turn.now.saturating_add(SEARCH_INTERVAL_MS);
        true
    }

    /// Replaces the set of waiting hand-offs by `tasks`. Hand-offs that wait already keep their places.
    pub(super) fn refresh(&mut self, tasks: impl Iterator<Item = (HandOff, Gid)>) {
        let mut new: BTreeMap<Gid, BTreeSet<HandOff>> = BTreeMap::new();
        for (task, source) in tasks {
            if !self.working.contains_key(&task) {
                new.entry(source).or_default().insert(task);
            }
        }
        for (source, queue) in &mut self.by_source {
            let tasks = new.entry(*source).or_default();
            queue.waiting.retain(|task| tasks.remove(task));
        }
        for (source, tasks) in new {
            self.by_source
                .entry(source)
                .or_default()
                .waiting
                .extend(tasks);
        }
        self.by_source
            .retain(|_, queue| !queue.waiting.is_empty() || queue.working > 0);
    }

    /// Gives free slots to hand-offs that are `still` to be done. Schedules a turn at the end of each pause.
    pub(super) fn start(
        &mut self,
        turn: &mut Turn<'_>,
        still: impl Fn(HandOff) -> bool,
    ) -> Vec<(HandOff, Gid)> {
        let mut started = Vec::new();
        for (source, queue) in &mut self.by_source {
            while queue.has_free_slot(self.slots) {
                if queue.waiting.is_empty() || !turn.reached(queue.backoff.until()) {
                    break;
                }
                let next = queue.waiting.pop_front();
                let next = next.filter(|it| !self.working.contains_key(it) && still(*it));
                let Some(task) = next else {
                    continue;
                };
                queue.working += 1;
                queue.has_retried = false;
                let (source, asked) = (*source, None);
                self.working.insert(task, Slot { source, asked });
                started.push((task, source));
            }
        }
        started
    }

    /// Gives a free slot to a hand-off that left its place in the queue by [`Scheduler::release`], before those that wait there. One
    /// that `fails_again` leaves every second turn to them. Returns true if it has the slot.
    pub(super) fn resume(
        &mut self,
        turn: &mut Turn<'_>,
        task: HandOff,
        source: Gid,
        fails_again: bool,
    ) -> bool {
        let queue = self.by_source.entry(source).or_default();
        let yields = fails_again && queue.has_retried && !queue.waiting.is_empty();
        if yields || !queue.has_free_slot(self.slots) || !turn.reached(queue.backoff.until()) {
            return false;
        }
        queue.working += 1;
        queue.has_retried = fails_again;
        let asked = None;
        self.working.insert(task, Slot { source, asked });
        true
    }

    /// Returns the number of sources with hand-offs.
    pub(super) fn sources(&self) -> usize {
        self.by_source.len()
    }

    /// Returns the slots of each source.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// Returns true if the source has answered since its last failure.
    pub(super) fn is_proven(&self, source: Gid) -> bool {
        let queue = self.by_source.get(&source);
        queue.is_some_and(|queue| queue.is_proven)
    }

    /// Records a request to the source of a hand-off that has a slot.
    pub(super) fn asked(&mut self, task: HandOff, id: ActionId, now: u64) {
        if let Some(slot) = self.working.get_mut(&task) {
            slot.asked = Some((id, now));
        }
    }

    pub(super) fn is_asking(&self, task: HandOff) -> bool {
        let slot = self.working.get(&task);
        slot.is_some_and(|slot| slot.asked.is_some())
    }

    fn asker(&self, id: ActionId) -> Option<HandOff> {
        let asked = |slot: &Slot| slot.asked.is_some_and(|(asked, _)| asked == id);
        let mut working = self.working.iter();
        working.find(|(_, slot)| asked(slot)).map(|(task, _)| *task)
    }

    /// Records an answer of a source. Returns the hand-off of the request, if it still has its slot.
    pub(super) fn answered(&mut self, id: ActionId) -> Option<HandOff> {
        let task = self.asker(id)?;
        let slot = self.working.get_mut(&task)?;
        slot.asked = None;
        if let Some(queue) = self.by_source.get_mut(&slot.source) {
            queue.answered();
        }
        Some(task)
    }

    /// Records a failed request. Returns the hand-off of the request, if it still had its slot, which it loses.
    pub(super) fn failed(
        &mut self,
        id: ActionId,
        now: u64,
        why: &str,
        options: &MoverOptions,
    ) -> Option<HandOff> {
        let task = self.asker(id)?;
        self.fail(task, now, why, options);
        Some(task)
    }

    /// Takes the slot of a hand-off that can't continue because of its source, and pauses the source's queue.
    pub(super) fn fail(&mut self, task: HandOff, now: u64, why: &str, options: &MoverOptions) {
        if let Some(queue) = self.take_slot(task) {
            queue.is_proven = false;
            queue.backoff.fail(now, why, options);
            queue.waiting.push_back(task);
        }
    }

    /// Takes the slot of a hand-off as [`Scheduler::fail`], but the hand-off doesn't queue again.
    pub(super) fn release(&mut self, task: HandOff, now: u64, why: &str, options: &MoverOptions) {
        if let Some(queue) = self.take_slot(task) {
            queue.is_proven = false;
            queue.backoff.fail(now, why, options);
        }
    }

    /// Records that the source refused a request because it is busy. The hand-off keeps its slot.
    pub(super) fn paused(&mut self, id: ActionId) {
        let task = self.asker(id);
        if let Some(slot) = task.and_then(|task| self.working.get_mut(&task)) {
            slot.asked = None;
        }
    }

    /// Takes the slot of a hand-off and puts it at the back of its queue.
    pub(super) fn requeue(&mut self, task: HandOff) {
        if let Some(queue) = self.take_slot(task) {
            queue.waiting.push_back(task);
        }
    }

    /// Takes the slot of a hand-off that is complete.
    pub(super) fn finish(&mut self, task: HandOff) {
        self.take_slot(task);
    }

    fn take_slot(&mut self, task: HandOff) -> Option<&mut SourceQueue> {
        let slot = self.working.remove(&task)?;
        let queue = self.by_source.get_mut(&slot.source)?;
        queue.working -= 1;
        Some(queue)
    }

    /// Returns the reason, for display, that a hand-off from this source makes no progress.
    pub(super) fn why(&self, task: HandOff, source: Gid, now: u64) -> Option<String> {
        if let Some(slot) = self.working.get(&task) {
            let (_, since) = slot.asked?;
            let waited = now.saturating_sub(since);
            let slow = waited >= SLOW_AFTER_MS;
            return slow.then(|| format!("{source}: no answer for {waited} ms"));
        }
        let queue = self.by_source.get(&source);
        if let Some(why) = queue.and_then(|queue| queue.backoff.why(now)) {
            return Some(format!("{source}: {why}"));
        }
        Some(match self.slots {
            1 => format!("waits for the slot of {source}"),
            slots => format!("waits for one of the {slots} slots of {source}"),
        })
    }
}
