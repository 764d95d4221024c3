//! The feed of a keyspace: the latest changes that a replica has applied, for the watches that it serves.
//!
//! A feed begins without knowledge. It learns the newest revision from a state ([`Feed::learn`]) or from the first change, and
//! from then on it has all changes, of which it keeps the latest. A reader that is further behind is told so ([`Read::Gap`]) and
//! reads the state instead. Revisions have no gaps, so a change that isn't the next one means that a snapshot lies in between.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::BytesMut;
use keyspace::{Effect, Event};

/// The approximate memory of an event beside its key and value, in bytes.
const EVENT_BYTES: usize = 128;

/// All changes of one revision.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    /// The revision.
    pub revision: i64,
    /// The changes, in order; never empty.
    pub events: Vec<Event>,
    bytes: usize,
}

impl Batch {
    /// Makes a batch of events that hold their memory alone.
    pub fn new(revision: i64, events: Vec<Event>) -> Self {
        let bytes = events.iter().map(bytes_of).sum();
        Self {
            revision,
            events,
            bytes,
        }
    }

    /// Copies events out of the log entry that they share, so that a batch doesn't hold the whole entry in memory.
    fn copied(revision: i64, events: &[Event]) -> Self {
        let size = |event: &Event| event.kv.key.len() + event.kv.value.len();
        let mut out = BytesMut::with_capacity(events.iter().map(size).sum());
        for event in events {
            out.extend_from_slice(&event.kv.key);
            out.extend_from_slice(&event.kv.value);
        }
        let mut rest = out.freeze();
        let copy = |event: &Event| {
            let mut event = event.clone();
            event.kv.key = rest.split_to(event.kv.key.len());
            event.kv.value = rest.split_to(event.kv.value.len());
            event
        };
        Self::new(revision, events.iter().map(copy).collect())
    }
}

/// Returns the approximate memory of an event.
fn bytes_of(event: &Event) -> usize {
    EVENT_BYTES + event.kv.key.len() + event.kv.value.len()
}

/// The reason for which a feed has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The group doesn't serve the shard any more, or serves it again since another configuration.
    Moved,
    /// The keyspace was deleted.
    Deleted,
}

/// The bounds of one feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedLimits {
    /// The most events.
    pub events: usize,
    /// The most bytes of memory, approximately.
    pub bytes: usize,
}

/// The changes that a feed has after some revision.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// It knows no revision: read the state, and tell the feed.
    Unknown,
    /// There is no later change.
    UpToDate,
    /// The next changes, of at least one revision.
    Batches(Vec<Arc<Batch>>),
    /// The next changes are not kept: read the state.
    Gap {
        /// The newest revision.
        newest: i64,
    },
}

/// The latest changes of one keyspace.
#[derive(Debug)]
pub struct Feed {
    newest: Option<i64>,
    compacted: i64,
    /// Batches of consecutive revisions, the last of which is the newest.
    kept: VecDeque<Arc<Batch>>,
    events: usize,
    bytes: usize,
    /// The number of resets.
    generation: u64,
    /// The number of times that the permissions may have changed.
    permissions: u64,
    ended: Option<End>,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            newest: None,
            // As in the record of a keyspace that was never compacted.
            compacted: -1,
            kept: VecDeque::new(),
            events: 0,
            bytes: 0,
            generation: 0,
            permissions: 0,
            ended: None,
        }
    }
}

impl Feed {
    /// Returns the newest revision, if the feed knows it.
    pub fn newest(&self) -> Option<i64> {
        self.newest
    }

    /// Returns the compacted revision, which may be higher by now if a snapshot was installed.
    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// Returns the approximate memory of what is kept, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the reason for which there are no further changes.
    pub fn ended(&self) -> Option<End> {
        self.ended
    }

    /// Returns the number of times that users, roles or permissions may have changed. A watch that was allowed at a lower number is to be
    /// checked again.
    pub fn permissions(&self) -> u64 {
        self.permissions
    }

    /// Takes in the effects of an operation of the log.
    pub fn note(&mut self, revision: i64, effects: &[Effect], limits: FeedLimits) {
        for effect in effects {
            match effect {
                Effect::Changed(events) => self.push(revision, events, limits),
                Effect::Compacted { compacted } => {
                    self.compacted = self.compacted.max(*compacted);
                }
                Effect::Deleted => self.end(End::Deleted),
                Effect::AuthChanged => self.permissions += 1,
                Effect::Created | Effect::Granted { .. } | Effect::Revoked { .. } => {}
            }
        }
    }

    fn push(&mut self, revision: i64, events: &[Event], limits: FeedLimits) {
        // The state from which the feed has learnt was ahead of its changes.
        if events.is_empty() || self.newest.is_some_and(|newest| revision <= newest) {
            return;
        }
        if self.newest.is_none_or(|newest| newest + 1 != revision) {
            self.drop_all();
        }
        self.newest = Some(revision);
        let bytes = events.iter().map(bytes_of).sum::<usize>();
        if events.len() > limits.events || bytes > limits.bytes {
            self.drop_all();
            return;
        }
        while self.events + events.len() > limits.events || self.bytes + bytes > limits.bytes {
            self.drop_oldest();
        }
        self.events += events.len();
        self.bytes += bytes;
        self.kept
            .push_back(Arc::new(Batch::copied(revision, events)));
    }

    /// Returns the number for [`Feed::learn`]. Take it before the state is read.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Takes in the newest and the compacted revision of a state that holds every change that was noted. The state was read in
    /// this generation: one that a snapshot has replaced since then says nothing of the changes after it.
    pub fn learn(&mut self, generation: u64, revision: i64, compacted: i64) {
        if generation != self.generation {
            return;
        }
        self.compacted = self.compacted.max(compacted);
        if self.newest.is_none() {
            self.newest = Some(revision);
        }
    }

    /// Forgets what is known, because a snapshot has replaced the state and no changes came with it.
    pub fn reset(&mut self) {
        self.drop_all();
        self.newest = None;
        self.generation += 1;
        self.permissions += 1;
    }

    /// Ends the feed. What is kept can still be read.
    pub fn end(&mut self, why: End) {
        self.ended.get_or_insert(why);
    }

    /// Drops the oldest batch that is kept. Returns false if there is none.
    pub fn drop_oldest(&mut self) -> bool {
        let Some(batch) = self.kept.pop_front() else {
            return false;
        };
        self.events -= batch.events.len();
        self.bytes -= batch.bytes;
        true
    }

    fn drop_all(&mut self) {
        self.kept.clear();
        (self.events, self.bytes) = (0, 0);
    }

    /// Returns the changes after a revision: whole revisions, the last of which reaches `max_events`.
    pub fn read(&self, after: i64, max_events: usize) -> Read {
        let Some(newest) = self.newest else {
            return Read::Unknown;
        };
        if after >= newest {
            return Read::UpToDate;
        }
        let first = self.kept.front().map_or(newest + 1, |batch| batch.revision);
        let Ok(skipped) = usize::try_from(after + 1 - first) else {
            return Read::Gap { newest };
        };
        let mut events = 0;
        let batches = self.kept.iter().skip(skipped).take_while(|batch| {
            let room = events < max_events.max(1);
            events += batch.events.len();
            room
        });
        Read::Batches(batches.cloned().collect())
    }
}
