//! Lab 4A: requests over the log, each answered by the entry that carries it.

use std::collections::BTreeSet;

use replica::Refusal;

use crate::cluster::Cluster;

#[test]
fn basic_4a() {
    let mut cluster = Cluster::new(3);
    for _ in 0..10 {
        cluster.one();
    }
    let hosts = cluster.hosts();
    assert_eq!(cluster.read(&hosts), "<1><2><3><4><5><6><7><8><9><10>");
    cluster.finish();
}

#[test]
fn concurrent_4a() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let ids: Vec<_> = (0..50).map(|_| cluster.ask(leader)).collect();
    cluster.wait(2_000, "all are answered", |script| {
        ids.iter().all(|id| script.answer(*id).is_some())
    });
    let lengths: BTreeSet<_> = ids
        .iter()
        .map(|id| cluster.acknowledged(*id).unwrap())
        .collect();
    assert_eq!(lengths.len(), 50);
    cluster.finish();
}

#[test]
fn leader_failure_4a() {
    let mut cluster = Cluster::new(3);
    cluster.one();
    let leader = cluster.leader();
    cluster.disconnect(leader);
    let rest = cluster.others(leader);
    cluster.one_of(&rest, 2);
    cluster.connect(leader);
    cluster.one();
    cluster.finish();
}

/// A leader without a quorum never acknowledges its entries, whatever entries are committed at their indexes.
#[test]
fn leader_partition_4a() {
    let mut cluster = Cluster::new(3);
    cluster.one();
    let leader = cluster.leader();
    cluster.disconnect(leader);
    let lost: Vec<_> = (0..10).map(|_| cluster.ask(leader)).collect();
    cluster.run_ms(50);
    for id in &lost {
        assert!(cluster.script().answer(*id).is_none());
    }
    let rest = cluster.others(leader);
    for _ in 0..10 {
        cluster.one_of(&rest, 2);
    }
    cluster.connect(leader);
    cluster.wait(
        5_000,
        "the old leader refuses its pending requests",
        |script| lost.iter().all(|id| script.answer(*id).is_some()),
    );
    for id in &lost {
        assert!(matches!(
            cluster.script().answer(*id),
            Some(Err(Refusal::Unknown { .. } | Refusal::NotLeader { .. }))
        ));
    }
    cluster.one();
    let hosts = cluster.hosts();
    let value = cluster.read(&hosts);
    for lost in 2..=11 {
        assert!(!value.contains(&format!("<{lost}>")), "{value}");
    }
    cluster.finish();
}

#[test]
fn restart_replay_4a() {
    let mut cluster = Cluster::new(3);
    for _ in 0..100 {
        cluster.one();
    }
    for host in cluster.hosts() {
        cluster.crash(host);
    }
    for host in cluster.hosts() {
        cluster.start(host);
    }
    cluster.one();
    let hosts = cluster.hosts();
    let value = cluster.read(&hosts);
    let numbers: Vec<String> = (1..=100).map(|n| format!("<{n}>")).collect();
    assert!(value.starts_with(&numbers.concat()), "{value}");
    cluster.finish();
}

/// Requests that a shutdown interrupts never take effect twice, and the servers continue.
#[test]
fn restart_submit_4a() {
    let mut cluster = Cluster::new(3);
    for _ in 0..20 {
        cluster.one();
    }
    let leader = cluster.leader();
    let ids: Vec<_> = (0..50).map(|_| cluster.ask(leader)).collect();
    cluster.run_ms(1);
    for host in cluster.hosts() {
        cluster.crash(host);
    }
    let acknowledged = ids
        .iter()
        .filter(|id| cluster.acknowledged(**id).is_some())
        .count();
    for host in cluster.hosts() {
        cluster.start(host);
    }
    cluster.one();
    let hosts = cluster.hosts();
    let value = cluster.read(&hosts);
    let kept = value.matches('<').count();
    assert!(kept >= 21 + acknowledged);
    for number in 1..=70 {
        let times = value.matches(&format!("<{number}>")).count();
        assert!(times <= 1, "{number} took effect {times} times");
    }
    cluster.finish();
}

#[test]
fn shutdown_4a() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let ids: Vec<_> = (0..10).map(|_| cluster.ask(leader)).collect();
    for host in cluster.others(leader) {
        cluster.disconnect(host);
    }
    cluster.run_ms(5);
    for host in cluster.hosts() {
        cluster.crash(host);
    }
    cluster.run_ms(1_000);
    for id in ids {
        assert!(cluster.acknowledged(id).is_none());
    }
    for host in cluster.hosts() {
        cluster.start(host);
    }
    cluster.script().heal();
    cluster.one();
    cluster.finish();
}
