//! Parts of a copy, the requests for them, and the reasons for refusing one: what travels between the destination and the source. The module
//! [`crate::journal`] has the contract.

mod codec;

use bytes::Bytes;
use raft::Index;
use types::{ClientId, ConfigNum, ShardId};

pub(crate) use codec::{decode_copy_cursor, encode_copy_cursor};

use crate::journal::Name;
use crate::{Cursor, SessionClock, Target};

/// Names a copy, and the journal that it follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CopyId {
    /// The configuration that made the destination the shard's target.
    pub since: ConfigNum,
    /// The id of the journal at the source.
    pub journal: Index,
}

/// The reason for refusing a step or a request of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// The destination follows another target than the source. It tries again with the latest configuration.
    #[error("the copy is for another target than {accepted:?}, which this group has accepted")]
    OtherTarget {
        /// The target here, if it isn't this group itself.
        accepted: Option<Target>,
    },
    /// The group has as many journals as it may. Another attempt may succeed.
    #[error("{limit} journals are the limit: retry later")]
    TooManyJournals {
        /// The bound.
        limit: usize,
    },
    /// The destination has to read and drop generations before another is sealed.
    #[error("{limit} generations are the limit: drop some first")]
    TooManyGenerations {
        /// The bound.
        limit: u64,
    },
    /// This replica doesn't know the journal: it is behind, or the journal ended. Ask the leader, after a read of the index.
    #[error("journal {journal} isn't known here: it is yet to begin here, or it ended")]
    Unknown {
        /// The journal's id.
        journal: Index,
    },
    /// The journal ended, and another has begun. The copy is useless.
    #[error("journal {journal} ended: drop the copy and begin anew")]
    Ended {
        /// The journal's id.
        journal: Index,
    },
    /// The generation isn't sealed at this replica yet. Another replica may answer.
    #[error("generation {generation} isn't sealed here yet: retry")]
    NotSealed {
        /// The generation.
        generation: u64,
    },
    /// The generation was dropped, which the destination's log asked for.
    #[error("generation {generation} was dropped: the copy has it")]
    Dropped {
        /// The generation.
        generation: u64,
    },
    /// The cursor's name is none that a source gives.
    #[error("the cursor makes no sense")]
    BadCursor,
}

/// The request of a copy for its next part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyRequest {
    /// The shard.
    pub shard: ShardId,
    /// The copy.
    pub copy: CopyId,
    /// The configuration that has given the shard to the destination, if it has: the answering replica must have fenced the shard by it.
    pub fence: Option<ConfigNum>,
    /// The cursor up to which the copy has arrived.
    pub after: CopyCursor,
    /// The approximate size in bytes, at most [`crate::MAX_SCAN_BYTES`]. The part ends with the row that reaches this size.
    pub max_bytes: u32,
}

/// A position in a copy. The order is that of sending: base parts, then generations.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CopyCursor {
    /// The base has arrived up to here.
    Base(Cursor),
    /// The base and all generations before this one have arrived, and of this one all up to the position.
    Page {
        /// The generation.
        generation: u64,
        /// The position in it.
        after: Position,
    },
}

/// A position in a generation. The source gives it; the destination only keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The last name that has arrived, or the name of the range that is arriving; empty at the start.
    pub name: Bytes,
    /// The part of it that has arrived.
    pub upto: Upto,
}

/// The part of a name that has arrived. The order is that of sending.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Upto {
    /// Of a range: its clear, and its pairs up to this user's key or its rows up to this key after the shard; the empty key is before the
    /// first.
    Row(Bytes),
    /// All.
    #[default]
    End,
}

/// The next part of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The shard.
    pub shard: ShardId,
    /// The copy.
    pub copy: CopyId,
    /// The cursor up to which the copy must have arrived before.
    pub after: CopyCursor,
    /// The changes to apply, in this order.
    pub changes: Vec<RowChange>,
    /// The continuation.
    pub next: PartNext,
}

/// A change that a part makes to a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowChange {
    /// A user's key has this value now, or is absent.
    Pair(Bytes, Option<Bytes>),
    /// A session has this record now, or is absent.
    Session(ClientId, Option<Bytes>),
    /// The pairs of `[start, end)` are removed; those that exist follow. An empty `end` is the shard's end.
    Clear {
        /// The first user's key.
        start: Bytes,
        /// The first user's key after the range.
        end: Bytes,
    },
    /// A row of a keyspace, by its key after the shard, has this value now, or is absent.
    Row(Bytes, Option<Bytes>),
    /// The rows of keyspaces whose keys after the shard begin with this are removed; those that exist follow.
    ClearRows(Bytes),
}

/// The continuation after a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartNext {
    /// The next part begins after this cursor.
    At(CopyCursor),
    /// The copy is the shard at its fence.
    Done {
        /// The session table's clock at the fence.
        clock: SessionClock,
        /// The source's time to live of sessions, in milliseconds: see [`crate::Next::Done`].
        ttl_ms: u64,
    },
}

impl Part {
    /// Returns true if the part has rows of keyspaces, or follows some.
    pub(crate) fn has_rows(&self) -> bool {
        let next = match &self.next {
            PartNext::At(cursor) => cursor.is_at_rows(),
            PartNext::Done { .. } => false,
        };
        let mut changes = self.changes.iter();
        let is_row = |change| matches!(change, &RowChange::Row(..) | &RowChange::ClearRows(_));
        next || self.after.is_at_rows() || changes.any(is_row)
    }

    /// Returns true if the part has rows that only members from [`crate::AUTH_LEVEL`] on can read.
    pub(crate) fn has_auth(&self) -> bool {
        let mut changes = self.changes.iter();
        changes.any(|change| match change {
            RowChange::Row(key, value) => keyspace::is_auth_row(key, value.as_deref()),
            _ => false,
        })
    }

    /// Returns the cursor at the part's last change, if that is a row of a keyspace and the cursor has its key.
    fn at_last_row(&self) -> Option<CopyCursor> {
        let Some(RowChange::Row(key, _)) = self.changes.last() else {
            return None;
        };
        Some(match self.after {
            CopyCursor::Base(_) => CopyCursor::Base(Cursor::Rows(key.clone())),
            CopyCursor::Page { generation, .. } => CopyCursor::Page {
                generation,
                after: Position {
                    name: Name::of_row(key).encode(),
                    upto: Upto::Row(key.clone()),
                },
            },
        })
    }
}

impl Default for CopyCursor {
    fn default() -> Self {
        Self::Base(Cursor::default())
    }
}

impl CopyCursor {
    pub(crate) fn page(generation: u64) -> Self {
        Self::Page {
            generation,
            after: Position::default(),
        }
    }

    fn is_at_rows(&self) -> bool {
        match self {
            Self::Base(cursor) => matches!(cursor, Cursor::Rows(_)),
            Self::Page { after, .. } => {
                let name = Name::decode(&after.name);
                matches!(name, Some(Name::Row(_) | Name::Rows(_)))
            }
        }
    }
}
