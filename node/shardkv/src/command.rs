//! What clients ask of the state machine, and what it answers.

use bytes::Bytes;
use replica::session::SessionRef;
use types::{ConfigNum, Sequence, ShardId, ShardSet};

use crate::{Chunk, Cursor};

/// A write with the session that makes it exactly once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Without a session a write is applied each time it is proposed.
    pub session: Option<SessionRef>,
    /// What to do.
    pub write: Write,
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
        /// The most pairs; at least one, at most [`MAX_SCAN_PAIRS`].
        limit: u32,
        /// The page ends after the pair that reaches this many bytes of keys and values; at most
        /// [`MAX_SCAN_BYTES`].
        max_bytes: u32,
        /// Only these shards, all of which must be served here; `None`: all shards that are.
        shards: Option<ShardSet>,
    },
    /// The next part of a shard that is fenced here by configuration `config`. Right on any replica
    /// ([`replica::Request::ReadLocal`]): a fenced shard doesn't change any more.
    Pull {
        /// Which.
        shard: ShardId,
        /// The configuration that moves it.
        config: ConfigNum,
        /// What has arrived.
        after: Cursor,
        /// About how many bytes to send, at most [`MAX_SCAN_BYTES`]. The part ends with the pair or the session's record
        /// that reaches this, so it is larger by at most one of these.
        max_bytes: u32,
    },
    /// All pairs of one shard in `[start, end)`, which must be served here, as of one moment. The view has them as they are
    /// stored: whoever serves it takes each key through [`crate::user_key`].
    Export {
        /// Which.
        shard: ShardId,
        /// As in `Scan`.
        start: Bytes,
        /// As in `Scan`.
        end: Bytes,
    },
    /// How many pairs and bytes a shard has after a key: exact, page by page. Any shard that isn't absent.
    Count {
        /// Which.
        shard: ShardId,
        /// Where the last page ended; empty at the start.
        after: Bytes,
    },
    /// About how many bytes of keys and values each of these shards has on disk and in memory; cheap.
    Sizes {
        /// Which.
        shards: ShardSet,
    },
}

/// An answer of the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// `Get`: the value, if the key exists.
    Value(Option<Bytes>),
    /// `Scan`: the pairs, and whether more follow.
    Page {
        /// In key order.
        pairs: Vec<(Bytes, Bytes)>,
        /// Whether the range holds more pairs after the last of these. Exact: go on at the last key with a
        /// zero byte added.
        more: bool,
    },
    /// `Pull`.
    Chunk(Box<Chunk>),
    /// `Export`: the pairs, to be read off the replica's thread.
    View(replica::View),
    /// `Count`: this page's.
    Count {
        /// Pairs.
        keys: u64,
        /// Of keys and values.
        bytes: u64,
        /// Where to go on; `None` after the last page.
        next: Option<Bytes>,
    },
    /// `Sizes`: bytes, in the order of the shards.
    Sizes(Vec<u64>),
    /// A [`crate::Step`] was applied, or changed nothing because it was before or isn't due: [`crate::Ownership`] tells.
    Stepped,
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
    /// The value would be too large. The session remembers this, as it remembers what a write did.
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
    /// The shard isn't this group's (any more, or yet).
    #[error("{shard} is not this group's in configuration {config}: route by that configuration")]
    WrongGroup {
        /// Which.
        shard: ShardId,
        /// The configuration that the group has accepted.
        config: ConfigNum,
    },
    /// The shard is on its way to this group; or, for a `Pull` or a [`crate::Step::Delete`], the fence that it asks about is
    /// not applied here yet.
    #[error("{shard} is being moved: retry")]
    ShardNotReady {
        /// Which.
        shard: ShardId,
    },
    /// A `Pull` of a shard that was handed over and deleted here already.
    #[error("{shard} was deleted here after configuration {config} had moved it")]
    ShardGone {
        /// Which.
        shard: ShardId,
        /// The configuration that was asked about.
        config: ConfigNum,
    },
    /// There is no such shard.
    #[error("there is no {shard}: the cluster has {shards} shards, from 0 on")]
    NoShard {
        /// Which.
        shard: ShardId,
        /// How many there are.
        shards: u32,
    },
    /// The operation could not be decoded, or is a step that makes no sense in this group.
    #[error("malformed operation: {0}")]
    Malformed(String),
}

/// The longest key, in bytes. Part of the format: it never changes.
pub const MAX_KEY_BYTES: usize = 4_096;

/// The most pairs of a scan's page; a greater limit counts as this one.
pub const MAX_SCAN_PAIRS: u32 = 4_096;

/// A scan's page ends at this many bytes at the latest; a greater bound counts as this one.
pub const MAX_SCAN_BYTES: u32 = 4 << 20;

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

    /// Whether it can only free space, so that a nearly full disk takes it.
    pub fn frees_space(&self) -> bool {
        matches!(
            self,
            Self::Delete { .. } | Self::CompareAndSwap { new: None, .. }
        )
    }
}

impl KvError {
    /// Whether every other attempt of the same write, earlier or later, is refused or answered the same. If
    /// not, the refusal speaks of one attempt: while another copy may be on its way the outcome of the write
    /// isn't known, and it is to be repeated with the same client id and sequence.
    ///
    /// After a final refusal the write will not take effect any more; only after
    /// [`KvError::SessionExpired`] and [`KvError::StaleSequence`] it may have taken effect before. Writes
    /// without a session have no identity, so for them this says nothing.
    pub fn is_final(&self) -> bool {
        match self {
            Self::KeySize { .. }
            | Self::ValueTooLarge { .. }
            | Self::SessionExpired
            | Self::StaleSequence { .. }
            | Self::BadSequence { .. }
            | Self::Malformed(_) => true,
            Self::SessionFromFuture { .. }
            | Self::SessionLimit { .. }
            | Self::WrongGroup { .. }
            | Self::ShardNotReady { .. }
            | Self::ShardGone { .. }
            | Self::NoShard { .. } => false,
        }
    }
}
