//! Sessions and sequences: the names that make writes exactly once.
//!
//! A write is named by a session and a sequence, and every retry of it carries the same name. This module allocates
//! names, tracks the unfinished writes, and replaces a session that is too old for new writes.
//!
//! # Why sessions are replaced long before they expire
//!
//! A shard that doesn't know a session decides by the session's *birth*. If the birth is within the time to live, the session
//! is new; otherwise the shard may have forgotten it, and refuses its writes. So frequent use does not keep a session alive
//! at every shard: a shard that it first reaches after the time to live refuses it. New writes therefore use a fresh session
//! after half the time to live. A write that was named before keeps its name: under another name a retry could be applied
//! twice.
//!
//! # Why each batch stream has sessions of its own, and more than one
//!
//! `acked_below` (the fence) can't pass the oldest unfinished write of a session, so one write that waits stops all later
//! writes of the session once the window is full. Therefore each stream to each group has its own sessions: a group that stalls
//! holds up no other group. A write that moves to another group keeps its name, because its first attempt may have taken
//! effect. Only if no attempt can have taken effect, the write returns its name and gets a new one at the other group. So at most a few writes
//! in doubt, whose shard is being moved, keep a session's window full. When they do, another session is opened beside it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::Time;
use crate::bug::{Bug, Bugs};

/// With this many sessions open, the allocator waits for a full window instead of opening another session.
const MAX_OPEN: usize = 4;

/// The shortest time to live of a session. A node that returns 0 must not make clients open sessions without end.
const MIN_TTL: Duration = Duration::from_millis(100);

/// A session, by the allocator's own key, and a sequence in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    session: u64,
    sequence: u64,
}

/// The reason why no name can be given now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Blocked {
    /// There is no session, or it is too old: open one.
    #[error("no session is open: open one")]
    NoSession,
    /// Too many writes follow the oldest unfinished one: wait until it ends.
    #[error("the session's window is full: wait until its oldest write ends")]
    WindowFull,
}

/// The name of a write as the wire carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The session, as the cluster named it.
    pub client_id: Bytes,
    /// The write's number in the session.
    pub sequence: u64,
    /// The fence: all writes of the session below it are finished, so the cluster may forget their results.
    pub acked_below: u64,
}

/// The sessions of one batch stream: the current one, and replaced ones that still have unfinished writes.
///
/// # Invariants
///
/// - A name is given once. The sequences of a session start at 1 and have no gaps.
/// - `acked_below` never passes an unfinished write, and never runs backwards.
/// - From the oldest unfinished write of a session to its newest are at most `window` sequences, which bounds the results that
///   the cluster keeps for it.
/// - A session is kept until it is replaced and has no unfinished write.
/// - Stragglers cause at most [`MAX_OPEN`] sessions.
#[derive(Debug)]
pub struct Sequences {
    window: usize,
    /// In order of opening; the last is current unless it expired.
    open: VecDeque<Open>,
    opened: u64,
    bugs: Bugs,
}

#[derive(Debug)]
struct Open {
    /// This process's key of the session: shorter than a copy of the client id.
    key: u64,
    client_id: Bytes,
    /// The time at which it was asked for: it can't be older than that.
    born: Time,
    ttl: Duration,
    expired: bool,
    /// Every sequence below is finished.
    acked_below: u64,
    /// For each sequence from `acked_below` on, true if it is finished.
    finished: VecDeque<bool>,
}

impl Open {
    fn next(&self) -> u64 {
        self.acked_below + self.finished.len() as u64
    }

    fn age(&self, now: Time) -> Duration {
        now.saturating_sub(self.born)
    }
}

impl Sequences {
    /// Creates an allocator without a session, with at most `window` sequences from the oldest unfinished write to the newest.
    pub fn new(window: usize, bugs: Bugs) -> Self {
        Self {
            window,
            open: VecDeque::new(),
            opened: 0,
            bugs,
        }
    }

    /// Names a new write.
    pub fn allocate(&mut self, now: Time) -> Result<Number, Blocked> {
        let (window, bugs) = (self.window, self.bugs);
        let current = self.open.back_mut().filter(|open| {
            // After half the time to live another session is opened, which may take a quarter more.
            !open.expired && open.age(now) < open.ttl * 3 / 4
        });
        let Some(current) = current else {
            return Err(Blocked::NoSession);
        };
        if current.finished.len() >= window {
            return Err(Blocked::WindowFull);
        }
        let mut number = Number {
            session: current.key,
            sequence: current.next(),
        };
        if bugs.has(Bug::SequenceGivenTwice)
            && number.sequence.is_multiple_of(4)
            && !current.finished.is_empty()
        {
            number.sequence -= 1;
            return Ok(number);
        }
        current.finished.push_back(false);
        self.check_invariants();
        Ok(number)
    }

    /// Returns the name as the wire carries it, with `acked_below` as of now, also for a retry.
    pub fn stamp(&self, number: Number) -> Option<Stamp> {
        let open = self.open.iter().find(|open| open.key == number.session)?;
        let mut acked_below = open.acked_below;
        if self.bugs.has(Bug::AcksTooMuch) {
            acked_below = number.sequence;
        }
        Some(Stamp {
            client_id: open.client_id.clone(),
            sequence: number.sequence,
            // With a fence that passed the write (a bug), the node would refuse the numbers.
            acked_below: acked_below.min(number.sequence),
        })
    }

