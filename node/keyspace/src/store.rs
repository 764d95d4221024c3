//! The store of keyspaces' rows, as this crate sees it: ordered keys in a few tables.
//!
//! Every method reads what the caller has written before, so that the operations of one batch see each other.

use std::ops::Bound;

use bytes::Bytes;
use raft::StoreError;

/// A named set of ordered keys. The module `keys` has the layout of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Records of keyspaces, their names, and the last id of each shard.
    Keyspaces,
    /// The newest version of each key that exists, without its value.
    Current,
    /// All versions that are not compacted, with their values, and marks of deletions.
    Versions,
    /// The keys and revisions of all deletions that are not compacted.
    Deletions,
    /// All changes that are not compacted, in the order of revisions.
    Events,
    /// Leases.
    Leases,
    /// The keys of each lease.
    LeaseKeys,
}

impl Table {
    /// All tables.
    pub const ALL: [Self; 7] = [
        Self::Keyspaces,
        Self::Current,
        Self::Versions,
        Self::Deletions,
        Self::Events,
        Self::Leases,
        Self::LeaseKeys,
    ];

    /// The tables that hold a keyspace's rows: all but the one with its record.
    pub const ROWS: [Self; 6] = [
        Self::Current,
        Self::Versions,
        Self::Deletions,
        Self::Events,
        Self::Leases,
        Self::LeaseKeys,
    ];
}

impl Table {
    /// Returns the number of the table in stored rows.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Keyspaces => 0,
            Self::Current => 1,
            Self::Versions => 2,
            Self::Deletions => 3,
            Self::Events => 4,
            Self::Leases => 5,
            Self::LeaseKeys => 6,
        }
    }
}

/// The order of a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// From the least key on.
    Ascending,
    /// From the greatest key on.
    Descending,
}

/// A range of stored keys.
pub type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// Reads rows one after the other.
pub trait Cursor {
    /// Returns the next row, key and value; `None` after the last.
    fn next(&mut self) -> Result<Option<(Bytes, Bytes)>, StoreError>;
}

/// Reads rows.
pub trait Reader {
    /// Returns the value of a key.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Returns a cursor over the rows between two bounds. It has no rows if the bounds are reversed.
    fn cursor(
        &self,
        table: Table,
        bounds: Bounds<'_>,
        order: Order,
    ) -> Result<Box<dyn Cursor + '_>, StoreError>;
}

/// Reads and writes rows.
pub trait Store: Reader {
    /// Sets a key.
    fn put(&mut self, table: Table, key: Bytes, value: Bytes);

    /// Removes a key.
    fn remove(&mut self, table: Table, key: Bytes);
}
