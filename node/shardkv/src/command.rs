//! Commands, queries and responses of the state machine.

use bytes::Bytes;
use raft::Index;
use replica::session::{SessionRef, SessionRefusal};
use types::{ConfigNum, Sequence, ShardId, ShardSet};

use crate::{Chunk, CopyRequest, Cursor, JournalError, Part};

/// A write with the session that makes it exactly once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Without a session a write is applied each time it is proposed.
    pub session: Option<SessionRef>,
    /// The change.
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
        /// The bytes to add.
        suffix: Bytes,
    },
    /// Removes the key.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Replaces the value by `new` if it equals `expected`. `None` stands for an absent key in both.
    CompareAndSwap {
        /// The key.
        key: Bytes,
        /// The expected value.
        expected: Option<Bytes>,
        /// The new value.
        new: Option<Bytes>,
    },
}

/// A read of the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// One key's value.
    Get {
        /// The key.
        key: Bytes,
    },
    /// A page of a scan: the pairs of shards in key order.
    /// [`crate::read_page`] answers it on other threads.
    Page(PageRequest),
    /// Reads nothing. Its answer says that this replica led after the query arrived, and that its state has all that was
    /// committed then. So a read of the state that begins after the answer, on any thread, is linearizable.
    Confirm,
    /// The next chunk of a shard that is fenced here by configuration `config`. Correct on any replica
    /// ([`replica::Request::ReadLocal`]), because a fenced shard doesn't change.
    Pull {
        /// The shard.
        shard: ShardId,
        /// The configuration that moves it.
        config: ConfigNum,
        /// The cursor up to which the shard has arrived.
        after: Cursor,
        /// The approximate size in bytes, at most [`MAX_SCAN_BYTES`]. The chunk ends with the pair or session record that
        /// reaches this size, so it exceeds it by at most one of these.
        max_bytes: u32,
    },
    /// The next part of a copy of a shard that has a journal here. Correct on any replica ([`replica::Request::ReadLocal`]),
    /// because each checks that it has applied enough.
    Copy(CopyRequest),
    /// All pairs in `[start, end)` of one shard, which must be served here, as of one moment. The view holds stored keys: the
    /// server converts each by [`crate::user_key`].
    Export {
        /// The shard.
        shard: ShardId,
        /// As in [`PageRequest`].
        start: Bytes,
        /// As in [`PageRequest`].
        end: Bytes,
    },
    /// The exact number of pairs and bytes of a shard after a key, page by page. Any shard that isn't absent and isn't copied
    /// here is counted.
    Count {
        /// The shard.
        shard: ShardId,
        /// The last key of the previous page; empty at the start.
        after: Bytes,
    },
    /// An estimate of the bytes of keys and values that each of these shards has on disk and in memory; cheap.
    Sizes {
        /// The shard.
        shards: ShardSet,
    },
}

/// The request of one page of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// The first key that may be in the page.
    pub start: Bytes,
    /// The first key that is past the scan; empty for none.
    pub end: Bytes,
    /// The most pairs; at least one, at most [`MAX_SCAN_PAIRS`].
    pub limit: u32,
    /// The page ends after the pair that reaches this many bytes of keys and values; at most [`MAX_SCAN_BYTES`].
    pub max_bytes: u32,
    /// True to leave values out: they are empty, and don't count.
    pub keys_only: bool,
    /// The shards to read, all of which must be served here; `None` reads all shards that are served here.
    pub shards: Option<ShardSet>,
}

/// An answer of the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// `Get`: the value, if the key exists.
    Value(Option<Bytes>),
    /// `Page`.
    Page {
        /// In key order. Empty only if the range is.
        pairs: Vec<(Bytes, Bytes)>,
        /// True if the range holds more pairs after the last of these. Exact. The next page starts at the last key
        /// with a zero byte appended.
        more: bool,
    },
    /// `Confirm`.
    Confirmed,
    /// `Pull`.
    Chunk(Box<Chunk>),
    /// `Copy`.
    Part(Box<Part>),
    /// `Export`: a view of the pairs, to be read outside the replica's thread.
    View(replica::View),
    /// `Count`: the counts of one page.
    Count {
        /// The number of pairs.
        keys: u64,
        /// The bytes of keys and values.
        bytes: u64,
        /// The last key of this page, to continue after; `None` after the last page.
        next: Option<Bytes>,
    },
    /// `Sizes`: bytes, in the order of the shards.
    Sizes(Vec<u64>),
    /// A [`crate::Step`] was applied, or changed nothing because it was applied before or isn't due. [`crate::Ownership`]
    /// shows which.
    Stepped,
    /// [`crate::JournalStep::Begin`]: the journal has begun, now or before.
    Begun {
        /// The journal's id.
        journal: Index,
    },
    /// A write took effect, now or when it was first applied.
    Written(Written),
    /// An operation of a keyspace was applied, or the keyspace refused it.
    Keyspace(Box<keyspace::Outcome>),
    /// The request was refused and changed nothing.
    Refused(KvError),
}

