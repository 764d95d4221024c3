//! Random histories against the model: each answer, event, count, revision and byte.

// Numbers are small here, and helpers of tests may panic as tests do.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

mod common;

use std::collections::BTreeMap;

use common::model::Model;
use common::source::Source;
use common::{APPLYING, Keyspace};
use keyspace::{
    Action, Answer, Applying, Event, KeyspaceOptions, LeaseId, Limits, Operation, Refusal, Table,
    Write, check_txn, events, hash, previous, read_lease, read_lease_keys, read_leases, read_txn,
};

const QUOTA: u64 = 12_000;

fn options(quota_bytes: u64) -> KeyspaceOptions {
    KeyspaceOptions {
        quota_bytes,
        ..KeyspaceOptions::default()
    }
}

/// The sum of the sizes of the stored rows.
fn stored_bytes(keyspace: &Keyspace) -> u64 {
    let mut bytes = 64 * keyspace.store.rows(Table::Leases).count() as u64;
    // Shard, table and id, and then the key, as it is or escaped with its end and a revision.
    for (stored, _) in keyspace.store.rows(Table::Current) {
        bytes += 32 + (stored.len() - 13) as u64;
    }
    for (stored, _) in keyspace.store.rows(Table::LeaseKeys) {
        bytes += 32 + (stored.len() - 13 - 8) as u64;
    }
    for (stored, _) in keyspace.store.rows(Table::Deletions) {
        bytes += 32 + (stored.len() - 13 - 10) as u64;
    }
    for (_, row) in keyspace.store.rows(Table::Events) {
        // Version byte, kind, two numbers, key.
        let mut row = types::Reader::new(row.clone());
        row.byte("version").unwrap();
        row.byte("kind").unwrap();
        for _ in 0..2 {
            row.number("field").unwrap();
        }
        bytes += 32 + row.remaining() as u64;
    }
    for (stored, row) in keyspace.store.rows(Table::Versions) {
        if row.is_empty() {
            // The mark of a deletion has one more byte.
            bytes += 32 + (stored.len() - 13 - 11) as u64;
            continue;
        }
        // The row: version byte, three numbers, value. The key: shard, table, id, escaped key, end, revision.
        let mut row = types::Reader::new(row.clone());
        row.byte("version").unwrap();
        for _ in 0..3 {
            row.number("field").unwrap();
        }
        bytes += 64 + (stored.len() - 13 - 10 + row.remaining()) as u64;
    }
    bytes
}

fn check_state(keyspace: &Keyspace, model: &Model) {
    let record = keyspace.record();
    assert_eq!(record.revision, model.revision);
    assert_eq!(record.compacted, model.compacted);
    assert_eq!(record.bytes, stored_bytes(keyspace));
    assert!(record.bytes <= QUOTA);
    let marks = keyspace.store.rows(Table::Versions);
    let marks = marks.filter(|(_, row)| row.is_empty()).map(|(key, _)| {
        // Without the table, and the byte that tells it from a version.
        &key[5..key.len() - 1]
    });
    let deletions = keyspace.store.rows(Table::Deletions);
    assert!(marks.eq(deletions.map(|(key, _)| &key[5..])));
    if !record.clearing {
        assert_eq!(record.bytes, model.bytes());
        // Nothing is left of what was compacted.
        let stored = keyspace.store.rows(Table::Events).count();
        assert_eq!(stored, model.events(model.compacted).len());
    }
    let leases = read_leases(&keyspace.store, keyspace.place, None, 100).unwrap();
    let mut expected: Vec<_> = model.leases.clone().into_iter().collect();
    expected.sort_by_key(|(id, _)| id.0.cast_unsigned());
    let found: Vec<_> = leases.iter().map(|lease| (lease.id, lease.ttl)).collect();
    assert_eq!(found, expected);
    for id in [1, 2, -3].map(LeaseId) {
        let keys = read_lease_keys(&keyspace.store, keyspace.place, id).unwrap();
        assert_eq!(keys, Vec::from_iter(model.lease_keys(id)), "{id}");
        let lease = read_lease(&keyspace.store, keyspace.place, id).unwrap();
        assert_eq!(lease.map_or(0, |lease| lease.keys) as usize, keys.len());
    }
}

