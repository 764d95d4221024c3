//! Lab 3A: leader election.

use crate::cluster::Cluster;

#[test]
fn initial_election_3a() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let term = cluster.script().status(leader).unwrap().term;
    cluster.run_ms(2_000);
    assert_eq!(
        cluster.leader(),
        leader,
        "without a failure the leader stays"
    );
    for host in cluster.hosts() {
        assert_eq!(cluster.script().status(host).unwrap().term, term);
    }
    cluster.finish();
}

#[test]
fn re_election_3a() {
    let mut cluster = Cluster::new(3);
    let first = cluster.leader();
    cluster.disconnect(first);
    let rest = cluster.others(first);
    let second = cluster.leader_of(&rest);
    // The old leader reconnects and doesn't disturb the new leader.
    cluster.connect(first);
    cluster.run_ms(1_000);
    assert_eq!(cluster.leader(), second);
    // Without a quorum there is no leader.
    let third = cluster.others(second)[0];
    cluster.disconnect(second);
    cluster.disconnect(third);
    cluster.run_ms(2_000);
    for host in cluster.hosts() {
        assert!(cluster.script().leader_among(&[host]).is_none());
    }
    // With a quorum a leader is elected, and the last host to reconnect doesn't replace it.
    cluster.connect(third);
    cluster.leader();
    cluster.connect(second);
    cluster.leader();
    cluster.finish();
}

#[test]
fn many_elections_3a() {
    let mut cluster = Cluster::new(7);
    cluster.leader();
    for round in 0..9usize {
        let down = [round % 7, (round * 3 + 1) % 7, (round * 5 + 3) % 7];
        for host in down {
            cluster.disconnect(host);
        }
        let up: Vec<usize> = cluster
            .hosts()
            .into_iter()
            .filter(|host| !down.contains(host))
            .collect();
        cluster.leader_of(&up);
        for host in down {
            cluster.connect(host);
        }
    }
    cluster.leader();
    cluster.finish();
}
