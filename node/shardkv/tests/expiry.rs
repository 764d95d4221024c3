//! Sessions and journals are forgotten without writes, by the leader's upkeep.

mod common;

use common::{GENESIS, Replica, append, session};
use replica::{StateMachine, StateStore};
use shardkv::{Command, Genesis, KvError, Response, SessionRef};
use types::{ClientId, LogTime, Sequence};

const TTL: u64 = GENESIS.session_ttl_ms;
const MANY: Genesis = Genesis {
    shards: 10_000,
    max_sessions_per_shard: 10_000,
    ..GENESIS
};

/// Writes by many sessions, in one batch.
fn write(replica: &mut Replica, time: u64, sessions: u64, key: impl Fn(u64) -> String) {
    let first = replica.state.applied().last.index.0 + 1;
    let steps = (0..sessions).map(|nonce| common::Step {
        index: first + nonce,
        time,
        max_value_bytes: 100,
        operation: Command {
            session: Some(SessionRef {
                client: ClientId {
                    birth: LogTime(time),
                    nonce,
                },
                sequence: Sequence(1),
                acked_below: Sequence(1),
            }),
            write: append(&key(nonce), "x"),
        }
        .encode(),
    });
    replica.batch(&steps.collect::<Vec<_>>());
}

/// Applies upkeep at a time until none is due. Returns the number of operations.
fn keep_up(replica: &mut Replica, time: u64, at_most: u32) -> u32 {
    let (mut operations, mut idle) = (0, 0);
    while idle < 20 {
        let Some(operation) = replica.machine.upkeep(LogTime(time)) else {
            idle += 1;
            continue;
        };
        idle = 0;
        operations += 1;
        assert!(operations <= at_most, "upkeep has no end");
        let response = replica.apply_bytes(time, 100, operation);
        assert_eq!(response, Response::Stepped);
    }
    operations
}

#[test]
fn silent_sessions_are_forgotten_without_writes() {
    let mut replica = Replica::new(GENESIS);
    let birth = 100_000;
    replica.apply(birth, session(birth, 1, 1), append("key", "x"));
    assert_eq!(replica.machine.session_count(), 1);
    assert_eq!(
        replica.machine.upkeep(LogTime(birth + TTL)),
        None,
        "not yet"
    );
    let late = birth + TTL + 1;
    assert_eq!(keep_up(&mut replica, late, 1), 1);
    assert_eq!(replica.machine.session_count(), 0);
    // A late copy is refused, also after a restart: the horizon is durable.
    for _ in 0..2 {
        let copy = replica.apply(late, session(birth, 1, 1), append("key", "x"));
        assert_eq!(copy, Response::Refused(KvError::SessionExpired));
        replica.restart();
        assert_eq!(replica.machine.session_count(), 0);
    }
    assert_eq!(replica.get("key").as_deref(), Some("x"));
}

/// What is forgotten depends on the entry, not on what a replica has looked for.
#[test]
fn replicas_that_were_not_asked_forget_the_same() {
    let mut leader = Replica::new(MANY);
    write(&mut leader, 5, 3_000, |nonce| format!("key {nonce}"));
    let mut follower = Replica::new(MANY);
    write(&mut follower, 5, 3_000, |nonce| format!("key {nonce}"));
    let late = 5 + TTL + 1;
    let mut left = vec![leader.machine.session_count()];
    while let Some(operation) = leader.machine.upkeep(LogTime(late)) {
        leader.apply_bytes(late, 100, operation.clone());
        follower.apply_bytes(late, 100, operation);
        let count = leader.machine.session_count();
        assert_eq!(follower.machine.session_count(), count);
        left.push(count);
        follower.restart();
        let same = leader.state.pairs() == follower.state.pairs();
        assert!(same, "at {left:?}");
    }
    assert!(left.len() > 3 && left.last() == Some(&0), "{left:?}");
}

#[test]
fn one_operation_forgets_a_bounded_number() {
    let mut replica = Replica::new(MANY);
    write(&mut replica, 5, 2_500, |_| "one key".to_owned());
    let late = LogTime(5 + TTL + 1);
    let mut left = Vec::new();
    while let Some(operation) = replica.machine.upkeep(late) {
        replica.apply_bytes(late.0, 100, operation);
        left.push(replica.machine.session_count());
    }
    assert_eq!(left, [2_500 - 1_024, 2_500 - 2_048, 0]);
}

#[test]
fn each_table_has_its_turn_although_one_search_visits_few() {
    let mut replica = Replica::new(MANY);
    write(&mut replica, 5, 9_000, |nonce| format!("key {nonce}"));
    // All but a few are used again.
    let late = 5 + TTL + 1;
    let first = replica.state.applied().last.index.0 + 1;
    let used = (0..8_990).map(|nonce| common::Step {
        index: first + nonce,
        time: TTL,
        max_value_bytes: 100,
        operation: Command {
            session: Some(SessionRef {
                client: ClientId {
                    birth: LogTime(5),
                    nonce,
                },
                sequence: Sequence(2),
                acked_below: Sequence(2),
            }),
            write: append(&format!("key {nonce}"), "y"),
        }
        .encode(),
    });
    replica.batch(&used.collect::<Vec<_>>());
    assert!(keep_up(&mut replica, late, 10) > 0);
    assert_eq!(replica.machine.session_count(), 8_990);
}
