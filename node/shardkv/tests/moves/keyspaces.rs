//! Keyspaces of a shard: where their operations are applied, and what the server is told.

use std::num::NonZeroU64;

use bytes::Bytes;
use keyspace::{
    Action, Answer, Effect, KeyspaceId, KeyspaceOptions, Limits, Operation, Outcome, Place, Put,
    Range, Refusal, Span, Write, find, range,
};
use shardkv::{
    Genesis, GroupKind, KEYSPACE_LEVEL, KeyspaceChanges, KvError, Response, ShardKv,
    encode_keyspace_operation, read_keyspaces,
};
use types::ShardId;

use crate::common::{Replica, SHARDS_GENESIS};
use crate::stage::{Configs, Group, SHARD, SHARDS, two, wrong_group};

const PLACE: Place = Place {
    shard: SHARD,
    id: KeyspaceId(1),
};

fn operation(shard: ShardId, action: Action) -> Bytes {
    encode_keyspace_operation(&Operation {
        cluster_id: None,
        shard,
        limits: Limits::default(),
        action,
    })
}

fn create(name: &str) -> Bytes {
    let action = Action::Create {
        name: name.to_owned(),
        options: KeyspaceOptions::default(),
        nonce: NonZeroU64::MIN,
    };
    operation(SHARD, action)
}

fn put(key: &str) -> Bytes {
    let put = Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        ..Put::default()
    };
    operation(SHARD, Action::In(PLACE.id, Write::Put(put)))
}

fn apply(replica: &mut Replica, operation: Bytes) -> Response {
    replica.apply_bytes(1_000, 100, operation)
}

fn outcome(response: Response) -> Outcome {
    match response {
        Response::Keyspace(outcome) => *outcome,
        other => panic!("not applied: {other:?}"),
    }
}

/// Reads the newest revision of a key.
fn read(replica: &Replica, shard: ShardId) -> Result<Result<i64, Refusal>, KvError> {
    let place = Place { shard, ..PLACE };
    let read = read_keyspaces(&replica.state, shard, |reader| {
        let span = Span::Key(Bytes::from_static(b"k"));
        range(reader, place, &Range::new(span), 1_000)
    });
    let revision = |answer: Result<keyspace::RangeAnswer, Refusal>| answer.map(|it| it.revision);
    read.unwrap().map(revision)
}

fn standalone() -> Replica {
    let mut replica = Replica::new(Genesis {
        kind: GroupKind::Standalone,
        ..SHARDS_GENESIS
    });
    replica.level = KEYSPACE_LEVEL;
    replica
}

#[test]
fn an_operation_is_applied_from_the_level_on() {
    let mut replica = standalone();
    let before = replica.state.pairs().clone();
    replica.level = KEYSPACE_LEVEL - 1;
    let (level, needed) = (replica.level, KEYSPACE_LEVEL);
    let refused = Response::Refused(KvError::FeatureLevel { level, needed });
    assert_eq!(apply(&mut replica, create("a")), refused);
    assert_eq!(*replica.state.pairs(), before);

    replica.level = needed;
    let created = outcome(apply(&mut replica, create("a")));
    assert_eq!(created.answer, Ok(Answer::Created { id: PLACE.id }));
    assert_eq!(outcome(apply(&mut replica, put("k"))).revision, 2);
    assert_eq!(read(&replica, SHARD), Ok(Ok(2)));
    let found = read_keyspaces(&replica.state, SHARD, |reader| find(reader, SHARD, "a"));
    assert_eq!(found.unwrap(), Ok(Some(PLACE.id)));
    let again = outcome(apply(&mut replica, create("a")));
    assert_eq!(again.answer, Err(Refusal::KeyspaceExists));
    replica.restart();
    assert_eq!(outcome(apply(&mut replica, put("k"))).revision, 3);
}

#[test]
fn what_is_no_operation_of_a_keyspace_changes_nothing() {
    let mut replica = standalone();
    let before = replica.state.pairs().clone();
    let shards = SHARDS;
    let shard = ShardId(shards);
    let far = operation(shard, Action::In(PLACE.id, Write::Clear));
    let no_shard = Response::Refused(KvError::NoShard { shard, shards });
    assert_eq!(apply(&mut replica, far), no_shard);
    assert_eq!(
        read(&replica, shard),
        Err(KvError::NoShard { shard, shards })
    );
    let whole = put("k");
    for length in 2..whole.len() {
        match apply(&mut replica, whole.slice(..length)) {
            Response::Refused(KvError::Malformed(_)) => {}
            Response::Keyspace(outcome) => assert_eq!(outcome.answer, Err(Refusal::Malformed)),
            other => panic!("{other:?}"),
        }
    }
    let absent = outcome(apply(&mut replica, whole));
    assert_eq!(absent.answer, Err(Refusal::KeyspaceNotFound));
    assert_eq!(*replica.state.pairs(), before);
}

