//! A machine learns if anybody waits for the answer to an operation.

use types::NodeId;

use crate::cluster::{Cluster, Map};

/// Returns the keys that a node applied: those whose answers were awaited, and all others.
fn applied(cluster: &Cluster, node: NodeId) -> (Vec<String>, Vec<String>) {
    let seen = cluster.replicas[&node].machine().seen.lock().unwrap();
    let text = |keys: &[bytes::Bytes]| {
        let keys = keys.iter();
        keys.map(|key| String::from_utf8_lossy(key).into_owned())
            .collect()
    };
    (text(&seen.awaited), text(&seen.unawaited))
}

fn keys(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

#[test]
fn an_answer_is_awaited_only_where_the_request_came_in() {
    let mut cluster = Cluster::new(|_| ());
    let (first, [second, third]) = cluster.elect();
    cluster.put("a", 1);
    cluster.put("b", 1);
    cluster.ticks(20);
    let none = keys(&[]);
    assert_eq!(applied(&cluster, first), (keys(&["a", "b"]), none.clone()));
    for node in [second, third] {
        assert_eq!(applied(&cluster, node), (none.clone(), keys(&["a", "b"])));
    }

    // The leader is cut off with an entry that others never get, and learns what another leader wrote in its place.
    cluster.cut = vec![first];
    cluster.put("lost", 1);
    cluster.settle();
    let lost = cluster.status(first).last_index;
    cluster.ticks(300);
    let leads = |node: &NodeId| cluster.status(*node).role == raft::Role::Leader;
    let leader = [second, third].into_iter().find(leads).unwrap();
    cluster.put_at(leader, "c", 1);
    cluster.ticks(20);
    cluster.cut.clear();
    cluster.ticks(300);
    assert!(cluster.status(first).last_applied >= lost);
    assert_eq!(applied(&cluster, first), (keys(&["a", "b"]), keys(&["c"])));

    // Nobody waits on a node that applies the whole log again.
    cluster.start_as_founder(leader, Map::default());
    cluster.ticks(300);
    assert_eq!(applied(&cluster, leader), (none, keys(&["a", "b", "c"])));
}
