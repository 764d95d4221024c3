//! Requests to a keyspace. They mirror etcd's messages, without their encoding.

use bytes::Bytes;

use crate::LeaseId;

/// One key, a range of keys, or all keys from one on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Span {
    /// One key.
    Key(Bytes),
    /// The keys of `[start, end)`: none if the end isn't above the start.
    Range(Bytes, Bytes),
    /// All keys from this one on.
    From(Bytes),
}

impl Span {
    /// Returns the span of etcd's fields `key` and `range_end`: an empty end means one key, and a single zero byte no end.
    pub fn new(key: Bytes, range_end: Bytes) -> Self {
        match range_end.as_ref() {
            [] => Self::Key(key),
            [0] => Self::From(key),
            _ => Self::Range(key, range_end),
        }
    }

    /// Returns the key, or the start of the range.
    pub fn start(&self) -> &Bytes {
        match self {
            Self::Key(start) | Self::Range(start, _) | Self::From(start) => start,
        }
    }

    /// Returns true if the span includes the key.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(only) => key == only,
            Self::Range(start, end) => key >= start.as_ref() && key < end.as_ref(),
            Self::From(start) => key >= start.as_ref(),
        }
    }
}

/// The field by which a range is sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The names say it.
pub enum SortTarget {
    #[default]
    Key,
    Version,
    Create,
    Mod,
    Value,
}

/// The order of a range. Without one, a range is in the order of keys, and of the target if another is named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The names say it.
pub enum SortOrder {
    #[default]
    None,
    Ascending,
    Descending,
}

/// Reads a span at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The keys.
    pub span: Span,
    /// The most pairs of the answer; no limit at 0 and below.
    pub limit: i64,
    /// The revision; the newest at 0 and below.
    pub revision: i64,
    /// The order.
    pub sort_order: SortOrder,
    /// The field that the order concerns.
    pub sort_target: SortTarget,
    /// Leaves the values out. As in etcd, the leases are left out too, unless the range is sorted by value.
    pub keys_only: bool,
    /// Returns only the count.
    pub count_only: bool,
    /// Leaves out keys whose mod revision is lower; 0 leaves out none.
    pub min_mod_revision: i64,
    /// Leaves out keys whose mod revision is higher; 0 leaves out none.
    pub max_mod_revision: i64,
    /// Leaves out keys whose create revision is lower; 0 leaves out none.
    pub min_create_revision: i64,
    /// Leaves out keys whose create revision is higher; 0 leaves out none.
    pub max_create_revision: i64,
}

impl Range {
    /// Returns the range that reads a span as a whole, as of now.
    pub fn new(span: Span) -> Self {
        Self {
            span,
            limit: 0,
            revision: 0,
            sort_order: SortOrder::None,
            sort_target: SortTarget::Key,
            keys_only: false,
            count_only: false,
            min_mod_revision: 0,
            max_mod_revision: 0,
            min_create_revision: 0,
            max_create_revision: 0,
        }
    }
}

/// Sets a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Put {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// The lease that the key is attached to; 0 is none.
    pub lease: LeaseId,
    /// Returns the pair before.
    pub prev_kv: bool,
    /// Keeps the value of the key, which must exist.
    pub ignore_value: bool,
    /// Keeps the lease of the key, which must exist.
    pub ignore_lease: bool,
}

/// Deletes the keys of a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteRange {
    /// The keys.
    pub span: Span,
    /// Returns the pairs before.
    pub prev_kv: bool,
}

/// The field of a compare, and what it is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names say it.
pub enum Target {
    Version(i64),
    Create(i64),
    Mod(i64),
    Value(Bytes),
    Lease(i64),
    /// A field that this version doesn't know. As in etcd, it equals whatever it is compared with.
    Unknown,
}

/// The relation that a compare asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names say it.
pub enum Relation {
    Equal,
    Greater,
    Less,
    NotEqual,
    /// A relation that this version doesn't know. As in etcd, it holds.
    Unknown,
}

/// A condition of a transaction. It holds if it holds for each key of the span. If no key of the span exists, all fields are 0,
/// and no condition on a value holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The keys.
    pub span: Span,
    /// The field, and what it is compared with.
    pub target: Target,
    /// The relation of the field to that.
    pub relation: Relation,
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names say it.
pub enum Op {
    Range(Range),
    Put(Put),
    DeleteRange(DeleteRange),
    Txn(Txn),
}

/// Carries out one of two lists of operations at once. All compares, those of nested transactions too, see the state before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions.
    pub compare: Vec<Compare>,
    /// The operations if all conditions hold.
    pub success: Vec<Op>,
    /// The operations otherwise.
    pub failure: Vec<Op>,
}

impl Txn {
    /// Returns true if the transaction needs no log entry: all its operations are ranges. As in etcd, a nested transaction
    /// counts as a write.
    pub fn is_read_only(&self) -> bool {
        let mut ops = self.success.iter().chain(&self.failure);
        ops.all(|op| matches!(op, Op::Range(_)))
    }
}
