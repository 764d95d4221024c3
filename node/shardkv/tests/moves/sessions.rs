//! Sessions and their clock move with the shard.

use replica::StateMachine;
use shardkv::{Genesis, KvError, Response};
use types::{LogTime, shard_of};

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

fn expired() -> Response {
    Response::Refused(KvError::SessionExpired)
}

/// A session whose silence was too long for the source stays refused, and any other one has the same time left.
#[test]
fn groups_may_remember_sessions_for_different_times() {
    let ttl = SHARDS_GENESIS.session_ttl_ms;
    let longer = Genesis {
        session_ttl_ms: 2 * ttl,
        ..SHARDS_GENESIS
    };
    let birth = 100_000;
    for (from, to) in [(SHARDS_GENESIS, longer), (longer, SHARDS_GENESIS)] {
        for (silence, answer) in [(0, length(6)), (1, expired())] {
            for at_source in [true, false] {
                let mut a = Group::with(from, 1, birth);
                let mut b = Group::with(to, 2, birth);
                let mut configs = Configs::new();
                let first = configs.give(1);
                a.follow(&first);
                b.follow(&first);
                // More than one write forgets.
                for n in 0..6 {
                    let written = a.write(birth + n, 1, append(&key(), "x"));
                    assert_eq!(written, length(n + 1));
                }
                if at_source {
                    a.time += from.session_ttl_ms + silence;
                    if silence > 0 {
                        let refused = a.write(birth + 5, 2, append(&key(), "y"));
                        assert_eq!(refused, expired());
                        assert!(a.replica.machine.session_count() > 0);
                    }
                } else {
                    a.time += from.session_ttl_ms - 1_000;
                }
                let second = configs.give(2);
                a.follow(&second);
                b.follow(&second);
                b.install_from(&a, 2);
                if !at_source {
                    b.time += 1_000 + silence;
                }
                let repeated = b.write(birth + 5, 1, append(&key(), "x"));
                assert_eq!(repeated, answer);
                if silence > 0 {
                    let refused = b.write(birth + 5, 2, append(&key(), "y"));
                    assert_eq!(refused, expired());
                }
            }
        }
    }
}

/// Writes of sessions that only the forgotten group knew are not new, as far as clocks can tell.
#[test]
fn a_shard_that_was_lost_is_served_with_a_horizon() {
    let ttl = SHARDS_GENESIS.session_ttl_ms;
    let (now, old) = (100_000, 100_000 - ttl - 1);
    let (mut a, mut b, mut configs) = two([now; 2]);
    let second = configs.give(2);
    b.follow(&second);
    // The group that took the step of the cut, and one that skips it: it served the shard all the time.
    let mut skips = Group::new(1, now);
    skips.follow(&Configs::new().give(1));
    for group in [&mut a, &mut skips] {
        assert_eq!(group.write(now, 1, append(&key(), "x")), length(1));
    }
    a.follow(&second);
    b.install_from(&a, 2);
    assert_eq!(b.write(old, 1, append(&key(), "y")), length(2));

    let mut elsewhere = Configs::new();
    elsewhere.give(1);
    elsewhere.give(2);
    let elsewhere = elsewhere.forget(2, [1, 1, 1, 3, 1]);
    let mut c = Group::new(3, now);
    c.follow(&elsewhere);
    let back = configs.forget(2, [1; SHARDS as usize]);
    a.follow(&back);
    skips.follow(&back);
    for (group, size) in [(&mut a, 1), (&mut c, 0)] {
        assert_eq!(group.state(), "serving3");
        assert_eq!(group.write(old, 1, append(&key(), "y")), expired());
        group.replica.restart();
        assert_eq!(group.write(old, 1, append(&key(), "y")), expired());
        let recent = group.write(now - ttl, 1, append(&key(), "y"));
        assert_eq!(recent, length(size + 1));
    }
    assert_eq!(a.write(now, 1, append(&key(), "x")), length(1), "a replay");
    assert_eq!(skips.state(), "serving3");
    assert_eq!(skips.write(old, 1, append(&key(), "y")), length(2));
}

/// The shard comes from a group whose log time is two hundred years behind the births that this group gives.
#[test]
fn births_that_a_group_gives_are_not_too_far_ahead_of_a_shard() {
    let century = replica::MAX_BIRTH_AHEAD_MS;
    let (mut a, mut b, mut configs) = two([1_000, 2 * century]);
    let second = configs.give(2);
    a.follow(&second);
    b.follow(&second);
    b.install_from(&a, 2);
    assert_eq!(b.write(2 * century, 1, append(&key(), "x")), length(1));
    let ahead_ms = 2 * century + 1 - 1_000;
    let made_up = b.write(3 * century + 1, 1, append(&key(), "y"));
    let from_future = |ahead_ms| Response::Refused(KvError::SessionFromFuture { ahead_ms });
    assert_eq!(made_up, from_future(century + ahead_ms));
    // It is forgotten, and the shard returns to the group whose log time is behind. There, too, a session can be opened.
    b.time += SHARDS_GENESIS.session_ttl_ms + 1;
    assert_eq!(b.write(2 * century, 2, append(&key(), "y")), expired());
    b.acknowledge(&mut a, 2);
    let third = configs.give(1);
    a.follow(&third);
    b.follow(&third);
    a.install_from(&b, 3);
    let birth = a.replica.machine.min_birth().0;
    assert_eq!(birth, 2 * century + 1);
    let mut others = (0..).map(|n| format!("o{n}"));
    let other = others.find(|key| shard_of(key.as_bytes(), SHARDS) != SHARD);
    for key in [key(), other.unwrap()] {
        let written = a.write(birth, 1, append(&key, "z"));
        assert!(matches!(written, Response::Written(_)), "{written:?}");
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

/// The search of the leader came before the fence, and its entry after it.
#[test]
fn upkeep_forgets_nothing_of_a_fenced_shard() {
    let ttl = SHARDS_GENESIS.session_ttl_ms;
    let (mut a, mut b, mut configs) = two([100_000, 100_000]);
    a.write(100_000, 1, append(&key(), "x"));
    a.time += ttl + 1;
    let upkeep = a.replica.machine.upkeep(LogTime(a.time)).unwrap();
    let second = configs.give(2);
    a.follow(&second);
    let stored = a.stored();
    let response = a.replica.apply_bytes(a.time, 100, upkeep.clone());
    assert_eq!(response, Response::Stepped);
    assert_eq!((a.stored(), a.replica.machine.session_count()), (stored, 1));
    assert_eq!(a.replica.machine.upkeep(LogTime(a.time + ttl)), None);
    // The next owner forgets the session once it serves the shard.
    b.follow(&second);
    b.replica.apply_bytes(b.time, 100, upkeep);
    b.install_from(&a, 2);
    let upkeep = b.replica.machine.upkeep(LogTime(b.time)).unwrap();
    b.replica.apply_bytes(b.time, 100, upkeep);
    assert_eq!(b.replica.machine.session_count(), 0);
}
