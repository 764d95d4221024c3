//! The store of a state machine's data: ordered keys in a few tables, written in atomic batches together with the log
//! position of the data.
//!
//! # The contract
//!
//! - [`StateStore::commit`] is visible at once and atomic, but *not* durable. After a crash the state is
//!   that of some earlier commit, whole: never half a batch, never one table newer than another. That
//!   commit is not older than [`StateStore::durable`]; the log after it must be kept.
//! - `Applied` is written in the same batch as the data, so data and position never disagree.
//! - A restore from a snapshot is staged. Until [`StateStore::finish_restore`] returns `Ok`, a crash leaves
//!   the old state; afterwards the new state is durable.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use raft::{EntryId, Membership, SnapshotMeta, StoreError};
use types::LogTime;

use crate::Digest;
use crate::cursor::{Bounds, Cursor, Listed, Order, PairReader};
use crate::table::Table;

/// The position that a state corresponds to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The last entry whose effect the state holds.
    pub last: EntryId,
    /// The membership in force at that entry.
    pub membership: Membership,
    /// The greatest log time applied so far.
    pub time: LogTime,
    /// The feature level at that entry.
    pub feature_level: u32,
    /// The digest of the state; `None` below [`DIGEST_LEVEL`](crate::DIGEST_LEVEL).
    pub digest: Option<Digest>,
}

/// Reads the state as of the last commit.
pub trait StateReader: PairReader {
    /// Returns the pairs between two bounds in key order: at most `limit` pairs, ending with the pair that reaches
    /// `max_bytes` of keys and values. So it returns at least one pair if there is one.
    fn scan(
        &self,
        table: Table,
        bounds: Bounds<'_>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let cursor = self.cursor(table, bounds, Order::Ascending)?;
        let value = |cursor: &dyn Cursor, key: &[u8], listed| cursor.read(key, listed);
        first_pairs(cursor, (limit, max_bytes), value, Bytes::len)
    }

    /// As [`StateReader::scan`], for callers that may not need the values: a store may leave out values longer than
    /// [`MAX_LISTED_BYTES`](crate::MAX_LISTED_BYTES) without reading them. `max_bytes` bounds the bytes that are read ([`Listed::read`]).
    fn list(
        &self,
        table: Table,
        bounds: Bounds<'_>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Listed)>, StoreError> {
        let cursor = self.cursor(table, bounds, Order::Ascending)?;
        let value = |_: &dyn Cursor, _: &[u8], listed| Ok(listed);
        first_pairs(cursor, (limit, max_bytes), value, Listed::read)
    }

    /// Returns a view of the pairs of `[start, end)` in key order as of the last commit. Later commits don't change it.
    fn view(&self, table: Table, start: Bytes, end: Bytes) -> Result<View, StoreError>;

    /// Estimates the present bytes of the pairs of `[start, end)`. Cheap; no decision of the protocol may depend on it.
    fn estimate_bytes(&self, table: Table, start: &[u8], end: &[u8]) -> Result<u64, StoreError>;
}

/// Returns the next pairs of a cursor: at most `limit`, ending with the pair that reaches `max_bytes` of its key and of the
/// `size` of its value.
fn first_pairs<V>(
    mut cursor: Box<dyn Cursor + '_>,
    (limit, max_bytes): (usize, usize),
    value: impl Fn(&dyn Cursor, &[u8], Listed) -> Result<V, StoreError>,
    size: impl Fn(&V) -> usize,
) -> Result<Vec<(Bytes, V)>, StoreError> {
    let mut found = Vec::new();
    let mut bytes = 0;
    while found.len() < limit && (found.is_empty() || bytes < max_bytes) {
        let Some((key, listed)) = cursor.next()? else {
            break;
        };
        let value = value(&*cursor, &key, listed)?;
        bytes += key.len() + size(&value);
        found.push((key, value));
    }
    Ok(found)
}

/// Pairs as of one moment, read page by page with constant memory. A reader may move it to another thread; reading may wait
/// for the disk.
pub trait PageSource: Send {
    /// Returns the next pairs; `None` after the last.
    fn next_page(&mut self) -> Result<Option<Vec<(Bytes, Bytes)>>, StoreError>;
}

/// A [`PageSource`] that can be cloned. All clones share one cursor.
#[derive(Clone)]
pub struct View(Arc<Mutex<dyn PageSource>>);

impl View {
    /// Creates a view of these pages.
    pub fn new(source: impl PageSource + 'static) -> Self {
        Self(Arc::new(Mutex::new(source)))
    }

