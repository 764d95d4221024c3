//! Tests of what Kubernetes does to nodes: it asks whether they are ready, gives all of them one address, and may start a
//! group again without its volumes.

use std::collections::BTreeSet;
use std::fs;

use api::v1::kv_client::KvClient;
use api::v1::{GetRequest, PutRequest};
use shardkv_client::{Client, ClientOptions, NodeStatus};
use tonic::Request;
use tonic::transport::Endpoint;
use types::shard_of;

use crate::bad_input::try_http_get;
use crate::cluster::{Cluster, Setup};
use crate::load::Load;
use crate::proxy::Balancer;
use crate::wait::{holds, until};
use crate::world::{Plain, SHARDS, World, channel};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_far_behind_is_not_ready_until_it_has_caught_up() {
    let setup = Setup::of(3)
        .with("compact-after-bytes", "1048576")
        .with("state-write-buffer-bytes", "1048576")
        .with("log-write-buffer-bytes", "1048576")
        // Slow enough that the test can observe it.
        .with("snapshot-bytes-per-second", "8388608");
    let mut cluster = Cluster::start(setup).await;
    for node in 0..3 {
        until("a member of a group with a leader is ready", async || {
            let said = cluster.readyz(node).await;
            holds(said.contains("200 OK"), said)
        })
        .await;
    }
    let client = cluster.client().await;
    let away = cluster.follower().await;
    cluster.kill(away);
    let value = "x".repeat(16 << 10);
    for n in 0..1_500 {
        client.put(format!("big/{n}"), value.clone()).await.unwrap();
    }
    let leader = cluster.leader_among(&[0, 1, 2]).await;
    let committed = cluster.status(leader).await.commit_index;
    cluster.start_node(away);
    let mut refusals = BTreeSet::new();
    let said = until("it is ready in the end", async || {
        // The port may accept connections before the node answers.
        let said = cluster.readyz(away).await;
        let ready = said.contains("200 OK");
        if !ready {
            refusals.insert(said.lines().last().unwrap_or_default().to_owned());
        }
        holds(ready, said)
    });
    // The listener isn't there at once.
    until("it listens", async || {
        tokio::net::TcpStream::connect(cluster.metrics(away)).await
    })
    .await;
    said.await;
    let applied = cluster.status(away).await.last_applied;
    assert!(applied + 64 >= committed, "{applied} of {committed}");
    // While a snapshot arrives, the node doesn't know the group's commit index.
    let catches_up = |it: &String| it.contains("entries behind") || it.contains("is not known yet");
    assert!(refusals.iter().any(catches_up), "it said: {refusals:?}");

    // Without a quorum no node is ready.
    let mut stopped = vec![leader];
    stopped.extend((0..3).find(|&node| node != leader && node != away));
    for node in stopped {
        cluster.kill(node);
    }
    until("it is alone", async || {
        let said = cluster.readyz(away).await;
        holds(said.contains("no leader is known"), said)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_lost_all_its_volumes_serves_nothing_as_if_it_were_empty() {
    let mut world = World::start(1, 1).await;
    let setup = world.group_setup(2, 3);
    world.groups.push(Cluster::start(setup).await);
    let through = channel(&world.controllers, 0).await;
    world.join(1, through.clone()).await;
    world.join(2, through.clone()).await;
    world.settled().await;
    let mut plain = Plain::new(through).await;
    for n in 0..40 {
        plain.put(&format!("k{n}"), "kept").await;
    }
    let owner = |key: &str| {
        let shard = shard_of(key.as_bytes(), SHARDS.parse().unwrap());
        if shard.0 < 8 { 1 } else { 2 }
    };
    let keys: Vec<String> = (0..40).map(|n| format!("k{n}")).collect();
    let (here, lost): (Vec<_>, Vec<_>) = keys.into_iter().partition(|key| owner(key) == 1);
    assert!(!here.is_empty() && !lost.is_empty());

    let group = &mut world.groups[1];
    for node in 0..3 {
        group.kill(node);
        fs::remove_dir_all(group.data(node)).unwrap();
    }
    for node in 0..3 {
        group.start_node(node);
    }
    // Each node that leads finds the damage and stops, until no node can lead. Usually that leaves one node, which is never
    // ready. None is left if the two others still vote for it while they end.
    until("at most one node runs, and it isn't ready", async || {
        for node in 0..3 {
            // An answer meanwhile doesn't claim that the key does not exist.
            if let Ok(answer) = ask(group, node, &lost[0]).await {
                assert!(answer, "{} is not there, says node {node}", lost[0]);
            }
            if group.runs(node) && !group.node(node).is_running() {
                let mut ended = group.take(node);
                let status = ended.exited().await;
                assert_eq!(status.code(), Some(5), "{}", ended.printed());
                let printed = ended.printed();
                assert!(printed.contains("its data was lost"), "{printed}");
            }
        }
        let running: Vec<u16> = (0..3).filter(|&node| group.runs(node)).collect();
        match running[..] {
            [] => Ok(()),
            [survivor] => {
                let said = try_http_get(group.metrics(survivor), "/readyz").await;
                let said = said.map_err(|error| error.to_string())?;
                holds(said.contains("503"), said)
            }
            _ => Err(format!("{running:?} run")),
        }
    })
    .await;
    for node in 0..3 {
        assert!(ask(group, node, &lost[0]).await.is_err());
    }
    for key in here {
        assert_eq!(plain.get(&key).await.as_deref(), Some("kept"));
    }
}

/// Returns true if a node, by itself, has a key.
async fn ask(group: &Cluster, node: u16, key: &str) -> Result<bool, String> {
    let address = format!("http://{}", group.listen(node));
    let mut kv = KvClient::connect(address)
        .await
        .map_err(|error| error.to_string())?;
    let mut request = Request::new(GetRequest {
        key: key.to_owned().into(),
    });
    let alone = "1".parse().unwrap();
    let metadata = request.metadata_mut();
    metadata.insert(api::NO_FORWARD_METADATA_KEY, alone);
    match kv.get(request).await {
        Ok(answer) => Ok(answer.into_inner().found),
        Err(status) => Err(status.message().to_owned()),
    }
}

/// Returns a client that knows one address with several nodes behind it.
async fn behind(address: std::net::SocketAddr) -> Client {
    let mut options = ClientOptions::new([address.to_string()]);
    options.request_timeout = std::time::Duration::from_secs(30);
    until("a client connects", async || {
        Client::connect(options.clone()).await
    })
    .await
}

/// Returns the addresses of all nodes that a client finds. Each must answer and be listed once.
async fn found(client: &Client) -> Vec<String> {
    let told = client.status_all().await;
    let mut nodes = BTreeSet::new();
    let mut addresses = Vec::new();
    for (address, status) in told {
        let status: NodeStatus = status.unwrap_or_else(|error| panic!("{address}: {error}"));
        assert!(nodes.insert(status.node_id), "{address} is there twice");
        assert_eq!(status.address, address);
        addresses.push(address);
    }
    addresses
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_needs_one_address_for_the_nodes_of_all_groups() {
    let mut world = World::start(0, 1).await;
    for gid in [1, 2] {
        let setup = world.group_setup(gid, 3);
        world.groups.push(Cluster::start(setup).await);
    }
    let through = channel(&world.controllers, 0).await;
    let front = world.controllers.front();
    let nodes = world.groups.iter();
    let nodes = nodes.flat_map(|group| (0..3).map(|node| group.listen(node)));
    let balancer = Balancer::start(front, nodes.collect()).await;
    world.join(1, through.clone()).await;
    let load = Load::start_with(async || behind(front).await, 6).await;
    // While there was one group, its leader may have been found at the common address.
    world.join(2, through.clone()).await;
    world.settled().await;
    load.answered(200).await;
    let client = behind(front).await;
    let mut all: Vec<String> = world.groups.iter().flat_map(Cluster::addresses).collect();
    all.sort_unstable();
    assert_eq!(found(&client).await, all);

    for gid in [1, 2] {
        let group = &mut world.groups[gid - 1];
        let leader = group.leader().await;
        group.kill(leader);
        load.answered(200).await;
        group.start_node(leader);
        group.all_caught_up().await;
        load.answered(100).await;
    }
    let leaving = world.groups[0].leader().await;
    world.groups[0].node(leaving).terminate();
    world.groups[0].take(leaving).exited().await;
    load.answered(200).await;
    world.groups[0].start_node(leaving);
    world.groups[0].all_caught_up().await;
    assert_eq!(found(&client).await, all);
    let tally = load.finish().await;
    assert_eq!((tally.failed, tally.unknown), (0, 0), "{tally:?}");
    drop(balancer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_will_do_for_a_store_of_one_group() {
    let mut cluster = Cluster::start(Setup::of(3)).await;
    let front = cluster.front();
    let nodes = (0..3).map(|node| cluster.listen(node)).collect();
    let balancer = Balancer::start(front, nodes).await;
    let load = Load::start_with(async || behind(front).await, 6).await;
    let client = behind(front).await;
    assert_eq!(found(&client).await, cluster.addresses());
    for _ in 0..3 {
        let leader = cluster.leader().await;
        cluster.kill(leader);
        load.answered(100).await;
        cluster.start_node(leader);
        cluster.all_caught_up().await;
        assert_eq!(found(&client).await, cluster.addresses());
    }
    let tally = load.finish().await;
    assert_eq!((tally.failed, tally.unknown), (0, 0), "{tally:?}");
    drop(balancer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_stop_fails_no_call_that_leaves_a_plain_client() {
    let mut cluster = Cluster::start(Setup::of(3)).await;
    let front = cluster.front();
    let nodes = (0..3).map(|node| cluster.listen(node)).collect();
    let balancer = Balancer::start_up_to_date(front, nodes).await;
    let endpoint = Endpoint::from_shared(format!("http://{front}")).unwrap();
    // Its second connection goes to the second node, and so on. The nodes are stopped in that order.
    let kv = KvClient::new(endpoint.connect().await.unwrap());
    for stopped in [0, 1, 2] {
        let put = |n: u64| {
            let mut kv = kv.clone();
            let request = PutRequest {
                key: format!("k{stopped}/{n}").into(),
                value: "v".into(),
                session: None,
            };
            async move { kv.put(request).await }
        };
        until("the leader is found", async || put(0).await).await;
        let mut stopping = cluster.take(stopped);
        stopping.terminate();
        let mut slowest = std::time::Duration::ZERO;
        let mut count = 0;
        while stopping.is_running() {
            count += 1;
            let since = std::time::Instant::now();
            let mut answer = put(count).await;
            while answer.as_ref().is_err_and(never_left) {
                answer = put(count).await;
            }
            slowest = slowest.max(since.elapsed());
            assert!(answer.is_ok(), "node {stopped}, put {count}: {answer:?}");
        }
        println!("node {stopped} stopped during {count} puts, the slowest of {slowest:?}");
        assert_eq!(stopping.exited().await.code(), Some(0));
        cluster.start_node(stopped);
        cluster.all_caught_up().await;
    }
    drop(balancer);
}

/// Returns true if no server has seen a call, because the connection that it was for ended first: the call was still queued, or the
/// server had said that it takes no more (GOAWAY without an error), which by the protocol concerns only streams that it never saw.
fn never_left(status: &tonic::Status) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(status);
    while let Some(error) = cause {
        let queued = error.downcast_ref().is_some_and(hyper::Error::is_canceled);
        let unseen = error.downcast_ref().is_some_and(|error: &h2::Error| {
            error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
        });
        if queued || unseen {
            return true;
        }
        cause = error.source();
    }
    false
}
