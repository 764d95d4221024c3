//! Labs 4B and 4C: a key-value service with clients that retry, and its snapshots.
//!
//! Every client history is checked for linearizability at the end of each test.

use bytes::Bytes;
use replica::{Answer, Request};
use shardkv::{Response, Write, Written};
use shardkv_sim::machine::Reply;
use shardkv_sim::queue::{MILLI, SECOND};
use shardkv_sim::rng::{Concern, SimRng};
use shardkv_sim::scenario::Scenario;

use crate::cluster::{Cluster, scenario};

/// The conditions of a generic test.
#[derive(Clone, Copy, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the switches of MIT's generic test"
)]
struct Trouble {
    clients: usize,
    servers: usize,
    unreliable: bool,
    crash: bool,
    partitions: bool,
    /// The size in bytes at which the log is compacted.
    threshold: Option<u64>,
    /// True if all clients use one key.
    contended: bool,
}

fn setting(seed: u64, trouble: Trouble) -> Scenario {
    let mut scenario = scenario(seed, trouble.servers);
    scenario.clients = trouble.clients;
    scenario.client.keys = if trouble.contended { 1 } else { 10 };
    scenario.client.pipeline = 2;
    scenario.client.think = (MILLI, 20 * MILLI);
    scenario.client.patience = 200 * MILLI;
    scenario.client.deadline = 60 * SECOND;
    scenario.client.scans = 0;
    scenario.client.copies = 20_000;
    scenario.client.copies_late_by = 500 * MILLI;
    if trouble.unreliable {
        scenario.links = Cluster::unreliable();
    }
    if let Some(threshold) = trouble.threshold {
        scenario.replica.compact_after_bytes = threshold;
    }
    scenario
}

/// Runs clients for three rounds of five seconds, with changing partitions and a restart of all servers after each
/// round.
fn generic(seed: u64, trouble: Trouble) {
    let mut cluster = Cluster::with(setting(seed, trouble));
    let mut rng = SimRng::new(seed, Concern::Faults);
    for _ in 0..3 {
        for _ in 0..10 {
            if trouble.partitions {
                let (mut left, mut right) = (Vec::new(), Vec::new());
                for host in cluster.hosts() {
                    if rng.coin() {
                        left.push(host);
                    } else {
                        right.push(host);
                    }
                }
                cluster.script().partition(&[&left, &right]);
            }
            cluster.run_ms(400 + rng.below(200));
        }
        cluster.script().heal();
        if trouble.crash {
            for host in cluster.hosts() {
                cluster.crash(host);
            }
            cluster.run_ms(100);
            for host in cluster.hosts() {
                cluster.start(host);
            }
        }
        cluster.run_ms(500);
    }
    cluster.run_ms(1_000);
    if let Some(threshold) = trouble.threshold {
        let large = |cluster: &mut Cluster| {
            let sizes = cluster.hosts().into_iter();
            let sizes = sizes.map(|host| (host, cluster.script().log_size(host)));
            let large = sizes.filter(|(_, (_, bytes))| *bytes as u64 > 8 * threshold);
            large.collect::<Vec<_>>()
        };
        // A leader keeps the log for a follower that is catching up, or was lost less than an election timeout ago.
        for _ in 0..30 {
            if !large(&mut cluster).is_empty() {
                cluster.run_ms(100);
            }
        }
        let large = large(&mut cluster);
        assert!(large.is_empty(), "hosts, entries and bytes: {large:?}");
    }
    cluster.finish();
}

