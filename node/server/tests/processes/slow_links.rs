//! Nodes behind slow links: an answer that takes 600 ms is no failure, in any exchange between nodes, and a node that is silent
//! holds up nobody else.

use std::fs;
use std::time::{Duration, Instant};

use api::v1::error_detail::Kind;
use api::v1::kv_client::KvClient;
use api::v1::shardctrler_client::ShardctrlerClient;
use api::v1::{GetRequest, GroupAddresses, JoinRequest, LeaveRequest, ScanRequest, ScanResponse};
use futures::TryStreamExt as _;
use shardkv_client::Role;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::bad_input::try_http_get;
use crate::cluster::{Cluster, Setup};
use crate::proxy::Proxy;
use crate::wait::{holds, until};
use crate::world::{Plain, SHARDS, World, channel};

/// The delay of each direction.
const LATE: Duration = Duration::from_millis(300);
/// The most that one call may take: a few round trips of 600 ms, on a loaded machine. Calls that are given up and
/// repeated take longer.
const BOUND: Duration = Duration::from_secs(8);

/// Asks nodes again and again whether they are ready.
struct Ready {
    stop: oneshot::Sender<()>,
    task: JoinHandle<u32>,
}

impl Ready {
    /// Waits until all nodes of the clusters are ready, and begins to ask. A node that isn't ready then fails the test.
    async fn watch(clusters: &[(&Cluster, u16)]) -> Self {
        let mut addresses = Vec::new();
        for &(cluster, node) in clusters {
            until("a node is ready", async || {
                let said = cluster.readyz(node).await;
                holds(said.contains(" 200 "), said)
            })
            .await;
            addresses.push(cluster.metrics(node));
        }
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut asked = 0;
            while stopped.try_recv().is_err() {
                for address in &addresses {
                    let said = try_http_get(*address, "/readyz").await.unwrap();
                    assert!(said.contains(" 200 "), "{address}: {said}");
                    asked += 1;
                }
                // The pause between two rounds. Nothing depends on its length.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            asked
        });
        Self { stop, task }
    }

    async fn finish(self) {
        // The task ends by itself only if a node was not ready.
        let _ = self.stop.send(());
        assert!(self.task.await.unwrap() > 0);
    }
}

fn behind_proxies(setup: Setup) -> Setup {
    Setup {
        behind_proxies: true,
        ..setup
    }
}

/// Fails if a call takes longer than [`BOUND`].
async fn in_time<T>(what: &str, call: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let done = tokio::time::timeout(BOUND, call).await;
    println!("{what}: {:?}", began.elapsed());
    done.unwrap_or_else(|_| panic!("{what}: not within {BOUND:?}"))
}

/// Starts controllers and two groups of one node each. All but group 1 are behind slow links.
async fn slow_world() -> (World, Vec<Proxy>) {
    let setup = Setup::of(1)
        .with("role", "controller")
        .with("shards", SHARDS);
    let (controllers, mut proxies) = Cluster::start_behind(behind_proxies(setup), &[LATE]).await;
    let mut world = World {
        controllers,
        groups: Vec::new(),
    };
    let one = world.group_setup(1, 1);
    world.groups.push(Cluster::start(one).await);
    let two = behind_proxies(world.group_setup(2, 1));
    let (two, of_two) = Cluster::start_behind(two, &[LATE]).await;
    world.groups.push(two);
    proxies.extend(of_two);
    (world, proxies)
}

