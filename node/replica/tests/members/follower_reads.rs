//! Linearizable reads on followers.

use bytes::Bytes;
use replica::{Answer, Refusal, Request, RequestId};
use types::NodeId;

use crate::cluster::Cluster;

/// More ticks than a leader needs between two heartbeats, and less than an election timeout.
const A_HEARTBEAT: usize = 15;

fn read(cluster: &mut Cluster, node: NodeId) -> RequestId {
    let id = cluster.submit(node, Request::ReadHere(()));
    cluster.settle();
    id
}

fn served(cluster: &Cluster, id: RequestId) -> bool {
    cluster.outputs.answers.get(&id) == Some(&Ok(Answer::Machine(Bytes::new())))
}

fn refused(cluster: &Cluster, id: RequestId) -> Option<&Refusal> {
    cluster.outputs.answers.get(&id)?.as_ref().err()
}

#[test]
fn leaders_and_followers_serve_reads_and_plain_reads_stay_with_the_leader() {
    let mut cluster = Cluster::new(|_| ());
    let (leader, [second, third]) = cluster.elect();
    cluster.ticks(A_HEARTBEAT);
    for node in [leader, second, third] {
        cluster.put("a", 1);
        let id = read(&mut cluster, node);
        assert!(served(&cluster, id), "{node}");
        assert_eq!(cluster.lag(node), 0);
    }
    let plain = cluster.submit(second, Request::Read(()));
    cluster.settle();
    let leader = Some(leader);
    assert_eq!(
        refused(&cluster, plain),
        Some(&Refusal::NotLeader { leader })
    );
}

#[test]
fn a_follower_that_hears_nothing_names_the_leader_and_then_refuses_at_once() {
    let mut cluster = Cluster::new(|options| {
        options.raft.check_quorum = false;
        // It doesn't campaign while this test runs.
        options.raft.election_ticks = 50;
    });
    let (leader, [second, _]) = cluster.elect();
    cluster.ticks(A_HEARTBEAT);
    cluster.cut = vec![leader];
    let waits = read(&mut cluster, second);
    cluster.ticks(10);
    assert!(!cluster.outputs.answers.contains_key(&waits));
    cluster.cut.clear();
    cluster.ticks(A_HEARTBEAT);
    assert!(served(&cluster, waits), "the question is repeated");

    cluster.cut = vec![second];
    let late = read(&mut cluster, second);
    cluster.ticks(50);
    assert!(matches!(
        refused(&cluster, late),
        Some(Refusal::NotLeader { .. })
    ));
    cluster.cut.clear();
    cluster.ticks(A_HEARTBEAT);
    let at_once = read(&mut cluster, second);
    assert!(matches!(
        refused(&cluster, at_once),
        Some(Refusal::NotLeader { .. })
    ));
    cluster.ticks(60);
    let later = read(&mut cluster, second);
    assert!(served(&cluster, later));
}

#[test]
fn reads_of_a_follower_that_becomes_the_leader_are_its_own() {
    let mut cluster = Cluster::new(|_| ());
    let (leader, [second, third]) = cluster.elect();
    cluster.ticks(A_HEARTBEAT);
    cluster.submit(leader, Request::TransferLeadership(Some(second)));
    // The question and the message that makes it campaign are on their way together.
    let id = cluster.submit(second, Request::ReadHere(()));
    cluster.settle();
    cluster.ticks(A_HEARTBEAT);
    assert_eq!(cluster.leader(), second);
    assert!(served(&cluster, id));
    let id = read(&mut cluster, third);
    assert!(served(&cluster, id));
}

#[test]
fn waiting_reads_are_bounded_and_end_with_the_process() {
    let mut cluster = Cluster::new(|options| options.max_pending_requests = 3);
    let (leader, [second, _]) = cluster.elect();
    cluster.ticks(A_HEARTBEAT);
    cluster.cut = vec![leader];
    let waiting: Vec<RequestId> = (0..3).map(|_| read(&mut cluster, second)).collect();
    let too_many = read(&mut cluster, second);
    assert!(matches!(
        refused(&cluster, too_many),
        Some(Refusal::Overloaded { .. })
    ));
    let mut replica = cluster.replicas.remove(&second).unwrap();
    replica.stop(&mut cluster.outputs).unwrap();
    for id in waiting {
        assert_eq!(refused(&cluster, id), Some(&Refusal::Stopping));
    }
}