fn check_reads(keyspace: &Keyspace, model: &Model, source: &mut Source) {
    for _ in 0..4 {
        let range = source.range(model.revision);
        assert_eq!(keyspace.range(&range), model.range(&range), "{range:?}");
    }
    let mut txn = source.txn(model.revision, 0);
    if txn.is_read_only() && check_txn(&txn, &Limits::default()).is_ok() {
        let mut model = model.clone();
        let expected = model.write(&Write::Txn(txn.clone()), 0).0;
        let answer = read_txn(
            &keyspace.store,
            keyspace.place,
            &txn,
            &Limits::default(),
            u64::MAX,
        );
        assert_eq!(answer.unwrap().map(Answer::Txn), expected);
    }
    txn.success.clear();
    check_events(keyspace, model, source);
}

fn check_events(keyspace: &Keyspace, model: &Model, source: &mut Source) {
    let from = model.revision - source.random.below(10) as i64;
    let mut page = (from, 0);
    let mut found: Vec<Event> = Vec::new();
    loop {
        let size = (1 + source.random.below(4) as usize, 3, 200);
        let read = events(&keyspace.store, keyspace.place, page, |_| true, size).unwrap();
        if from < model.compacted {
            let compacted = model.compacted;
            assert_eq!(read, Err(Refusal::Compacted { compacted }));
            return;
        }
        let read = read.unwrap();
        assert_eq!(read.revision, model.revision);
        found.extend(read.events);
        match read.next {
            Some(next) => page = next,
            None => break,
        }
    }
    assert_eq!(found, model.events(from));
    for event in &found {
        let before = previous(&keyspace.store, keyspace.place, event).unwrap();
        let revision = event.kv.mod_revision - 1;
        let created = !event.deleted && event.kv.create_revision == event.kv.mod_revision;
        let expected = (revision >= model.compacted && !created)
            .then(|| model.state(revision).remove(&event.kv.key))
            .flatten();
        assert_eq!(before, expected, "{event:?}");
    }
}

#[test]
fn random_histories_agree_with_the_model() {
    let mut seen = BTreeMap::new();
    for seed in 0..120 {
        let mut source = Source::new(seed);
        // A third of the keyspaces is full most of the time.
        let quota = if seed % 3 == 0 { QUOTA / 6 } else { QUOTA };
        let mut keyspace = Keyspace::new(options(quota));
        keyspace.limits.max_clear_rows = 1 + source.random.below(4) as u32;
        let mut model = Model::new(quota);
        for _ in 0..150 {
            let write = source.write(model.revision);
            if let Write::Txn(txn) = &write
                && check_txn(txn, &keyspace.limits).is_err()
            {
                continue;
            }
            let bytes = keyspace.record().bytes;
            let before = keyspace.clone();
            let outcome = keyspace.write(write.clone());
            let (answer, events) = model.write(&write, bytes);
            assert_eq!(outcome.answer, answer, "seed {seed}: {write:?}");
            assert_eq!(outcome.events(), events, "seed {seed}: {write:?}");
            *seen
                .entry(answer.as_ref().err().map(ToString::to_string))
                .or_insert(0) += 1;
            if let Err(refusal) = answer
                && refusal != Refusal::NoSpace
            {
                assert!(keyspace.store == before.store, "changed by a refusal");
            }
            if source.random.one_in(3) {
                keyspace.ok(Write::Clear);
            }
            check_state(&keyspace, &model);
            check_reads(&keyspace, &model, &mut source);
        }
        keyspace.clear();
        check_state(&keyspace, &model);
    }
    // Each kind of refusal was met, so the histories are not trivial.
    assert_eq!(seen.len(), 7, "{seen:?}");
    assert!(seen[&None] > 10_000, "{seen:?}");
}

