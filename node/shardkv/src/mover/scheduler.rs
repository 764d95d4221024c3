//! The scheduler of hand-offs: one queue for each source, so that a source that doesn't answer delays only its own shards.
//!
//! There is a bounded number of slots. A hand-off holds one while it is worked on, and has at most one pending request to
//! its source. Hand-offs without a slot wait in the queue of their source, the oldest configuration first. A free
//! slot goes to the queue that holds the fewest slots, and among equals to the one with the oldest front. A failure sends
//! the hand-off to the back of its queue and pauses the whole queue. After the pause one hand-off of the queue is tried, and
//! the others follow only when it succeeds. A hand-off whose answer is late loses its slot if another source's hand-off
//! could use it; the queue then pauses until that answer arrives or fails.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use types::Gid;

use super::backoff::Backoff;
use super::outbox::{HandOff, Turn};
use super::{ActionId, MoverOptions};

/// The time, in milliseconds, that a source has to answer while other hand-offs wait for the slot.
const PATIENCE_MS: u64 = 500;

#[derive(Debug)]
pub(super) struct Scheduler {
    slots: usize,
    by_source: BTreeMap<Gid, SourceQueue>,
    working: BTreeMap<HandOff, Slot>,
    /// Requests whose slots were given to other hand-offs.
    abandoned: BTreeMap<ActionId, Gid>,
    started: u64,
}

#[derive(Debug, Default)]
struct SourceQueue {
    waiting: VecDeque<HandOff>,
    working: usize,
    abandoned: usize,
    backoff: Backoff,
    /// The value of `started` at the queue's last start, so that equal queues take turns.
    last_started: u64,
}

#[derive(Debug)]
struct Slot {
    source: Gid,
    /// The pending request to the source, and its start.
    asked: Option<(ActionId, u64)>,
}

impl SourceQueue {
    fn is_open(&self, now: u64) -> bool {
        let trying = self.backoff.is_failing() && self.working > 0;
        !self.waiting.is_empty() && !trying && self.abandoned == 0 && now >= self.backoff.until()
    }
}

impl Scheduler {
    pub(super) fn new(slots: usize) -> Self {
        Self {
            slots: slots.max(1),
            by_source: BTreeMap::new(),
            working: BTreeMap::new(),
            abandoned: BTreeMap::new(),
            started: 0,
        }
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
        self.by_source.retain(|_, queue| {
            !queue.waiting.is_empty() || queue.working > 0 || queue.abandoned > 0
        });
    }

    /// Gives a free slot to the next hand-off that is `still` to be done, if there are both.
    pub(super) fn start(
        &mut self,
        now: u64,
        still: impl Fn(HandOff) -> bool,
    ) -> Option<(HandOff, Gid)> {
        while self.has_free_slot() {
            let source = self.next_open(now)?;
            let queue = self.by_source.get_mut(&source)?;
            let task = queue.waiting.pop_front()?;
            if self.working.contains_key(&task) || !still(task) {
                continue;
            }
            self.started += 1;
            queue.last_started = self.started;
            queue.working += 1;
            let asked = None;
            self.working.insert(task, Slot { source, asked });
            return Some((task, source));
        }
        None
    }

    pub(super) fn has_free_slot(&self) -> bool {
        self.working.len() < self.slots
    }

    /// Returns true if a hand-off that isn't known yet could get a slot: a free one, or one whose source is slow. While all
    /// slots are busy there is no need to search for more hand-offs.
    pub(super) fn have_use_for_more(&self, turn: &mut Turn<'_>) -> bool {
        let asked = self.working.values().filter_map(|slot| slot.asked);
        let oldest = asked.map(|(_, since)| since).min();
        self.has_free_slot()
            || oldest.is_some_and(|since| turn.reached(since.saturating_add(PATIENCE_MS)))
    }

    fn next_open(&self, now: u64) -> Option<Gid> {
        let open = self
            .by_source
            .iter()
            .filter(|(_, queue)| queue.is_open(now));
        let next = open
            .min_by_key(|(_, queue)| (queue.working, queue.waiting.front(), queue.last_started));
        next.map(|(source, _)| *source)
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
        if let Some(source) = self.abandoned.remove(&id) {
            if let Some(queue) = self.by_source.get_mut(&source) {
                queue.abandoned -= 1;
                queue.backoff.succeed();
            }
            return None;
        }
        let task = self.asker(id)?;
        let slot = self.working.get_mut(&task)?;
        slot.asked = None;
        if let Some(queue) = self.by_source.get_mut(&slot.source) {
            queue.backoff.succeed();
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
        if let Some(source) = self.abandoned.remove(&id) {
            if let Some(queue) = self.by_source.get_mut(&source) {
                queue.abandoned -= 1;
                queue.backoff.fail(now, why, options);
            }
            return None;
        }
        let task = self.asker(id)?;
        self.fail(task, now, why, options);
        Some(task)
    }

    /// Takes the slot of a hand-off that can't continue because of its source, and pauses the source's queue.
    pub(super) fn fail(&mut self, task: HandOff, now: u64, why: &str, options: &MoverOptions) {
        if let Some(queue) = self.take_slot(task) {
            queue.backoff.fail(now, why, options);
            queue.waiting.push_back(task);
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

    /// If no slot is free, takes one whose request is late, if a hand-off of another source could use it. Returns the hand-off
    /// that lost its slot.
    pub(super) fn make_room(&mut self, turn: &mut Turn<'_>) -> Option<HandOff> {
        if self.has_free_slot() {
            return None;
        }
        let open: Vec<Gid> = self
            .by_source
            .iter()
            .filter(|(_, queue)| queue.is_open(turn.now))
            .map(|(source, _)| *source)
            .take(2)
            .collect();
        let slow = self.working.iter().filter_map(|(task, slot)| {
            let (id, since) = slot.asked?;
            let wanted = open.iter().any(|source| *source != slot.source);
            wanted.then_some((since, id, *task, slot.source))
        });
        let (since, id, task, source) = slow.min()?;
        if !turn.reached(since.saturating_add(PATIENCE_MS)) {
            return None;
        }
        let why = format!("no answer within {PATIENCE_MS} ms");
        self.fail(task, turn.now, &why, turn.options);
        self.abandoned.insert(id, source);
        self.by_source.get_mut(&source)?.abandoned += 1;
        Some(task)
    }

    /// Schedules a turn at the end of the next pause.
    pub(super) fn wake(&self, turn: &mut Turn<'_>) {
        for queue in self
            .by_source
            .values()
            .filter(|queue| !queue.waiting.is_empty())
        {
            if queue.abandoned == 0 && queue.backoff.until() > turn.now {
                turn.reached(queue.backoff.until());
            }
        }
    }

    /// Returns the reason, for display, that a hand-off from this source makes no progress.
    pub(super) fn why(&self, task: HandOff, source: Gid, now: u64) -> Option<String> {
        let queue = self.by_source.get(&source);
        if let Some(slot) = self.working.get(&task) {
            let (_, since) = slot.asked?;
            let waited = now.saturating_sub(since);
            let slow = waited >= PATIENCE_MS;
            return slow.then(|| format!("{source}: no answer for {waited} ms"));
        }
        if let Some(why) = queue.and_then(|queue| queue.backoff.why(now)) {
            return Some(format!("{source}: {why}"));
        }
        Some(format!("waits for one of {} slots", self.slots))
    }
}
