//! The numbers that make writes exactly once.
//!
//! A write is named by a session and a sequence, and every retry of it carries the same name, whatever
//! happens. This module gives names, remembers which are unanswered, and decides when a session is too old to
//! name new writes.
//!
//! # Why sessions are replaced long before they expire
//!
//! A shard that doesn't know a session decides by the session's *birth*: born within the time to live, it is
//! new; born before, it may have been forgotten, and its writes are refused. So a session that is only ever
//! *used* often enough is still refused by a shard that it reaches for the first time late in its life. New
//! writes therefore move to a fresh session after half the time to live, and a write that was named before
//! keeps its name: given another one, a retry could be applied twice.
//!
//! # Why each lane has sessions of its own, and more than one
//!
//! `acked_below` can't pass the oldest unanswered write of a session, so one write that waits stops all that are named
//! after it once the window is full. Therefore each group has its own sessions (in each lane): a group that stalls holds up
//! no other. A write that goes to another group keeps its name, because its first attempt may have taken effect; only
//! if no attempt can have, it gives its name back and takes a fresh one where it goes. So what keeps a session's window
//! shut is at most a few writes in doubt whose shard is on its way, and when they do, another session is opened beside.
//!
//! # Invariants
//!
//! - A name is given once. Numbers of a session start at 1 and have no gaps.
//! - `acked_below` never passes an unfinished write, and never runs backwards.
//! - From the oldest unfinished write of a session to its newest are at most `window` numbers, which
//!   bounds the results that the cluster keeps for it.
//! - A session is kept until it is replaced and has no unfinished write.
//! - Stragglers make at most [`MAX_OPEN`] sessions.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

/// With this many sessions open, a full window is waited for.
const MAX_OPEN: usize = 4;

/// The shortest time to live that is believed.
const MIN_TTL: Duration = Duration::from_millis(100);

/// A write's name: a session and a number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Number {
    session: u64,
    sequence: u64,
}

/// Why no name can be given now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// There is no session, or it is too old: open one.
    NoSession,
    /// Too many writes since the oldest unanswered one: wait for it.
    WindowFull,
}

/// The sessions of one connection: the current one, and replaced ones that still have unfinished writes.
#[derive(Debug)]
pub(crate) struct Sessions {
    window: usize,
    /// In order of opening; the last is current unless it expired.
    open: VecDeque<Open>,
    opened: u64,
}

#[derive(Debug)]
struct Open {
    /// Our own name for it, because a copy of the client id is larger.
    key: u64,
    client_id: Bytes,
    /// When it was asked for: it can't be older than that.
    born: Instant,
    ttl: Duration,
    expired: bool,
    /// Every number below is finished.
    acked_below: u64,
    /// Whether the numbers from `acked_below` on are finished.
    finished: VecDeque<bool>,
}

impl Open {
    fn next(&self) -> u64 {
        self.acked_below + self.finished.len() as u64
    }
}

impl Sessions {
    /// No session yet; at most `window` numbers from the oldest unfinished write to the newest.
    pub(crate) fn new(window: usize) -> Self {
        Self {
            window,
            open: VecDeque::new(),
            opened: 0,
        }
    }

    /// Names a new write.
    pub(crate) fn begin(&mut self, now: Instant) -> Result<Number, Blocked> {
        let window = self.window;
        let current = self.open.back_mut().filter(|open| {
            // Half the life for opening another, a quarter for when that takes long.
            !open.expired && now - open.born < open.ttl * 3 / 4
        });
        let Some(current) = current else {
            return Err(Blocked::NoSession);
        };
        if current.finished.len() >= window {
            return Err(Blocked::WindowFull);
        }
        let number = Number {
            session: current.key,
            sequence: current.next(),
        };
        current.finished.push_back(false);
        Ok(number)
    }

    /// What goes on the wire for a named write: `acked_below` as of now, also for a retry.
    pub(crate) fn stamp(&self, number: Number) -> Option<api::v1::Session> {
        let open = self.open.iter().find(|open| open.key == number.session)?;
        debug_assert!(
            open.acked_below <= number.sequence,
            "stamped a finished write"
        );
        Some(api::v1::Session {
            client_id: open.client_id.clone(),
            sequence: number.sequence,
            acked_below: open.acked_below,
        })
    }

