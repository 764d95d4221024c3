//! Lab 3D: snapshots and log compaction.

use shardkv_sim::rng::{Concern, SimRng};

use crate::cluster::{Cluster, scenario};

/// The size in bytes at which the log is compacted.
const THRESHOLD: u64 = 1_000;
fn cluster(seed: u64) -> Cluster {
    let mut scenario = scenario(seed, 3);
    scenario.replica.compact_after_bytes = THRESHOLD;
    Cluster::with(scenario)
}

#[track_caller]
fn assert_logs_are_bounded(cluster: &mut Cluster) {
    for host in cluster.hosts() {
        let (entries, bytes) = cluster.script().log_size(host);
        assert!(
            bytes as u64 <= 8 * THRESHOLD,
            "host {host} keeps {entries} entries of {bytes} bytes"
        );
    }
}

fn snapshots(seed: u64, disconnect: bool, reliable: bool, crash: bool) {
    let mut cluster = cluster(seed);
    if !reliable {
        cluster.script().set_links(Cluster::unreliable());
    }
    let mut rng = SimRng::new(seed, Concern::Faults);
    let hosts = cluster.hosts();
    cluster.one_of(&hosts, if reliable { 3 } else { 1 });
    for round in 0..30 {
        let leader = cluster.leader();
        let (victim, sender) = if round % 3 == 1 {
            (leader, (leader + 1) % 3)
        } else {
            ((leader + 1) % 3, leader)
        };
        let rest = cluster.others(victim);
        if disconnect {
            cluster.disconnect(victim);
            cluster.one_of(&rest, 1);
        }
        if crash {
            cluster.crash(victim);
            cluster.one_of(&rest, 1);
        }
        let live = if disconnect || crash {
            rest
        } else {
            hosts.clone()
        };
        // Enough commands to compact the log several times.
        let commands = 60 + rng.below(60);
        for _ in 0..commands {
            let now = cluster.leader_of(&live);
            cluster.ask(now);
            cluster.run_ms(1);
        }
        assert!(live.contains(&sender));
        cluster.one_of(&live, if reliable { live.len() } else { 1 });
        if reliable {
            // A leader keeps the log for a follower until that was silent for an election timeout.
            cluster.run_ms(1_000);
            assert_logs_are_bounded(&mut cluster);
        }
        if disconnect {
            cluster.connect(victim);
        }
        if crash {
            cluster.start(victim);
        }
        if disconnect || crash {
            cluster.one_of(&hosts, if reliable { 3 } else { 1 });
        }
    }
    cluster.script().set_links(scenario(1, 3).links);
    cluster.one();
    assert_logs_are_bounded(&mut cluster);
    if disconnect || crash {
        assert!(
            cluster.script().snapshots_installed() > 0,
            "the log was gone, so a snapshot had to help"
        );
    }
    cluster.finish();
}

#[test]
fn snapshot_basic_3d() {
    snapshots(31, false, true, false);
}

#[test]
fn snapshot_install_3d() {
    snapshots(32, true, true, false);
}

#[test]
fn snapshot_install_unreliable_3d() {
    snapshots(33, true, false, false);
}

#[test]
fn snapshot_install_crash_3d() {
    snapshots(34, false, true, true);
}

#[test]
fn snapshot_install_unreliable_crash_3d() {
    snapshots(35, false, false, true);
}

#[test]
fn snapshot_all_crash_3d() {
    let mut cluster = cluster(36);
    let mut rng = SimRng::new(36, Concern::Faults);
    cluster.one();
    for _ in 0..5 {
        let commands = 60 + rng.below(60);
        for _ in 0..commands {
            let leader = cluster.leader();
            cluster.ask(leader);
            cluster.run_ms(1);
        }
        let before = cluster.one();
        for host in cluster.hosts() {
            cluster.crash(host);
        }
        for host in cluster.hosts() {
            cluster.start(host);
        }
        let after = cluster.one();
        assert!(after > before, "the index went back over a restart");
    }
    cluster.finish();
}

/// The state is right after a restart from a snapshot alone, twice in a row.
#[test]
fn snapshot_init_3d() {
    let mut cluster = cluster(37);
    let first = cluster.one();
    for _ in 0..80 {
        let leader = cluster.leader();
        cluster.ask(leader);
        cluster.run_ms(2);
    }
    cluster.one();
    for _ in 0..2 {
        for host in cluster.hosts() {
            cluster.crash(host);
        }
        for host in cluster.hosts() {
            cluster.start(host);
        }
        cluster.one();
    }
    let hosts = cluster.hosts();
    let value = cluster.read(&hosts);
    assert!(value.starts_with("<1><2>"), "{value}");
    let cut = cluster.script().status(0).unwrap().compacted.index;
    assert!(cut > first, "the log was cut");
    cluster.finish();
}
