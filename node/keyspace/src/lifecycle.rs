//! The life of a keyspace: it is created under a name, and deleted under its id.
//!
//! A deletion frees the name at once. The record stays, marked as deleted, until steps of clearing have removed all rows. A
//! keyspace that is created under the same name gets another id, so it shares no row with the one before.
//!
//! A shard that is restored from a backup gives ids again that it had given after the backup. So clients don't tell incarnations
//! by the id, but by the cluster id, which is a random number in the record. A shard that goes on from an older state in another way, because
//! the group that had it is gone, gets new cluster ids, too ([`renew`]).

use std::num::NonZeroU64;
use std::ops::Bound;

use bytes::Bytes;
use raft::StoreError;
use replica::{Order, PairReader};
use types::ShardId;

use crate::failure::Failure;
use crate::keys::{self, Table};
use crate::record::Record;
use crate::rows::{NAME, SHARD, damaged};
use crate::store::{Rows, Store, get};
use crate::view::{borrowed, whole, with_prefix};
use crate::{KeyspaceId, Limits, Place, Refusal};

/// The number of records that are in memory at once while ids are renewed.
const RENEWED_AT_ONCE: usize = 100;

/// The record of a shard's keyspaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ShardRow {
    /// The greatest id that was given. It outlives the keyspaces, so that no id is given again.
    last_id: u64,
    /// The number of records, those of deleted keyspaces too.
    records: u32,
}

impl ShardRow {
    fn read(reader: &dyn PairReader, shard: ShardId) -> Result<Self, StoreError> {
        let row = get(reader, &keys::shard(shard))?;
        let row = row.map(|row| {
            SHARD.decode(row, |input| {
                Ok(Self {
                    last_id: input.number("last id")?,
                    records: input.number_u32("records")?,
                })
            })
        });
        Ok(row.transpose()?.unwrap_or_default())
    }

    fn write(self, shard: ShardId, store: &mut dyn Store) {
        let mut out = SHARD.begin(16);
        out.number(self.last_id).number(self.records.into());
        store.put(keys::shard(shard), out.finish());
    }
}

/// Creates a keyspace with this record and returns its id. Name and options are checked.
pub(crate) fn create(
    shard: ShardId,
    record: &Record,
    limits: &Limits,
    store: &mut dyn Store,
) -> Result<Result<KeyspaceId, Refusal>, StoreError> {
    if find(store, shard, &record.name)?.is_some() {
        return Ok(Err(Refusal::KeyspaceExists));
    }
    let mut row = ShardRow::read(store, shard)?;
    let next = row.last_id.checked_add(1);
    let (Some(id), true) = (next, row.records < limits.max_keyspaces) else {
        return Ok(Err(Refusal::TooManyKeyspaces));
    };
    row.last_id = id;
    row.records += 1;
    row.write(shard, store);
    let place = Place {
        shard,
        id: KeyspaceId(id),
    };
    let mut out = NAME.begin(10);
    out.number(id);
    let name = keys::name(shard, &record.name);
    store.put(name, out.finish());
    record.store(place, store);
    Ok(Ok(place.id))
}

/// Marks a keyspace as deleted, and frees its name.
pub(crate) fn delete(place: Place, record: &mut Record, store: &mut dyn Store) {
    record.deleted = true;
    store.remove(keys::name(place.shard, &record.name));
}

