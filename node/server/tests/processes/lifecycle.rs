//! Orderly stops, restarts, identities and membership.

use std::fs;
use std::time::Duration;

use api::v1::error_detail::Kind;
use api::v1::kv_client::KvClient;
use api::v1::{GetRequest, PutRequest};
use shardkv_client::{Client, ClientOptions, MembershipChange};

use crate::bad_input::http_get;
use crate::cluster::{Cluster, Setup};
use crate::load::Load;
use crate::node::run;
use crate::wait::{holds, until};
use crate::world::{World, channel};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_hands_leadership_over_and_exits_with_0() {
    let mut cluster = Cluster::start(Setup::of(3)).await;
    let load = Load::start(&cluster, 8).await;
    let leader = cluster.leader().await;
    let term = cluster.status(leader).await.term;
    let mut stopping = cluster.take(leader);
    stopping.terminate();
    let status = stopping.exited().await;
    assert_eq!(status.code(), Some(0), "{}", stopping.printed());
    let others: Vec<u16> = (0..3).filter(|&node| node != leader).collect();
    let new = cluster.leader_among(&others).await;
    assert_eq!(
        cluster.status(new).await.term,
        term + 1,
        "one election, which the old leader asked for"
    );
    load.answered(300).await;
    cluster.start_node(leader);
    cluster.all_caught_up().await;
    let tally = load.finish().await;
    assert_eq!((tally.failed, tally.unknown), (0, 0), "{tally:?}");
}

