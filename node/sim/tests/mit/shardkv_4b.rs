//! Lab 4B of 2024: groups join and leave while clients run, and both challenges.
//!
//! The end of each test checks the clients' histories for linearizability, and that no group keeps data of a shard that
//! it gave away.

use bytes::Bytes;
use shardkv_sim::scenario::Scenario;
use types::{Gid, ShardId, shard_of};

use crate::shards::{SHARDS, Shards, busy, gid, key, setting, unreliable};

/// The size in bytes at which the log is compacted, in tests that check it.
const THRESHOLD: u64 = 1_000;

fn with_snapshots(mut scenario: Scenario) -> Scenario {
    scenario.replica.compact_after_bytes = THRESHOLD;
    scenario
}

#[test]
fn static_shards() {
    let mut shards = Shards::new(setting(1));
    shards.join(&[0, 1]);
    shards.settle();
    shards.put_all(10, 0);
    shards.check_all();
    // Both groups hold data: while one of them is down, only its keys aren't served.
    shards.stop_group(1);
    let keys: Vec<Bytes> = (0..10).map(key).collect();
    let config = shards.config();
    let served = shards.readable(&keys, 2_000);
    for (key, served) in keys.iter().zip(&served) {
        let owner = config.owner(shard_of(key, SHARDS));
        assert_eq!(*served, owner == gid(0), "{key:?} of {owner}");
    }
    assert!(served.iter().any(|served| *served) && served.iter().any(|served| !*served));
    shards.start_group(1);
    shards.check_all();
    shards.finish();
}

#[test]
fn join_leave() {
    let mut shards = Shards::new(setting(2));
    shards.join(&[0]);
    shards.put_all(10, 5);
    shards.check_all();
    shards.join(&[1]);
    shards.append_all(10);
    shards.check_all();
    shards.leave(&[0]);
    shards.append_all(10);
    shards.check_all();
    // All shards were handed over, so the first group isn't needed any more.
    shards.settle();
    shards.stop_group(0);
    shards.check_all();
    shards.finish();
}

#[test]
fn snapshot() {
    let mut shards = Shards::new(with_snapshots(setting(3)));
    shards.join(&[0]);
    shards.put_all(30, 20);
    shards.check_all();
    shards.join(&[1, 2]);
    shards.leave(&[0]);
    shards.append_all(30);
    shards.check_all();
    shards.leave(&[1]);
    shards.join(&[0]);
    shards.append_all(30);
    shards.check_all();
    shards.settle();
    let limit = usize::try_from(8 * THRESHOLD).unwrap();
    for number in 0..3 {
        for host in shards.script.hosts_of(gid(number)) {
            let (_, bytes) = shards.script.log_size(host);
            assert!(bytes <= limit, "the log of host {host} has {bytes} bytes");
        }
    }
    for number in 0..3 {
        shards.stop_group(number);
    }
    for number in 0..3 {
        shards.start_group(number);
    }
    shards.check_all();
    shards.finish();
}

/// Servers that were down during configuration changes catch up.
#[test]
fn miss_change() {
    let mut shards = Shards::new(with_snapshots(setting(4)));
    shards.join(&[0]);
    shards.put_all(10, 20);
    shards.join(&[1]);
    let nth = |shards: &Shards, number: u64, at: usize| shards.script.hosts_of(gid(number))[at];
    for number in 0..3 {
        let host = nth(&shards, number, 0);
        shards.script.crash(host);
    }
    shards.join(&[2]);
    shards.leave(&[1]);
    shards.leave(&[0]);
    shards.append_all(10);
    shards.check_all();
    shards.join(&[1]);
    shards.append_all(10);
    for number in 0..3 {
        let host = nth(&shards, number, 0);
        shards.script.start(host).unwrap();
    }
    shards.append_all(10);
    shards.check_all();
    shards.run_ms(2_000);
    for number in 0..3 {
        let host = nth(&shards, number, 1);
        shards.script.crash(host);
    }
    shards.join(&[0]);
    shards.leave(&[2]);
    shards.append_all(10);
    shards.check_all();
    for number in 0..3 {
        let host = nth(&shards, number, 1);
        shards.script.start(host).unwrap();
    }
    shards.settle();
    shards.check_all();
    shards.finish();
}

fn concurrent_1(scenario: Scenario) {
    let mut shards = Shards::new(busy(with_snapshots(scenario), 10));
    shards.join(&[0]);
    shards.put_all(10, 5);
    shards.join(&[1]);
    shards.run_ms(500);
    shards.join(&[2]);
    shards.run_ms(500);
    shards.leave(&[0]);
    shards.stop_group(0);
    shards.run_ms(500);
    shards.start_group(0);
    shards.run_ms(500);
    shards.join(&[0]);
    shards.leave(&[1]);
    shards.run_ms(500);
    shards.join(&[1]);
    shards.append_all(10);
    shards.check_all();
    shards.settle();
    shards.finish();
}

#[test]
fn concurrent_1_reliable() {
    concurrent_1(setting(5));
}

/// Joins and leaves overlap, and servers are down for a while.
#[test]
fn concurrent_2() {
    let mut shards = Shards::new(busy(setting(6), 10));
    shards.join(&[1]);
    shards.join(&[0]);
    shards.join(&[2]);
    shards.put_all(10, 1);
    shards.leave(&[0]);
    shards.leave(&[2]);
    shards.run_ms(3_000);
    shards.join(&[0]);
    shards.join(&[2]);
    shards.leave(&[1]);
    shards.run_ms(3_000);
    shards.stop_group(1);
    shards.stop_group(2);
    shards.run_ms(1_000);
    shards.start_group(1);
    shards.start_group(2);
    shards.append_all(10);
    shards.check_all();
    shards.settle();
    shards.finish();
}