/// Removes the next rows of a deleted keyspace, and the record after the last. Returns true if there are more.
///
/// A step is bounded by rows and by bytes, because the cursor may have to read the values. It begins after the last row that was
/// removed, because an LSM tree would walk the marks of all rows that were removed before it.
pub(crate) fn clear(
    place: Place,
    record: &mut Record,
    limits: &Limits,
    store: &mut dyn Store,
) -> Result<bool, Failure> {
    let mut left = Left {
        rows: limits.max_clear_rows.max(1) as usize,
        bytes: limits.max_write_bytes.max(1) as usize,
    };
    let first = record.cleared.as_ref().map(|(table, _)| *table);
    for table in Table::ROWS {
        if Some(table) < first {
            continue;
        }
        let stored = read_keys(store, place, table, record, &mut left)?;
        if let Some(last) = stored.last() {
            record.cleared = Some((table, last.clone()));
        }
        for key in stored {
            store.remove(key);
        }
        if left.is_none() {
            return Ok(true);
        }
    }
    store.remove(place.record());
    let mut row = ShardRow::read(store, place.shard)?;
    let left = row.records.checked_sub(1);
    row.records =
        left.ok_or_else(|| damaged("a shard's keyspaces", &"it counts fewer than there are"))?;
    row.write(place.shard, store);
    Ok(false)
}

/// The rest of the rows that a step of clearing may visit.
struct Left {
    rows: usize,
    bytes: usize,
}

impl Left {
    fn is_none(&self) -> bool {
        self.rows == 0 || self.bytes == 0
    }
}

fn read_keys(
    reader: &dyn PairReader,
    place: Place,
    table: Table,
    record: &Record,
    left: &mut Left,
) -> Result<Vec<Bytes>, StoreError> {
    let mut bounds = whole(place, table);
    if let Some((cleared, last)) = &record.cleared
        && *cleared == table
    {
        bounds.0 = Bound::Excluded(last.clone());
    }
    let mut cursor = Rows::new(reader, borrowed(&bounds), Order::Ascending)?;
    let mut found = Vec::new();
    while !left.is_none()
        && let Some((stored, read)) = cursor.next_key()?
    {
        left.rows -= 1;
        left.bytes = left.bytes.saturating_sub(stored.len() + read);
        found.push(stored);
    }
    Ok(found)
}

/// Gives each keyspace of a shard another cluster id, because the shard goes on from an older state: what was written since is lost, and
/// its revisions are given again. `salt` is the number of the configuration that did so, which no other has.
pub fn renew(shard: ShardId, salt: u64, store: &mut dyn Store) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let page = list(store, shard, after, RENEWED_AT_ONCE)?;
        after = page.last().map(|(id, _)| *id);
        for (id, mut record) in page {
            record.nonce = renewed(record.nonce, salt);
            record.store(Place { shard, id }, store);
        }
        if after.is_none() {
            return Ok(());
        }
    }
}

/// Derives a number that looks drawn anew (the finaliser of `SplitMix64`).
fn renewed(nonce: NonZeroU64, salt: u64) -> NonZeroU64 {
    let mut number = nonce
        .get()
        .wrapping_add(salt.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    NonZeroU64::new(number ^ (number >> 31)).unwrap_or(NonZeroU64::MIN)
}

/// Returns the id of the keyspace with a name.
pub fn find(
    reader: &dyn PairReader,
    shard: ShardId,
    name: &str,
) -> Result<Option<KeyspaceId>, StoreError> {
    let row = get(reader, &keys::name(shard, name))?;
    let id = row.map(|row| NAME.decode(row, |input| input.number("id")));
    Ok(id.transpose()?.map(KeyspaceId))
}

/// Returns the keyspaces of a shard after `after`, at most `limit`, in the order of ids. Deleted ones that are still being
/// cleared are among them.
pub fn list(
    reader: &dyn PairReader,
    shard: ShardId,
    after: Option<KeyspaceId>,
    limit: usize,
) -> Result<Vec<(KeyspaceId, Record)>, StoreError> {
    let mut bounds = with_prefix(keys::records(shard));
    if let Some(id) = after {
        let place = Place { shard, id };
        bounds.0 = Bound::Excluded(place.record());
    }
    let mut cursor = Rows::new(reader, borrowed(&bounds), Order::Ascending)?;
    let mut found = Vec::new();
    while found.len() < limit
        && let Some((stored, row)) = cursor.next()?
    {
        let place = keys::split_record(&stored);
        let place = place.ok_or_else(|| damaged("a keyspace", &"bad key"))?;
        found.push((place.id, Record::decode(row)?));
    }
    Ok(found)
}
