//! The feature level of a group whose members have different versions.

use raft::{Index, StepError};
use types::NodeId;

use crate::cluster::{Cluster, Map, TICKS_PER_SECOND};

impl Cluster {
    /// Returns the group's feature level as each running node knows it.
    fn feature_levels(&self) -> Vec<u32> {
        let levels = self.replicas.keys();
        levels
            .map(|node| self.status(*node).feature_level)
            .collect()
    }
}

#[test]
fn a_group_raises_its_level_when_all_members_support_it() {
    let mut cluster = Cluster::of_levels([2, 1, 0], |_| ());
    cluster.elect();
    cluster.ticks(10 * TICKS_PER_SECOND);
    cluster.put("a", 10);
    cluster.ticks(10);
    assert_eq!(cluster.feature_levels(), [0; 3]);

    // The oldest node is replaced by one of a newer version. Until its former self is removed, the level stays.
    cluster.replicas.remove(&NodeId(3));
    cluster.lane.bytes_per_tick = 0;
    cluster.ticks(2 * TICKS_PER_SECOND);
    cluster.levels.insert(NodeId(13), 2);
    cluster.start_empty(NodeId(13));
    cluster.ticks(10 * TICKS_PER_SECOND);
    assert_eq!(cluster.feature_levels(), [0; 3]);
    cluster.lane.bytes_per_tick = usize::MAX / 2;
    cluster.ticks(40 * TICKS_PER_SECOND);
    let leader = cluster.leader();
    let membership = cluster.status(leader).membership;
    assert!(membership.is_voter(NodeId(13)), "{membership}");
    assert_eq!(
        cluster.feature_levels(),
        [1; 3],
        "the lowest that all support"
    );
    assert_eq!(cluster.refusals, []);

    // The machine learns the level with each operation.
    cluster.put("b", 10);
    cluster.ticks(10);
    for replica in cluster.replicas.values() {
        assert_eq!(replica.machine().seen.lock().unwrap().feature_level, 1);
    }
    // The level is raised once.
    let last = cluster.status(leader).last_index;
    cluster.ticks(10 * TICKS_PER_SECOND);
    assert_eq!(cluster.status(leader).last_index, last);
}

#[test]
fn an_older_node_refuses_a_snapshot_before_it_touches_its_state() {
    let mut cluster = Cluster::of_levels([1; 3], |options| options.compact_after_bytes = 2_000);
    let (_, [lost, _]) = cluster.elect();
    for number in 0..100 {
        cluster.put(&format!("key{number}"), 100);
        cluster.tick();
    }
    assert_eq!(cluster.feature_levels(), [1; 3]);
    cluster.replicas.remove(&lost);
    let old = NodeId(lost.0 + 10);
    cluster.start_empty(old);
    cluster.ticks(10 * TICKS_PER_SECOND);
    let refused = |(node, error): &(NodeId, StepError)| {
        *node == old
            && matches!(error, StepError::Unreadable { what, .. } if what.contains("level 1"))
    };
    assert!(!cluster.refusals.is_empty());
    assert!(
        cluster.refusals.iter().all(refused),
        "{:?}",
        cluster.refusals
    );
    // Each chunk is answered, so the leader waits before it sends another snapshot.
    let chunks = cluster.refusals.len();
    assert_eq!(cluster.failed_answers, u32::try_from(chunks).unwrap());
    assert!(chunks < 6, "{chunks} chunks in ten seconds");
    assert_eq!(cluster.status(old).last_applied, Index(0));
    assert_eq!(cluster.errors, [], "it waits for its upgrade");

    // The same address with the newer version.
    cluster.replicas.remove(&old);
    let new = NodeId(lost.0 + 20);
    cluster.levels.insert(new, 1);
    cluster.start_empty(new);
    cluster.ticks(40 * TICKS_PER_SECOND);
    let membership = cluster.status(cluster.leader()).membership;
    assert!(membership.is_voter(new), "{membership}");
    assert_eq!(cluster.feature_levels(), [1; 3]);
}

#[test]
fn an_older_node_refuses_an_entry_before_it_is_in_its_log() {
    let mut cluster = Cluster::of_levels([1; 3], |_| ());
    let (leader, [follower, _]) = cluster.elect();
    cluster.ticks(TICKS_PER_SECOND);
    assert_eq!(cluster.feature_levels(), [1; 3]);
    // The follower starts from an older disk and with an older version, and gets the whole log from another leader.
    cluster.levels.insert(follower, 0);
    cluster.start_as_founder(follower, Map::default());
    cluster.replicas.remove(&leader);
    cluster.ticks(5 * TICKS_PER_SECOND);
    assert!(cluster.try_leader().is_some_and(|node| node != follower));
    assert!(!cluster.refusals.is_empty());
    let status = cluster.status(follower);
    // The raise is the entry after the first leader's no-op.
    assert!(status.last_index < Index(3), "{status:?}");
    assert_eq!(cluster.errors, []);
}
