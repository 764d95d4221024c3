//! Sessions and their clock move with the shard.

use replica::StateMachine;
use shardkv::{KvError, Response};
use types::shard_of;

use crate::common::{SHARDS_GENESIS, append, put};
use crate::stage::{Configs, Group, SHARD, SHARDS, key, length, two};

#[test]
fn a_session_that_the_source_forgot_is_not_new_elsewhere() {
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

/// One leader's clock was an hour ahead for the entry that fenced the shard, and is right again.
#[test]
fn a_clock_that_is_ahead_refuses_no_new_session_where_the_shard_goes() {
    let hour = 3_600_000;
    let (mut a, mut b, mut configs) = two([10 * hour, 10 * hour]);
    a.time += hour;
    assert_eq!(a.write(10 * hour, 1, append(&key(), "x")), length(1));
    let second = configs.give(2);
    a.follow(&second);
    b.follow(&second);
    b.install_from(&a, 2);
    let mut size = 1;
    for minute in 0..70 {
        b.time = 10 * hour + minute * 60_000;
        size += 1;
        let birth = b.time + 1;
        assert_eq!(b.write(birth, 1, append(&key(), "y")), length(size));
    }
    // What it said was new is remembered by its age here, not by that clock.
    let at_fence = Response::Refused(KvError::SessionExpired);
    assert_eq!(b.write(10 * hour, 1, append(&key(), "x")), at_fence);
}

/// A session's silence continues where the log's time is hours behind or ahead.
#[test]
fn an_age_moves_along_and_not_a_time() {
    let (ttl, hour) = (SHARDS_GENESIS.session_ttl_ms, 3_600_000);
    for other in [hour, 100 * hour] {
        let (mut a, mut b, mut configs) = two([10 * hour, other]);
        let birth = 10 * hour;
        a.write(birth, 1, append(&key(), "x"));
        a.time += ttl / 2;
        let second = configs.give(2);
        a.follow(&second);
        b.follow(&second);
        b.install_from(&a, 2);
        b.time += ttl / 2;
        assert_eq!(
            b.write(birth, 1, append(&key(), "x")),
            length(1),
            "a replay"
        );
        b.time += ttl;
        assert_eq!(b.write(birth, 1, append(&key(), "x")), length(1));
        b.time += ttl + 1;
        b.replica.restart();
        let expired = Response::Refused(KvError::SessionExpired);
        assert_eq!(b.write(birth, 1, append(&key(), "x")), expired);
        // Forgotten now, and remembered to be.
        assert_eq!(b.replica.machine.session_count(), 0);
        b.replica.restart();
        assert_eq!(b.write(birth, 1, append(&key(), "x")), expired);
        let new = b.replica.machine.min_birth().0;
        assert_eq!(new, birth + 1);
        assert_eq!(b.write(new, 1, append(&key(), "y")), length(2));
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
