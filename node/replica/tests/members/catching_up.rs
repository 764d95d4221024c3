//! Followers that need a snapshot while clients write, and over slow links.

use raft::ProgressState;
use replica::Options;
use types::NodeId;

use crate::cluster::{Cluster, MIB, TICKS_PER_SECOND};

/// The product's sizes divided by 256, except those of chunks, so that a test is quick.
fn small(options: &mut Options) {
    options.compact_after_bytes = 256 << 10;
    options.max_kept_log_bytes = 8 << 20;
    options.raft.max_append_bytes = 4 << 10;
    options.raft.max_inflight_bytes = 32 << 10;
    options.raft.max_cached_bytes = 128 << 10;
}

/// Starts a group with a follower that lacks 4 MiB, and a link that carries a chunk in each tick.
fn behind(change: impl Fn(&mut Options)) -> (Cluster, NodeId) {
    let mut cluster = Cluster::new(|options| {
        small(options);
        change(options);
    });
    let (_, [follower, _]) = cluster.elect();
    cluster.write_without(follower, 16, 256 << 10);
    cluster.lane.bytes_per_tick = 270_000;
    cluster.cut.clear();
    (cluster, follower)
}

fn write_for(cluster: &mut Cluster, ticks: usize, bytes: usize) {
    for number in 0..ticks {
        cluster.put(&format!("key{:03}", number % 100), bytes);
        cluster.tick();
    }
}

#[test]
fn a_follower_catches_up_under_steady_writes() {
    // While a snapshot is transferred, clients write more than the log holds.
    let (mut cluster, follower) = behind(|options| options.snapshot_window = 1);
    write_for(&mut cluster, 600, 24 << 10);
    let status = cluster.status(cluster.leader());
    assert_eq!(status.snapshots, (1, 0, 0), "sent once");
    assert!(
        cluster.lag(follower) < 10,
        "{} behind",
        cluster.lag(follower)
    );
    assert_eq!(status.kept_log_bytes, 0, "the log is cut again");
}

#[test]
fn a_transfer_longer_than_the_patience_with_a_follower_is_not_in_vain() {
    // Its match index stands still for more than 600 heartbeats while the snapshot arrives.
    let (mut cluster, follower) = behind(|options| options.snapshot_window = 1);
    cluster.lane.bytes_per_tick = 600;
    write_for(&mut cluster, 12_000, 200);
    let status = cluster.status(cluster.leader());
    assert_eq!(status.snapshots, (1, 0, 0), "sent once");
    assert!(
        cluster.lag(follower) < 10,
        "{} behind",
        cluster.lag(follower)
    );
}

#[test]
fn a_wiped_node_is_a_voter_again_under_steady_writes() {
    let (mut cluster, follower) = behind(|options| options.snapshot_window = 1);
    cluster.replicas.remove(&follower);
    let learner = NodeId(follower.0 + 10);
    cluster.start_empty(learner);
    write_for(&mut cluster, 600, 24 << 10);
    let membership = cluster.status(cluster.leader()).membership;
    assert!(membership.is_voter(learner), "{membership}");
}

#[test]
fn the_kept_log_is_bounded_in_bytes() {
    // The link is too slow for what clients write.
    let (mut cluster, follower) = behind(|options| options.max_kept_log_bytes = 512 << 10);
    cluster.lane.bytes_per_tick = 27_000;
    let mut kept = 0;
    for number in 0..1_000 {
        cluster.put(&format!("key{:03}", number % 100), 8 << 10);
        cluster.tick();
        kept = kept.max(cluster.status(cluster.leader()).kept_log_bytes);
    }
    assert!(kept > 128 << 10, "it was kept at all");
    assert!(kept <= 512 << 10, "{kept} bytes were kept");
    let (sent, _, overtaken) = cluster.status(cluster.leader()).snapshots;
    assert_eq!(sent, 0);
    assert!(
        (1..=1).contains(&overtaken),
        "{overtaken} futile snapshots in 10 s: the next one waits"
    );
    // When clients pause, the follower catches up.
    cluster.ticks(5_000);
    assert_eq!(cluster.lag(follower), 0);
}

