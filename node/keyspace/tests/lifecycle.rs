//! Keyspaces that come and go, and compaction step by step.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use std::cell::Cell;
use std::num::NonZeroU64;
use std::ops::{Bound, RangeBounds};

use bytes::Bytes;
use common::{APPLYING, Keyspace, SHARD, put, span};
use keyspace::memory::MemoryStore;
use keyspace::{
    Action, Answer, Effect, KeyspaceId, KeyspaceOptions, LeaseId, Limits, Operation, Place, Put,
    Range, Refusal, Store, Table, Write, events, find, list,
};
use raft::StoreError;
use replica::{Bounds, Cursor, Order, PairReader};
use types::ShardId;

fn fresh() -> Keyspace {
    Keyspace::new(KeyspaceOptions::default())
}

fn options() -> KeyspaceOptions {
    KeyspaceOptions::default()
}

/// The rows of a keyspace, without its record.
fn rows(keyspace: &Keyspace, place: Place) -> usize {
    let (shard, _) = keyspace::rows_of_shard(place.shard);
    let id = place.id.0.to_be_bytes();
    let of = |table| keyspace.store.rows(table);
    let tables = Table::ROWS.into_iter().flat_map(of);
    let in_place = |key: &Bytes| key.starts_with(&shard) && key.slice(5..).starts_with(&id);
    tables.filter(|(key, _)| in_place(key)).count()
}

#[test]
fn a_keyspace_begins_at_revision_1() {
    let mut keyspace = fresh();
    let record = keyspace.record();
    assert_eq!(
        (record.revision, record.compacted, record.bytes),
        (1, -1, 0)
    );
    let all = keyspace.range(&Range::new(span("\0", "\0"))).unwrap();
    assert_eq!((all.revision, all.count), (1, 0));
    // Nothing is deleted, so nothing changes.
    assert_eq!(keyspace.delete("a", "\0"), 1);
    assert_eq!(keyspace.put("a", ""), 2);
    // As etcd's, the first compaction may be at revision 0.
    assert_eq!(keyspace.compact(0), Ok(()));
    let compacted = Refusal::Compacted { compacted: 0 };
    assert_eq!(keyspace.compact(0), Err(compacted));
    assert_eq!(keyspace.ok(Write::Clear), Answer::Cleared { more: false });
}

#[test]
fn deletion_is_at_once_and_clearing_is_in_steps() {
    let mut keyspace = fresh();
    let old = keyspace.place;
    keyspace.grant(1, 10).unwrap();
    for name in ["a", "b", "c"] {
        keyspace.ok(Write::Put(Put {
            lease: LeaseId(1),
            ..put(name, "old")
        }));
    }
    keyspace.delete("c", "");
    // A neighbour on each side.
    let before = keyspace.create("before", options()).unwrap();
    assert_eq!(before, KeyspaceId(2));
    assert_eq!(
        keyspace.create("tenant", options()),
        Err(Refusal::KeyspaceExists)
    );
    keyspace.ok(Write::Delete);
    assert_eq!(
        keyspace.refusal(Write::Put(put("a", ""))),
        Some(Refusal::KeyspaceNotFound)
    );
    assert_eq!(
        keyspace.refusal(Write::Delete),
        Some(Refusal::KeyspaceNotFound)
    );
    assert_eq!(find(&keyspace.store, old.shard, "tenant").unwrap(), None);
    let read = events(&keyspace.store, old, (2, 0), |_| true, (9, 9, 99));
    assert_eq!(read.unwrap(), Err(Refusal::KeyspaceNotFound));

    // The name is free, and its next keyspace has nothing of the old one.
    let id = keyspace.create("tenant", options()).unwrap();
    assert_eq!(id, KeyspaceId(3));
    let new = Place { id, ..old };
    keyspace.place = new;
    assert_eq!(
        keyspace.range(&Range::new(span("a", "\0"))).unwrap().count,
        0
    );
    keyspace.put("a", "new");

    keyspace.place = old;
    keyspace.limits.max_clear_rows = 4;
    let total = rows(&keyspace, old);
    assert_eq!(total, 2 + 4 + 1 + 4 + 1 + 2);
    let mut left = total;
    while keyspace.ok(Write::Clear) == (Answer::Cleared { more: true }) {
        let now = rows(&keyspace, old);
        assert!(now < left && now >= left.saturating_sub(4), "{left} {now}");
        left = now;
    }
    assert_eq!(rows(&keyspace, old), 0);
    assert_eq!(
        keyspace.refusal(Write::Clear),
        Some(Refusal::KeyspaceNotFound)
    );
    let all = list(&keyspace.store, old.shard, None, 9).unwrap();
    let ids: Vec<_> = all.iter().map(|(id, _)| id.0).collect();
    assert_eq!(ids, [2, 3]);
    let rest = list(&keyspace.store, old.shard, Some(KeyspaceId(2)), 9).unwrap();
    assert_eq!(rest.len(), 1);
    keyspace.place = new;
    assert_eq!(keyspace.pairs("a", "\0", 0), [("a".into(), "new".into())]);
    // Also without any keyspace left, ids go on.
    for id in [2, 3] {
        keyspace.place.id = KeyspaceId(id);
        keyspace.ok(Write::Delete);
        keyspace.clear();
    }
    assert_eq!(keyspace.create("tenant", options()), Ok(KeyspaceId(4)));
}

