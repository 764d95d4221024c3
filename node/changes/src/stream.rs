//! The watches of one stream, and which events each of them still needs.
//!
//! A watch is *in step* if it has all events up to the stream's *position*, and *behind* otherwise. Watches in step are served
//! together, from the feed. Those behind are served by pages of the past, beginning with the lowest revision that one of them
//! needs, and are in step again when a page reaches the position.
//!
//! Batches that were taken in become a *delivery*: for one watch after the other the events are selected when there is room for
//! them, so the stream holds one answer at a time, and the batches are shared. Until its events are on the way, a watch counts as
//! behind. So a delivery can be dropped at any time, and a slow client costs no memory.
//!
//! Requests are taken in only while there is no delivery.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use keyspace::{Event, Span};

use crate::feed::{Batch, End, Feed, Read};
use crate::page::Page;
use crate::spans::Spans;
use crate::watch::{AUTO_ID, Create, NO_ID, Refused, Response};

/// One watch.
#[derive(Debug)]
struct Watch {
    wants: Create,
    /// The first revision that it needs. What is below was delivered, or isn't of interest.
    next: i64,
    /// True if it is behind.
    behind: bool,
    /// True if no event has come since the last notice of progress was due.
    quiet: bool,
}

impl Watch {
    fn needs(&self, event: &Event) -> bool {
        event.kv.mod_revision >= self.next
            && self.wants.passes(event)
            && self.wants.span.contains(&event.kv.key)
    }
}

/// Batches on their way to the watches that need them.
#[derive(Debug)]
struct Delivery {
    batches: Vec<Arc<Batch>>,
    /// The revision up to which its watches have all events then.
    through: i64,
    watches: VecDeque<i64>,
}

/// A feed that a stream reads. Its changes may come while the stream does a step.
pub trait Source {
    /// Returns the changes after a revision, as [`Feed::read`] does.
    fn read(&self, after: i64, max_events: usize) -> Read;

    /// Returns the reason for which there are no further changes.
    fn ended(&self) -> Option<End>;
}

impl Source for Feed {
    fn read(&self, after: i64, max_events: usize) -> Read {
        Feed::read(self, after, max_events)
    }

    fn ended(&self) -> Option<End> {
        Feed::ended(self)
    }
}

/// The next thing that a stream needs.
#[derive(Debug)]
pub enum Step {
    /// There is an answer: take it when there is room for it.
    Answer,
    /// The feed knows no revision: read the record of the keyspace, and tell the feed.
    Learn,
    /// Read a page of the past.
    Page {
        /// Its first revision.
        from: i64,
        /// The keys that it needs.
        spans: Spans,
    },
    /// Nothing, until a request comes or the feed changes.
    Wait,
    /// The stream ends. All that the feed has was answered.
    End(End),
}

/// The watches of one stream.
#[derive(Debug)]
pub struct Watches {
    max: usize,
    open: BTreeMap<i64, Watch>,
    spans: Spans,
    /// The watches that are behind, by the revision that they need.
    behind: BTreeSet<(i64, i64)>,
    next_id: i64,
    position: i64,
    answers: VecDeque<Response>,
    delivery: Option<Delivery>,
    progress_asked: bool,
    /// The highest revision of an answer with events. Pages may be ahead of the feed, and no notice of progress goes back.
    told: i64,
    /// True if watches behind come before those in step, so that neither starve.
    behind_first: bool,
}

impl Watches {
    /// Creates a stream without watches, of at most `max`, at the newest revision.
    pub fn new(newest: i64, max: usize) -> Self {
        Self {
            max,
            open: BTreeMap::new(),
            spans: Spans::default(),
            behind: BTreeSet::new(),
            next_id: 0,
            position: newest,
            answers: VecDeque::new(),
            delivery: None,
            progress_asked: false,
            told: 0,
            behind_first: false,
        }
    }

    /// Returns the number of watches.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Returns true if there are no watches.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Returns the ranges of all watches, by their ids.
    pub fn ranges(&self) -> impl Iterator<Item = (i64, &Span)> {
        self.open.iter().map(|(id, watch)| (*id, &watch.wants.span))
    }

    /// Returns the revision after which the stream needs the feed.
    pub fn position(&self) -> i64 {
        self.position
    }

    /// Returns true if nothing is on its way to the client.
    pub fn is_idle(&self) -> bool {
        self.answers.is_empty() && self.delivery.is_none()
    }

    /// Takes in what the feed has, and returns what the stream needs next. Batches of about `max_events` are taken at once.
    pub fn step(&mut self, feed: &impl Source, max_events: usize) -> Step {
        // Asked first: a feed that has ended has all its changes.
        let ended = feed.ended();
        if self.is_idle() {
            // Only here: the number of answers of a delivery must not decide who comes first.
            self.behind_first = !self.behind_first;
        }
        if self.is_idle()
            && self.behind_first
            && ended.is_none()
            && let Some(step) = self.catch_up(feed, ended, max_events)
        {
            return step;
        }
        while self.is_idle() {
            match feed.read(self.position, max_events) {
                Read::Batches(batches) => self.take(batches),
                Read::Gap { newest } => self.skip(newest),
                Read::UpToDate => break,
                Read::Unknown => return ended.map_or(Step::Learn, Step::End),
            }
        }
        if self.is_idle()
            && let Some(step) = self.catch_up(feed, ended, max_events)
        {
            return step;
        }
        if self.is_idle()
            && let Some(why) = ended
        {
            return Step::End(why);
        }
        self.answer_progress();
        if self.is_idle() {
            Step::Wait
        } else {
            Step::Answer
        }
    }

