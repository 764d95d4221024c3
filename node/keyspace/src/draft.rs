//! A draft of a write: its changes are kept in memory until all of its operations have succeeded, so that a refusal leaves
//! nothing behind.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft::StoreError;
use replica::PairReader;

use crate::failure::Failure;
use crate::limits::Budget;
use crate::rows::{EventRow, LeaseRow, Meta, damaged, encode_version};
use crate::store::{Store, get};
use crate::view::{Drafted, Row, View};
use crate::{
    DeleteRange, DeleteRangeAnswer, Event, KeyValue, LeaseId, Limits, Place, Put, PutAnswer,
    Record, Refusal, sizes,
};

/// A drafted change: an event, and what it replaces.
struct Change {
    key: Bytes,
    /// The new version with its value; `None` if the key is deleted.
    new: Option<(Meta, Bytes)>,
    previous: Option<Meta>,
}

/// The changes of one write, which all get the revision after `before`.
pub(crate) struct Draft<'a> {
    reader: &'a dyn PairReader,
    place: Place,
    /// The newest revision before the write.
    before: i64,
    /// The revision of the write's changes.
    own: i64,
    keys: Drafted,
    changes: Vec<Change>,
    /// Leases that change; `None` if one is revoked.
    leases: BTreeMap<LeaseId, Option<LeaseRow>>,
    /// Keys of leases: true if one is attached, false if it is detached.
    lease_keys: BTreeMap<(LeaseId, Bytes), bool>,
    /// The sizes of the rows of leases' keys that the write adds and removes.
    attached: Growth,
    max_lease_keys: u32,
    max_lease_bytes: u64,
    pub(crate) budget: Budget,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(
        reader: &'a dyn PairReader,
        place: Place,
        record: &Record,
        limits: &Limits,
        budget: Budget,
    ) -> Result<Self, StoreError> {
        let own = record.revision.checked_add(1);
        Ok(Self {
            reader,
            place,
            before: record.revision,
            own: own
                .ok_or_else(|| damaged("a keyspace", &"its revision is the greatest number"))?,
            keys: Drafted::new(),
            changes: Vec::new(),
            leases: BTreeMap::new(),
            lease_keys: BTreeMap::new(),
            attached: Growth::default(),
            max_lease_keys: limits.max_lease_keys,
            max_lease_bytes: limits.max_write_bytes.into(),
            budget,
        })
    }

    /// Returns the view of the state before, and of what was drafted so far.
    pub(crate) fn view(&self) -> View<'_> {
        View {
            reader: self.reader,
            place: self.place,
            drafted: Some(&self.keys),
        }
    }

    /// Returns the newest revision, which is the write's own once it has changed something.
    pub(crate) fn newest(&self) -> i64 {
        if self.changes.is_empty() {
            self.before
        } else {
            self.own
        }
    }

    /// Returns the newest version of a key, and counts the lookup.
    pub(crate) fn newest_version(&mut self, key: &Bytes) -> Result<Option<Row>, Failure> {
        self.budget.lookup()?;
        Ok(self.view().newest(key)?)
    }

    /// Returns a lease, and counts the lookup.
    pub(crate) fn lease(&mut self, id: LeaseId) -> Result<Option<LeaseRow>, Failure> {
        if let Some(drafted) = self.leases.get(&id) {
            return Ok(*drafted);
        }
        self.budget.lookup()?;
        let row = get(self.reader, &self.place.lease(id))?;
        Ok(row.map(LeaseRow::decode).transpose()?)
    }

    /// Returns the pair of a row, and counts its bytes.
    fn pair(&mut self, row: &Row, answer: bool) -> Result<KeyValue, Failure> {
        self.budget.value(row.meta.size)?;
        if !answer {
            return Ok(KeyValue::default());
        }
        let value = self.view().value(row)?;
        Ok(row.meta.pair(row.key.clone(), value))
    }

    /// Sets a key. The caller has checked that the lease exists.
    pub(crate) fn put(&mut self, put: &Put, answer: bool) -> Result<PutAnswer, Failure> {
        let previous = self.newest_version(&put.key)?;
        if previous.is_none() && (put.ignore_value || put.ignore_lease) {
            return Err(Refusal::KeyNotFound.into());
        }
        let mut prev_kv = None;
        if put.prev_kv
            && let Some(row) = &previous
        {
            let pair = self.pair(row, answer)?;
            prev_kv = answer.then_some(pair);
        }
        let value = match &previous {
            Some(row) if put.ignore_value => {
                self.budget.lookup()?;
                self.view().value(row)?
            }
            _ => put.value.clone(),
        };
        let before = previous.map(|row| row.meta);
        let lease = match before {
            Some(meta) if put.ignore_lease => meta.lease,
            _ => put.lease,
        };
        let version = before.map_or(0, |meta| meta.version).checked_add(1);
        let meta = Meta {
            mod_revision: self.own,
            create_revision: before.map_or(self.own, |meta| meta.create_revision),
            version: version.ok_or_else(|| {
                damaged(
                    "a key's newest version",
                    &"its version is the greatest number",
                )
            })?,
            lease,
            size: sizes::version(&put.key, &value),
        };
        let beside = sizes::event(&put.key) + sizes::current(&put.key);
        self.budget.change(meta.size + beside)?;
        self.attach(
            &put.key,
            before.map_or(LeaseId::NONE, |meta| meta.lease),
            lease,
        )?;
        self.change(put.key.clone(), Some((meta, value)), before);
        Ok(PutAnswer {
            revision: self.own,
            prev_kv,
        })
    }

    /// Deletes the keys of a span.
    pub(crate) fn delete_range(
        &mut self,
        request: &DeleteRange,
        answer: bool,
    ) -> Result<DeleteRangeAnswer, Failure> {
        self.budget.lookup()?;
        let mut found = Vec::new();
        let mut rows = self.view().walk(&request.span)?;
        let mut budget = self.budget.clone();
        while let Some(row) = rows.next(&mut budget)? {
            budget.change(sizes::event(&row.key) + sizes::marks(&row.key))?;
            found.push(row);
        }
        drop(rows);
        self.budget = budget;
        let mut prev_kvs = Vec::new();
        for row in &found {
            if request.prev_kv {
                let pair = self.pair(row, answer)?;
                prev_kvs.extend(answer.then_some(pair));
            }
        }
        let deleted = i64::try_from(found.len()).unwrap_or(i64::MAX);
        for row in found {
            self.delete(row)?;
        }
        Ok(DeleteRangeAnswer {
            revision: self.newest(),
            deleted,
            prev_kvs,
        })
    }

    fn delete(&mut self, row: Row) -> Result<(), Failure> {
        self.attach(&row.key, row.meta.lease, LeaseId::NONE)?;
        self.change(row.key, None, Some(row.meta));
        Ok(())
    }

    /// Revokes a lease that exists, and deletes these keys, which are all its keys.
    pub(crate) fn revoke(&mut self, id: LeaseId, keys: Vec<Bytes>) -> Result<(), Failure> {
        for key in keys {
            if let Some(row) = self.newest_version(&key)? {
                self.delete(row)?;
            }
        }
        self.leases.insert(id, None);
        Ok(())
    }

    fn change(&mut self, key: Bytes, new: Option<(Meta, Bytes)>, previous: Option<Meta>) {
        self.keys.insert(key.clone(), new.clone());
        self.changes.push(Change { key, new, previous });
    }

    /// Moves a key from one lease to another. Either may be none.
    fn attach(&mut self, key: &Bytes, from: LeaseId, to: LeaseId) -> Result<(), Failure> {
        if from == to {
            return Ok(());
        }
        let bytes = key.len() as u64;
        if from != LeaseId::NONE
            && let Some(mut lease) = self.lease(from)?
        {
            let left = lease.keys.checked_sub(1);
            let left = left.zip(lease.key_bytes.checked_sub(bytes));
            (lease.keys, lease.key_bytes) =
                left.ok_or_else(|| damaged("a lease", &"it counts fewer keys than it has"))?;
            self.leases.insert(from, Some(lease));
            self.lease_keys.insert((from, key.clone()), false);
            self.attached.removed += sizes::lease_key(key);
        }
        if to != LeaseId::NONE {
            let mut lease = self.lease(to)?.ok_or(Refusal::LeaseNotFound)?;
            let more = lease.keys.checked_add(1);
            let more = more.zip(lease.key_bytes.checked_add(bytes));
            (lease.keys, lease.key_bytes) = more.ok_or(Refusal::RequestTooLarge)?;
            if lease.keys > self.max_lease_keys || lease.key_bytes > self.max_lease_bytes {
                return Err(Refusal::RequestTooLarge.into());
            }
            self.leases.insert(to, Some(lease));
            self.lease_keys.insert((to, key.clone()), true);
            self.attached.added += sizes::lease_key(key);
        }
        Ok(())
    }

    /// Returns the sizes of the rows that the changes add and remove. What they replace is removed by clearing.
    fn growth(&self) -> Growth {
        let mut growth = self.attached;
        let mut seen = BTreeSet::new();
        for change in &self.changes {
            growth.added += sizes::event(&change.key);
            if let Some((meta, _)) = &change.new {
                growth.added += meta.size;
                growth.puts = true;
            }
            if seen.insert(&change.key) && change.previous.is_some() {
                growth.removed += sizes::current(&change.key);
            }
        }
        for (key, new) in &self.keys {
            growth.added += match new {
                Some(_) => sizes::current(key),
                None => sizes::marks(key),
            };
        }
        growth
    }

    /// Ends the draft. What it returns doesn't borrow the store, so that it can be written there.
    pub(crate) fn finish(self) -> Finished {
        let growth = self.growth();
        Finished {
            place: self.place,
            revision: self.newest(),
            keys: self.keys,
            changes: self.changes,
            leases: self.leases,
            lease_keys: self.lease_keys,
            growth,
        }
    }
}