/// All rows of a shard.
fn rows_of_shard(store: &MemoryStore, shard: ShardId) -> Vec<(Bytes, Bytes)> {
    let (start, end) = keyspace::rows_of_shard(shard);
    let range = (Bound::Included(start), end);
    let within = |key: &Bytes| RangeBounds::<Bytes>::contains(&range, key);
    let rows = store.all().filter(|(key, _)| within(key));
    rows.map(|(key, row)| (key.clone(), row.clone())).collect()
}

/// What a hand-off does with a shard: it is copied, goes on elsewhere, and is removed.
#[test]
fn the_rows_of_a_shard_are_all_that_its_keyspaces_are() {
    let mut source = fresh();
    let shard = source.place.shard;
    source.grant(1, 10).unwrap();
    for round in 0..5 {
        for name in ["a", "b", "c"] {
            source.ok(Write::Put(Put {
                lease: LeaseId(1),
                ..put(name, &round.to_string())
            }));
        }
        source.delete("b", "");
    }
    // One keyspace is half cleared after a compaction, and another after its deletion, which had the greatest id.
    source.compact(9).unwrap();
    source.limits.max_clear_rows = 2;
    source.ok(Write::Clear);
    let tenant = source.place;
    source.place.id = source.create("other", options()).unwrap();
    source.put("x", "");
    source.ok(Write::Delete);
    source.ok(Write::Clear);
    let deleted = source.place;
    // Neighbors, also at the end of all shards.
    let others = [
        ShardId(shard.0 - 1),
        ShardId(shard.0 + 1),
        ShardId(u32::MAX >> 1),
    ];
    for other in others {
        source.place.shard = other;
        source.place.id = source.create("tenant", options()).unwrap();
        source.put("a", "");
    }
    let all = source.store.clone();
    let moved = rows_of_shard(&all, shard);
    let parts = others.map(|other| rows_of_shard(&all, other).len());
    let total = all.all().count();
    assert_eq!(parts.iter().sum::<usize>() + moved.len(), total);

    let mut copy = source.clone();
    copy.store = MemoryStore::default();
    for (key, row) in moved.clone() {
        copy.store.put(key, row);
    }
    assert_eq!(rows_of_shard(&copy.store, shard), moved);
    for keyspace in [&mut source, &mut copy] {
        keyspace.place = deleted;
        keyspace.clear();
        keyspace.place = tenant;
        keyspace.clear();
        assert_eq!(keyspace.put("b", "on"), 22);
        assert_eq!(
            keyspace.create("tenant", options()),
            Err(Refusal::KeyspaceExists)
        );
        assert_eq!(keyspace.create("other", options()), Ok(KeyspaceId(3)));
        let outcome = keyspace.write(Write::Revoke { id: LeaseId(1) });
        assert_eq!(outcome.events().len(), 2);
    }
    assert_eq!(source.record(), copy.record());
    for revision in 9..=23 {
        let range = Range {
            revision,
            ..Range::new(span("a", "\0"))
        };
        assert_eq!(source.range(&range), copy.range(&range));
    }
    let after = rows_of_shard(&source.store, shard);
    assert_eq!(rows_of_shard(&copy.store, shard), after);

    for (key, _) in after {
        source.store.remove(key);
    }
    assert!(rows_of_shard(&source.store, shard).is_empty());
    assert_eq!(list(&source.store, shard, None, 9).unwrap(), []);
    for other in others {
        assert_eq!(
            rows_of_shard(&source.store, other),
            rows_of_shard(&all, other)
        );
    }
}