/// Configurations change while all servers restart repeatedly.
#[test]
fn concurrent_3() {
    let mut shards = Shards::new(busy(with_snapshots(setting(7)), 10));
    shards.join(&[0]);
    shards.put_all(10, 1);
    for _ in 0..12 {
        shards.join(&[1, 2]);
        for number in 0..3 {
            shards.stop_group(number);
        }
        shards.run_ms(300);
        for number in 0..3 {
            shards.start_group(number);
        }
        shards.run_ms(400);
        shards.leave(&[1, 2]);
        shards.run_ms(300);
    }
    shards.append_all(10);
    shards.check_all();
    shards.settle();
    shards.finish();
}

fn join_and_leave_under_load(scenario: Scenario) {
    let mut shards = Shards::new(scenario);
    shards.join(&[0]);
    shards.put_all(10, 5);
    shards.join(&[1]);
    shards.join(&[2]);
    shards.leave(&[0]);
    shards.append_all(10);
    shards.check_all();
    shards.join(&[0]);
    shards.leave(&[1]);
    shards.append_all(10);
    shards.check_all();
    shards.run_ms(2_000);
    shards.finish();
}

#[test]
fn unreliable_1() {
    join_and_leave_under_load(unreliable(with_snapshots(setting(8))));
}

#[test]
fn unreliable_2() {
    concurrent_1(unreliable(setting(9)));
}

/// The second concurrent test again: MIT checks linearizability only here, this suite checks it everywhere.
#[test]
fn unreliable_3() {
    for seed in 10..13 {
        join_and_leave_under_load(unreliable(busy(with_snapshots(setting(seed)), 10)));
    }
}

/// After all shards moved away and back twenty times, a group keeps only the data of its shards: at most 1.3 times
/// their size (MIT allows three times).
#[test]
fn challenge_1_delete() {
    const BYTES: usize = 1_000;
    let mut scenario = setting(14);
    scenario.genesis.session_ttl_ms = 1_000;
    let mut shards = Shards::new(scenario);
    shards.join(&[0]);
    shards.put_all(30, BYTES);
    for _ in 0..20 {
        shards.join(&[1]);
        shards.leave(&[0]);
        shards.append_all(3);
        // A Join would call the moves back otherwise.
        shards.settle();
        shards.join(&[0]);
        shards.leave(&[1]);
        shards.append_all(3);
        shards.settle();
    }
    shards.check_all();
    assert!(shards.script.hand_offs() >= 20 * u64::from(SHARDS));
    let replicas = 3;
    let data = replicas * (30 * BYTES + 40 * 3 * 6);
    let kept: usize = (0..3)
        .flat_map(|number| shards.script.hosts_of(gid(number)))
        .map(|host| shards.script.state_size(host))
        .sum();
    assert!(10 * kept <= 13 * data, "{kept} bytes for {data} of data");
    shards.finish();
}

#[test]
fn challenge_1_concurrent() {
    let mut scenario = with_snapshots(setting(15));
    if let Some(cluster) = &mut scenario.cluster {
        cluster.mover.chunk_bytes = 64;
    }
    let mut shards = Shards::new(busy(scenario, 10));
    shards.join(&[0]);
    shards.put_all(10, 20);
    for _ in 0..5 {
        shards.join(&[2]);
        shards.run_ms(200);
        shards.leave(&[0]);
        shards.run_ms(200);
        shards.join(&[0]);
        shards.run_ms(200);
        shards.leave(&[2]);
        shards.run_ms(200);
    }
    shards.append_all(10);
    shards.check_all();
    shards.settle();
    shards.finish();
}

/// A group serves the shards that it has while it waits for shards that it can't fetch.
#[test]
fn challenge_2_unaffected() {
    let mut shards = Shards::new(setting(16));
    shards.join(&[0]);
    shards.put_all(10, 5);
    shards.join(&[1]);
    shards.settle();
    let has: Vec<ShardId> = shards.config().owned_by(gid(1)).shards().collect();
    shards.stop_group(0);
    // The first group's shards go to the second group, which can't fetch them.
    shards.leave(&[0]);
    shards.run_ms(1_000);
    let keys: Vec<Bytes> = (0..10).map(key).collect();
    for (key, served) in keys.iter().zip(shards.readable(&keys, 1_000)) {
        let shard = shard_of(key, SHARDS);
        assert_eq!(served, has.contains(&shard), "{key:?} of {shard}");
    }
    shards.start_group(0);
    shards.append_all(10);
    shards.check_all();
    shards.settle();
    shards.finish();
}

/// A group serves a shard as soon as it has arrived, while other shards can't arrive.
#[test]
fn challenge_2_partial() {
    let mut shards = Shards::new(setting(17));
    shards.join(&[0, 1, 2]);
    shards.settle();
    shards.put_all(10, 5);
    let before = shards.config();
    shards.stop_group(0);
    shards.leave(&[0, 2]);
    let from = |shard: u32, gid: Gid| before.owner(ShardId(shard)) == gid;
    shards.wait(1_000, "what the third group had is served", |script| {
        (0..SHARDS)
            .filter(|shard| from(*shard, gid(2)))
            .all(|shard| script.serves(gid(1), ShardId(shard)))
    });
    let keys: Vec<Bytes> = (0..10).map(key).collect();
    for (key, served) in keys.iter().zip(shards.readable(&keys, 1_000)) {
        let was = before.owner(shard_of(key, SHARDS));
        assert_eq!(served, was != gid(0), "{key:?} of {was}");
    }
    shards.start_group(0);
    shards.append_all(10);
    shards.check_all();
    shards.settle();
    shards.finish();
}
