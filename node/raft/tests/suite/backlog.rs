//! A follower that applies slowly.

use raft::{Index, Options};

use crate::cluster::{Cluster, node};

/// Entries of 20 to 30 bytes, so a few of them fill the backlog.
fn options() -> Options {
    Options {
        max_backlog_bytes: 200,
        max_inflight_appends: 100,
        ..Options::default()
    }
}

fn propose(cluster: &mut Cluster, count: usize) {
    for _ in 0..count {
        cluster.propose(node(1), "command").unwrap();
        cluster.settle();
        cluster.tick_all(10);
        cluster.settle();
    }
}

fn last(cluster: &Cluster, id: u64) -> Index {
    cluster.raft(node(id)).last_id().index
}

#[test]
fn a_follower_with_a_full_backlog_takes_no_new_entries_until_it_has_applied() {
    let mut cluster = Cluster::new(3, &options());
    cluster.elect(node(1));
    cluster.settle();
    cluster.raft_mut(node(2)).hold_committed(true);
    propose(&mut cluster, 50);
    let stopped = last(&cluster, 2);
    assert!(stopped > Index(5), "it takes what fits: {stopped}");
    assert!(stopped < Index(20), "it takes no more: {stopped}");
    assert_eq!(cluster.leader(), Some(node(1)), "it follows the leader");
    assert_eq!(
        cluster.raft(node(1)).commit_index(),
        last(&cluster, 1),
        "the others commit"
    );
    propose(&mut cluster, 20);
    assert_eq!(last(&cluster, 2), stopped);

    cluster.raft_mut(node(2)).hold_committed(false);
    propose(&mut cluster, 20);
    assert_eq!(last(&cluster, 2), last(&cluster, 1));
    assert_eq!(cluster.raft(node(2)).commit_index(), last(&cluster, 1));
}

/// The entries before the crash of a leader are committed by the first entry of the next one.
#[test]
fn entries_that_are_not_committed_keep_no_new_ones_out() {
    let mut cluster = Cluster::new(3, &options());
    cluster.elect(node(1));
    cluster.settle();
    for _ in 0..50 {
        cluster.propose(node(1), "command").unwrap();
    }
    // All have them, and nobody has heard of the commit.
    let appends = std::mem::take(&mut cluster.wire);
    for append in appends {
        cluster.deliver(append).unwrap();
    }
    cluster.wire.clear();
    assert!(last(&cluster, 2) > Index(20) && last(&cluster, 3) > Index(20));
    assert!(cluster.raft(node(2)).commit_index() < Index(5));
    cluster.crash(node(1));
    for _ in 0..20 {
        cluster.tick_all(10);
        cluster.settle();
    }
    let leader = cluster.leader().expect("the other two have a leader");
    assert_ne!(leader, node(1));
    for id in [2, 3] {
        assert_eq!(cluster.raft(node(id)).commit_index(), last(&cluster, id));
    }
}