/// Lets a group join at addresses where nobody answers.
async fn join_nobody(world: &World, gid: u64, addresses: Vec<String>) {
    let mut client = ShardctrlerClient::new(channel(&world.controllers, 0).await);
    let group = GroupAddresses {
        gid,
        addresses,
        ..GroupAddresses::default()
    };
    let request = JoinRequest {
        groups: vec![group],
        session: None,
        force: true,
    };
    assert!(client.join(request).await.unwrap().into_inner().changed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_answer_after_more_than_a_second_form_a_group() {
    let setup = Setup::of(3)
        .with("heartbeat-interval-ms", "1000")
        .with("election-timeout-ms", "4000");
    let delays = [Duration::from_millis(600); 3];
    let (cluster, _proxies) = Cluster::start_behind(behind_proxies(setup), &delays).await;
    for node in 0..3 {
        let status = cluster.status(node).await;
        assert_eq!(status.members.len(), 3, "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_and_controllers_behind_slow_links_are_configured_moved_and_forwarded_to() {
    const KEYS: usize = 32;
    let (world, _proxies) = slow_world().await;
    // A group is ready once it has heard from the controllers, over the slow link.
    let ready = Ready::watch(&[(world.group(1), 0), (world.group(2), 0)]).await;
    let at_one = channel(world.group(1), 0).await;

    // The controllers' proof of a Join crosses slow links, and so does its forwarding. Shards move to group 2.
    in_time("join of group 1", world.join(1, at_one.clone())).await;
    in_time("join of group 2", world.join(2, at_one.clone())).await;
    let settled = world.settled().await;
    let owners = settled.config.unwrap().owners;
    assert!(owners.iter().any(|run| run.gid == 2), "{owners:?}");

    // Group 1's node forwards half of these.
    let mut plain = in_time("a session", Plain::new(at_one.clone())).await;
    for n in 0..KEYS {
        let key = format!("k{n}");
        in_time("put", plain.put(&key, "value")).await;
        let value = in_time("get", plain.get(&key)).await;
        assert_eq!(value.as_deref(), Some("value"));
    }
    let mut kv = KvClient::new(at_one.clone());
    let scan = async {
        let pages = kv.scan(ScanRequest::default()).await.unwrap().into_inner();
        pages.try_collect::<Vec<ScanResponse>>().await.unwrap()
    };
    let pages = in_time("scan of all groups", scan).await;
    assert_eq!(pages.iter().map(|it| it.pairs.len()).sum::<usize>(), KEYS);

    // A client that routes by itself, and knows no address that answers fast.
    let client = world.group(2).client().await;
    for n in 0..4 {
        let key = format!("k{n}");
        in_time("client's put", client.put(key.clone(), "other"))
            .await
            .unwrap();
        let value = in_time("client's get", client.get(key)).await.unwrap();
        assert_eq!(value.as_deref(), Some(&b"other"[..]));
    }
    ready.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_and_missing_groups_hold_up_no_healthy_one() {
    let (world, proxies) = slow_world().await;
    let ready = Ready::watch(&[(world.group(1), 0), (world.group(2), 0)]).await;
    let at_one = channel(world.group(1), 0).await;
    world.join(1, at_one.clone()).await;
    world.join(2, at_one.clone()).await;
    world.settled().await;
    let mut plain = Plain::new(at_one.clone()).await;
    for n in 0..16 {
        plain.put(&format!("k{n}"), "value").await;
    }
    // Which of the keys group 2 owns: it refuses the others, as a call that must not be forwarded shows.
    let mut of_one = Vec::new();
    let mut of_two = Vec::new();
    for n in 0..16 {
        let key = format!("k{n}");
        let mut request = tonic::Request::new(GetRequest {
            key: key.clone().into(),
        });
        let metadata = request.metadata_mut();
        metadata.insert(api::NO_FORWARD_METADATA_KEY, "1".parse().unwrap());
        match KvClient::new(at_one.clone()).get(request).await {
            Ok(_) => of_one.push(key),
            Err(_) => of_two.push(key),
        }
    }
    assert!(!of_one.is_empty() && !of_two.is_empty());

    // Nobody is at the addresses of group 3, and no group has the number 99.
    let nobody = world.controllers.front().to_string();
    join_nobody(&world, 3, vec![nobody]).await;
    let mut controllers = ShardctrlerClient::new(at_one.clone());
    let leave = controllers.leave(LeaveRequest {
        gids: vec![99],
        session: None,
    });
    let refused = in_time("leave of no group", leave).await.unwrap_err();
    let kind = api::error_detail(&refused).and_then(|detail| detail.kind);
    assert!(kind.is_some(), "{refused:?}");
    for key in of_one.iter().chain(&of_two) {
        in_time("put beside a missing group", plain.put(key, "second")).await;
    }

    // Group 2 becomes silent. Calls for its keys wait, and others don't wait for them.
    let silent = proxies.last().unwrap();
    silent.stall();
    let mut waiting = Vec::new();
    for key in of_two.iter().cycle().take(64) {
        let mut kv = KvClient::new(at_one.clone());
        let request = GetRequest {
            key: key.clone().into(),
        };
        waiting.push(tokio::spawn(async move { kv.get(request).await }));
    }
    for key in of_one.iter().cycle().take(32) {
        in_time("put beside a silent group", plain.put(key, "third")).await;
    }
    for call in waiting {
        let status = call.await.unwrap().unwrap_err();
        let kind = api::error_detail(&status).and_then(|detail| detail.kind);
        let typed = matches!(kind, Some(Kind::Unavailable(_) | Kind::Overloaded(_)));
        assert!(typed, "{status:?}");
    }
    silent.flow();
    for key in &of_two {
        assert_eq!(plain.get(key).await.as_deref(), Some("second"));
        plain.put(key, "third").await;
    }
    ready.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_behind_a_slow_link_is_added_catches_up_by_a_snapshot_and_gets_a_vote() {
    const VALUE_BYTES: usize = 16 << 10;
    let setup = Setup::of(3)
        .with("compact-after-bytes", "1048576")
        .with("state-write-buffer-bytes", "1048576")
        .with("log-write-buffer-bytes", "1048576");
    let delays = [Duration::ZERO, Duration::ZERO, LATE];
    let (mut cluster, _proxies) = Cluster::start_behind(behind_proxies(setup), &delays).await;
    let slow = 2;
    let leader = until("a node with fast links leads", async || {
        let leader = cluster.leader().await;
        let target = cluster.status(0).await.node_id;
        if leader == slow {
            let moved = cluster
                .admin(leader)
                .transfer_leadership(Some(target))
                .await;
            return Err(format!("{moved:?}"));
        }
        Ok(leader)
    })
    .await;
    let before = cluster.status(slow).await.node_id;
    cluster.kill(slow);
    let mut plain = Plain::new(channel(&cluster, leader).await).await;
    let value = "x".repeat(VALUE_BYTES);
    for n in 0..400 {
        plain.put(&format!("k{n}"), &value).await;
    }
    let full = cluster
        .status_when(leader, "the log is compacted", |it| it.first_index > 100)
        .await;
    let ready = Ready::watch(&[(&cluster, 0), (&cluster, 1)]).await;
    let term = full.term;

    // It comes back without its disk: it is added as a learner, gets a snapshot, and is promoted. The lost member is removed.
    fs::remove_dir_all(cluster.data(slow)).unwrap();
    cluster.start_node(slow);
    let began = Instant::now();
    let back = cluster
        .status_when(slow, "the slow node is one of three voters", |status| {
            let votes = |node| {
                let mut members = status.members.iter();
                members.any(|member| member.node_id == node && member.voter)
            };
            status.members.len() == 3
                && status.node_id != before
                && votes(status.node_id)
                && status.last_applied >= full.commit_index
        })
        .await;
    println!("a voter again after {:?}", began.elapsed());
    assert!(back.first_index > 100, "by a snapshot: {back:?}");
    let now = cluster.status(leader).await;
    assert_eq!(
        (now.role, now.term),
        (Role::Leader, term),
        "nobody stood for election"
    );

    // The slow member counts: with it alone the leader has a quorum.
    let other = 1 - leader;
    ready.finish().await;
    cluster.kill(other);
    for n in 0..5 {
        in_time(
            "put with a slow quorum",
            plain.put(&format!("k{n}"), "last"),
        )
        .await;
        let value = in_time("get with a slow quorum", plain.get(&format!("k{n}"))).await;
        assert_eq!(value.as_deref(), Some("last"));
    }
}