#[test]
fn replicas_agree_whatever_they_answer_and_wherever_clearing_is() {
    for seed in 0..100 {
        let mut source = Source::new(1_000 + seed);
        let mut leader = Keyspace::new(options(QUOTA));
        leader.limits.max_clear_rows = 2;
        let mut follower = leader.clone();
        follower.applying.answer = false;
        // One whose clearing lags behind: a replica of another state, but with the same hash and readable revisions.
        let mut lagging = leader.clone();
        for _ in 0..120 {
            let newest = leader.record().revision;
            let write = if source.random.one_in(4) {
                Write::Clear
            } else {
                source.write(newest)
            };
            let answer = leader.write(write.clone());
            let unheard = follower.write(write.clone());
            assert!(leader.store == follower.store);
            assert_eq!(answer.effects, unheard.effects);
            assert_eq!(answer.answer.is_ok(), unheard.answer.is_ok());
            if write != Write::Clear && answer.answer != Err(Refusal::NoSpace) {
                lagging.write(write);
            }
            let record = leader.record();
            let revision = record.revision - source.random.below(5) as i64;
            let hashes = [&leader, &lagging].map(|of| hash(&of.store, of.place, revision).unwrap());
            if lagging.record().revision == record.revision {
                assert_eq!(hashes[0], hashes[1], "seed {seed}");
            }
        }
    }
}

#[test]
fn hashes_differ_when_the_data_differ() {
    let mut one = Keyspace::new(options(QUOTA));
    let mut other = one.clone();
    let of = |keyspace: &Keyspace, revision| {
        hash(&keyspace.store, keyspace.place, revision)
            .unwrap()
            .unwrap()
            .hash
    };
    one.put("a", "1");
    other.put("a", "2");
    assert_ne!(of(&one, 0), of(&other, 0));
    // The first versions are compacted in both, and then nothing else differs.
    one.put("a", "3");
    other.put("a", "3");
    assert_ne!(of(&one, 0), of(&other, 0));
    assert_ne!(of(&one, 2), of(&one, 3));
    for keyspace in [&mut one, &mut other] {
        keyspace.compact(3).unwrap();
    }
    assert_eq!(of(&one, 0), of(&other, 0));
    one.clear();
    assert_eq!(of(&one, 0), of(&other, 0));
    assert_eq!(of(&one, 3), of(&other, 0));
    assert_eq!(
        hash(&one.store, one.place, 2).unwrap(),
        Err(Refusal::Compacted { compacted: 3 })
    );
    assert_eq!(
        hash(&one.store, one.place, 4).unwrap(),
        Err(Refusal::FutureRevision)
    );
}

/// Changes bytes of encoded operations, and applies whatever still decodes.
#[test]
fn no_bytes_panic() {
    let mut source = Source::new(5);
    let mut keyspace = Keyspace::new(options(QUOTA));
    let mut applied = 0;
    for round in 0..6_000 {
        let operation = Operation {
            cluster_id: None,
            shard: keyspace.place.shard,
            limits: Limits::default(),
            action: Action::In(keyspace.place.id, source.write(3)),
        };
        let mut entry = operation.encode().to_vec();
        for _ in 0..source.random.below(4) {
            let at = source.random.below(entry.len() as u64) as usize;
            match source.random.below(3) {
                0 => entry[at] = source.random.draw() as u8,
                1 => entry.truncate(at.max(1)),
                _ => entry.insert(at, source.random.draw() as u8),
            }
        }
        let entry = bytes::Bytes::from(entry);
        if let Ok(decoded) = Operation::decode(entry.clone()) {
            assert_eq!(Operation::decode(decoded.encode()), Ok(decoded));
        }
        let at = Applying {
            answer: round % 2 == 0,
            ..APPLYING
        };
        let outcome = keyspace::apply(entry, at, &mut keyspace.store).unwrap();
        applied += u32::from(outcome.answer.is_ok());
    }
    assert!(applied > 300, "{applied}");
}