/// A draft whose operations have all succeeded.
pub(crate) struct Finished {
    place: Place,
    revision: i64,
    keys: Drafted,
    changes: Vec<Change>,
    leases: BTreeMap<LeaseId, Option<LeaseRow>>,
    lease_keys: BTreeMap<(LeaseId, Bytes), bool>,
    growth: Growth,
}

/// The sizes of the rows that a write adds and removes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Growth {
    pub(crate) added: u64,
    pub(crate) removed: u64,
    /// True if keys are put. Other writes are carried out however full the keyspace is.
    pub(crate) puts: bool,
}

impl Finished {
    /// Charges the quota and writes the changes. The caller stores the record, also after a refusal.
    pub(crate) fn write(
        self,
        record: &mut Record,
        store: &mut dyn Store,
    ) -> Result<Vec<Event>, Failure> {
        record.grow(self.growth)?;
        record.revision = self.revision;
        let events = self.write_changes(store);
        self.write_leases(store);
        Ok(events)
    }

    fn write_changes(&self, store: &mut dyn Store) -> Vec<Event> {
        let (place, revision) = (self.place, self.revision);
        let mut events = Vec::with_capacity(self.changes.len());
        let positions = (0u32..).zip(&self.changes);
        let last: BTreeMap<&Bytes, u32> = positions.map(|(at, change)| (&change.key, at)).collect();
        for (position, change) in (0u32..).zip(&self.changes) {
            let deleted = change.new.is_none();
            let is_last = last.get(&change.key) == Some(&position);
            let row = EventRow {
                deleted,
                marked: deleted && is_last,
                prev_mod: change.previous.map_or(0, |meta| meta.mod_revision),
                prev_size: change.previous.map_or(0, |meta| meta.size),
                key: change.key.clone(),
            };
            store.put(place.event(revision, position), row.encode());
            if let Some((meta, value)) = &change.new {
                let stored = place.version(&change.key, revision);
                store.put(stored, encode_version(meta, value));
            }
            let kv = match &change.new {
                Some((meta, value)) => meta.pair(change.key.clone(), value.clone()),
                None => gone(change.key.clone(), revision),
            };
            events.push(Event {
                kv,
                deleted: change.new.is_none(),
                position,
            });
        }
        for (key, new) in &self.keys {
            let current = place.current(key);
            if let Some((meta, _)) = new {
                store.put(current, meta.encode());
            } else {
                store.remove(current);
                store.put(place.deleted(key, revision), Bytes::new());
                store.put(place.deletion(key, revision), Bytes::new());
            }
        }
        events
    }