    /// Serves the watches behind as far as the feed reaches back. Returns a step if the feed doesn't have what they need.
    fn catch_up(
        &mut self,
        feed: &impl Source,
        ended: Option<End>,
        max_events: usize,
    ) -> Option<Step> {
        while self.is_idle() {
            let from = self.lowest_needed()?;
            let Read::Batches(batches) = feed.read(from - 1, max_events) else {
                let page = || Step::Page {
                    from,
                    spans: self.needed_spans(),
                };
                return Some(ended.map_or_else(page, Step::End));
            };
            let through = batches.last().map_or(from, |batch| batch.revision);
            self.take_page(Page {
                from,
                through,
                batches,
            });
        }
        None
    }

    /// Creates a watch. `newest` and `compacted` are the revisions of the keyspace. Returns true if it was created.
    pub fn create(&mut self, wants: Create, newest: i64, compacted: i64) -> bool {
        let id = match self.check(&wants) {
            Ok(id) => id,
            Err(why) => {
                let revision = newest;
                self.answers.push_back(Response::Refused { revision, why });
                return false;
            }
        };
        let revision = newest;
        self.answers.push_back(Response::Created { id, revision });
        if wants.start > 0 && wants.start < compacted {
            self.answers
                .push_back(Response::Compacted { id, compacted });
            return false;
        }
        let now = wants.start == 0;
        let watch = Watch {
            next: if now { newest + 1 } else { wants.start },
            behind: false,
            quiet: false,
            wants,
        };
        let (next, behind) = (watch.next, watch.next <= newest);
        self.spans.add(id, &watch.wants.span);
        self.open.insert(id, watch);
        if behind {
            self.set_behind(id, next);
        }
        true
    }

    /// Refuses a watch for a reason that the caller knows: the node has too many, or the user may not read the range.
    pub fn refuse(&mut self, newest: i64, why: Refused) {
        self.answers.push_back(Response::Refused {
            revision: newest,
            why,
        });
    }

    fn check(&mut self, wants: &Create) -> Result<i64, Refused> {
        if wants.start < 0 {
            return Err(Refused::NegativeStart);
        }
        if let Span::Range(start, end) = &wants.span
            && start >= end
        {
            return Err(Refused::EmptyRange);
        }
        if self.open.len() >= self.max {
            return Err(Refused::TooMany);
        }
        if wants.id != AUTO_ID {
            let taken = self.open.contains_key(&wants.id);
            return if taken {
                Err(Refused::DuplicateId)
            } else {
                Ok(wants.id)
            };
        }
        while self.open.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Ok(self.next_id - 1)
    }

    /// Cancels a watch, as its client asks. A watch that doesn't exist is ignored, as in etcd. Returns true if there was one.
    pub fn cancel(&mut self, id: i64, newest: i64) -> bool {
        let removed = self.remove(id);
        if removed {
            let revision = newest;
            self.answers.push_back(Response::Canceled { id, revision });
        }
        removed
    }

    /// Removes a watch without an answer. Returns true if there was one.
    pub fn remove(&mut self, id: i64) -> bool {
        let Some(watch) = self.open.remove(&id) else {
            return false;
        };
        self.spans.remove(id, &watch.wants.span);
        self.behind.remove(&(watch.next, id));
        true
    }

    /// Takes in the request of a notice of progress.
    pub fn ask_progress(&mut self) {
        self.progress_asked = true;
    }

    /// Answers the request of progress, if there is one. No watch is behind. If one has not begun yet, there is no answer, as in
    /// etcd.
    fn answer_progress(&mut self) {
        let waits = !self.is_idle() || self.position < self.told;
        if waits || !self.progress_asked {
            return;
        }
        self.progress_asked = false;
        let revision = self.position;
        let begun = |watch: &Watch| watch.wants.start <= revision;
        if !self.open.is_empty() && self.open.values().all(begun) {
            let id = NO_ID;
            self.answers.push_back(Response::Progress { id, revision });
        }
    }

    /// Tells watches that ask for it about progress, if they had no events since the last call.
    pub fn notify_progress(&mut self) {
        let revision = self.position;
        for (id, watch) in &mut self.open {
            if !watch.wants.progress_notify {
                continue;
            }
            let quiet = std::mem::replace(&mut watch.quiet, true);
            let at_position = !watch.behind && watch.next <= revision + 1;
            if quiet && at_position && watch.wants.start <= revision {
                let id = *id;
                self.answers.push_back(Response::Progress { id, revision });
            }
        }
    }