    /// Returns the next pairs, as [`PageSource::next_page`].
    pub fn next_page(&self) -> Result<Option<Vec<(Bytes, Bytes)>>, StoreError> {
        // A source whose reader panicked is not read again.
        let mut source = self
            .0
            .lock()
            .map_err(|_| StoreError::Io("a view's reader died".to_owned()))?;
        source.next_page()
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("View")
    }
}

/// A view equals only its clones.
impl PartialEq for View {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for View {}

/// The durable store of a state machine's data.
pub trait StateStore: StateReader + Send {
    /// Returns the position of the last commit.
    fn applied(&self) -> Applied;

    /// Returns the position that would survive a crash now. Never before that of a finished restore.
    fn durable(&self) -> EntryId;

    /// Makes `batch` and `applied` visible, atomically.
    fn commit(&mut self, batch: WriteBatch, applied: Applied) -> Result<(), StoreError>;

    /// Starts to make all commits so far durable. It may return before they are; `durable` shows the progress.
    fn start_flush(&mut self) -> Result<(), StoreError>;

    /// Makes all commits so far durable before it returns, for an orderly stop.
    fn flush(&mut self) -> Result<(), StoreError>;

    /// Returns a consistent view of the state as of the last commit. Later commits don't change it.
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, StoreError>;

    /// Starts to stage a replacement of the whole state. An unfinished replacement is dropped.
    fn begin_restore(&mut self, meta: &SnapshotMeta) -> Result<(), StoreError>;

    /// Stages the next chunk of [`SnapshotSource::next_chunk`].
    fn restore_chunk(&mut self, chunk: &[u8]) -> Result<(), StoreError>;

    /// Drops an unfinished replacement, so that it takes no space. Does nothing without one.
    fn abandon_restore(&mut self);

    /// Replaces the state by the staged state, durably. Fails with [`StoreError::Damaged`] if the staged chunks are not a
    /// whole snapshot that ends at the `meta` of its start; the old state stays then.
    fn finish_restore(&mut self) -> Result<(), StoreError>;
}

/// A consistent view of a state, read chunk by chunk with constant memory.
pub trait SnapshotSource: Send {
    /// Returns the last entry and the membership that the snapshot covers.
    fn meta(&self) -> &SnapshotMeta;

    /// Returns the next chunk, of about [`SNAPSHOT_CHUNK_BYTES`] or more for one larger pair; `None` after the last.
    fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError>;
}

/// The approximate size of a snapshot's chunk.
pub const SNAPSHOT_CHUNK_BYTES: usize = 256 * 1024;

/// Changes that become visible together. Later changes win over earlier ones.
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    /// Ranges whose keys are removed before the puts and removals below take effect.
    pub cleared: Vec<(Table, Bytes, Bytes)>,
    /// A key's new value, or `None` to remove it.
    pub changes: BTreeMap<(Table, Bytes), Option<Bytes>>,
}

impl WriteBatch {
    /// Sets a key.
    pub fn put(&mut self, table: Table, key: Bytes, value: Bytes) {
        self.changes.insert((table, key), Some(value));
    }

    /// Removes a key.
    pub fn remove(&mut self, table: Table, key: Bytes) {
        self.changes.insert((table, key), None);
    }

    /// Removes all keys in `[start, end)`, changes of this batch included.
    pub fn clear(&mut self, table: Table, start: Bytes, end: Bytes) {
        self.changes
            .retain(|(of, key), _| *of != table || *key < start || *key >= end);
        self.cleared.push((table, start, end));
    }

    /// Returns true if there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.cleared.is_empty()
    }

    /// Returns the change of a key: `None` without a change, `Some(None)` for a removal, `Some(Some(_))` for a new value.
    pub fn get(&self, table: Table, key: &[u8]) -> Option<Option<Bytes>> {
        // A lookup without the copy of the key would need a key type of its own.
        if let Some(change) = self.changes.get(&(table, Bytes::copy_from_slice(key))) {
            return Some(change.clone());
        }
        self.clear_of(table, key).map(|_| None)
    }

    /// Returns a range `[start, end)` that has the key and that the batch clears before its puts, if there is one.
    pub(crate) fn clear_of(&self, table: Table, key: &[u8]) -> Option<(&Bytes, &Bytes)> {
        let has_key = |(of, start, end): &&(Table, Bytes, Bytes)| {
            *of == table && key >= start.as_ref() && key < end.as_ref()
        };
        let range = self.cleared.iter().find(has_key);
        range.map(|(_, start, end)| (start, end))
    }
}
