//! Clients with unreliable networks, and what the store must mean to them.

// The numbers here are small, and helpers of tests may panic as tests do.
#![allow(clippy::cast_possible_truncation, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use shardkv::{Command, KvError, Response, SessionRef, Write, Written};
use types::{ClientId, LogTime, Sequence};

use super::{GENESIS, Random, Step};

/// The largest value that leaders allow.
pub const MAX_VALUE: u32 = 24;

/// The specification of the store, written as plainly as possible.
pub struct Model {
    pub data: BTreeMap<Bytes, Bytes>,
    /// No session of a birth that is closer is refused as expired, unless an earlier one has a greater birth.
    ttl_ms: Option<u64>,
    /// Each write of a session that was carried out, and its answer.
    answered: BTreeMap<(ClientId, Sequence), Response>,
    /// Those that were refused for good.
    refused: BTreeSet<(ClientId, Sequence)>,
}

impl Model {
    /// An empty store, in which no session expires sooner than after `ttl_ms`. `None`: births and times are those of different groups.
    pub fn new(ttl_ms: Option<u64>) -> Self {
        Self {
            data: BTreeMap::new(),
            ttl_ms,
            answered: BTreeMap::new(),
            refused: BTreeSet::new(),
        }
    }

    pub fn apply(&mut self, write: &Write) -> Response {
        let key = write.key().clone();
        let before = self.data.get(&key).cloned();
        let (after, written) = match write {
            Write::Put { value, .. } => (Some(value.clone()), Written::Put),
            Write::Append { suffix, .. } => {
                let mut value = before.clone().unwrap_or_default().to_vec();
                value.extend_from_slice(suffix);
                let length = value.len() as u64;
                (Some(value.into()), Written::Append { length })
            }
            Write::Delete { .. } => {
                let existed = before.is_some();
                (None, Written::Delete { existed })
            }
            Write::CompareAndSwap { expected, new, .. } => {
                let swapped = before == *expected;
                let after = if swapped { new.clone() } else { before };
                let offered = new.as_ref().map_or(0, Bytes::len) as u64;
                if offered > u64::from(MAX_VALUE) {
                    return too_large(offered);
                }
                (after, Written::CompareAndSwap { swapped })
            }
        };
        match after {
            Some(value) if value.len() > MAX_VALUE as usize => {
                return too_large(value.len() as u64);
            }
            Some(value) => self.data.insert(key, value),
            None => self.data.remove(&key),
        };
        Response::Written(written)
    }

    /// Checks an answer, and takes the write in if it was carried out now. No clock was ahead of `time`.
    pub fn check(&mut self, command: &Command, time: u64, response: &Response) -> &'static str {
        let Some(session) = command.session else {
            assert_eq!(self.apply(&command.write), *response, "{command:?}");
            return "executed";
        };
        let name = (session.client, session.sequence);
        if let Response::Refused(KvError::SessionExpired) = response
            && let Some(ttl_ms) = self.ttl_ms
        {
            let birth = session.client.birth;
            let age = LogTime(time).since(birth);
            // Some are born ahead. What they leave behind refuses those with lesser births.
            let last = self.answered.last_key_value();
            let is_below = last.is_some_and(|((client, _), _)| client.birth >= birth);
            assert!(age > ttl_ms || is_below, "{command:?} at {time}");
        }
        if let Some(first) = self.answered.get(&name) {
            if first == response {
                return "replayed";
            }
            // Forgotten, because it was acknowledged or is too old; never anything else.
            let Response::Refused(error) = response else {
                panic!("{command:?}: {response:?} after {first:?}");
            };
            return match error {
                KvError::SessionExpired => "expired",
                KvError::StaleSequence { .. } => "stale",
                other => panic!("{command:?}: {other:?} after {first:?}"),
            };
        }
        if let Response::Refused(KvError::SessionExpired | KvError::StaleSequence { .. }) = response
        {
            self.refused.insert(name);
        }
        match response {
            Response::Refused(KvError::SessionExpired) => "expired",
            Response::Refused(KvError::StaleSequence { .. }) => "stale",
            Response::Refused(KvError::SessionLimit { .. }) => "limit",
            Response::Refused(KvError::SessionFromFuture { .. }) => "future",
            _ => {
                assert!(!self.refused.contains(&name), "{command:?}");
                assert_eq!(self.apply(&command.write), *response, "{command:?}");
                self.answered.insert(name, response.clone());
                match response {
                    Response::Refused(_) => "too large",
                    Response::Written(Written::CompareAndSwap { swapped: true }) => "swapped",
                    _ => "executed",
                }
            }
        }
    }

    /// A page computed from the whole.
    pub fn page(&self, start: &Bytes, end: &Bytes, limit: u32, max_bytes: u32) -> Response {
        let mut pairs = Vec::new();
        let mut bytes = 0;
        let mut range = self
            .data
            .range(start.clone()..)
            .take_while(|(key, _)| end.is_empty() || *key < end)
            .peekable();
        while pairs.len() < limit.max(1) as usize
            && bytes < max_bytes.max(1) as usize
            && let Some((key, value)) = range.next()
        {
            bytes += key.len() + value.len();
            pairs.push((key.clone(), value.clone()));
        }
        let more = range.peek().is_some();
        Response::Page { pairs, more }
    }
}