    /// Takes in the batches after the position.
    fn take(&mut self, batches: Vec<Arc<Batch>>) {
        let Some(through) = batches.last().map(|batch| batch.revision) else {
            return;
        };
        let ids = self.needing(&batches, false);
        self.fall_behind(&ids);
        self.position = through;
        self.deliver(batches, through, ids);
    }

    /// Takes in that the batches after the position are not kept.
    fn skip(&mut self, newest: i64) {
        let in_step = self.open.iter().filter(|(_, watch)| !watch.behind);
        let missing = in_step.filter(|(_, watch)| watch.next <= newest);
        let ids: Vec<_> = missing.map(|(id, _)| *id).collect();
        self.fall_behind(&ids);
        self.position = newest;
    }

    /// Returns the lowest revision that a watch behind needs; `None` if all are in step.
    fn lowest_needed(&self) -> Option<i64> {
        self.behind.first().map(|(next, _)| *next)
    }

    /// Returns the spans of the watches behind.
    fn needed_spans(&self) -> Spans {
        let mut spans = Spans::default();
        for (_, id) in &self.behind {
            if let Some(watch) = self.open.get(id) {
                spans.add(*id, &watch.wants.span);
            }
        }
        spans
    }

    /// Takes in a page that begins at the revision of [`Step::Page`].
    pub fn take_page(&mut self, page: Page) {
        let ids = self.needing(&page.batches, true);
        let first = (i64::MIN, i64::MIN);
        let reached: Vec<_> = self
            .behind
            .range(first..=(page.through, i64::MAX))
            .copied()
            .collect();
        for (_, id) in reached {
            if ids.binary_search(&id).is_err() {
                self.reach(id, page.through);
            }
        }
        self.deliver(page.batches, page.through, ids);
    }

    /// Cancels the watches that need a revision below the compacted one.
    pub fn compact(&mut self, compacted: i64) -> usize {
        let lost: Vec<_> = self
            .behind
            .iter()
            .take_while(|(next, _)| *next < compacted)
            .map(|(_, id)| *id)
            .collect();
        for id in &lost {
            self.remove(*id);
            let id = *id;
            self.answers
                .push_back(Response::Compacted { id, compacted });
        }
        lost.len()
    }

    /// Returns the next answer. Call it when there is room for it, because its watch counts as served then.
    pub fn next_answer(&mut self) -> Option<Response> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        loop {
            let delivery = self.delivery.as_mut()?;
            let Some(id) = delivery.watches.pop_front() else {
                self.delivery = None;
                return None;
            };
            let through = delivery.through;
            let Some(watch) = self.open.get_mut(&id) else {
                continue;
            };
            let all = delivery.batches.iter().flat_map(|batch| &batch.events);
            let events: Vec<_> = all.filter(|event| watch.needs(event)).cloned().collect();
            watch.quiet &= events.is_empty();
            let (prev_kv, fragment) = (watch.wants.prev_kv, watch.wants.fragment);
            self.reach(id, through);
            if !events.is_empty() {
                self.told = self.told.max(through);
                return Some(Response::Events {
                    id,
                    revision: through,
                    events,
                    prev_kv,
                    fragment,
                });
            }
        }
    }

    /// Drops what is on its way to watches: they are behind until a page serves them.
    pub fn let_go(&mut self) {
        self.delivery = None;
    }

    /// Returns the watches that need one of the batches, among those behind or those in step.
    fn needing(&self, batches: &[Arc<Batch>], behind: bool) -> Vec<i64> {
        let mut ids = BTreeSet::new();
        for event in batches.iter().flat_map(|batch| &batch.events) {
            for id in self.spans.of(&event.kv.key) {
                let watch = self.open.get(&id);
                if watch.is_some_and(|watch| watch.behind == behind && watch.needs(event)) {
                    ids.insert(id);
                }
            }
        }
        ids.into_iter().collect()
    }

    fn deliver(&mut self, batches: Vec<Arc<Batch>>, through: i64, ids: Vec<i64>) {
        if !ids.is_empty() {
            self.delivery = Some(Delivery {
                batches,
                through,
                watches: ids.into(),
            });
        }
    }

    /// Marks watches in step as behind: they lack what comes after the position.
    fn fall_behind(&mut self, ids: &[i64]) {
        for id in ids {
            let next = self.open.get(id).map(|watch| watch.next);
            if let Some(next) = next {
                self.set_behind(*id, next.max(self.position + 1));
            }
        }
    }

    fn set_behind(&mut self, id: i64, next: i64) {
        if let Some(watch) = self.open.get_mut(&id) {
            (watch.next, watch.behind) = (next, true);
            self.behind.insert((next, id));
        }
    }

    /// Marks that a watch behind has all events through a revision.
    fn reach(&mut self, id: i64, through: i64) {
        let Some(watch) = self.open.get_mut(&id) else {
            return;
        };
        self.behind.remove(&(watch.next, id));
        watch.next = watch.next.max(through + 1);
        watch.behind = watch.next <= self.position;
        if watch.behind {
            self.behind.insert((watch.next, id));
        }
    }
}
