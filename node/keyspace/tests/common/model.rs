//! A keyspace, told in the simplest way: a list of all changes, from which everything is computed anew.
//!
//! It shares no code with the crate but the types of requests and answers, and follows etcd's rules by other means: a state is
//! the changes up to a revision, replayed.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use keyspace::{
    Answer, Compare, DeleteRange, DeleteRangeAnswer, Event, KeyValue, LeaseId, Op, OpAnswer, Put,
    PutAnswer, Range, RangeAnswer, Refusal, Relation, SortOrder, SortTarget, Span, Target, Txn,
    TxnAnswer, Write,
};

/// The bytes that the crate counts for a row beside keys and values.
const ROW_BYTES: u64 = 32;
const LEASE_BYTES: u64 = 64;

/// A row with the key as it is.
fn plain(key: &[u8]) -> u64 {
    ROW_BYTES + key.len() as u64
}

/// A row with the key escaped.
fn escaped(key: &[u8]) -> u64 {
    let zeros = key.iter().map(|byte| u64::from(*byte == 0));
    plain(key) + zeros.sum::<u64>()
}

/// The pairs at a revision.
type State = BTreeMap<Bytes, KeyValue>;

#[derive(Clone, Debug)]
pub struct Model {
    /// All changes ever. A deletion has only key and revision.
    pub changes: Vec<Event>,
    pub revision: i64,
    pub compacted: i64,
    pub leases: BTreeMap<LeaseId, i64>,
    /// The number of leases that were ever granted.
    pub grants: u64,
    pub quota: u64,
}

fn within(span: &Span, key: &Bytes) -> bool {
    match span {
        Span::Key(only) => only == key,
        Span::Range(start, end) => start <= key && key < end,
        Span::From(start) => start <= key,
    }
}

impl Model {
    pub fn new(quota: u64) -> Self {
        Self {
            changes: Vec::new(),
            revision: 1,
            compacted: -1,
            leases: BTreeMap::new(),
            grants: 0,
            quota,
        }
    }

    fn compacted(&self) -> Refusal {
        Refusal::Compacted {
            compacted: self.compacted,
        }
    }

    /// The pairs at a revision.
    pub fn state(&self, revision: i64) -> State {
        let mut state = State::new();
        for change in &self.changes {
            if change.kv.mod_revision > revision {
                break;
            }
            if change.deleted {
                state.remove(&change.kv.key);
            } else {
                state.insert(change.kv.key.clone(), change.kv.clone());
            }
        }
        state
    }

    /// The bytes after all clearing: events from the compacted revision on with the marks of their deletions, versions that can be
    /// read, those at the compacted revision that a watch needs, keys, leases and their keys.
    pub fn bytes(&self) -> u64 {
        let mut total = self.leases.len() as u64 * LEASE_BYTES;
        for kv in self.state(self.revision).values() {
            let attached = u64::from(kv.lease.0 != 0);
            total += (1 + attached) * plain(&kv.key);
        }
        for (at, change) in self.changes.iter().enumerate() {
            let (key, own) = (&change.kv.key, change.kv.mod_revision);
            let later = self.changes[at + 1..].iter();
            let replaced = later
                .filter(|later| later.kv.key == *key)
                .map(|later| later.kv.mod_revision)
                .next();
            if own >= self.compacted {
                total += plain(key);
                if change.deleted && replaced != Some(own) {
                    total += 2 * escaped(key);
                }
            }
            let gone = replaced.is_some_and(|at| at <= self.compacted && own < self.compacted);
            if !change.deleted && !gone {
                total += ROW_BYTES + escaped(key) + change.kv.value.len() as u64;
            }
        }
        total
    }

    /// The bytes that changes from `before` on add, and those that they remove at once.
    fn growth(&self, old: &Self, before: usize) -> (u64, u64) {
        let rows = |state: &State| -> u64 {
            let row = |kv: &KeyValue| (1 + u64::from(kv.lease.0 != 0)) * plain(&kv.key);
            state.values().map(row).sum()
        };
        let own = old.revision + 1;
        let mut added = rows(&self.state(own));
        let changes = &self.changes[before..];
        for (at, change) in changes.iter().enumerate() {
            let key = &change.kv.key;
            added += plain(key);
            let mut later = changes[at + 1..].iter();
            if !change.deleted {
                added += ROW_BYTES + escaped(key) + change.kv.value.len() as u64;
            } else if !later.any(|later| later.kv.key == *key) {
                added += 2 * escaped(key);
            }
        }
        (added, rows(&old.state(old.revision)))
    }