macro_rules! generic_tests {
    ($($(#[$doc:meta])* $name:ident: $seed:literal, $trouble:expr;)*) => {
        $($(#[$doc])* #[test] fn $name() { generic($seed, $trouble); })*
    };
}

const QUIET: Trouble = Trouble {
    clients: 1,
    servers: 5,
    unreliable: false,
    crash: false,
    partitions: false,
    threshold: None,
    contended: false,
};
const MANY: Trouble = Trouble {
    clients: 5,
    ..QUIET
};
const SNAPSHOTS: Trouble = Trouble {
    threshold: Some(1_000),
    ..MANY
};

generic_tests! {
    basic_4b: 401, QUIET;
    concurrent_4b: 402, MANY;
    unreliable_4b: 403, Trouble { unreliable: true, ..MANY };
    many_partitions_one_client_4b: 404, Trouble { partitions: true, ..QUIET };
    many_partitions_many_clients_4b: 405, Trouble { partitions: true, ..MANY };
    persist_one_client_4b: 406, Trouble { crash: true, ..QUIET };
    persist_concurrent_4b: 407, Trouble { crash: true, ..MANY };
    persist_concurrent_unreliable_4b: 408, Trouble { crash: true, unreliable: true, ..MANY };
    persist_partition_4b: 409, Trouble { crash: true, partitions: true, ..MANY };
    persist_partition_unreliable_4b: 410, Trouble {
        crash: true, partitions: true, unreliable: true, ..MANY
    };
    persist_partition_unreliable_linearizable_4b: 411, Trouble {
        clients: 15, servers: 7, crash: true, partitions: true, unreliable: true, contended: true, ..MANY
    };
    snapshot_recover_4c: 412, Trouble { crash: true, clients: 1, ..SNAPSHOTS };
    snapshot_recover_many_clients_4c: 413, Trouble { crash: true, clients: 20, ..SNAPSHOTS };
    snapshot_unreliable_4c: 414, Trouble { unreliable: true, ..SNAPSHOTS };
    snapshot_unreliable_recover_4c: 415, Trouble { unreliable: true, crash: true, ..SNAPSHOTS };
    snapshot_unreliable_recover_concurrent_partition_4c: 416, Trouble {
        unreliable: true, crash: true, partitions: true, ..SNAPSHOTS
    };
    snapshot_unreliable_recover_concurrent_partition_linearizable_4c: 417, Trouble {
        clients: 15, servers: 7, unreliable: true, crash: true, partitions: true, contended: true, ..SNAPSHOTS
    };
}

/// A minority answers no request, and a majority does. After the partition heals, the cluster commits again.
#[test]
fn one_partition_4b() {
    let mut cluster = Cluster::new(5);
    cluster.one();
    let leader = cluster.leader();
    let others = cluster.others(leader);
    let (minority, majority) = ([leader, others[0]], [others[1], others[2], others[3]]);
    cluster.script().partition(&[&minority, &majority]);
    cluster.one_of(&majority, 3);
    let write = cluster.ask(leader);
    let key = Bytes::from_static(crate::cluster::LOG);
    let read = cluster
        .script()
        .ask(leader, Request::Read(shardkv::Query::Get { key }));
    cluster.run_ms(2_000);
    assert!(cluster.acknowledged(write).is_none());
    assert!(!matches!(cluster.script().answer(read), Some(Ok(_))));
    cluster.one_of(&majority, 3);
    cluster.script().heal();
    cluster.one();
    cluster.finish();
}

/// Sequential operations are much faster than one per heartbeat.
#[test]
fn speed_4b() {
    let mut cluster = Cluster::new(3);
    cluster.one();
    let leader = cluster.leader();
    let begun = cluster.script().now();
    for number in 0..1_000u32 {
        let write = Write::Put {
            key: Bytes::from_static(b"x"),
            value: Bytes::from(number.to_string()),
        };
        let id = cluster.ask_write(leader, write);
        while cluster.script().answer(id).is_none() {
            cluster.run_ms(1);
        }
        assert!(matches!(
            cluster.script().answer(id),
            Some(Ok(Answer::Machine(Reply::Kv(Response::Written(
                Written::Put
            )))))
        ));
    }
    let each = (cluster.script().now() - begun) / 1_000;
    assert!(each <= 10 * MILLI, "an operation took {each} us");
    cluster.finish();
}

/// A follower that was disconnected catches up by a snapshot.
#[test]
fn snapshot_rpc_4c() {
    let mut scenario = scenario(420, 3);
    scenario.replica.compact_after_bytes = 1_000;
    let mut cluster = Cluster::with(scenario);
    cluster.one();
    cluster.script().partition(&[&[0, 1], &[2]]);
    for _ in 0..100 {
        cluster.one_of(&[0, 1], 2);
    }
    for host in [0, 1] {
        let (_, bytes) = cluster.script().log_size(host);
        assert!(bytes <= 8_000, "host {host} keeps {bytes} bytes");
    }
    cluster.script().partition(&[&[0, 2], &[1]]);
    cluster.one_of(&[0, 2], 2);
    assert!(cluster.script().snapshots_installed() > 0);
    cluster.script().heal();
    cluster.one();
    cluster.finish();
}

/// The log and the state stay small, however often the same small values are written.
#[test]
fn snapshot_size_4c() {
    let mut scenario = scenario(421, 3);
    scenario.replica.compact_after_bytes = 1_000;
    let mut cluster = Cluster::with(scenario);
    let leader = cluster.leader();
    for number in 0..200u32 {
        for value in ["0", "1"] {
            let write = Write::Put {
                key: Bytes::from_static(b"x"),
                value: Bytes::from(format!("{value}{}", number % 10)),
            };
            let id = cluster.ask_write(leader, write);
            cluster.wait(1_000, "a put is acknowledged", |script| {
                script.answer(id).is_some()
            });
        }
    }
    for host in cluster.hosts() {
        let (_, bytes) = cluster.script().log_size(host);
        assert!(bytes <= 8_000, "host {host} keeps {bytes} bytes of log");
        let state = cluster.script().state_size(host);
        assert!(state <= 500, "host {host} keeps {state} bytes of state");
    }
    cluster.finish();
}
