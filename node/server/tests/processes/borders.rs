//! Tests that groups refuse calls for other groups, that forwarding is bounded and patient, and that deleted shards free their
//! disk space.

use std::time::Duration;

use api::v1::error_detail::Kind;
use api::v1::handoff_client::HandoffClient;
use api::v1::kv_client::KvClient;
use api::v1::{
    BatchRequest, DeleteShardRequest, ExportRequest, GetRequest, OpenSessionRequest, PullRequest,
    PutRequest, ScanRequest,
};
use tonic::{Request, Status};
use types::shard_of;

use crate::wait::{holds, until};
use crate::world::{Plain, SHARDS, World, channel};

fn kind(status: &Status) -> Option<Kind> {
    api::error_detail(status).and_then(|detail| detail.kind)
}

/// Returns a key whose shard is below `end`, or not below it.
fn key(below: bool, end: u32) -> String {
    let shards = SHARDS.parse().unwrap();
    let mut names = (0..).map(|n| format!("k{n}"));
    let fits = |key: &String| (shard_of(key.as_bytes(), shards).0 < end) == below;
    names.find(fits).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_meant_for_another_cluster_or_group_is_refused() {
    let world = World::start(2, 1).await;
    let at_one = channel(world.group(1), 0).await;
    world.join(1, at_one.clone()).await;
    world.join(2, at_one.clone()).await;
    let now = world.settled().await;
    // A call that names no destination is accepted.
    let mut plain = Plain::new(at_one.clone()).await;
    let key = key(true, 8);
    plain.put(&key, "kept").await;
    let mut kv = KvClient::new(at_one);
    for (cluster, gid, refused) in [
        (now.cluster_id, 1, None),
        (now.cluster_id ^ 1, 1, Some("cluster")),
        (now.cluster_id, 2, Some("group")),
    ] {
        let set_destination = |request: &mut tonic::metadata::MetadataMap| {
            let cluster = format!("{cluster:016x}").parse().unwrap();
            request.insert(api::CLUSTER_METADATA_KEY, cluster);
            request.insert(api::GID_METADATA_KEY, gid.into());
        };
        let is_as_told = |status: &Status| match refused {
            Some("cluster") => matches!(kind(status), Some(Kind::WrongCluster(_))),
            _ => matches!(kind(status), Some(Kind::WrongGroup(it)) if it.config_num == now.latest),
        };
        let mut put = Request::new(PutRequest {
            key: key.clone().into(),
            value: "kept".into(),
            session: None,
        });
        set_destination(put.metadata_mut());
        let mut open = Request::new(OpenSessionRequest::default());
        set_destination(open.metadata_mut());
        let mut scan = Request::new(ScanRequest::default());
        set_destination(scan.metadata_mut());
        let mut export = Request::new(ExportRequest::default());
        set_destination(export.metadata_mut());
        let mut batch = Request::new(futures::stream::iter([BatchRequest::default()]));
        set_destination(batch.metadata_mut());
        let answers = [
            kv.put(put).await.map(drop),
            kv.open_session(open).await.map(drop),
            kv.scan(scan).await.map(drop),
            kv.export(export).await.map(drop),
            kv.batch(batch).await.map(drop),
        ];
        for answer in answers {
            match (&answer, refused) {
                (Ok(()), None) => {}
                (Err(status), Some(_)) => assert!(is_as_told(status), "{status:?}"),
                _ => panic!("{cluster} {gid}: {answer:?}"),
            }
        }
    }
    assert_eq!(plain.get(&key).await.unwrap(), "kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_off_of_another_cluster_or_group_is_refused() {
    let world = World::start(2, 1).await;
    let at_one = channel(world.group(1), 0).await;
    world.join(1, at_one.clone()).await;
    world.join(2, at_one.clone()).await;
    let now = world.settled().await;
    let mut plain = Plain::new(at_one.clone()).await;
    plain.put("a", "kept").await;
    let shard = shard_of(b"a", SHARDS.parse().unwrap()).0;
    let owner = if shard < 8 { 1 } else { 2 };
    let mut handoff = HandoffClient::new(channel(world.group(owner), 0).await);
    let config_num = now.latest;
    let cases = [
        (now.cluster_id ^ 1, owner, true),
        (now.cluster_id, 3 - owner, true),
        (now.cluster_id, 0, true),
        (now.cluster_id, owner, false),
    ];
    for (cluster_id, gid, foreign) in cases {
        let pull = PullRequest {
            cluster_id,
            gid,
            shard,
            config_num,
            max_bytes: 1_000,
            ..PullRequest::default()
        };
        let refused = handoff.pull(pull).await.unwrap_err();
        let is_foreign = |status| matches!(kind(status), Some(Kind::WrongCluster(_)));
        assert_eq!(is_foreign(&refused), foreign, "{refused:?}");
        if foreign {
            let delete = DeleteShardRequest {
                cluster_id,
                gid,
                shard,
                config_num,
            };
            let refused = handoff.delete(delete).await.unwrap_err();
            assert!(is_foreign(&refused), "{refused:?}");
        }
    }
    assert_eq!(plain.get("a").await.as_deref(), Some("kept"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_passes_on_at_once_is_bounded() {
    let mut world = World::start(2, 1).await;
    world.groups[0].set("max-forwarded", "1");
    world.groups[0].kill(0);
    world.groups[0].start_node(0);
    let at_one = channel(world.group(1), 0).await;
    let at_controller = channel(&world.controllers, 0).await;
    world.join(1, at_controller.clone()).await;
    world.join(2, at_controller.clone()).await;
    world.settled().await;
    // Group 1 owns the first half of the shards.
    let (own, others) = (key(true, 8), key(false, 8));
    let mut plain = Plain::new(at_one.clone()).await;
    plain.put(&own, "here").await;
    plain.put(&others, "there").await;

    world.groups[1].node(0).freeze();
    let ask = || {
        let mut kv = KvClient::new(at_one.clone());
        let key = others.clone().into();
        Box::pin(async move { kv.get(GetRequest { key }).await })
    };
    let (first, waiting) = match futures::future::select(ask(), ask()).await {
        futures::future::Either::Left(done) | futures::future::Either::Right(done) => done,
    };
    let refused = first.unwrap_err();
    assert!(
        matches!(kind(&refused), Some(Kind::Overloaded(_))),
        "{refused:?}"
    );
    // The node serves its own keys meanwhile.
    assert_eq!(plain.get(&own).await.as_deref(), Some("here"));
    world.groups[1].node(0).thaw();
    assert_eq!(waiting.await.unwrap().into_inner().value, "there");
    assert_eq!(plain.get(&others).await.as_deref(), Some("there"));
}

/// A caller without a session may not repeat a write, so the node that it asked waits for the owner in its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_waits_for_a_group_that_is_down_until_its_deadline() {
    let mut world = World::start(2, 1).await;
    let at_one = channel(world.group(1), 0).await;
    let at_controller = channel(&world.controllers, 0).await;
    world.join(1, at_controller.clone()).await;
    world.join(2, at_controller.clone()).await;
    world.settled().await;
    let others = key(false, 8);
    Plain::new(at_one.clone()).await.put(&others, "there").await;

    world.groups[1].kill(0);
    let mut kv = KvClient::new(at_one.clone());
    let call = kv.put(PutRequest {
        key: others.clone().into(),
        value: "later".into(),
        session: None,
    });
    tokio::pin!(call);
    // Twelve attempts take less than half of this.
    let early = tokio::time::timeout(Duration::from_secs(4), &mut call).await;
    assert!(early.is_err(), "{early:?}");
    world.groups[1].start_node(0);
    call.await.unwrap();
    let plain = Plain::new(at_one).await;
    assert_eq!(plain.get(&others).await.as_deref(), Some("later"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_group_keeps_nobody_from_another_group() {
    let mut world = World::start(3, 1).await;
    let at_one = channel(world.group(1), 0).await;
    let at_controller = channel(&world.controllers, 0).await;
    for gid in 1..=3 {
        world.join(gid, at_controller.clone()).await;
    }
    let owners = world.settled().await.config.unwrap().owners;
    let owners: Vec<u64> = owners
        .iter()
        .flat_map(|run| std::iter::repeat_n(run.gid, run.count as usize))
        .collect();
    let mut plain = Plain::new(at_one.clone()).await;
    let of_group = |gid: u64| {
        let shards = SHARDS.parse().unwrap();
        let owner = |key: &String| owners[shard_of(key.as_bytes(), shards).0 as usize];
        let mut names = (0..).map(|n| format!("k{n}"));
        names.find(|key| owner(key) == gid).unwrap()
    };
    let keys = [1, 2, 3].map(of_group);
    for key in &keys {
        plain.put(key, key).await;
    }
    let [own, healthy, frozen] = keys;

    world.groups[2].node(0).freeze();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..1_100 {
        let mut kv = KvClient::new(at_one.clone());
        let key = frozen.clone().into();
        waiting.spawn(async move { kv.get(GetRequest { key }).await });
    }
    // Beyond the share of a group calls are refused at once.
    for _ in 0..(1_100 - 256) {
        let refused = waiting.join_next().await.unwrap().unwrap().unwrap_err();
        assert!(
            matches!(kind(&refused), Some(Kind::Overloaded(_))),
            "{refused:?}"
        );
    }
    assert_eq!(waiting.len(), 256);
    for key in [own, healthy] {
        assert_eq!(plain.get(&key).await, Some(key));
    }
    world.groups[2].node(0).thaw();
    while let Some(answer) = waiting.join_next().await {
        assert_eq!(answer.unwrap().unwrap().into_inner().value, frozen);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_returns_when_shards_leave() {
    const KEYS: u64 = 128;
    const VALUE_BYTES: usize = 64 << 10;
    const DATA_BYTES: u64 = KEYS * VALUE_BYTES as u64;

    let mut world = World::start(2, 1).await;
    for group in &mut world.groups {
        // A small buffer, so that everything is in files, as gigabytes would be.
        group.set("state-write-buffer-bytes", "1048576");
        group.kill(0);
        group.start_node(0);
    }
    let through = channel(&world.controllers, 0).await;
    world.join(1, through.clone()).await;
    let mut plain = Plain::new(through.clone()).await;
    let value = |key: u64| -> String {
        let mut state = key + 1;
        let mut text = String::with_capacity(VALUE_BYTES);
        while text.len() < VALUE_BYTES {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            text.extend([format!("{:08x}", state >> 32)]);
        }
        text
    };
    for key in 0..KEYS {
        plain.put(&format!("k{key}"), &value(key)).await;
    }
    for _ in 0..3 {
        for (comes, goes) in [(2, 1), (1, 2)] {
            world.join(comes, through.clone()).await;
            world.settled().await;
            world.leave(goes, through.clone()).await;
            world.settled().await;
        }
    }
    let bounds = [(1, DATA_BYTES + DATA_BYTES * 3 / 10), (2, 1 << 20)];
    for (gid, most) in bounds {
        let admin = world.group(gid).admin(0);
        until("the disk is given back", async || {
            let status = admin.status().await.map_err(|error| error.to_string())?;
            let bytes = status.state_bytes;
            holds(
                bytes <= most,
                format!("group {gid} takes {bytes} of {most}"),
            )
        })
        .await;
    }
    for key in 0..KEYS {
        let found = plain.get(&format!("k{key}")).await;
        assert_eq!(found, Some(value(key)), "k{key}");
    }
}