    /// The events from a revision on.
    pub fn events(&self, from: i64) -> Vec<Event> {
        let events = self.changes.iter();
        events
            .filter(|event| event.kv.mod_revision >= from)
            .cloned()
            .collect()
    }

    pub fn range(&self, range: &Range) -> Result<RangeAnswer, Refusal> {
        if range.revision > self.revision {
            return Err(Refusal::FutureRevision);
        }
        if range.revision > 0 && range.revision < self.compacted {
            return Err(self.compacted());
        }
        Ok(self.ranged(range))
    }

    fn ranged(&self, range: &Range) -> RangeAnswer {
        let at = if range.revision > 0 {
            range.revision
        } else {
            self.revision
        };
        let state = self.state(at);
        let all: Vec<KeyValue> = state
            .into_values()
            .filter(|kv| within(&range.span, &kv.key))
            .collect();
        let count = all.len() as i64;
        let mut ranged = RangeAnswer {
            revision: self.revision,
            count,
            ..RangeAnswer::default()
        };
        if range.count_only {
            return ranged;
        }
        let (mut kvs, limit) = cut_early(range, all);
        kvs.retain(|kv| {
            (range.max_mod_revision == 0 || kv.mod_revision <= range.max_mod_revision)
                && (range.min_mod_revision == 0 || kv.mod_revision >= range.min_mod_revision)
                && (range.max_create_revision == 0
                    || kv.create_revision <= range.max_create_revision)
                && (range.min_create_revision == 0
                    || kv.create_revision >= range.min_create_revision)
        });
        match range.sort_target {
            SortTarget::Key => kvs.sort_by_key(|kv| kv.key.clone()),
            SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
            SortTarget::Create => kvs.sort_by_key(|kv| kv.create_revision),
            SortTarget::Mod => kvs.sort_by_key(|kv| kv.mod_revision),
            SortTarget::Value => kvs.sort_by_key(|kv| kv.value.clone()),
        }
        if range.sort_order == SortOrder::Descending {
            kvs = descending(range.sort_target, &kvs);
        }
        if let Some(limit) = limit {
            ranged.more = kvs.len() > limit;
            kvs.truncate(limit);
        }
        if range.keys_only {
            for kv in &mut kvs {
                kv.value = Bytes::new();
                if range.sort_target != SortTarget::Value {
                    kv.lease = LeaseId(0);
                }
            }
        }
        ranged.kvs = kvs;
        ranged
    }

    /// Carries out a write. Returns the answer and the events. `bytes` is what counts against the quota before, which depends on
    /// how far clearing has come.
    pub fn write(&mut self, write: &Write, bytes: u64) -> (Result<Answer, Refusal>, Vec<Event>) {
        let mut next = self.clone();
        let answer = next.carry_out(write, bytes);
        if answer.is_ok() {
            let changed = next.changes.len() > self.changes.len();
            assert_eq!(changed, next.revision > self.revision);
            let events = next.changes[self.changes.len()..].to_vec();
            *self = next;
            (answer, events)
        } else {
            (answer, Vec::new())
        }
    }

