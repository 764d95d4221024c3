//! Sessions and their clock move with the shard.

use shardkv::{Genesis, KvError, Response, Written};
use types::shard_of;

use crate::common::{SHARDS_GENESIS, append, put};
use crate::stage::{Configs, Group, SHARD, SHARDS, key, length, two};

#[test]
fn a_session_that_the_source_forgot_is_not_new_where_the_clock_is_behind() {
    let ttl = SHARDS_GENESIS.session_ttl_ms;
    let (mut a, mut b, mut configs) = two([100_000, 97_000]);
    let birth = 100_000;
    a.write(birth, 1, append(&key(), "x"));
    a.time += ttl + 1;
    b.time += ttl + 1;
    // A's clock says that it expired, B's not yet.
    assert_eq!(
        a.write(birth, 2, append(&key(), "y")),
        Response::Refused(KvError::SessionExpired)
    );
    assert_eq!(a.replica.machine.session_count(), 0);
    let second = configs.give(2);
    a.follow(&second);
    b.follow(&second);
    b.install_from(&a, 2);
    let expired = Response::Refused(KvError::SessionExpired);
    assert_eq!(b.write(birth, 1, append(&key(), "x")), expired);
    assert_eq!(b.write(birth, 2, append(&key(), "y")), expired);
    // Also after a restart, and after the table was dropped because it got empty.
    b.replica.restart();
    assert_eq!(b.write(birth, 1, append(&key(), "x")), expired);
    let fresh = birth + 1;
    assert_eq!(b.write(fresh, 1, append(&key(), "z")), length(2));
    assert_eq!(b.replica.machine.session_count(), 1);
    // And in the next group, whose log is still further behind.
    let mut c = Group::new(3, 50_000);
    c.follow(&Configs::new().give(1));
    let third = configs.give(3);
    b.follow(&third);
    c.follow(&second);
    c.follow(&third);
    c.install_from(&b, 3);
    assert_eq!(c.write(birth, 1, append(&key(), "x")), expired);
    assert_eq!(c.write(fresh, 1, append(&key(), "z")), length(2));
}

#[test]
fn the_clock_outlives_a_table_that_gets_empty() {
    let ttl = SHARDS_GENESIS.session_ttl_ms;
    let (mut a, mut b, mut configs) = two([200_000, 100_000]);
    let second = configs.give(2);
    a.follow(&second);
    b.follow(&second);
    b.install_from(&a, 2);
    let expired = Response::Refused(KvError::SessionExpired);
    let old = 200_000 - ttl - 1;
    assert_eq!(b.write(old, 1, append(&key(), "x")), expired);
    // A table without a session isn't kept, here or over a restart.
    assert_eq!(b.replica.machine.session_count(), 0);
    assert_eq!(b.write(old, 1, append(&key(), "x")), expired);
    b.replica.restart();
    assert_eq!(b.write(old, 1, append(&key(), "x")), expired);
}

#[test]
fn groups_may_remember_sessions_for_different_times() {
    let ttl = SHARDS_GENESIS.session_ttl_ms;
    let longer = Genesis {
        session_ttl_ms: 2 * ttl,
        ..SHARDS_GENESIS
    };
    for (from, to) in [(SHARDS_GENESIS, longer), (longer, SHARDS_GENESIS)] {
        let mut a = Group::with(from, 1, 100_000);
        let mut b = Group::with(to, 2, 100_000);
        let mut configs = Configs::new();
        for config in [configs.give(1), configs.give(2)] {
            a.follow(&config);
            b.follow(&config);
        }
        b.install_from(&a, 2);
        let oldest = 100_000 - from.session_ttl_ms;
        let answer = |b: &mut Group, birth| b.write(birth, 1, put(&key(), "x"));
        if from.session_ttl_ms < to.session_ttl_ms {
            // A may have forgotten it, so B must not take it for new though it would remember one of its own.
            let expired = Response::Refused(KvError::SessionExpired);
            assert_eq!(answer(&mut b, oldest - 1), expired);
            assert_eq!(answer(&mut b, oldest), Response::Written(Written::Put));
        } else {
            let expired = Response::Refused(KvError::SessionExpired);
            let oldest = 100_000 - to.session_ttl_ms;
            assert_eq!(answer(&mut b, oldest - 1), expired);
            assert_eq!(answer(&mut b, oldest), Response::Written(Written::Put));
        }
    }
}

#[test]
fn sessions_of_a_fenced_shard_are_not_forgotten() {
    let (mut a, mut b, mut configs) = two([1_000, 1_000]);
    a.write(900, 1, append(&key(), "x"));
    let second = configs.give(2);
    a.follow(&second);
    a.time += 10 * SHARDS_GENESIS.session_ttl_ms;
    // Each entry visits another table.
    for n in 0..u64::from(SHARDS) * 2 {
        let mut keys = (0..).map(|n| format!("o{n}"));
        let other = keys.find(|key| shard_of(key.as_bytes(), SHARDS) != SHARD);
        a.replica.apply(a.time + n, None, put(&other.unwrap(), "v"));
    }
    assert_eq!(a.stored(), 2);
    b.follow(&second);
    b.install_from(&a, 2);
    assert_eq!(b.write(900, 1, append(&key(), "x")), length(1));
}
