//! Nodes that die, freeze and come back under load. The history of the load is checked.

use std::time::Instant;

use crate::cluster::{Cluster, Setup};
use crate::load::Load;
use crate::proxy::Proxy;
use crate::wait::{holds, until};

const CLIENTS: u32 = 8;

/// Returns the other nodes of three.
fn without(node: u16) -> Vec<u16> {
    (0..3).filter(|&other| other != node).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_the_leader_under_load_loses_nothing_and_fails_no_call() {
    let mut cluster = Cluster::start(Setup::of(3)).await;
    let load = Load::start(&cluster, CLIENTS).await;
    for _ in 0..3 {
        let leader = cluster.leader().await;
        cluster.kill(leader);
        load.answered(500).await;
        assert_ne!(cluster.leader_among(&without(leader)).await, leader);
        cluster.start_node(leader);
        cluster.all_caught_up().await;
    }
    let tally = load.finish().await;
    assert_eq!((tally.failed, tally.unknown), (0, 0), "{tally:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_a_follower_under_load_disturbs_nobody() {
    let mut cluster = Cluster::start(Setup::of(3)).await;
    let load = Load::start(&cluster, CLIENTS).await;
    let leader = cluster.leader().await;
    let term = cluster.status(leader).await.term;
    let follower = cluster.follower().await;
    cluster.kill(follower);
    load.answered(500).await;
    cluster.start_node(follower);
    cluster.all_caught_up().await;
    load.answered(100).await;
    let after = cluster.status(leader).await;
    assert_eq!(
        after.term, term,
        "a follower's death and return elect nobody"
    );
    let tally = load.finish().await;
    assert_eq!((tally.failed, tally.unknown), (0, 0), "{tally:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_leader_is_replaced_and_steps_down_when_it_thaws() {
    let mut cluster = Cluster::start(Setup::of(3)).await;
    let load = Load::start(&cluster, CLIENTS).await;
    let old = cluster.leader().await;
    cluster.node(old).freeze();
    let new = cluster.leader_among(&without(old)).await;
    load.answered(500).await;
    cluster.node(old).thaw();
    let new_id = cluster.status(new).await.node_id;
    cluster
        .status_when(old, "the old leader follows", |status| {
            status.leader_id == Some(new_id)
        })
        .await;
    load.answered(100).await;
    let tally = load.finish().await;
    assert_eq!((tally.failed, tally.unknown), (0, 0), "{tally:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_all_nodes_at_once_loses_no_acknowledged_write() {
    let mut cluster = Cluster::start(Setup::of(3)).await;
    let load = Load::start(&cluster, CLIENTS).await;
    for _ in 0..2 {
        load.answered(300).await;
        for node in 0..3 {
            cluster.kill(node);
        }
        for node in 0..3 {
            cluster.start_node(node);
        }
        load.answered(300).await;
    }
    let tally = load.finish().await;
    assert!(tally.ok >= 1_200, "{tally:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_nothing_is_acknowledged_and_with_it_everything_goes_on() {
    let mut cluster = Cluster::start(Setup::of(3)).await;
    let client = cluster.client().await;
    client.put("k", "before").await.unwrap();
    let leader = cluster.leader().await;
    for node in without(leader) {
        cluster.kill(node);
    }
    let brief = client.with_timeout(std::time::Duration::from_secs(2));
    let write = brief.put("k", "alone").await.unwrap_err();
    assert!(write.is_retryable(), "{write:?}");
    let read = brief.get("k").await.unwrap_err();
    assert!(!read.maybe_applied(), "{read:?}");
    for node in without(leader) {
        cluster.start_node(node);
    }
    client.put("l", "after").await.unwrap();
    let value = client.get("k").await.unwrap().unwrap();
    assert!(["before", "alone"].contains(&std::str::from_utf8(&value).unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_to_the_leader_do_not_stall_the_cluster() {
    let setup = Setup {
        behind_proxies: true,
        ..Setup::of(3)
    };
    let mut cluster = Cluster::prepare(setup);
    let mut proxies = Vec::new();
    for node in 0..3 {
        proxies.push(Proxy::start(cluster.address(node), cluster.listen(node)).await);
    }
    for node in 0..3 {
        cluster.start_node(node);
    }
    let load = Load::start(&cluster, CLIENTS).await;
    let old = cluster.leader().await;
    // Messages to the old leader vanish, while its own connections to the other nodes still work: all sides believe that
    // they are connected.
    proxies[usize::from(old)].stall();
    let began = Instant::now();
    let new = cluster.leader_among(&without(old)).await;
    load.answered(500).await;
    println!("with a new leader, 500 answers took {:?}", began.elapsed());
    proxies[usize::from(old)].flow();
    let new_id = cluster.status(new).await.node_id;
    until("the old leader is back", async || {
        let status = cluster.status(old).await;
        let leader = cluster.status(new).await.leader_id;
        holds(
            status.leader_id == leader && leader.is_some(),
            format!("{new_id}: {status:?}"),
        )
    })
    .await;
    load.answered(100).await;
    let tally = load.finish().await;
    assert_eq!((tally.failed, tally.unknown), (0, 0), "{tally:?}");
}
