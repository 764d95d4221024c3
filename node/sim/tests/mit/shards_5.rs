//! Lab 5 of 2025: the same tests under their new names, and controllers that fail during a change.

use shardkv_sim::scenario::Scenario;
use types::{ConfigNum, Gid, Incarnation, ShardId};

use crate::shards::{Shards, busy, setting, unreliable};

#[test]
fn init_and_query_5a() {
    let mut shards = Shards::new(setting(21));
    let first = shards.query(None).unwrap();
    assert_eq!(
        (first.config.num(), first.oldest),
        (ConfigNum(0), ConfigNum(0))
    );
    shards.join(&[0]);
    let latest = shards.query(None).unwrap();
    assert_eq!(latest.config.num(), ConfigNum(1));
    assert_eq!(*latest.config, *shards.config());
    shards.check_shares(&[0]);
    shards.finish();
}

#[test]
fn join_and_leave_5a() {
    let mut shards = Shards::new(setting(22));
    shards.join(&[0]);
    shards.put_all(12, 10);
    shards.join(&[1]);
    shards.check_all();
    shards.leave(&[0]);
    shards.check_all();
    shards.settle();
    shards.stop_group(0);
    shards.check_all();
    shards.start_group(0);
    shards.join(&[0]);
    shards.leave(&[1]);
    shards.check_all();
    shards.finish();
}

/// Eight groups join and leave while the keys are read.
fn many_joins_and_leaves(mut scenario: Scenario) {
    scenario.members = 1;
    scenario.hosts = 1;
    if let Some(cluster) = &mut scenario.cluster {
        cluster.groups = 8;
    }
    let mut shards = Shards::new(scenario);
    shards.join(&[0]);
    shards.put_all(12, 100);
    for number in 1..8 {
        shards.join(&[number]);
        shards.check_all();
    }
    shards.append_all(12);
    for number in 0..7 {
        shards.leave(&[number]);
        shards.check_all();
    }
    shards.append_all(12);
    shards.check_all();
    shards.check_shares(&[7]);
    shards.finish();
}

#[test]
fn many_joins_and_leaves_reliable_5a() {
    many_joins_and_leaves(setting(23));
}

#[test]
fn many_joins_and_leaves_unreliable_5a() {
    many_joins_and_leaves(unreliable(setting(24)));
}

#[test]
fn shutdown_5a() {
    let mut shards = Shards::new(setting(25));
    shards.join(&[0, 1, 2]);
    shards.put_all(12, 10);
    // All groups restart, one after the other, while no shard moves.
    for number in 0..3 {
        shards.stop_group(number);
        shards.run_ms(500);
        shards.start_group(number);
    }
    shards.check_all();
    for number in 0..3 {
        shards.stop_group(number);
    }
    for number in 0..3 {
        shards.start_group(number);
    }
    shards.check_all();
    shards.finish();
}

/// While shards move between two groups, a third group's clients aren't delayed, and a configuration change doesn't
/// wait for a group that is down.
#[test]
fn progress_during_a_move_5a() {
    let mut shards = Shards::new(setting(26));
    shards.join(&[0]);
    shards.put_all(12, 100);
    shards.join(&[1]);
    shards.settle();
    shards.stop_group(1);
    let before = shards.config().num();
    shards.join(&[2]);
    assert_eq!(shards.config().num(), before.next());
    // The first group's shards move, although the second group is down. Those of the second group stay where they are.
    let config = shards.config();
    let rows: Vec<_> = (0..).map(ShardId).zip(config.rows()).collect();
    let first = rows.iter().filter(|(_, row)| row.owner == Gid(1));
    let (given, kept): (Vec<_>, Vec<_>) = first.partition(|(_, row)| row.target == Gid(3));
    assert!(!given.is_empty() && !kept.is_empty());
    shards.wait(
        2_000,
        "the third group serves what the first gave it",
        |script| given.iter().all(|(shard, _)| script.serves(Gid(3), *shard)),
    );
    shards.wait(1_000, "the first group serves what it keeps", |script| {
        kept.iter().all(|(shard, _)| script.serves(Gid(1), *shard))
    });
    shards.start_group(1);
    shards.append_all(12);
    shards.check_all();
    shards.settle();
    shards.finish();
}

fn concurrent_clerks(scenario: Scenario, clerks: usize) {
    let mut shards = Shards::new(busy(scenario, clerks));
    shards.join(&[0]);
    shards.put_all(12, 10);
    for _ in 0..3 {
        shards.join(&[1, 2]);
        shards.run_ms(700);
        shards.leave(&[0]);
        shards.run_ms(700);
        shards.join(&[0]);
        shards.leave(&[1, 2]);
        shards.append_all(12);
    }
    shards.check_all();
    shards.finish();
}

#[test]
fn concurrent_clerk_reliable_5a() {
    concurrent_clerks(setting(27), 1);
}

#[test]
fn concurrent_clerks_reliable_5a() {
    concurrent_clerks(setting(28), 10);
}

#[test]
fn concurrent_clerk_unreliable_5a() {
    concurrent_clerks(unreliable(setting(29)), 1);
}

#[test]
fn concurrent_clerks_unreliable_5a() {
    concurrent_clerks(unreliable(setting(30)), 10);
}

/// The controllers crash at various moments after a change was sent. After their restart the change and its moves are
/// done exactly once.
#[test]
fn recovery_of_the_controllers_half_way_5b() {
    for pause_ms in [0, 1, 2, 5, 10, 20, 50, 100] {
        let mut shards = Shards::new(setting(31 + pause_ms));
        shards.join(&[0]);
        shards.put_all(12, 100);
        shards.script.join(0, &[Gid(2), Gid(3)]);
        shards.run_ms(pause_ms);
        shards.script.stop_group(Gid::NONE);
        shards.run_ms(300);
        shards.script.start_group(Gid::NONE).unwrap();
        shards.settle();
        let config = shards.config();
        for gid in [Gid(2), Gid(3)] {
            let joined = config.groups().get(&gid).map(|group| group.incarnation);
            assert_eq!(
                joined,
                Some(Incarnation(2)),
                "{gid} joined once, in configuration 2"
            );
        }
        shards.check_shares(&[0, 1, 2]);
        shards.check_all();
        shards.finish();
    }
}

/// Config clients change the configuration concurrently while the controllers' leader is cut off repeatedly.
#[test]
fn partitioned_controllers_with_concurrent_ones_5c() {
    for network in [setting(40), unreliable(setting(41))] {
        let mut scenario = busy(network, 4);
        if let Some(cluster) = &mut scenario.cluster {
            cluster.config_clients = 3;
        }
        let mut shards = Shards::new(scenario);
        shards.join(&[0]);
        shards.put_all(12, 100);
        for round in 0..6 {
            for config_client in 0..3 {
                let number = Gid((round + config_client) % 3 + 1);
                let at = usize::try_from(config_client).unwrap();
                shards.script.join(at, &[number]);
                let gids = [number].into();
                shards.script.order(at, shardctrler::Change::Leave { gids });
            }
            shards.script.join(0, &[Gid(round % 3 + 1)]);
            let leader = shards.leader_of(Gid::NONE);
            if let Some(leader) = leader {
                shards.script.set_connected(leader, false);
            }
            shards.run_ms(1_500);
            shards.script.heal();
            shards.run_ms(500);
        }
        shards.settle();
        shards.append_all(12);
        shards.check_all();
        shards.finish();
    }
}
