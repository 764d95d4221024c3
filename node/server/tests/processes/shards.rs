//! Groups that own shards join and leave while clients write, and any node answers any key.
//!
//! The clients here are plain generated stubs that use one node, as a program in any language would. Each gets every
//! answer, which shows that nodes forward requests.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use api::v1::admin_client::AdminClient;
use api::v1::batch_item::Request as Item;
use api::v1::batch_result::Response as Answer;
use api::v1::error_detail::Kind;
use api::v1::kv_client::KvClient;
use api::v1::shardctrler_client::ShardctrlerClient;
use api::v1::{
    BatchItem, BatchRequest, ExportRequest, GetRequest, LeaveRequest, QueryRequest, ScanRequest,
    ScanResponse, ShardState, ShardsRequest,
};
use tonic::{Request, Streaming};

use crate::bad_input::http_get;
use crate::cluster::{Cluster, Setup};
use crate::wait::{PATIENCE, until};
use crate::world::{Appenders, Plain, SHARDS, World, channel, check_appended};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_join_and_leave_under_plain_clients_that_ask_any_node() {
    let mut world = World::start(2, 1).await;
    let at_controller = channel(&world.controllers, 0).await;
    let at_one = channel(world.group(1), 0).await;
    let at_two = channel(world.group(2), 0).await;

    // Group 1 joins through a node of group 2, which forwards the request.
    world.join(1, at_two.clone()).await;
    let mut plain = Plain::new(at_two.clone()).await;
    for n in 0..300 {
        plain.put(&format!("k{n}"), &format!("v{n}")).await;
    }

    let through = [at_controller.clone(), at_one.clone(), at_two.clone()];
    let appenders = Appenders::start(&through, 3).await;
    world.join(2, at_one.clone()).await;
    let spread = world.settled().await;
    let owners = &spread.config.unwrap().owners;
    let of = |gid| -> u32 {
        let runs = owners.iter().filter(|run| run.gid == gid);
        runs.map(|run| run.count).sum()
    };
    assert_eq!((of(1), of(2)), (8, 8));

    world.leave(1, at_controller.clone()).await;
    world.settled().await;
    let counts = appenders.finish().await;
    check_appended(&counts, &plain).await;
    for n in 0..300 {
        let value = plain.get(&format!("k{n}")).await;
        assert_eq!(value, Some(format!("v{n}")));
    }

    // Deleted shards are really gone, and received shards survive.
    for group in &mut world.groups {
        group.kill(0);
        group.start_node(0);
    }
    world
        .group(2)
        .status_when(0, "it leads again", |s| s.leader_id.is_some())
        .await;
    let plain = Plain::new(channel(world.group(1), 0).await).await;
    check_appended(&counts, &plain).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_another_number_of_shards_refuses_to_go_on() {
    let world = World::start(0, 1).await;
    let setup = world.group_setup(1, 1).with("shards", "8");
    let mut group = Cluster::prepare(setup);
    group.start_node(0);
    let mut node = group.take(0);
    let status = node.exited().await;
    assert_eq!(status.code(), Some(5), "{}", node.printed());
    assert!(node.printed().contains("16 shards"), "{}", node.printed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_keeps_its_role() {
    let mut cluster = Cluster::start(Setup::of(1)).await;
    cluster.kill(0);
    cluster.set("role", "controller");
    cluster.set("gid", "0");
    cluster.start_node(0);
    let mut node = cluster.take(0);
    let status = node.exited().await;
    assert_eq!(status.code(), Some(5), "{}", node.printed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_one_group_tells_of_itself_and_refuses_changes() {
    let cluster = Cluster::start(Setup::of(1).with("shards", SHARDS)).await;
    let mut client = ShardctrlerClient::new(channel(&cluster, 0).await);
    let answer = client.query(QueryRequest { num: -1 }).await.unwrap();
    let config = answer.into_inner().config.unwrap();
    assert_eq!((config.num, config.owners.len()), (1, 1));
    assert_eq!((config.owners[0].count, config.owners[0].gid), (16, 1));
    assert_eq!(config.groups[0].addresses, cluster.addresses());
    let watched = client.watch(api::v1::WatchRequest::default()).await;
    let mut watched = watched.unwrap().into_inner();
    let first = tokio::time::timeout(PATIENCE, watched.message()).await;
    let first = first.unwrap().unwrap().unwrap();
    assert_eq!(first.full, Some(config));
    let request = LeaveRequest {
        gids: vec![1],
        session: None,
    };
    let refused = client.leave(request).await.unwrap_err();
    let kind = api::error_detail(&refused).unwrap().kind;
    assert!(matches!(kind, Some(Kind::Conflict(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_scans_exports_and_takes_batches_of_all_groups() {
    let world = World::start(2, 1).await;
    let at_controller = channel(&world.controllers, 0).await;
    let nodes = [
        at_controller.clone(),
        channel(world.group(1), 0).await,
        channel(world.group(2), 0).await,
    ];
    world.join(1, at_controller.clone()).await;
    world.join(2, at_controller.clone()).await;
    world.settled().await;
    let mut plain = Plain::new(at_controller).await;
    let mut expected = Vec::new();
    for n in 0..200 {
        let (key, value) = (format!("k{n:03}"), format!("v{n}"));
        plain.put(&key, &value).await;
        expected.push((key, value));
    }

    for node in &nodes {
        let mut kv = KvClient::new(node.clone());
        let all = pairs(kv.scan(ScanRequest::default()).await.unwrap()).await;
        assert_eq!(all, expected);
        let some = ScanRequest {
            start: "k050".into(),
            end: "k100".into(),
            limit: 20,
            keys_only: true,
            ..ScanRequest::default()
        };
        let some = pairs(kv.scan(some).await.unwrap()).await;
        let keys: Vec<&String> = some.iter().map(|(key, _)| key).collect();
        let wanted: Vec<&String> = expected[50..70].iter().map(|(key, _)| key).collect();
        assert_eq!(keys, wanted);

        let mut exported = Vec::new();
        for shard in 0..SHARDS.parse().unwrap() {
            let request = ExportRequest {
                shard,
                ..ExportRequest::default()
            };
            exported.extend(pairs(kv.export(request).await.unwrap()).await);
        }
        exported.sort();
        assert_eq!(exported, expected);

        let items: Vec<BatchItem> = (0..200)
            .map(|n: u64| BatchItem {
                id: n,
                request: Some(Item::Get(GetRequest {
                    key: format!("k{n:03}").into(),
                })),
            })
            .collect();
        let requests = futures::stream::iter([BatchRequest { items }]);
        let mut answers = kv.batch(requests).await.unwrap().into_inner();
        let mut got = BTreeMap::new();
        while let Some(message) = answers.message().await.unwrap() {
            for result in message.results {
                let Some(Answer::Get(answer)) = result.response else {
                    panic!("{result:?}");
                };
                got.insert(result.id, answer.value);
            }
        }
        let values: Vec<&[u8]> = got.values().map(AsRef::as_ref).collect();
        let wanted: Vec<&[u8]> = expected.iter().map(|(_, value)| value.as_bytes()).collect();
        assert_eq!(values, wanted);
    }

    // Each group lists its half, and together they have everything once.
    let mut keys = 0;
    for (gid, node) in (1..).zip(&nodes[1..]) {
        let mut admin = AdminClient::new(node.clone());
        let request = ShardsRequest {
            exact: true,
            ..ShardsRequest::default()
        };
        let told = admin.shards(request).await.unwrap().into_inner();
        assert_eq!((told.gid, told.shards.len()), (gid, 8));
        for shard in told.shards {
            assert_eq!(shard.state(), ShardState::Serving, "{shard:?}");
            keys += shard.keys;
        }
    }
    assert_eq!(keys, 200);

    // A client that routes by itself gets an error, and its call is not forwarded.
    let mut kv = KvClient::new(nodes[0].clone());
    let mut request = Request::new(GetRequest { key: "k000".into() });
    let metadata = request.metadata_mut();
    metadata.insert(api::NO_FORWARD_METADATA_KEY, "1".parse().unwrap());
    let refused = kv.get(request).await.unwrap_err();
    let kind = api::error_detail(&refused).unwrap().kind;
    assert!(matches!(kind, Some(Kind::WrongGroup(_))), "{refused:?}");
}

async fn pairs(pages: tonic::Response<Streaming<ScanResponse>>) -> Vec<(String, String)> {
    let text = |bytes: bytes::Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let mut pages = pages.into_inner();
    let mut pairs = Vec::new();
    while let Some(page) = pages.message().await.unwrap() {
        pairs.extend(
            page.pairs
                .into_iter()
                .map(|it| (text(it.key), text(it.value))),
        );
    }
    pairs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moves_survive_the_death_of_every_leader() {
    let mut world = World::start(2, 3).await;
    let at_controller = channel(&world.controllers, 0).await;
    let at_one = channel(world.group(1), 0).await;
    let at_two = channel(world.group(2), 0).await;
    world.join(1, at_controller.clone()).await;
    let mut plain = Plain::new(at_controller.clone()).await;
    for n in 0..300 {
        plain.put(&format!("k{n}"), &"x".repeat(4_000)).await;
    }
    let through = [at_controller.clone(), at_one, at_two];
    let appenders = Appenders::start(&through, 2).await;

    world.join(2, at_controller.clone()).await;
    replace_leader(&mut world.groups[1]).await;
    replace_leader(&mut world.groups[0]).await;
    replace_leader(&mut world.controllers).await;
    world.settled().await;
    world.leave(1, at_controller.clone()).await;
    replace_leader(&mut world.groups[0]).await;
    replace_leader(&mut world.controllers).await;
    replace_leader(&mut world.groups[1]).await;
    world.settled().await;

    let counts = appenders.finish().await;
    check_appended(&counts, &plain).await;
    for n in 0..300 {
        let value = plain.get(&format!("k{n}")).await.unwrap();
        assert_eq!(value.len(), 4_000);
    }
    let leader = world.group(1).leader().await;
    let mut admin = AdminClient::new(channel(world.group(1), leader).await);
    let left = admin
        .shards(ShardsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(left.shards, [], "group 1 has given everything away");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_limits_what_it_sends_to_fast_destinations() {
    const LIMIT: u64 = 256 << 10;
    let mut world = World::start(0, 1).await;
    let limited = world
        .group_setup(1, 1)
        .with("handoff-bytes-per-second", &LIMIT.to_string());
    world.groups.push(Cluster::start(limited).await);
    let unlimited = world.group_setup(2, 1);
    world.groups.push(Cluster::start(unlimited).await);
    let at_controller = channel(&world.controllers, 0).await;
    world.join(1, at_controller.clone()).await;
    let mut plain = Plain::new(at_controller.clone()).await;
    for n in 0..400 {
        plain.put(&format!("k{n}"), &"x".repeat(5_000)).await;
    }

    let start = Instant::now();
    world.join(2, at_controller.clone()).await;
    world.settled().await;
    let took = start.elapsed();
    let sent = sent_bytes(world.group(1)).await;
    assert!(sent > 700_000, "{sent} bytes moved");
    // The first parts come at once, and the last ones are paid for by nobody.
    let least = Duration::from_millis((sent - 512_000) * 1_000 / LIMIT);
    assert!(took >= least, "{sent} bytes in {took:?}");
    for n in 0..400 {
        let value = plain.get(&format!("k{n}")).await.unwrap();
        assert_eq!(value.len(), 5_000);
    }
}

/// Returns the bytes of shards that a group's only node has sent.
async fn sent_bytes(group: &Cluster) -> u64 {
    let metrics = http_get(group.metrics(0), "/metrics").await;
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix("shardkv_handoff_sent_bytes_total "));
    value.and_then(|value| value.parse().ok()).unwrap()
}

/// Makes a node lead that no client of the test uses, kills it, waits for the next leader, and starts it again.
pub(crate) async fn replace_leader(cluster: &mut Cluster) {
    const VICTIM: u16 = 1;
    let id = cluster.status(VICTIM).await.node_id;
    until("the victim leads", async || {
        let leader = cluster.leader().await;
        if leader == VICTIM {
            return Ok(());
        }
        // Refused while the node is behind, so the transfer is retried.
        let transfer = cluster.admin(leader).transfer_leadership(Some(id)).await;
        Err(format!("node {leader} leads: {transfer:?}"))
    })
    .await;
    cluster.kill(VICTIM);
    cluster.leader_among(&[0, 2]).await;
    cluster.start_node(VICTIM);
    cluster.all_caught_up().await;
}