    /// Ends a write that will never be sent again: it was answered, refused or given up.
    pub fn finish(&mut self, number: Number) {
        let found = self.open.iter().position(|open| open.key == number.session);
        let Some(at) = found else { return };
        let last = at + 1 == self.open.len();
        let Some(open) = self.open.get_mut(at) else {
            return;
        };
        let offset = number.sequence.checked_sub(open.acked_below);
        let slot = offset
            .and_then(|offset| usize::try_from(offset).ok())
            .and_then(|offset| open.finished.get_mut(offset));
        if let Some(slot) = slot {
            *slot = true;
        }
        while open.finished.front() == Some(&true) {
            open.finished.pop_front();
            open.acked_below += 1;
        }
        // The fence-forgetting bug must go on stamping the writes that it counts as finished.
        if open.finished.is_empty() && !last && !self.bugs.has(Bug::FenceForgotten) {
            self.open.remove(at);
        }
        self.check_invariants();
    }

    /// Returns true if a session should be opened now: there is none, the current one is past half its life, or a few
    /// stragglers keep its window full.
    pub fn wants_session(&self, now: Time) -> bool {
        match self.open.back() {
            Some(open) => open.expired || open.age(now) >= open.ttl / 2 || self.straggles(open),
            None => true,
        }
    }

    /// Returns true if at least half of a full window is finished and waits for older writes.
    fn straggles(&self, open: &Open) -> bool {
        open.finished.len() >= self.window
            && self.open.len() < MAX_OPEN
            && open.finished.iter().filter(|it| **it).count() >= self.window.div_ceil(2)
    }

    /// Makes a session that was asked for at `asked` the current one.
    pub fn session_opened(&mut self, asked: Time, client_id: Bytes, ttl: Duration) {
        if !self.bugs.has(Bug::FenceForgotten) {
            self.open.retain(|open| !open.finished.is_empty());
        }
        self.opened += 1;
        self.open.push_back(Open {
            key: self.opened,
            client_id,
            born: asked,
            ttl: ttl.max(MIN_TTL),
            expired: false,
            acked_below: 1,
            finished: VecDeque::new(),
        });
        self.check_invariants();
    }

    /// Stops naming new writes in the session of `number`: the cluster forgot it.
    pub fn expire(&mut self, number: Number) {
        for open in &mut self.open {
            if open.key == number.session {
                open.expired = true;
            }
        }
    }

    /// Panics if an invariant is broken, in debug builds and in the simulator.
    fn check_invariants(&self) {
        if !cfg!(any(debug_assertions, feature = "bugs")) {
            return;
        }
        let keys = self.open.iter().map(|open| open.key);
        assert!(keys.is_sorted_by(|a, b| a < b), "a session is open twice");
        for open in &self.open {
            assert!(open.acked_below >= 1, "sequences start at 1");
            assert!(open.finished.len() <= self.window, "the window is exceeded");
            assert_ne!(open.finished.front(), Some(&true), "the fence lags");
        }
    }
}

/// A [`Sequences`] that is shared with the writes that it named, in whichever stream they are now.
pub struct SequenceAllocator {
    sequences: Mutex<Sequences>,
    /// Called when a write ends, which may make room in the window.
    on_finish: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for SequenceAllocator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SequenceAllocator")
            .field("sequences", &*self.sequences())
            .finish_non_exhaustive()
    }
}

/// A write's name. Dropping it finishes the write, so a call that ends, for whatever reason, frees its place in the window.
#[derive(Debug)]
pub struct Name {
    allocator: Arc<SequenceAllocator>,
    number: Number,
}

impl SequenceAllocator {
    /// Creates an allocator without a session.
    pub fn new(window: usize, bugs: Bugs) -> Arc<Self> {
        Self::with_observer(window, bugs, || {})
    }

    /// Creates an allocator that calls `on_finish` each time a write ends.
    pub fn with_observer(
        window: usize,
        bugs: Bugs,
        on_finish: impl Fn() + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            sequences: Mutex::new(Sequences::new(window, bugs)),
            on_finish: Box::new(on_finish),
        })
    }

    /// Locks the sequences. Callers never wait for anything else under this lock.
    pub fn sequences(&self) -> MutexGuard<'_, Sequences> {
        // No method leaves the sequences half changed, so a poisoned lock is as good.
        self.sequences
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Names a new write.
    pub fn allocate(self: &Arc<Self>, now: Time) -> Result<Name, Blocked> {
        let number = self.sequences().allocate(now)?;
        Ok(Name {
            allocator: Arc::clone(self),
            number,
        })
    }
}

impl Name {
    /// Returns the name as the wire carries it, also for a retry.
    pub fn stamp(&self) -> Option<Stamp> {
        self.allocator.sequences().stamp(self.number)
    }

    /// Stops naming new writes in this session: the cluster forgot it.
    pub fn expire(&self) {
        self.allocator.sequences().expire(self.number);
    }

    /// Counts the write as finished although it will be sent again.
    pub(crate) fn forget_fence(&self) {
        self.allocator.sequences().finish(self.number);
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        self.allocator.sequences().finish(self.number);
        (self.allocator.on_finish)();
    }
}

#[cfg(test)]
mod tests;
