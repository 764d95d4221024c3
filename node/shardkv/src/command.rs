//! What clients ask of the state machine, and what it answers.

use bytes::Bytes;
use types::{ClientId, LogTime, Sequence, ShardId};

/// A write with the session that makes it exactly once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Without a session a write is applied each time it is proposed.
    pub session: Option<SessionRef>,
    /// What to do.
    pub write: Write,
}

/// Names one write of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionRef {
    /// The session.
    pub client: ClientId,
    /// The write's number in the session, from 1.
    pub sequence: Sequence,
    /// All writes below this number were answered to the client: their results may be forgotten. At most
    /// `sequence`.
    pub acked_below: Sequence,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets the value.
    Put {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
    },
    /// Adds to the end of the value; a missing key counts as empty.
    Append {
        /// The key.
        key: Bytes,
        /// What to add.
        suffix: Bytes,
    },
    /// Removes the key.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Sets the value (or with `None` removes the key) if it is what is expected (`None`: no such key).
    CompareAndSwap {
        /// The key.
        key: Bytes,
        /// What the value must be.
        expected: Option<Bytes>,
        /// What it becomes.
        new: Option<Bytes>,
    },
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// One key's value.
    Get {
        /// The key.
        key: Bytes,
    },
    /// The pairs of all shards in `[start, end)` in key order; an empty `end` is no bound.
    Scan {
        /// The first key that may be in the page.
        start: Bytes,
        /// The first key that is past the scan; empty for none.
        end: Bytes,
        /// The most pairs.
        limit: u32,
        /// The page ends after the pair that reaches this many bytes.
        max_bytes: u32,
    },
}

/// An answer of the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// `Get`: the value, if the key exists.
    Value(Option<Bytes>),
    /// `Scan`: the pairs, and whether more may follow after the last of them.
    Page {
        /// In key order.
        pairs: Vec<(Bytes, Bytes)>,
        /// Whether the page ended at a bound before the scan's end.
        more: bool,
    },
    /// A write took effect, now or when it was first applied.
    Written(Written),
    /// The request was refused and changed nothing.
    Refused(KvError),
}

/// What a write did. This is what a session remembers, so it stays small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// `Put`.
    Put,
    /// `Append`: the value's length in bytes afterwards.
    Append {
        /// Bytes.
        length: u64,
    },
    /// `Delete`: whether the key existed.
    Delete {
        /// It did.
        existed: bool,
    },
    /// `CompareAndSwap`: whether the value was what was expected.
    CompareAndSwap {
        /// It was, and was replaced.
        swapped: bool,
    },
}

/// Why the state machine refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// The key is empty or too long.
    #[error("a key has 1 to {limit} bytes, not {size}")]
    KeySize {
        /// Bytes given.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The value would be too large.
    #[error("a value has at most {limit} bytes, not {size}")]
    ValueTooLarge {
        /// Bytes that it would have.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The session was forgotten or is too old to be known: whether the write was applied before can't be
    /// told, so it was not applied now. Open a new session.
    #[error("the session expired: open a new one; this write may have been applied before")]
    SessionExpired,
    /// The session claims to be born in the future of this group's log.
    #[error(
        "the session was born {ahead_ms} ms in the future of this group's log: check the nodes' clocks"
    )]
    SessionFromFuture {
        /// How far, in milliseconds.
        ahead_ms: u64,
    },
    /// The client said before that it has this write's answer.
    #[error(
        "write {sequence} was acknowledged by the client before (all below {acked_below} were)"
    )]
    StaleSequence {
        /// The write's number.
        sequence: Sequence,
        /// The session's lowest unacknowledged number.
        acked_below: Sequence,
    },
    /// The numbers of the session make no sense (zero, or acknowledged beyond the write itself).
    #[error("bad session numbers: sequence {sequence}, acknowledged below {acked_below}")]
    BadSequence {
        /// The write's number.
        sequence: Sequence,
        /// The acknowledged bound.
        acked_below: Sequence,
    },
    /// A table of sessions or results is full.
    #[error(
        "{what} of {shard} are at their limit of {limit}: acknowledge results, reuse sessions, or retry later"
    )]
    SessionLimit {
        /// Which table.
        what: &'static str,
        /// The shard.
        shard: ShardId,
        /// Its bound.
        limit: u64,
    },
    /// The operation could not be decoded.
    #[error("malformed operation: {0}")]
    Malformed(String),
}

/// What is chosen when a group is created, kept in its state, and never changed: replicas that disagreed on
/// it would diverge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// The cluster's number of shards.
    pub shards: u32,
    /// A session that was silent for this long is forgotten, in milliseconds of log time.
    pub session_ttl_ms: u64,
    /// The most sessions that a shard remembers.
    pub max_sessions_per_shard: u32,
    /// The most unacknowledged results that a session keeps in a shard.
    pub max_results_per_session: u32,
}

impl Default for Genesis {
    fn default() -> Self {
        Self {
            shards: 64,
            session_ttl_ms: 600_000,
            max_sessions_per_shard: 65_536,
            max_results_per_session: 1_024,
        }
    }
}

/// The longest key, in bytes. Part of the format: it never changes.
pub const MAX_KEY_BYTES: usize = 4_096;

/// How far in the future a session's birth may lie, in milliseconds, before it is refused.
pub const MAX_BIRTH_AHEAD_MS: u64 = 60_000;

impl Write {
    /// The key that it changes.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. }
            | Self::Append { key, .. }
            | Self::Delete { key }
            | Self::CompareAndSwap { key, .. } => key,
        }
    }
}