    fn carry_out(&mut self, write: &Write, bytes: u64) -> Result<Answer, Refusal> {
        let before = self.changes.len();
        let old = self.clone();
        let answer = match write {
            Write::Put(put) => {
                self.check_put(put)?;
                Answer::Put(self.put(put)?)
            }
            Write::DeleteRange(request) => Answer::DeleteRange(self.delete_range(request)),
            Write::Txn(txn) => {
                old.check_txn(txn)?;
                let mut answer = self.txn(&old, txn)?;
                answer.revision = self.newest(before);
                Answer::Txn(answer)
            }
            Write::Compact { revision } => {
                if *revision <= self.compacted {
                    return Err(self.compacted());
                }
                if *revision > self.revision {
                    return Err(Refusal::FutureRevision);
                }
                self.compacted = *revision;
                return Ok(self.done());
            }
            Write::Grant { id, ttl } => {
                if self.leases.contains_key(id) {
                    return Err(Refusal::LeaseExists);
                }
                if bytes + LEASE_BYTES > self.quota {
                    return Err(Refusal::NoSpace);
                }
                let ttl = (*ttl).max(2);
                self.leases.insert(*id, ttl);
                self.grants += 1;
                return Ok(Answer::Granted {
                    revision: self.revision,
                    id: *id,
                    ttl,
                    grant: self.grants,
                });
            }
            Write::Revoke { id } => {
                self.leases.remove(id).ok_or(Refusal::LeaseNotFound)?;
                let state = self.state(self.revision);
                for key in state
                    .values()
                    .filter(|kv| kv.lease == *id)
                    .map(|kv| &kv.key)
                {
                    self.delete(key);
                }
                self.revision = self.newest(before);
                return Ok(self.done());
            }
            other => panic!("not in the model: {other:?}"),
        };
        let puts = self.changes[before..].iter().any(|change| !change.deleted);
        let (added, removed) = self.growth(&old, before);
        if puts && added > removed && bytes.saturating_add(added) - removed > self.quota {
            return Err(Refusal::NoSpace);
        }
        self.revision = self.newest(before);
        Ok(answer)
    }

    fn done(&self) -> Answer {
        Answer::Done {
            revision: self.revision,
        }
    }

    /// The newest revision, if the changes from `before` on are of this write.
    fn newest(&self, before: usize) -> i64 {
        self.revision + i64::from(self.changes.len() > before)
    }

    /// The pairs as the next operation of the write sees them.
    fn now(&self) -> State {
        self.state(self.revision + 1)
    }

    fn change(&mut self, kv: KeyValue, deleted: bool) {
        let own = self.revision + 1;
        let same = self.changes.iter().rev();
        let position = same
            .take_while(|change| change.kv.mod_revision == own)
            .count();
        self.changes.push(Event {
            kv,
            deleted,
            position: u32::try_from(position).unwrap(),
        });
    }

    fn delete(&mut self, key: &Bytes) {
        let kv = KeyValue {
            key: key.clone(),
            mod_revision: self.revision + 1,
            ..KeyValue::default()
        };
        self.change(kv, true);
    }

    fn check_put(&self, put: &Put) -> Result<(), Refusal> {
        if put.lease.0 != 0 && !self.leases.contains_key(&put.lease) {
            return Err(Refusal::LeaseNotFound);
        }
        let keeps = put.ignore_value || put.ignore_lease;
        if keeps && !self.now().contains_key(&put.key) {
            return Err(Refusal::KeyNotFound);
        }
        Ok(())
    }

    fn put(&mut self, put: &Put) -> Result<PutAnswer, Refusal> {
        let old = self.now().remove(&put.key);
        let own = self.revision + 1;
        let mut kv = KeyValue {
            key: put.key.clone(),
            value: put.value.clone(),
            create_revision: own,
            mod_revision: own,
            version: 1,
            lease: put.lease,
        };
        match &old {
            Some(old) => {
                kv.create_revision = old.create_revision;
                kv.version = old.version + 1;
                if put.ignore_value {
                    kv.value = old.value.clone();
                }
                if put.ignore_lease {
                    kv.lease = old.lease;
                }
            }
            None if put.ignore_value || put.ignore_lease => return Err(Refusal::KeyNotFound),
            None => {}
        }
        self.change(kv, false);
        Ok(PutAnswer {
            revision: own,
            prev_kv: old.filter(|_| put.prev_kv),
        })
    }

    fn delete_range(&mut self, request: &DeleteRange) -> DeleteRangeAnswer {
        let own = self.revision + 1;
        let state = self.now();
        let gone: Vec<KeyValue> = state
            .into_values()
            .filter(|kv| within(&request.span, &kv.key))
            .collect();
        for kv in &gone {
            self.delete(&kv.key);
        }
        let changed = self
            .changes
            .last()
            .is_some_and(|change| change.kv.mod_revision == own);
        DeleteRangeAnswer {
            revision: self.revision + i64::from(changed),
            deleted: gone.len() as i64,
            prev_kvs: if request.prev_kv { gone } else { Vec::new() },
        }
    }