#[test]
fn only_the_group_that_serves_the_shard_applies_and_reads() {
    let (mut a, mut b, mut configs) = two([1_000, 1_000]);
    for group in [&mut a, &mut b] {
        group.replica.level = KEYSPACE_LEVEL;
    }
    outcome(apply(&mut a.replica, create("a")));
    outcome(apply(&mut a.replica, put("k")));
    let elsewhere = |group: &mut Group, config| {
        let before = group.replica.state.pairs().clone();
        assert_eq!(apply(&mut group.replica, put("k")), wrong_group(config));
        let Response::Refused(error) = wrong_group(config) else {
            panic!("it is a refusal");
        };
        assert_eq!(read(&group.replica, SHARD), Err(error));
        assert_eq!(*group.replica.state.pairs(), before);
    };
    elsewhere(&mut b, 1);
    a.follow(&configs.give(2));
    elsewhere(&mut a, 2);
}

#[test]
fn changes_are_told_in_the_order_of_the_log() {
    let mut replica = standalone();
    outcome(apply(&mut replica, create("before")));
    assert_eq!(
        replica.machine.take_keyspace_changes(),
        KeyspaceChanges::default(),
        "nobody asked"
    );
    replica.machine = ShardKv::new().collecting_keyspace_changes();
    let reload = |replica: &mut Replica| {
        use replica::StateMachine as _;
        replica.machine.reload(&replica.state).unwrap();
    };
    reload(&mut replica);
    outcome(apply(&mut replica, put("k")));
    outcome(apply(&mut replica, put("")));
    outcome(apply(&mut replica, put("l")));
    let taken = replica.machine.take_keyspace_changes();
    assert!(taken.replaced, "it has just started");
    let told: Vec<_> = taken
        .changes
        .iter()
        .map(|change| (change.place, change.revision, change.effects.len()))
        .collect();
    // A refusal is no change.
    assert_eq!(told, [(PLACE, 2, 1), (PLACE, 3, 1)]);
    let first = taken.changes.first().and_then(|it| it.effects.first());
    let Some(Effect::Changed(events)) = first else {
        panic!("a put changes a key");
    };
    assert_eq!(events.first().unwrap().kv.key, b"k"[..]);
    assert_eq!(
        replica.machine.take_keyspace_changes(),
        KeyspaceChanges::default()
    );
    outcome(apply(&mut replica, put("m")));
    reload(&mut replica);
    let taken = replica.machine.take_keyspace_changes();
    assert!(taken.replaced && taken.changes.is_empty(), "{taken:?}");
}

/// Returns the cluster id and the revision of the keyspace, by its record.
fn record(replica: &Replica) -> Option<(NonZeroU64, i64)> {
    let read = |reader: &dyn replica::PairReader| keyspace::record(reader, PLACE);
    let record = read_keyspaces(&replica.state, SHARD, read)
        .unwrap()
        .unwrap();
    let told = |it: keyspace::Record| (NonZeroU64::new(it.cluster_id()).unwrap(), it.revision);
    record.ok().map(told)
}

/// A group gets a shard back as it gave it, because the group that had it is gone for good. Revisions go back, so the cluster id is
/// another one: no client takes the new revisions for those that it knows, and no old operation is carried out.
#[test]
fn a_shard_that_goes_on_from_an_older_state_has_new_cluster_ids() {
    let (mut a, mut b, mut configs) = two([1_000, 1_000]);
    let mut other = Group::new(1, 1_000);
    other.follow(&Configs::new().give(1));
    for group in [&mut a, &mut b, &mut other] {
        group.replica.level = KEYSPACE_LEVEL;
    }
    let second = configs.give(2);
    for group in [&mut a, &mut other] {
        outcome(apply(&mut group.replica, create("a")));
        outcome(apply(&mut group.replica, put("k")));
        assert_eq!(record(&group.replica), Some((NonZeroU64::MIN, 2)));
        group.follow(&second);
    }
    b.follow(&second);
    b.install_from(&a, 2);
    assert_eq!(outcome(apply(&mut b.replica, put("k"))).revision, 3);
    assert_eq!(
        record(&b.replica),
        Some((NonZeroU64::MIN, 3)),
        "a move keeps it"
    );

    let back = configs.forget(2, [1; SHARDS as usize]);
    a.follow(&back);
    other.follow(&back);
    let (cluster_id, revision) = record(&a.replica).unwrap();
    assert_ne!(cluster_id, NonZeroU64::MIN);
    assert_eq!(revision, 2);
    assert_eq!(
        record(&other.replica),
        Some((cluster_id, 2)),
        "replicas agree"
    );
    let meant = |cluster_id| {
        encode_keyspace_operation(&Operation {
            cluster_id: Some(cluster_id),
            shard: SHARD,
            limits: Limits::default(),
            action: Action::In(PLACE.id, Write::Compact { revision: 2 }),
        })
    };
    let old = outcome(apply(&mut a.replica, meant(NonZeroU64::MIN)));
    assert_eq!(old.answer, Err(Refusal::KeyspaceNotFound));
    a.replica.restart();
    assert_eq!(record(&a.replica), Some((cluster_id, 2)));
    let new = outcome(apply(&mut a.replica, meant(cluster_id)));
    assert_eq!(new.answer, Ok(Answer::Done { revision: 2 }));
}