    fn write_leases(self, store: &mut dyn Store) {
        for (id, lease) in self.leases {
            let stored = self.place.lease(id);
            match lease {
                Some(lease) => store.put(stored, lease.encode()),
                None => store.remove(stored),
            }
        }
        for ((id, key), attached) in self.lease_keys {
            let stored = self.place.lease_key(id, &key);
            if attached {
                store.put(stored, Bytes::new());
            } else {
                store.remove(stored);
            }
        }
    }
}

/// Returns the pair of the event of a deletion.
pub(crate) fn gone(key: Bytes, revision: i64) -> KeyValue {
    KeyValue {
        key,
        mod_revision: revision,
        ..KeyValue::default()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use types::ShardId;

    use super::*;
    use crate::memory::MemoryStore;
    use crate::{KeyspaceId, KeyspaceOptions};

    const PLACE: Place = Place {
        shard: ShardId(1),
        id: KeyspaceId(1),
    };

    fn record() -> Record {
        Record::new("a".to_owned(), KeyspaceOptions::default(), NonZeroU64::MIN)
    }

    fn put_in(store: &MemoryStore) -> Result<PutAnswer, Failure> {
        let limits = Limits::default();
        let budget = Budget::of_write(&limits);
        let mut draft = Draft::new(store, PLACE, &record(), &limits, budget)?;
        let put = Put {
            key: Bytes::from_static(b"k"),
            ..Put::default()
        };
        draft.put(&put, true)
    }

    fn is_damaged<T>(result: &Result<T, Failure>) -> bool {
        matches!(result, Err(Failure::Store(StoreError::Damaged(_))))
    }

    /// Counters that can't be right are damage: they never wrap, and never hide that rows are missing.
    #[test]
    fn counters_out_of_range_are_damage() {
        let store = MemoryStore::default();
        let limits = Limits::default();
        let mut last = record();
        last.revision = i64::MAX;
        let budget = Budget::of_write(&limits);
        let draft = Draft::new(&store, PLACE, &last, &limits, budget);
        assert!(matches!(draft, Err(StoreError::Damaged(_))));
        assert!(record().release(1).is_err());

        let current = |version, lease| {
            let meta = Meta {
                version,
                lease,
                ..Meta::default()
            };
            let mut store = MemoryStore::default();
            store.put(PLACE.current(b"k"), meta.encode());
            store
        };
        let none = LeaseId::NONE;
        assert!(put_in(&current(i64::MAX - 1, none)).is_ok());
        assert!(is_damaged(&put_in(&current(i64::MAX, none))));

        let lease = LeaseId(7);
        for (keys, key_bytes, damaged) in [(1, 1, false), (0, 1, true), (1, 0, true)] {
            let row = LeaseRow {
                ttl: 9,
                grant: 1,
                keys,
                key_bytes,
            };
            let mut store = current(1, lease);
            store.put(PLACE.lease(lease), row.encode());
            assert_eq!(is_damaged(&put_in(&store)), damaged, "{keys} {key_bytes}");
        }
    }
}
