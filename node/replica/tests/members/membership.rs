//! Members that are removed, lost and replaced.

use std::sync::Arc;

use raft::{MembershipChange, StoreError};
use replica::{Answer, Refusal, Request, RequestId};
use types::NodeId;

use crate::cluster::{Cluster, Map};

impl Cluster {
    /// Asks the leader to remove `node`.
    fn remove(&mut self, node: NodeId, without_live_quorum: bool) -> RequestId {
        let change = if without_live_quorum {
            MembershipChange::RemoveWithoutLiveQuorum { node }
        } else {
            MembershipChange::Remove { node }
        };
        let id = self.submit(self.leader(), Request::ChangeMembership(change));
        self.ticks(20);
        id
    }
}

#[test]
fn a_live_voter_is_not_removed_while_another_is_down() {
    let mut cluster = Cluster::new(|_| ());
    let (leader, [dead, live]) = cluster.elect();
    cluster.ticks(20);
    cluster.replicas.remove(&dead);
    cluster.ticks(100);
    let refused = cluster.remove(live, false);
    let expected = Refusal::NoLiveQuorum { live: 1, quorum: 2 };
    assert_eq!(cluster.outputs.answers.get(&refused), Some(&Err(expected)));
    let refused = cluster.remove(leader, false);
    let expected = Refusal::NoLiveQuorum { live: 1, quorum: 2 };
    assert_eq!(cluster.outputs.answers.get(&refused), Some(&Err(expected)));
    cluster.ticks(500);
    assert_eq!(cluster.try_leader(), Some(leader));
    // The dead voter may go, and then the live one.
    for node in [dead, live] {
        let done = cluster.remove(node, false);
        let answer = cluster.outputs.answers.get(&done);
        assert!(
            matches!(answer, Some(Ok(Answer::MembershipChanged(_)))),
            "{node}: {answer:?}"
        );
    }
    assert_eq!(cluster.try_leader(), Some(leader));
}

#[test]
fn a_voter_that_never_answered_this_leader_is_not_counted_as_live() {
    let mut cluster = Cluster::new(|_| ());
    let (old, [dead, live]) = cluster.elect();
    cluster.replicas.remove(&dead);
    cluster.ticks(100);
    cluster.submit(old, Request::TransferLeadership(Some(live)));
    while cluster.try_leader() != Some(live) {
        assert!(cluster.time < 100_000, "no hand-over");
        cluster.tick();
    }
    // The new leader has just begun, and has not missed an answer yet.
    cluster.settle();
    let refused = cluster.remove(old, false);
    let answer = cluster.outputs.answers.get(&refused);
    assert!(
        matches!(answer, Some(Err(Refusal::NoLiveQuorum { .. }))),
        "{answer:?}"
    );
}

#[test]
fn a_removal_can_be_forced() {
    let mut cluster = Cluster::new(|_| ());
    let (leader, [dead, live]) = cluster.elect();
    cluster.replicas.remove(&dead);
    cluster.ticks(100);
    cluster.remove(live, true);
    let membership = cluster.status(leader).membership;
    assert!(!membership.is_voter(live), "{membership}");
}

#[test]
fn a_node_that_is_wiped_again_and_again_is_let_in() {
    let mut cluster = Cluster::new(|_| ());
    let (leader, [lost, _]) = cluster.elect();
    cluster.put("a", 10);
    cluster.tick();
    cluster.replicas.remove(&lost);
    // Its pod starts with an empty disk, is let in, and is killed before its snapshot is there.
    cluster.lane.bytes_per_tick = 0;
    for round in 1..=40 {
        let id = NodeId(lost.0 + 10 * round);
        cluster.start_empty(id);
        cluster.ticks(120);
        let membership = cluster.status(leader).membership;
        assert!(membership.get(id).is_some(), "round {round}: {membership}");
        assert_eq!(membership.members().count(), 4, "{membership}");
        cluster.replicas.remove(&id);
        cluster.lane.lose_all();
        cluster.ticks(60);
    }
    cluster.lane.bytes_per_tick = usize::MAX / 2;
    let id = NodeId(lost.0 + 1_000);
    cluster.start_empty(id);
    cluster.ticks(1_000);
    let membership = cluster.status(leader).membership;
    assert!(membership.is_voter(id), "{membership}");
    assert_eq!(membership.members().count(), 3, "{membership}");
}

#[test]
fn an_error_after_the_state_was_replaced_is_final() {
    let mut cluster = Cluster::new(|options| options.compact_after_bytes = 2_000);
    let (_, [follower, _]) = cluster.elect();
    // The follower runs an older version, and starts with the first state.
    let map = Map {
        is_old: true,
        ..Map::default()
    };
    let seen = Arc::clone(&map.seen);
    cluster.start_as_founder(follower, map);
    cluster.cut = vec![follower];
    cluster.put("newer", 10);
    cluster.write_without(follower, 100, 100);
    cluster.cut.clear();
    for number in 0..200 {
        cluster.put(&format!("later{number}"), 10);
        cluster.tick();
    }
    let damaged = StoreError::Damaged("a record of version 2".to_owned());
    assert_eq!(cluster.errors, [(follower, damaged)]);
    let seen = seen.lock().unwrap();
    assert_eq!((seen.failed_reloads, seen.applied_after), (1, 0));
}

/// Changes of members and transfers count among the requests that a replica holds.
#[test]
fn requests_of_operators_are_bounded_with_all_others() {
    const MOST: usize = 3;
    let mut cluster = Cluster::new(|options| options.max_pending_requests = MOST);
    let (leader, [other, _]) = cluster.elect();
    // Nothing pends now, so as many requests find room. No other node hears of them.
    cluster.cut = vec![leader];
    let node = NodeId(9);
    let address = "host-9".to_owned();
    let add = Request::ChangeMembership(MembershipChange::AddLearner { node, address });
    let added = cluster.submit(leader, add);
    let transferred = cluster.submit(leader, Request::TransferLeadership(Some(other)));
    let read = cluster.submit(leader, Request::Read(()));
    let refused = cluster.submit(leader, Request::Read(()));
    cluster.settle();
    let answers = &cluster.outputs.answers;
    assert!(
        [added, transferred, read]
            .iter()
            .all(|id| !answers.contains_key(id)),
        "{answers:?}"
    );
    let expected = Refusal::Overloaded {
        what: "pending requests",
        limit: MOST as u64,
    };
    assert_eq!(answers.get(&refused), Some(&Err(expected)));
}