#[test]
fn no_two_incarnations_have_one_cluster_id() {
    let mut keyspace = fresh();
    let first = keyspace.record().cluster_id();
    keyspace.put("a", "");
    assert_eq!(keyspace.record().cluster_id(), first);
    let backup = keyspace.store.clone();
    keyspace.ok(Write::Delete);
    let lost = keyspace.create("tenant", options()).unwrap();
    keyspace.place.id = lost;
    let second = keyspace.record().cluster_id();
    assert_ne!(second, first);
    // The restored shard gives the same id again.
    keyspace.store = backup;
    keyspace.place.id = KeyspaceId(1);
    assert_eq!(keyspace.record().cluster_id(), first);
    keyspace.place.id = keyspace.create("other", options()).unwrap();
    assert_eq!(keyspace.place.id, lost);
    let third = keyspace.record().cluster_id();
    assert!(third != first && third != second);
    // Clients take 0 for none.
    let operation = Operation {
        cluster_id: None,
        shard: keyspace.place.shard,
        limits: keyspace.limits,
        action: Action::Create {
            name: "x".to_owned(),
            options: options(),
            nonce: NonZeroU64::MIN,
        },
    };
    let mut entry = operation.encode().to_vec();
    assert_eq!(entry.pop(), Some(1));
    entry.push(0);
    let outcome = keyspace::apply(entry.into(), APPLYING, &mut keyspace.store);
    assert_eq!(outcome.unwrap().answer, Err(Refusal::Malformed));
}

#[test]
fn an_outcome_tells_what_has_changed() {
    let mut keyspace = fresh();
    let id = LeaseId(1);
    let leased = Put {
        lease: id,
        ..put("a", "")
    };
    let place = keyspace.place;
    let mut effects = |write, revision| {
        let outcome = keyspace.write(write);
        assert_eq!((outcome.place, outcome.revision), (Some(place), revision));
        outcome.effects
    };
    let (ttl, grant) = (9, 1);
    assert_eq!(
        effects(Write::Grant { id, ttl }, 1),
        [Effect::Granted { id, ttl, grant }]
    );
    // A refusal has none.
    assert_eq!(effects(Write::Grant { id, ttl }, 1), []);
    let changed = effects(Write::Put(leased), 2);
    assert!(matches!(&changed[..], [Effect::Changed(events)] if events.len() == 1));
    let compact = Write::Compact { revision: 2 };
    assert_eq!(effects(compact, 2), [Effect::Compacted { compacted: 2 }]);
    assert_eq!(effects(Write::Clear, 2), []);
    let revoked = effects(Write::Revoke { id }, 3);
    assert!(matches!(
        &revoked[..],
        [Effect::Changed(events), Effect::Revoked { id: LeaseId(1) }] if events[0].deleted
    ));
    assert_eq!(effects(Write::Delete, 3), [Effect::Deleted]);
    assert_eq!(effects(Write::Delete, 0), []);
    let create = Action::Create {
        name: "tenant".to_owned(),
        options: options(),
        nonce: NonZeroU64::MIN,
    };
    let outcome = keyspace.apply(create);
    let id = KeyspaceId(2);
    let created = (Some(Place { id, ..place }), 1);
    assert_eq!((outcome.place, outcome.revision), created);
    assert_eq!(outcome.effects, [Effect::Created]);
}

#[test]
fn a_shard_holds_as_many_keyspaces_as_the_limit() {
    let mut keyspace = fresh();
    keyspace.limits.max_keyspaces = 2;
    keyspace.create("b", options()).unwrap();
    let full = Err(Refusal::TooManyKeyspaces);
    assert_eq!(keyspace.create("c", options()), full);
    keyspace.ok(Write::Delete);
    // One that is being cleared counts.
    assert_eq!(keyspace.create("c", options()), full);
    keyspace.clear();
    assert_eq!(keyspace.create("c", options()), Ok(KeyspaceId(3)));
}

#[test]
fn compaction_clears_in_bounded_steps_and_keeps_what_can_be_read() {
    let mut keyspace = fresh();
    for round in 0..10 {
        keyspace.put("a", &round.to_string());
        keyspace.put("b", &round.to_string());
    }
    keyspace.delete("b", "");
    let newest = keyspace.record().revision;
    assert_eq!(newest, 22);
    keyspace.limits.max_clear_rows = 3;
    keyspace.compact(11).unwrap();
    // The compaction is raised again and again while it is being cleared.
    for revision in 12..=22 {
        keyspace.ok(Write::Clear);
        let pairs = keyspace.pairs("a", "\0", revision - 1);
        assert_eq!(pairs.len(), 2);
        keyspace.compact(revision).unwrap();
        let old = Range {
            revision: revision - 1,
            ..Range::new(span("a", ""))
        };
        let compacted = Refusal::Compacted {
            compacted: revision,
        };
        assert_eq!(keyspace.range(&old), Err(compacted));
    }
    keyspace.clear();
    // The version and its key, and the deletion at the compacted revision with its marks.
    assert_eq!(keyspace.record().bytes, (64 + 2) + 33 + 33 + 2 * 33);
    assert_eq!(keyspace.store.rows(Table::Versions).count(), 2);
    assert_eq!(keyspace.store.rows(Table::Events).count(), 1);
    keyspace.put("a", "last");
    keyspace.compact(23).unwrap();
    keyspace.clear();
    // The version, and the event at the compacted revision.
    assert_eq!(keyspace.store.rows(Table::Versions).count(), 1);
    assert_eq!(keyspace.store.rows(Table::Events).count(), 1);
    assert_eq!(keyspace.record().bytes, (64 + 1 + 4) + 33 + 33);
}