fn too_large(size: u64) -> Response {
    let limit = MAX_VALUE.into();
    Response::Refused(KvError::ValueTooLarge { size, limit })
}

/// Draws commands as clients with unreliable networks would send them.
pub struct Source {
    pub random: Random,
    pub time: u64,
    index: u64,
    clients: Vec<(ClientId, u64)>,
    sent: Vec<Command>,
}

impl Source {
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            time: 1_000_000,
            index: 1,
            clients: Vec::new(),
            sent: Vec::new(),
        }
    }

    pub fn key(&mut self) -> Bytes {
        let n = self.random.below(40);
        Bytes::from(match n % 4 {
            0 => format!("{{tag}}{n}"),
            1 => "x".repeat(n as usize + 1),
            _ => format!("k{n}"),
        })
    }

    pub fn value(&mut self) -> Bytes {
        // Short ones, so that comparisons succeed now and then, and some that are too large.
        let length = match self.random.below(24) {
            0..=11 => self.random.below(2),
            12..=22 => self.random.below(9),
            _ => 20 + self.random.below(10),
        };
        (0..length)
            .map(|_| b'a' + self.random.below(2) as u8)
            .collect()
    }

    fn optional(&mut self) -> Option<Bytes> {
        (!self.random.one_in(3)).then(|| self.value())
    }

    fn write(&mut self) -> Write {
        let key = self.key();
        match self.random.below(8) {
            0..=2 => Write::Put {
                key,
                value: self.value(),
            },
            3..=5 => Write::Append {
                key,
                suffix: self.value(),
            },
            6 => Write::Delete { key },
            _ => Write::CompareAndSwap {
                key,
                expected: self.optional(),
                new: self.optional(),
            },
        }
    }

    pub fn command(&mut self) -> Command {
        let count = self.sent.len() as u64;
        if count > 0 && self.random.one_in(4) {
            let back = if self.random.one_in(4) {
                count
            } else {
                count.min(12)
            };
            let chosen = count - 1 - self.random.below(back);
            return self.sent[chosen as usize].clone();
        }
        let session = (!self.random.one_in(6)).then(|| self.session());
        let write = self.write();
        let command = Command { session, write };
        if session.is_some() {
            self.sent.push(command.clone());
        }
        command
    }

    fn session(&mut self) -> SessionRef {
        if self.clients.is_empty() || self.random.one_in(60) {
            let skew = if self.random.one_in(10) { 70_000 } else { 500 };
            let birth = LogTime(self.time + self.random.below(skew));
            let nonce = self.random.next();
            self.clients.push((ClientId { birth, nonce }, 0));
        }
        let recent = (self.clients.len() as u64).min(5);
        let chosen = self.clients.len() as u64 - 1 - self.random.below(recent);
        let (client, last) = &mut self.clients[chosen as usize];
        *last += 1;
        SessionRef {
            client: *client,
            sequence: Sequence(*last),
            acked_below: Sequence(last.saturating_sub(8)),
        }
    }

    pub fn step(&mut self) -> (Command, Step) {
        self.time += match self.random.below(400) {
            0 => GENESIS.session_ttl_ms + 1,
            1..=20 => self.random.below(3_000),
            _ => self.random.below(20),
        };
        // Several operations may stand in one entry.
        self.index += u64::from(!self.random.one_in(3));
        let command = self.command();
        let step = Step {
            index: self.index,
            time: self.time,
            max_value_bytes: MAX_VALUE,
            operation: command.encode(),
        };
        (command, step)
    }
}
