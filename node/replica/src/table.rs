//! The tables of a state.

/// A named set of ordered keys. `RocksDB` keeps each table in a column family of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Facts about the state as a whole: the applied position, the genesis, shard states.
    Meta,
    /// Users' data: shard (4 bytes, big-endian), then the key. Rows of keyspaces stand apart: the shard's highest bit is set.
    Data,
    /// Session tables: shard (4 bytes, big-endian), then the client id.
    Sessions,
    /// Names of rows that changed while their shard was copied: shard (4 bytes, big-endian), then generation and name.
    Journal,
}

impl Table {
    /// All tables, in the order of a snapshot.
    pub const ALL: [Self; 4] = [Self::Meta, Self::Data, Self::Sessions, Self::Journal];
}
