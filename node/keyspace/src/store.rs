//! The rows of keyspaces in a group's state: one range of ordered keys for each shard.
//!
//! All rows are in [`replica::Table::Data`], beside the pairs of the flat map and apart from them (the module `keys`). So snapshots
//! of a replica hold them without knowing them.

use bytes::Bytes;
use raft::StoreError;
use replica::{Bounds, Cursor, Listed, Order, PairReader};

/// The table of the state that holds the rows.
const DATA: replica::Table = replica::Table::Data;

/// Reads and writes rows. Every method reads what the caller has written before, so that the operations of one batch see each
/// other. Keys are those of the module `keys`, which begin with the prefix of their shard ([`crate::rows_of_shard`]).
pub trait Store: PairReader {
    /// Sets a key.
    fn put(&mut self, key: Bytes, value: Bytes);

    /// Removes a key.
    fn remove(&mut self, key: Bytes);
}

/// Returns the value of a key.
pub(crate) fn get(reader: &dyn PairReader, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
    reader.get(DATA, key)
}

/// Reads rows one after the other.
pub(crate) struct Rows<'a>(Box<dyn Cursor + 'a>);

impl<'a> Rows<'a> {
    /// Begins before the first row between two bounds. There are no rows if the bounds are reversed.
    pub(crate) fn new(
        reader: &'a dyn PairReader,
        bounds: Bounds<'_>,
        order: Order,
    ) -> Result<Self, StoreError> {
        reader.cursor(DATA, bounds, order).map(Self)
    }

    /// Returns the next row, key and value; `None` after the last.
    pub(crate) fn next(&mut self) -> Result<Option<(Bytes, Bytes)>, StoreError> {
        let Some((key, listed)) = self.0.next()? else {
            return Ok(None);
        };
        let value = self.0.read(&key, listed)?;
        Ok(Some((key, value)))
    }

    /// Returns the next key and the number of bytes that were read of its value; `None` after the last.
    pub(crate) fn next_key(&mut self) -> Result<Option<(Bytes, usize)>, StoreError> {
        let next = self.0.next()?;
        Ok(next.map(|(key, listed): (Bytes, Listed)| (key, listed.read())))
    }
}