    fn path<'t>(&self, txn: &'t Txn) -> (bool, &'t [Op]) {
        let holds = txn.compare.iter().all(|compare| self.holds(compare));
        (holds, if holds { &txn.success } else { &txn.failure })
    }

    fn holds(&self, compare: &Compare) -> bool {
        let state = self.state(self.revision);
        let mut kvs: Vec<KeyValue> = state
            .into_values()
            .filter(|kv| within(&compare.span, &kv.key))
            .collect();
        if kvs.is_empty() {
            if matches!(compare.target, Target::Value(_)) {
                return false;
            }
            kvs.push(KeyValue::default());
        }
        kvs.iter().all(|kv| {
            let order = match &compare.target {
                Target::Version(version) => kv.version.cmp(version),
                Target::Create(revision) => kv.create_revision.cmp(revision),
                Target::Mod(revision) => kv.mod_revision.cmp(revision),
                Target::Lease(lease) => kv.lease.0.cmp(lease),
                Target::Value(value) => kv.value.cmp(value),
                Target::Unknown => std::cmp::Ordering::Equal,
            };
            match compare.relation {
                Relation::Equal => order.is_eq(),
                Relation::NotEqual => order.is_ne(),
                Relation::Less => order.is_lt(),
                Relation::Greater => order.is_gt(),
                Relation::Unknown => true,
            }
        })
    }

    /// Checks by the state before; `self` is that.
    fn check_txn(&self, txn: &Txn) -> Result<(), Refusal> {
        for op in self.path(txn).1 {
            match op {
                Op::Range(range) if range.revision > self.revision => {
                    return Err(Refusal::FutureRevision);
                }
                Op::Range(range) if range.revision != 0 && range.revision < self.compacted => {
                    return Err(self.compacted());
                }
                Op::Put(put) => self.check_put(put)?,
                Op::Txn(nested) => self.check_txn(nested)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn txn(&mut self, old: &Self, txn: &Txn) -> Result<TxnAnswer, Refusal> {
        let (succeeded, ops) = old.path(txn);
        let mut responses = Vec::new();
        for op in ops {
            responses.push(match op {
                Op::Range(range) => {
                    let mut now = self.clone();
                    now.revision = self.newest(old.changes.len());
                    OpAnswer::Range(now.ranged(range))
                }
                Op::Put(put) => OpAnswer::Put(self.put(put)?),
                Op::DeleteRange(request) => OpAnswer::DeleteRange(self.delete_range(request)),
                Op::Txn(nested) => OpAnswer::Txn(self.txn(old, nested)?),
            });
        }
        Ok(TxnAnswer {
            revision: 0,
            succeeded,
            responses,
        })
    }

    /// The keys of a lease.
    pub fn lease_keys(&self, id: LeaseId) -> BTreeSet<Bytes> {
        let state = self.state(self.revision).into_values();
        state.filter(|kv| kv.lease == id).map(|kv| kv.key).collect()
    }
}

/// Cuts a range before it is sorted, where etcd does. Returns the limit that is still to be applied.
fn cut_early(range: &Range, mut all: Vec<KeyValue>) -> (Vec<KeyValue>, Option<usize>) {
    let limit = usize::try_from(range.limit).ok().filter(|limit| *limit > 0);
    let filtered = range.min_mod_revision != 0
        || range.max_mod_revision != 0
        || range.min_create_revision != 0
        || range.max_create_revision != 0;
    let plain = range.sort_order == SortOrder::None
        || (range.sort_order == SortOrder::Ascending && range.sort_target == SortTarget::Key);
    if let Some(limit) = limit
        && plain
        && !filtered
    {
        all.truncate(limit + 1);
    }
    (all, limit)
}

/// Reverses the order but leaves ties in the order of keys.
fn descending(target: SortTarget, kvs: &[KeyValue]) -> Vec<KeyValue> {
    let same = |a: &KeyValue, b: &KeyValue| match target {
        SortTarget::Key => a.key == b.key,
        SortTarget::Version => a.version == b.version,
        SortTarget::Create => a.create_revision == b.create_revision,
        SortTarget::Mod => a.mod_revision == b.mod_revision,
        SortTarget::Value => a.value == b.value,
    };
    let runs: Vec<Vec<KeyValue>> = kvs.chunk_by(same).map(<[_]>::to_vec).collect();
    runs.into_iter().rev().flatten().collect()
}