#[test]
fn the_log_is_not_kept_for_a_silent_follower() {
    let (mut cluster, follower) = behind(|options| options.snapshot_window = 1);
    cluster.ticks(5);
    cluster.cut = vec![follower];
    write_for(&mut cluster, 1_200, 4 << 10);
    let status = cluster.status(cluster.leader());
    assert_eq!(status.kept_log_bytes, 0);
}

/// Transfers 2 MiB in values of `value` bytes at `rate` bytes a second. Returns the bytes that were carried.
fn transfer(value: usize, rate: usize) -> usize {
    let mut cluster = Cluster::new(|options| options.compact_after_bytes = 256 << 10);
    let (leader, [follower, _]) = cluster.elect();
    cluster.write_without(follower, 2 * MIB / value, value);
    cluster.lane.bytes_per_tick = rate / TICKS_PER_SECOND;
    cluster.cut.clear();
    let ideal_ticks = 2 * MIB / cluster.lane.bytes_per_tick;
    for _ in 0..ideal_ticks * 2 + 200 {
        cluster.tick();
        if cluster.status(follower).snapshots.1 > 0 {
            assert_eq!(cluster.lane.dropped, 0);
            cluster.tick();
            let (_, _, state) = *cluster.status(leader).progress.first().unwrap();
            assert_ne!(state, ProgressState::Snapshot);
            return cluster.lane.carried;
        }
    }
    panic!("values of {value} bytes at {rate} bytes a second: not in twice the ideal time");
}

#[test]
fn a_slow_link_carries_a_snapshot_once() {
    let rates = [12_000_000, 4_000_000, 1_000_000, 256 << 10, 64 << 10];
    for rate in rates {
        for value in [MIB - 1_000, 256 << 10, 1_000] {
            let carried = transfer(value, rate);
            assert!(
                carried < 2 * MIB + MIB / 2,
                "values of {value} bytes at {rate} bytes a second: {carried} bytes were carried"
            );
        }
    }
}

#[test]
fn what_a_broken_connection_lost_is_sent_again_at_once() {
    let (mut cluster, follower) = behind(|_| ());
    let leader = cluster.leader();
    let mut ticks = 0;
    while cluster.status(follower).snapshots.1 == 0 {
        ticks += 1;
        assert!(ticks < 200, "16 chunks, and 20 ticks for each loss");
        if ticks % 8 == 0 {
            cluster.lane.lose_all();
            let replica = cluster.replicas.get_mut(&leader).unwrap();
            replica.handle_snapshot_disconnect(follower);
        }
        cluster.tick();
    }
    assert!(ticks < 40, "{ticks} ticks");
}

#[test]
fn what_was_lost_silently_is_sent_again() {
    let (mut cluster, follower) = behind(|_| ());
    cluster.ticks(6);
    cluster.lane.lose_all();
    cluster.ticks(12_000);
    assert_eq!(cluster.lag(follower), 0);
    assert_eq!(cluster.status(cluster.leader()).snapshots, (1, 0, 0));
}

#[test]
fn a_follower_that_cant_take_snapshots_is_asked_less_and_less_often() {
    let (mut cluster, follower) = behind(|_| ());
    cluster.refuses = Some((follower, 0));
    cluster.ticks(130 * TICKS_PER_SECOND);
    let (_, refused) = cluster.refuses.unwrap();
    // At 0, 1, 3, 7, 15, 31, 63, 95 and 127 s.
    assert!((7..=10).contains(&refused), "{refused} snapshots in 130 s");
    // When it has space again, it gets one within the longest pause.
    cluster.refuses = None;
    cluster.ticks(35 * TICKS_PER_SECOND);
    assert_eq!(cluster.lag(follower), 0);
    // Its next failure is the first again.
    cluster.write_without(follower, 16, 256 << 10);
    cluster.cut.clear();
    cluster.refuses = Some((follower, 0));
    cluster.ticks(2 * TICKS_PER_SECOND);
    let (_, refused) = cluster.refuses.unwrap();
    assert_eq!(refused, 2);
}