    /// The write will never be sent again: it was answered, refused or given up.
    pub(crate) fn finish(&mut self, number: Number) {
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
        if open.finished.is_empty() && !last {
            self.open.remove(at);
        }
    }

    /// Whether a session should be opened now: there is none, the current one is past half its life, or a few stragglers
    /// keep its window shut.
    pub(crate) fn wants_another(&self, now: Instant) -> bool {
        match self.open.back() {
            Some(open) => open.expired || now - open.born >= open.ttl / 2 || self.straggles(open),
            None => true,
        }
    }

    /// Whether at least half of a full window is finished and waits for older writes.
    fn straggles(&self, open: &Open) -> bool {
        open.finished.len() >= self.window
            && self.open.len() < MAX_OPEN
            && open.finished.iter().filter(|it| **it).count() >= self.window.div_ceil(2)
    }

    /// A session that was asked for at `asked` becomes the current one.
    pub(crate) fn opened(&mut self, asked: Instant, client_id: Bytes, ttl: Duration) {
        self.open.retain(|open| !open.finished.is_empty());
        self.opened += 1;
        self.open.push_back(Open {
            key: self.opened,
            client_id,
            born: asked,
            // A node that says 0 must not make us open sessions without end.
            ttl: ttl.max(MIN_TTL),
            expired: false,
            acked_below: 1,
            finished: VecDeque::new(),
        });
    }

    /// The cluster forgot the session of this write: it names no new ones.
    pub(crate) fn expire(&mut self, number: Number) {
        for open in &mut self.open {
            if open.key == number.session {
                open.expired = true;
            }
        }
    }
}

/// The sessions of one lane, shared with the writes that they named, wherever those go.
#[derive(Debug)]
pub(crate) struct Naming {
    sessions: Mutex<Sessions>,
    /// Told when a write ends, which may make room in the window.
    pub(crate) finished: Notify,
    /// Held while a session is opened, by those who don't see to that by themselves.
    pub(crate) opening: tokio::sync::Mutex<()>,
}

/// A write's name. It is finished when it is dropped, with the call, however that ends.
#[derive(Debug)]
pub(crate) struct Name {
    naming: Arc<Naming>,
    number: Number,
}

impl Naming {
    pub(crate) fn new(window: usize) -> Arc<Self> {
        Arc::new(Self {
            sessions: Mutex::new(Sessions::new(window)),
            finished: Notify::new(),
            opening: tokio::sync::Mutex::default(),
        })
    }

    pub(crate) fn sessions(&self) -> MutexGuard<'_, Sessions> {
        // Nothing is left half done under this lock.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names a new write.
    pub(crate) fn begin(self: &Arc<Self>, now: Instant) -> Result<Name, Blocked> {
        let number = self.sessions().begin(now)?;
        Ok(Name {
            naming: Arc::clone(self),
            number,
        })
    }
}

impl Name {
    /// What goes on the wire, also for a retry.
    pub(crate) fn stamp(&self) -> Option<api::v1::Session> {
        self.naming.sessions().stamp(self.number)
    }