/// The effect of a write. A session remembers it, so it stays small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// `Put`.
    Put,
    /// `Append`: the value's length in bytes afterwards.
    Append {
        /// Bytes.
        length: u64,
    },
    /// `Delete`.
    Delete {
        /// True if the key existed.
        existed: bool,
    },
    /// `CompareAndSwap`.
    CompareAndSwap {
        /// True if the value was the expected one, and was replaced.
        swapped: bool,
    },
}

/// A refusal by the state machine.
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
        /// Bytes that the value would have.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The session was forgotten or is too old to be known. An earlier copy of the write may have been applied, so
    /// this one was not. Open a new session.
    #[error("the session expired: open a new one; this write may have been applied before")]
    SessionExpired,
    /// The session claims to be born in the future of this group's log.
    #[error(
        "the session was born {ahead_ms} ms in the future of this group's log: check the nodes' clocks"
    )]
    SessionFromFuture {
        /// The difference, in milliseconds.
        ahead_ms: u64,
    },
    /// The client acknowledged this write's answer before.
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
        /// The full table.
        what: &'static str,
        /// The shard.
        shard: ShardId,
        /// Its bound.
        limit: u64,
    },
    /// The shard isn't this group's, any more or yet.
    #[error("{shard} is not this group's in configuration {config}: route by that configuration")]
    WrongGroup {
        /// The shard.
        shard: ShardId,
        /// The configuration that the group has accepted.
        config: ConfigNum,
    },
    /// The shard is being pulled by this group; or, for a `Pull` or a [`crate::Step::Delete`], the fence that the request names
    /// is not applied here yet.
    #[error("{shard} is being moved: retry")]
    ShardNotReady {
        /// The shard.
        shard: ShardId,
    },
    /// A `Pull` of a shard that was handed over and deleted here before.
    #[error("{shard} was deleted here after configuration {config} had moved it")]
    ShardGone {
        /// The shard.
        shard: ShardId,
        /// The configuration that the request names.
        config: ConfigNum,
    },
    /// A step or a request of a copy can't be carried out.
    #[error("{shard} can't be copied so: {error}")]
    Journal {
        /// The shard.
        shard: ShardId,
        /// The reason.
        error: JournalError,
    },
    /// There is no such shard.
    #[error("there is no {shard}: the cluster has {shards} shards, from 0 on")]
    NoShard {
        /// The shard.
        shard: ShardId,
        /// The number of shards.
        shards: u32,
    },
    /// A member of the group runs a version that doesn't know this operation.
    #[error(
        "the group is at feature level {level}, and this needs {needed}: upgrade all its nodes to one version, and retry"
    )]
    FeatureLevel {
        /// The group's level.
        level: u32,
        /// The level that the operation needs.
        needed: u32,
    },
    /// The operation can't be decoded, or is a step that contradicts this group's ownership.
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
    /// Returns the key that the write changes.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. }
            | Self::Append { key, .. }
            | Self::Delete { key }
            | Self::CompareAndSwap { key, .. } => key,
        }
    }

    /// Returns true if the write can only free space. A nearly full disk still accepts such writes.
    pub fn frees_space(&self) -> bool {
        matches!(
            self,
            Self::Delete { .. } | Self::CompareAndSwap { new: None, .. }
        )
    }
}

impl KvError {
    /// Returns the error of a write that the shard's session table refuses.
    pub(crate) fn of_session(refusal: SessionRefusal, shard: ShardId) -> Self {
        let full = |what, limit: u32| Self::SessionLimit {
            what,
            shard,
            limit: limit.into(),
        };
        match refusal {
            SessionRefusal::Expired => Self::SessionExpired,
            SessionRefusal::FromFuture { ahead_ms } => Self::SessionFromFuture { ahead_ms },
            SessionRefusal::Stale {
                sequence,
                acked_below,
            } => Self::StaleSequence {
                sequence,
                acked_below,
            },
            SessionRefusal::BadSequence {
                sequence,
                acked_below,
            } => Self::BadSequence {
                sequence,
                acked_below,
            },
            SessionRefusal::TooManySessions { limit } => full("the sessions", limit),
            SessionRefusal::TooManyResults { limit } => {
                full("the unacknowledged results of a session", limit)
            }
        }
    }

    /// Returns true if every other attempt of the same write, earlier or later, is refused or answered the same. If
    /// false, the refusal concerns one attempt only: while another copy may be in flight, the outcome of the write
    /// isn't known, and the client must repeat it with the same client id and sequence.
    ///
    /// After a final refusal the write will not take effect any more. Only after
    /// [`KvError::SessionExpired`] and [`KvError::StaleSequence`] it may have taken effect before. Writes
    /// without a session have no identity, so the result is meaningless for them.
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
            | Self::Journal { .. }
            | Self::NoShard { .. }
            | Self::FeatureLevel { .. } => false,
        }
    }
}