#[test]
fn clearing_is_bounded_by_bytes() {
    let mut keyspace = fresh();
    for name in ["a", "b", "c"] {
        keyspace.put(name, &"v".repeat(1_000));
    }
    let mut compacted = keyspace.clone();
    keyspace.ok(Write::Delete);
    keyspace.limits.max_write_bytes = 1_000;
    // All small rows before the first large one fit into one step, and then each large one ends a step.
    assert_eq!(keyspace.clear(), 4);

    let long = "k".repeat(1_000);
    for _ in 0..3 {
        compacted.put(&long, "");
    }
    compacted.compact(7).unwrap();
    let mut least = compacted.clone();
    compacted.limits.max_write_bytes = 1_000;
    assert_eq!(compacted.clear(), 3);
    // Each step gets on, also with limits of 0.
    least.limits.max_write_bytes = 0;
    least.limits.max_clear_rows = 0;
    for steps in 1..=6 {
        let more = steps < 6;
        assert_eq!(least.ok(Write::Clear), Answer::Cleared { more });
    }
    assert_eq!(least.store, compacted.store);
}

/// A store that keeps a mark of each removed row, as an LSM tree does, and counts those that cursors meet.
struct Marks {
    rows: MemoryStore,
    removed: MemoryStore,
    met: Cell<usize>,
}

impl PairReader for Marks {
    fn get(&self, table: replica::Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.rows.get(table, key)
    }

    fn cursor(
        &self,
        table: replica::Table,
        bounds: Bounds<'_>,
        order: Order,
    ) -> Result<Box<dyn Cursor + '_>, StoreError> {
        let mut removed = self.removed.cursor(table, bounds, order)?;
        while removed.next()?.is_some() {
            self.met.set(self.met.get() + 1);
        }
        self.rows.cursor(table, bounds, order)
    }
}

impl Store for Marks {
    fn put(&mut self, key: Bytes, value: Bytes) {
        self.rows.put(key, value);
    }

    fn remove(&mut self, key: Bytes) {
        self.removed.put(key.clone(), Bytes::new());
        self.rows.remove(key);
    }
}

#[test]
fn clearing_of_a_deleted_keyspace_goes_on_where_it_stopped() {
    let mut keyspace = fresh();
    for name in ["a", "b", "c", "d", "e"] {
        keyspace.put(name, "");
    }
    keyspace.delete("e", "");
    keyspace.grant(1, 10).unwrap();
    keyspace.ok(Write::Delete);
    let mut store = Marks {
        rows: keyspace.store.clone(),
        removed: MemoryStore::default(),
        met: Cell::new(0),
    };
    let clear = Operation {
        cluster_id: None,
        shard: keyspace.place.shard,
        limits: Limits {
            max_clear_rows: 2,
            ..keyspace.limits
        },
        action: Action::In(keyspace.place.id, Write::Clear),
    };
    let mut more = true;
    while more {
        let outcome = keyspace::apply(clear.encode(), APPLYING, &mut store).unwrap();
        more = outcome.answer == Ok(Answer::Cleared { more: true });
    }
    assert_eq!(rows_of_shard(&store.rows, SHARD).len(), 1);
    assert_eq!(store.met.get(), 0);
}

/// After a shard was lost, ids begin anew. Who remembers an id of before must not reach the keyspace that has it now.
#[test]
fn a_write_that_names_a_cluster_id_reaches_that_keyspace_only() {
    let mut keyspace = fresh();
    let own = NonZeroU64::new(keyspace.record().cluster_id());
    let other = own.and_then(|id| id.checked_add(1));
    let write = |cluster_id| Operation {
        shard: SHARD,
        cluster_id,
        limits: Limits::default(),
        action: Action::In(keyspace.place.id, Write::Put(put("a", ""))),
    };
    let (mut revision, writes) = (1, [None, own, other].map(|id| (id, write(id))));
    for (cluster_id, operation) in writes {
        let encoded = operation.encode();
        assert_eq!(Operation::decode(encoded.clone()), Ok(operation));
        let outcome = keyspace::apply(encoded, APPLYING, &mut keyspace.store).unwrap();
        if cluster_id == other {
            assert_eq!(outcome.answer, Err(Refusal::KeyspaceNotFound));
        } else {
            revision += 1;
        }
        assert_eq!(keyspace.record().revision, revision);
    }
}
