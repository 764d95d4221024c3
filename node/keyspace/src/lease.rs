//! Leases: grants and revokes. When a lease expires is decided by the leader's timers, not here.

use raft::StoreError;
use replica::{Order, PairReader};

use crate::draft::{Draft, Finished, Growth};
use crate::failure::Failure;
use crate::keys::{Table, split_lease, split_lease_key};
use crate::limits::Budget;
use crate::rows::{LeaseRow, damaged};
use crate::store::{Rows, Store, get};
use crate::view::{borrowed, whole, with_prefix};
use crate::{LeaseId, Limits, Place, Record, Refusal, sizes};

/// The least time to live that a lease gets, in seconds. etcd derives it from its election timeout; this is what its defaults
/// give.
pub const MIN_LEASE_TTL: i64 = 2;

/// The greatest time to live, in seconds.
pub const MAX_LEASE_TTL: i64 = 9_000_000_000;

/// A lease of a keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: LeaseId,
    /// Its granted time to live, in seconds.
    pub ttl: i64,
    /// The number of its keys.
    pub keys: u32,
    /// The number of its grant. A lease that is granted again under the same id has another.
    pub grant: u64,
}

/// Grants a lease and returns its row.
pub(crate) fn grant(
    place: Place,
    id: LeaseId,
    ttl: i64,
    limits: &Limits,
    record: &mut Record,
    store: &mut dyn Store,
) -> Result<LeaseRow, Failure> {
    if id == LeaseId::NONE {
        return Err(Refusal::LeaseNotFound.into());
    }
    if ttl > MAX_LEASE_TTL {
        return Err(Refusal::LeaseTtlTooLarge.into());
    }
    let stored = place.lease(id);
    if get(store, &stored)?.is_some() {
        return Err(Refusal::LeaseExists.into());
    }
    let next = record.grants.checked_add(1);
    let grant = next.ok_or_else(|| damaged("a keyspace", &"no number is left for a grant"))?;
    if record.leases >= limits.max_leases.into() {
        return Err(Refusal::TooManyRequests.into());
    }
    record.grow(Growth {
        added: sizes::LEASE,
        removed: 0,
        puts: true,
    })?;
    record.leases += 1;
    record.grants = grant;
    let row = LeaseRow {
        ttl: ttl.max(MIN_LEASE_TTL),
        grant,
        keys: 0,
        key_bytes: 0,
    };
    store.put(stored, row.encode());
    Ok(row)
}

/// Takes a revoked lease out of the record.
pub(crate) fn revoked(record: &mut Record) -> Result<(), StoreError> {
    let left = record.leases.checked_sub(1);
    record.leases =
        left.ok_or_else(|| damaged("a keyspace", &"it counts fewer leases than it has"))?;
    record.release(sizes::LEASE)
}

/// Drafts the revoke of a lease: its keys are deleted in their order, in one revision. Without keys there is no new revision.
pub(crate) fn revoke(
    place: Place,
    id: LeaseId,
    record: &Record,
    limits: &Limits,
    reader: &dyn PairReader,
) -> Result<Finished, Failure> {
    let mut draft = Draft::new(reader, place, record, limits, Budget::of_revoke())?;
    if draft.lease(id)?.is_none() {
        return Err(Refusal::LeaseNotFound.into());
    }
    draft.revoke(id, read_lease_keys(reader, place, id)?)?;
    Ok(draft.finish())
}

/// Returns a lease.
pub fn read_lease(
    reader: &dyn PairReader,
    place: Place,
    id: LeaseId,
) -> Result<Option<Lease>, StoreError> {
    let row = get(reader, &place.lease(id))?;
    row.map(|row| decode(id, row)).transpose()
}

/// Returns the keys of a lease, in order. Their number and bytes are bounded by the limits under which they were attached.
pub fn read_lease_keys(
    reader: &dyn PairReader,
    place: Place,
    id: LeaseId,
) -> Result<Vec<bytes::Bytes>, StoreError> {
    let bounds = with_prefix(place.lease_keys(id));
    let mut cursor = Rows::new(reader, borrowed(&bounds), Order::Ascending)?;
    let mut keys = Vec::new();
    while let Some((stored, _)) = cursor.next()? {
        let key = split_lease_key(&stored);
        keys.push(key.ok_or_else(|| damaged("a lease's key", &"bad key"))?);
    }
    Ok(keys)
}

/// Returns the leases of a keyspace after `after`, at most `limit`, in the order of their stored ids: negative ids come last.
pub fn read_leases(
    reader: &dyn PairReader,
    place: Place,
    after: Option<LeaseId>,
    limit: usize,
) -> Result<Vec<Lease>, StoreError> {
    let mut bounds = whole(place, Table::Leases);
    if let Some(after) = after {
        bounds.0 = std::ops::Bound::Excluded(place.lease(after));
    }
    let mut cursor = Rows::new(reader, borrowed(&bounds), Order::Ascending)?;
    let mut leases = Vec::new();
    while leases.len() < limit
        && let Some((stored, row)) = cursor.next()?
    {
        let id = split_lease(&stored).ok_or_else(|| damaged("a lease", &"bad key"))?;
        leases.push(decode(id, row)?);
    }
    Ok(leases)
}

fn decode(id: LeaseId, row: bytes::Bytes) -> Result<Lease, StoreError> {
    let row = LeaseRow::decode(row)?;
    Ok(Lease {
        id,
        ttl: row.ttl,
        keys: row.keys,
        grant: row.grant,
    })
}