    /// The cluster forgot the session: it names no new writes.
    pub(crate) fn expire(&self) {
        self.naming.sessions().expire(self.number);
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        self.naming.sessions().finish(self.number);
        self.naming.finished.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_mins(1);

    fn opened(window: usize, now: Instant) -> Sessions {
        let mut sessions = Sessions::new(window);
        assert_eq!(sessions.begin(now), Err(Blocked::NoSession));
        assert!(sessions.wants_another(now));
        sessions.opened(now, Bytes::from_static(b"first"), TTL);
        assert!(!sessions.wants_another(now));
        sessions
    }

    fn wire(sessions: &Sessions, number: Number) -> (Bytes, u64, u64) {
        let stamp = sessions.stamp(number).expect("a known session");
        (stamp.client_id, stamp.sequence, stamp.acked_below)
    }

    #[test]
    fn numbers_start_at_one_and_acknowledge_the_lowest_unfinished() {
        let now = Instant::now();
        let mut sessions = opened(8, now);
        let first = Bytes::from_static(b"first");
        let numbers: Vec<Number> = (0..4).map(|_| sessions.begin(now).unwrap()).collect();
        assert_eq!(wire(&sessions, numbers[0]), (first.clone(), 1, 1));
        assert_eq!(wire(&sessions, numbers[3]), (first.clone(), 4, 1));

        sessions.finish(numbers[1]);
        sessions.finish(numbers[2]);
        assert_eq!(
            wire(&sessions, numbers[3]),
            (first.clone(), 4, 1),
            "1 is open"
        );
        sessions.finish(numbers[0]);
        assert_eq!(wire(&sessions, numbers[3]), (first.clone(), 4, 4));
        sessions.finish(numbers[0]);
        assert_eq!(wire(&sessions, numbers[3]), (first, 4, 4), "once is enough");
    }

    #[test]
    fn the_window_counts_from_the_oldest_unfinished_write() {
        let now = Instant::now();
        let mut sessions = opened(3, now);
        let oldest = sessions.begin(now).unwrap();
        for _ in 0..2 {
            let newer = sessions.begin(now).unwrap();
            sessions.finish(newer);
        }
        assert_eq!(
            sessions.begin(now),
            Err(Blocked::WindowFull),
            "one in flight, but three results kept"
        );
        sessions.finish(oldest);
        assert!(sessions.begin(now).is_ok());
    }

    #[test]
    fn a_session_is_renewed_at_half_its_life_and_retries_keep_the_old_one() {
        let start = Instant::now();
        let mut sessions = opened(8, start);
        let old = sessions.begin(start).unwrap();
        let half = start + TTL / 2;
        assert!(sessions.wants_another(half));
        assert!(
            sessions.begin(half).is_ok(),
            "while another is being opened"
        );
        assert_eq!(sessions.begin(start + TTL * 3 / 4), Err(Blocked::NoSession));

        sessions.opened(half, Bytes::from_static(b"second"), TTL);
        let new = sessions.begin(half).unwrap();
        assert_eq!(wire(&sessions, new), (Bytes::from_static(b"second"), 1, 1));
        assert_eq!(wire(&sessions, old), (Bytes::from_static(b"first"), 1, 1));
        assert_eq!(sessions.open.len(), 2);
        let other = Number { sequence: 2, ..old };
        sessions.finish(other);
        sessions.finish(old);
        assert_eq!(
            sessions.open.len(),
            1,
            "forgotten when nothing is unfinished"
        );
        assert_eq!(sessions.stamp(old), None);
    }

    #[test]
    fn an_expired_session_names_nothing_new() {
        let now = Instant::now();
        let mut sessions = opened(8, now);
        let refused = sessions.begin(now).unwrap();
        sessions.expire(refused);
        assert_eq!(sessions.begin(now), Err(Blocked::NoSession));
        assert!(sessions.wants_another(now));
        sessions.finish(refused);
        sessions.opened(now, Bytes::from_static(b"second"), TTL);
        let again = sessions.begin(now).unwrap();
        assert_eq!(wire(&sessions, again).1, 1);
        sessions.expire(refused);
        assert!(sessions.begin(now).is_ok(), "the news was about the first");
    }

    #[test]
    fn stragglers_get_a_session_of_their_own_and_a_slow_node_does_not() {
        let now = Instant::now();
        let mut sessions = opened(4, now);
        for (round, name) in [&b"2"[..], b"3", b"4"].into_iter().enumerate() {
            let numbers: Vec<Number> = (0..4).map(|_| sessions.begin(now).unwrap()).collect();
            assert!(!sessions.wants_another(now), "all of them are slow");
            sessions.finish(numbers[1]);
            sessions.finish(numbers[2]);
            assert_eq!(sessions.begin(now), Err(Blocked::WindowFull));
            assert!(sessions.wants_another(now), "one straggles");
            sessions.opened(now, Bytes::from_static(name), TTL);
            assert_eq!(sessions.open.len(), round + 2);
        }
        let numbers: Vec<Number> = (0..4).map(|_| sessions.begin(now).unwrap()).collect();
        sessions.finish(numbers[2]);
        sessions.finish(numbers[3]);
        assert!(!sessions.wants_another(now), "enough is enough");
    }

    #[test]
    fn a_name_ends_with_its_owner() {
        let now = Instant::now();
        let naming = Naming::new(1);
        naming
            .sessions()
            .opened(now, Bytes::from_static(b"first"), TTL);
        let name = naming.begin(now).unwrap();
        assert_eq!(name.stamp().unwrap().sequence, 1);
        assert_eq!(naming.begin(now).unwrap_err(), Blocked::WindowFull);
        drop(name);
        assert_eq!(naming.begin(now).unwrap().stamp().unwrap().sequence, 2);
    }
}
