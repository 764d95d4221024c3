//! Lab 3C: persistence across crashes, and an unreliable network.

use shardkv_sim::rng::{Concern, SimRng};

use crate::cluster::{Cluster, scenario};

#[test]
fn persist1_3c() {
    let mut cluster = Cluster::new(3);
    cluster.one();
    for host in cluster.hosts() {
        cluster.crash(host);
    }
    for host in cluster.hosts() {
        cluster.start(host);
    }
    cluster.one();
    let first = cluster.leader();
    cluster.crash(first);
    cluster.start(first);
    cluster.one();
    let second = cluster.leader();
    cluster.crash(second);
    let rest = cluster.others(second);
    cluster.one_of(&rest, 2);
    cluster.start(second);
    cluster.one();
    let third = cluster.others(cluster.hosts()[0])[0];
    cluster.crash(third);
    let rest = cluster.others(third);
    cluster.one_of(&rest, 2);
    cluster.start(third);
    cluster.one();
    let hosts = cluster.hosts();
    assert!(cluster.read(&hosts).starts_with("<1>"));
    cluster.finish();
}

#[test]
fn persist2_3c() {
    let mut cluster = Cluster::new(5);
    for round in 0..5 {
        cluster.one();
        let leader = cluster.leader();
        let next = |step: usize| (leader + step) % 5;
        cluster.crash(next(1));
        cluster.crash(next(2));
        let three = [leader, next(3), next(4)];
        cluster.one_of(&three, 3);
        for host in three {
            cluster.crash(host);
        }
        cluster.start(next(1));
        cluster.start(next(2));
        cluster.run_ms(1_000);
        cluster.start(next(3));
        let three = [next(1), next(2), next(3)];
        cluster.one_of(&three, 3);
        cluster.start(next(4));
        cluster.start(leader);
        assert!(round < 5);
    }
    cluster.one();
    cluster.finish();
}

/// A leader and a follower crash; the leader and the other follower must go on from their logs.
#[test]
fn persist3_3c() {
    let mut cluster = Cluster::new(3);
    cluster.one();
    let leader = cluster.leader();
    let others = cluster.others(leader);
    cluster.disconnect(others[1]);
    cluster.one_of(&[leader, others[0]], 2);
    cluster.crash(leader);
    cluster.crash(others[0]);
    cluster.connect(others[1]);
    cluster.start(leader);
    cluster.one_of(&[leader, others[1]], 2);
    cluster.start(others[0]);
    cluster.one();
    cluster.finish();
}

/// Leaders crash right after they appended a command, or some time later. Entries of earlier terms must not be
/// committed by counting replicas (figure 8 of the Raft paper).
fn figure8(unreliable: bool, rounds: u64) {
    let mut cluster = Cluster::with(scenario(8, 5));
    if unreliable {
        cluster.script().set_links(Cluster::unreliable());
    }
    let mut rng = SimRng::new(8, Concern::Faults);
    cluster.one_of(&[0, 1, 2, 3, 4], 1);
    let mut up = 5;
    let mut down = [false; 5];
    for _ in 0..rounds {
        let mut leader = None;
        for host in cluster.hosts() {
            if !down[host] {
                cluster.ask(host);
                leader = cluster.script().leader_among(&[host]).or(leader);
            }
        }
        let wait = if rng.chance(100_000) {
            rng.below(500)
        } else {
            rng.below(13)
        };
        cluster.run_ms(wait);
        if let Some(leader) = leader
            && (!unreliable || rng.coin())
        {
            if unreliable {
                cluster.disconnect(leader);
            } else {
                cluster.crash(leader);
            }
            down[leader] = true;
            up -= 1;
        }
        if up < 3 {
            let back = rng.index(5);
            if down[back] {
                if unreliable {
                    cluster.connect(back);
                } else {
                    cluster.start(back);
                }
                down[back] = false;
                up += 1;
            }
        }
    }
    for (host, is_down) in down.into_iter().enumerate() {
        if is_down && unreliable {
            cluster.connect(host);
        } else if is_down {
            cluster.start(host);
        }
    }
    cluster.one();
    cluster.finish();
}

#[test]
fn figure8_3c() {
    figure8(false, 1_000);
}

#[test]
fn figure8_unreliable_3c() {
    figure8(true, 1_000);
}

#[test]
fn unreliable_agree_3c() {
    let mut cluster = Cluster::new(5);
    cluster.script().set_links(Cluster::unreliable());
    let hosts = cluster.hosts();
    for _ in 1..50 {
        let leader = cluster.leader();
        for _ in 0..4 {
            cluster.ask(leader);
        }
        cluster.one_of(&hosts, 1);
    }
    cluster.script().set_links(scenario(1, 5).links);
    cluster.one();
    cluster.finish();
}

/// Clients write and read while servers are cut off, crash and restart.
fn churn(unreliable: bool) {
    let mut scenario = scenario(11, 5);
    scenario.clients = 3;
    scenario.client.deadline = 30_000_000;
    if unreliable {
        scenario.links = Cluster::unreliable();
    }
    let mut cluster = Cluster::with(scenario);
    let mut rng = SimRng::new(11, Concern::Faults);
    for _ in 0..20 {
        if rng.chance(200_000) {
            let host = rng.index(5);
            cluster.disconnect(host);
        }
        if rng.coin() {
            let host = rng.index(5);
            cluster.start(host);
            cluster.connect(host);
        }
        if rng.chance(200_000) {
            let host = rng.index(5);
            cluster.crash(host);
        }
        cluster.run_ms(280);
    }
    for host in cluster.hosts() {
        cluster.start(host);
        cluster.connect(host);
    }
    cluster.finish();
}

#[test]
fn reliable_churn_3c() {
    churn(false);
}

#[test]
fn unreliable_churn_3c() {
    churn(true);
}