/// A node stops while calls wait for an owner that is down: they get an error of the node's own, and not a broken connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_answers_calls_that_wait_for_an_absent_owner() {
    let mut world = World::start(1, 1).await;
    let through = channel(&world.controllers, 0).await;
    world.join(1, through.clone()).await;
    world.settled().await;
    world.groups[0].kill(0);
    let mut kv = KvClient::new(through);
    let mut get = kv.clone();
    let calls = tokio::spawn(async move {
        let put = kv.put(PutRequest {
            key: "k".into(),
            value: "v".into(),
            session: None,
        });
        let get = get.get(GetRequest { key: "k".into() });
        let (put, get) = tokio::join!(put, get);
        [put.unwrap_err(), get.unwrap_err()]
    });
    let at = world.controllers.metrics(0);
    until("both calls are forwarded", async || {
        let text = http_get(at, "/metrics").await;
        let counter = "shardkv_forwarded_total 2";
        holds(text.lines().any(|line| line == counter), text)
    })
    .await;
    let mut stopping = world.controllers.take(0);
    stopping.terminate();
    let status = stopping.exited().await;
    assert_eq!(status.code(), Some(0), "{}", stopping.printed());
    for status in calls.await.unwrap() {
        let kind = api::error_detail(&status).and_then(|error| error.kind);
        assert!(matches!(kind, Some(Kind::Unavailable(_))), "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_of_all_keeps_everything_and_their_identities() {
    let mut cluster = Cluster::start(Setup::of(3)).await;
    let client = cluster.client().await;
    for n in 0..200 {
        client.put(format!("k{n}"), format!("v{n}")).await.unwrap();
    }
    let mut ids = Vec::new();
    for node in 0..3 {
        ids.push(cluster.status(node).await.node_id);
    }
    for node in 0..3 {
        cluster.node(node).terminate();
    }
    for node in 0..3 {
        let mut stopping = cluster.take(node);
        let status = stopping.exited().await;
        assert_eq!(status.code(), Some(0), "{}", stopping.printed());
    }
    for node in 0..3 {
        cluster.start_node(node);
    }
    for n in 0..200 {
        let value = client.get(format!("k{n}")).await.unwrap();
        assert_eq!(value.as_deref(), Some(format!("v{n}").as_bytes()));
    }
    for node in 0..3 {
        assert_eq!(cluster.status(node).await.node_id, ids[usize::from(node)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_disk_rejoins_as_a_new_member_and_the_old_one_leaves() {
    let mut cluster = Cluster::start(Setup::of(3)).await;
    let load = Load::start(&cluster, 4).await;
    let wiped = cluster.follower().await;
    let old_id = cluster.status(wiped).await.node_id;
    cluster.kill(wiped);
    fs::remove_dir_all(cluster.data(wiped)).unwrap();
    cluster.start_node(wiped);
    let back = cluster
        .status_when(wiped, "the wiped node is a voter again", |status| {
            status.node_id != old_id
                && status.members.len() == 3
                && status
                    .members
                    .iter()
                    .any(|member| member.node_id == status.node_id && member.voter)
        })
        .await;
    assert!(
        back.members.iter().all(|member| member.node_id != old_id),
        "{back:?}"
    );
    cluster.all_caught_up().await;
    // The new member counts: with it, one of the two other members may be missing.
    let leader = cluster.leader().await;
    let other = (0..3)
        .find(|&n| n != wiped && n != leader)
        .unwrap_or((wiped + 1) % 3);
    cluster.kill(other);
    load.answered(200).await;
    let tally = load.finish().await;
    assert_eq!((tally.failed, tally.unknown), (0, 0), "{tally:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_disk_can_be_replaced_one_after_the_other() {
    let mut cluster = Cluster::start(Setup::of(3)).await;
    let client = cluster.client().await;
    for n in 0..100 {
        client.put(format!("k{n}"), format!("v{n}")).await.unwrap();
    }
    let mut originals = Vec::new();
    for node in 0..3 {
        originals.push(cluster.status(node).await.node_id);
    }
    for node in 0..3 {
        cluster.kill(node);
        fs::remove_dir_all(cluster.data(node)).unwrap();
        cluster.start_node(node);
        let all_vote = |status: &shardkv_client::NodeStatus| {
            status.members.len() == 3 && status.members.iter().all(|member| member.voter)
        };
        cluster
            .status_when(node, "the replaced node is one of three voters", |status| {
                !originals.contains(&status.node_id) && all_vote(status)
            })
            .await;
        cluster.all_caught_up().await;
    }
    for n in 0..100 {
        let value = client.get(format!("k{n}")).await.unwrap();
        assert_eq!(value.as_deref(), Some(format!("v{n}").as_bytes()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_too_long_gets_a_snapshot_while_writes_go_on() {
    let setup = Setup::of(3)
        .with("compact-after-bytes", "1048576")
        .with("state-write-buffer-bytes", "1048576")
        .with("log-write-buffer-bytes", "1048576");
    let mut cluster = Cluster::start(setup).await;
    let client = cluster.client().await;
    let away = cluster.follower().await;
    cluster.kill(away);
    let value = "x".repeat(16 << 10);
    // 48 MB, so that the snapshot has many chunks.
    for n in 0..3_000 {
        client.put(format!("big/{n}"), value.clone()).await.unwrap();
    }
    let leader = cluster.leader_among(&[0, 1, 2]).await;
    let before = cluster
        .status_when(leader, "the log is compacted", |s| s.first_index > 1_000)
        .await;
    let load = Load::start(&cluster, 4).await;
    cluster.start_node(away);
    cluster
        .status_when(away, "the snapshot is installed", |status| {
            status.first_index > 1_000 && status.last_applied >= before.commit_index
        })
        .await;
    load.answered(100).await;
    let tally = load.finish().await;
    assert_eq!((tally.failed, tally.unknown), (0, 0), "{tally:?}");
    // The new member has all data: let it lead, and read from it.
    cluster.all_caught_up().await;
    let leader = cluster.leader().await;
    let id = cluster.status(away).await.node_id;
    if leader != away {
        let admin = cluster.admin(leader);
        admin.transfer_leadership(Some(id)).await.unwrap();
    }
    for n in (0..3_000).step_by(97) {
        let found = client.get(format!("big/{n}")).await.unwrap();
        assert_eq!(found.map(|found| found.len()), Some(value.len()), "big/{n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_node_serves_and_comes_back_by_itself() {
    let mut cluster = Cluster::start(Setup::of(1)).await;
    let client = cluster.client().await;
    client.put("k", "v").await.unwrap();
    cluster.kill(0);
    cluster.start_node(0);
    assert_eq!(client.get("k").await.unwrap().as_deref(), Some(&b"v"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_goes_where_it_is_sent_without_a_failed_call() {
    let cluster = Cluster::start(Setup::of(3)).await;
    let load = Load::start(&cluster, 8).await;
    for _ in 0..5 {
        let leader = cluster.leader().await;
        let target = (leader + 1) % 3;
        let target_id = cluster.status(target).await.node_id;
        cluster
            .admin(leader)
            .transfer_leadership(Some(target_id))
            .await
            .unwrap();
        // The answer comes from the node that led. Other nodes may name the old leader for a moment.
        until("the target leads", async || {
            let leader = cluster.leader().await;
            holds(leader == target, format!("node {leader} leads"))
        })
        .await;
        load.answered(50).await;
    }
    let tally = load.finish().await;
    assert_eq!((tally.failed, tally.unknown), (0, 0), "{tally:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_takes_a_fourth_member_and_lets_its_leader_go() {
    let mut cluster = Cluster::prepare(Setup::of(4));
    let first: Vec<String> = cluster.addresses().into_iter().take(3).collect();
    cluster.set("peers", &first.join(","));
    for node in 0..3 {
        cluster.start_node(node);
    }
    cluster.leader_among(&[0, 1, 2]).await;
    let load = Load::start(&cluster, 4).await;

    cluster.start_node(3);
    let newcomer = cluster.status(3).await.node_id;
    let change = async |cluster: &Cluster, change: MembershipChange| {
        until("a change is made", async || {
            let leader = cluster.leader().await;
            cluster
                .admin(leader)
                .change_membership(change.clone())
                .await
        })
        .await
    };
    let address = cluster.address(3).to_string();
    let add = MembershipChange::AddLearner {
        node: newcomer,
        address,
    };
    change(&cluster, add).await;
    // Refused until the node has caught up, so the change is retried.
    change(&cluster, MembershipChange::Promote(newcomer)).await;
    let votes = |status: &shardkv_client::NodeStatus| {
        status.members.iter().filter(|member| member.voter).count()
    };
    cluster
        .status_when(3, "the newcomer sees four voters", |s| votes(s) == 4)
        .await;

    let old = cluster.leader_among(&[0, 1, 2]).await;
    let old_id = cluster.status(old).await.node_id;
    // A repeated request would be refused after the member was removed.
    cluster
        .admin(old)
        .change_membership(MembershipChange::Remove(old_id))
        .await
        .unwrap();
    cluster.kill(old);
    let others: Vec<u16> = (0..4).filter(|&node| node != old).collect();
    cluster.leader_among(&others).await;
    for &node in &others {
        cluster
            .status_when(node, "the leader that left is no member", |status| {
                votes(status) == 3 && status.members.iter().all(|m| m.node_id != old_id)
            })
            .await;
    }
    load.answered(200).await;
    let tally = load.finish().await;
    assert_eq!((tally.failed, tally.unknown), (0, 0), "{tally:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_cluster_is_refused() {
    let mut cluster = Cluster::start(Setup::of(3)).await;
    let client = cluster.client().await;
    client.put("k", "v").await.unwrap();
    let stranger = cluster.follower().await;
    cluster.kill(stranger);
    fs::remove_dir_all(cluster.data(stranger)).unwrap();
    cluster.set("cluster-name", "another");
    cluster.start_node(stranger);
    let status = cluster
        .status_when(stranger, "the stranger tells its trouble", |status| {
            status.trouble.is_some()
        })
        .await;
    assert!(status.members.is_empty(), "{status:?}");
    client.put("k", "w").await.unwrap();
    let leader = cluster.leader_among(&[0, 1, 2]).await;
    let members = cluster.status(leader).await.members;
    assert!(
        members
            .iter()
            .all(|member| member.node_id != status.node_id),
        "{members:?}"
    );
    // A client can't read another cluster's data from the node.
    let lost = Client::lazy(ClientOptions::new([cluster.listen(stranger).to_string()])).unwrap();
    let answer = lost.with_timeout(Duration::from_secs(1)).get("k").await;
    assert!(answer.is_err(), "{answer:?}");
}

#[tokio::test]
async fn options_that_nobody_knows_are_refused_with_the_right_name() {
    let (code, printed) = run(&["--data-dri", "/nowhere"]).await;
    assert_ne!(code, Some(0));
    assert!(printed.contains("--data-dir"), "{printed}");

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("node.yaml");
    fs::write(&file, "data_dir: /nowhere\n\nelection_timeout: 400\n").unwrap();
    let (code, printed) = run(&["--config", file.to_str().unwrap()]).await;
    assert_ne!(code, Some(0));
    assert!(printed.contains("line 3"), "{printed}");
    assert!(printed.contains("election_timeout_ms"), "{printed}");
}

#[tokio::test]
async fn options_that_cannot_work_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let data = data.to_str().unwrap();
    for (option, value) in [
        ("--election-timeout-ms", "0"),
        ("--heartbeat-interval-ms", "399"),
        ("--max-value-bytes", "many"),
        ("--shards", "0"),
        ("--listen", "nonsense"),
        ("--peers", "a:1,a:1"),
    ] {
        let (code, printed) = run(&["--data-dir", data, option, value]).await;
        assert_ne!(code, Some(0), "{option} {value}: {printed}");
        let name = option.trim_start_matches('-');
        assert!(
            printed.replace('_', "-").contains(name),
            "{option} {value}: {printed}"
        );
    }
}

#[tokio::test]
async fn two_nodes_cannot_share_a_data_directory() {
    let cluster = Cluster::start(Setup::of(1)).await;
    let data = cluster.data(0);
    let (code, printed) = run(&[
        "--data-dir",
        data.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--metrics-listen",
        "off",
    ])
    .await;
    assert_ne!(code, Some(0));
    assert!(printed.contains(data.to_str().unwrap()), "{printed}");
}
