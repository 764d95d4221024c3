//! Clients of etcd talk to a keyspace on any node: plain generated stubs of etcd's services, each with one node.

use std::net::SocketAddr;

use api::etcd::etcdserverpb as pb;
use api::etcd::etcdserverpb::auth_client::AuthClient;
use api::etcd::etcdserverpb::cluster_client::ClusterClient;
use api::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use api::etcd::etcdserverpb::kv_client::KvClient;
use api::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use api::etcd::etcdserverpb::request_op::Request as Op;
use api::etcd::etcdserverpb::response_op::Response as OpAnswer;
use api::v1::CreateKeyspaceRequest;
use api::v1::keyspaces_client::KeyspacesClient;
use bytes::Bytes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::cluster::{Cluster, Setup};
use crate::wait::{holds, until};
use crate::world::{World, channel};

/// Connects to a node as a client that dialled this authority.
async fn dial(address: SocketAddr, authority: &str) -> Channel {
    let origin = format!("http://{authority}").parse().unwrap();
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let endpoint = endpoint.origin(origin);
    until("a node takes a connection", async || {
        endpoint.connect().await
    })
    .await
}

/// Names the keyspace of a call.
pub(crate) fn named<T>(keyspace: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let name = keyspace.parse().unwrap();
    request.metadata_mut().insert("shardkv-keyspace", name);
    request
}

/// Creates a keyspace, once the group takes keyspaces.
pub(crate) async fn create(through: &Channel, name: &str) {
    let request = CreateKeyspaceRequest {
        name: name.to_owned(),
        ..CreateKeyspaceRequest::default()
    };
    // A group takes keyspaces once all its members have told their level.
    until("a keyspace is created", async || {
        let mut keyspaces = KeyspacesClient::new(through.clone());
        keyspaces.create(request.clone()).await
    })
    .await;
}

pub(crate) fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..pb::PutRequest::default()
    }
}

/// A range over all keys.
pub(crate) fn all() -> pb::RangeRequest {
    pb::RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        ..pb::RangeRequest::default()
    }
}

pub(crate) fn header(header: Option<pb::ResponseHeader>) -> pb::ResponseHeader {
    header.expect("each answer has a header")
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(text), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_etcd_use_a_keyspace_through_any_node_of_a_group() {
    let cluster = Cluster::start(Setup::of(3)).await;
    let mut through = Vec::new();
    for node in 0..3 {
        through.push(channel(&cluster, node).await);
    }
    create(&through[0], "tenant-a").await;
    let kv = |node: usize| KvClient::new(through[node].clone());

    // Each write adds one revision, whichever node takes it.
    let mut ids = Vec::new();
    for node in 0..3 {
        let request = named("tenant-a", put(&format!("k{node}"), "old"));
        let answer = kv(node).put(request).await.unwrap().into_inner();
        let header = header(answer.header);
        assert_eq!(header.revision, i64::try_from(node).unwrap() + 2);
        assert!(header.raft_term > 0, "{header:?}");
        ids.push(header.cluster_id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "one keyspace has one cluster id");
    let request = pb::PutRequest {
        prev_kv: true,
        ..put("k0", "new")
    };
    let answer = kv(1).put(named("tenant-a", request)).await.unwrap();
    let before = answer.into_inner().prev_kv.unwrap();
    assert_eq!((before.value.as_ref(), before.version), (&b"old"[..], 1));

    // All nodes give the same answer, and an older one for an older revision.
    for node in 0..3 {
        let answer = kv(node).range(named("tenant-a", all())).await.unwrap();
        let answer = answer.into_inner();
        assert_eq!((answer.count, answer.more), (3, false));
        assert_eq!(header(answer.header).revision, 5);
        let pairs: Vec<_> = answer
            .kvs
            .iter()
            .map(|it| (it.key.as_ref(), it.value.as_ref()))
            .collect();
        let expected = [("k0", "new"), ("k1", "old"), ("k2", "old")];
        let expected = expected.map(|(key, value)| (key.as_bytes(), value.as_bytes()));
        assert_eq!(pairs, expected);
        let request = pb::RangeRequest {
            revision: 3,
            ..all()
        };
        let answer = kv(node).range(named("tenant-a", request)).await.unwrap();
        assert_eq!(answer.into_inner().kvs.len(), 2);
    }

    // Each replica serves serializable reads by itself, once it has applied the writes.
    let mut members = Vec::new();
    for node in 0..3 {
        let member = until("a replica has applied all writes", async || {
            let request = pb::RangeRequest {
                serializable: true,
                ..all()
            };
            let answer = kv(node).range(named("tenant-a", request)).await;
            let answer = answer.map_err(|status| status.to_string())?.into_inner();
            let header = header(answer.header);
            holds(header.revision == 5, format!("{header:?}"))?;
            Ok::<_, String>(header.member_id)
        })
        .await;
        assert!(!members.contains(&member));
        members.push(member);
    }
    linearizable_reads(&through, &members).await;

    transactions(&through).await;
    parts(&through[1]).await;

    // A compaction through any node counts everywhere.
    let compact = pb::CompactionRequest {
        revision: 5,
        physical: false,
    };
    kv(2).compact(named("tenant-a", compact)).await.unwrap();
    for node in 0..3 {
        let request = pb::RangeRequest {
            revision: 4,
            ..all()
        };
        let old = kv(node).range(named("tenant-a", request)).await;
        let text = "etcdserver: mvcc: required revision has been compacted";
        refused(old, Code::OutOfRange, text);
    }
    refusals(&through).await;
    upkeep(&cluster, &through).await;
}

/// Each replica serves linearizable reads by itself, unless it is slow, and each sees what was acknowledged at another.
async fn linearizable_reads(through: &[Channel], members: &[u64]) {
    create(&through[0], "fresh").await;
    for (node, member) in members.iter().enumerate() {
        until("a replica reads by itself", async || {
            let mut writer = KvClient::new(through[(node + 1) % 3].clone());
            let written = writer.put(named("fresh", put("k", "v"))).await;
            let written = written.map_err(|status| status.to_string())?.into_inner();
            let mut reader = KvClient::new(through[node].clone());
            let read = reader.range(named("fresh", all())).await;
            let read = read.map_err(|status| status.to_string())?.into_inner();
            let (written, read) = (header(written.header), header(read.header));
            assert!(read.revision >= written.revision, "{read:?} {written:?}");
            holds(read.member_id == *member, format!("{read:?}"))
        })
        .await;
    }
}

async fn transactions(through: &[Channel]) {
    let op = |request| pb::RequestOp {
        request: Some(request),
    };
    for (node, channel) in through.iter().enumerate() {
        let key = Bytes::from(format!("txn{node}"));
        let request = pb::TxnRequest {
            compare: vec![pb::Compare {
                result: CompareResult::Equal.into(),
                target: CompareTarget::Version.into(),
                key: key.clone(),
                target_union: Some(TargetUnion::Version(0)),
                range_end: Bytes::new(),
            }],
            success: vec![
                op(Op::RequestPut(put(&format!("txn{node}"), "made"))),
                op(Op::RequestRange(pb::RangeRequest {
                    key,
                    ..pb::RangeRequest::default()
                })),
            ],
            failure: vec![op(Op::RequestRange(all()))],
        };
        let mut kv = KvClient::new(channel.clone());
        let first = kv
            .txn(named("tenant-a", request.clone()))
            .await
            .unwrap()
            .into_inner();
        assert!(first.succeeded);
        let Some(OpAnswer::ResponseRange(range)) = &first.responses[1].response else {
            panic!("{first:?}");
        };
        assert_eq!(range.kvs[0].value.as_ref(), b"made", "it sees its own put");
        let again = kv
            .txn(named("tenant-a", request))
            .await
            .unwrap()
            .into_inner();
        assert!(!again.succeeded);
        assert_eq!(header(again.header).revision, header(first.header).revision);
        let read = pb::TxnRequest {
            success: vec![op(Op::RequestRange(all()))],
            ..pb::TxnRequest::default()
        };
        let read = kv.txn(named("tenant-a", read)).await.unwrap().into_inner();
        let Some(OpAnswer::ResponseRange(range)) = &read.responses[0].response else {
            panic!("{read:?}");
        };
        assert_eq!(range.count, 4 + i64::try_from(node).unwrap());
        let delete = pb::DeleteRangeRequest {
            key: format!("txn{node}x").into(),
            ..pb::DeleteRangeRequest::default()
        };
        let deleted = kv.delete_range(named("tenant-a", delete)).await.unwrap();
        assert_eq!(deleted.into_inner().deleted, 0);
    }
}

/// Reads a range in parts, which are of one revision.
async fn parts(through: &Channel) {
    let mut kv = KvClient::new(through.clone());
    for n in 0..100 {
        kv.put(named("tenant-a", put(&format!("many{n:03}"), "x")))
            .await
            .unwrap();
    }
    let whole = kv
        .range(named("tenant-a", all()))
        .await
        .unwrap()
        .into_inner();
    let mut stream = kv
        .range_stream(named("tenant-a", all()))
        .await
        .unwrap()
        .into_inner();
    let (mut kvs, mut count, mut messages) = (Vec::new(), 0, 0);
    while let Some(part) = stream.message().await.unwrap() {
        let part = part.range_response.unwrap();
        if messages == 0 {
            // Later parts don't have it.
            kv.put(named("tenant-a", put("zzz", "late"))).await.unwrap();
        }
        kvs.extend(part.kvs);
        count = part.count;
        messages += 1;
    }
    assert!(messages > 1, "{messages}");
    assert_eq!((kvs, count), (whole.kvs, whole.count));
}

async fn refusals(through: &[Channel]) {
    for channel in through {
        let mut kv = KvClient::new(channel.clone());
        let empty = kv.put(named("tenant-a", put("", "x"))).await;
        refused(
            empty,
            Code::InvalidArgument,
            "etcdserver: key is not provided",
        );
        let future = pb::RangeRequest {
            revision: 1 << 40,
            ..all()
        };
        let future = kv.range(named("tenant-a", future)).await;
        refused(
            future,
            Code::OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
        );
        let no_lease = pb::PutRequest {
            lease: 77,
            ..put("k", "x")
        };
        let no_lease = kv.put(named("tenant-a", no_lease)).await;
        refused(
            no_lease,
            Code::NotFound,
            "etcdserver: requested lease not found",
        );
        let large = put("k", &"x".repeat(3 << 19));
        let large = kv.put(named("tenant-a", large)).await;
        refused(
            large,
            Code::InvalidArgument,
            "etcdserver: request is too large",
        );
        let larger = put("k", &"x".repeat(3 << 20));
        let larger = kv.put(named("tenant-a", larger)).await;
        refused(
            larger,
            Code::ResourceExhausted,
            "grpc: received message larger than max",
        );
        let nobody = kv.range(named("nobody", all())).await;
        refused(nobody, Code::NotFound, "`nobody`");
        let wrong = kv.range(named("No", all())).await;
        refused(wrong, Code::InvalidArgument, "`No`");
        // An address names no keyspace, and nobody has created the fallback.
        refused(kv.range(all()).await, Code::NotFound, "`default`");
        let mut auth = AuthClient::new(channel.clone());
        let login = pb::AuthenticateRequest::default();
        let login = auth.authenticate(named("tenant-a", login)).await;
        refused(
            login,
            Code::FailedPrecondition,
            "etcdserver: authentication is not enabled",
        );
        let mut members = ClusterClient::new(channel.clone());
        let add = members.member_add(pb::MemberAddRequest::default()).await;
        refused(add, Code::Unimplemented, "operator");
    }
}

/// The services beside `KV`.
async fn upkeep(cluster: &Cluster, through: &[Channel]) {
    let mut hashes = Vec::new();
    for (node, channel) in (0..).zip(through) {
        let mut maintenance = MaintenanceClient::new(channel.clone());
        let status = maintenance
            .status(named("tenant-a", pb::StatusRequest {}))
            .await;
        let status = status.unwrap().into_inner();
        assert!(status.version.starts_with("3.7."), "{status:?}");
        assert!(status.db_size > 0 && status.db_size_quota > status.db_size);
        assert!(status.leader > 0 && status.raft_applied_index > 0);
        let hash = until("a replica has applied all writes", async || {
            let request = pb::HashKvRequest { revision: 0 };
            let answer = maintenance.hash_kv(named("tenant-a", request)).await;
            let answer = answer.map_err(|status| status.to_string())?.into_inner();
            let newest = header(status.header).revision;
            holds(answer.hash_revision >= newest, format!("{answer:?}"))?;
            Ok::<_, String>((answer.hash, answer.hash_revision, answer.compact_revision))
        });
        hashes.push(hash.await);
        let alarms = maintenance
            .alarm(named("tenant-a", pb::AlarmRequest::default()))
            .await;
        assert_eq!(alarms.unwrap().into_inner().alarms, []);
        let mut auth = AuthClient::new(channel.clone());
        let auth = auth
            .auth_status(named("tenant-a", pb::AuthStatusRequest {}))
            .await;
        assert!(!auth.unwrap().into_inner().enabled);

        // Clients that dial a name stay with it.
        let dialled = dial(cluster.listen(node), "Tenant-A.svc:2379").await;
        let answer = KvClient::new(dialled.clone()).range(all()).await.unwrap();
        assert!(answer.into_inner().count > 0);
        let mut members = ClusterClient::new(dialled);
        let list = members.member_list(pb::MemberListRequest::default()).await;
        let list = list.unwrap().into_inner();
        let urls: Vec<_> = list
            .members
            .iter()
            .flat_map(|member| &member.client_ur_ls)
            .collect();
        assert_eq!(urls, ["http://Tenant-A.svc:2379"]);
    }
    hashes.dedup();
    assert_eq!(hashes.len(), 1, "replicas have the same hash: {hashes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyspace_is_reached_through_other_groups_and_controllers() {
    let world = World::start(2, 1).await;
    let at_controller = channel(&world.controllers, 0).await;
    let at_one = channel(world.group(1), 0).await;
    let at_two = channel(world.group(2), 0).await;
    world.join(1, at_controller.clone()).await;
    world.join(2, at_controller.clone()).await;
    world.settled().await;
    let through = [at_controller, at_one, at_two];
    let mut owners = Vec::new();
    // Enough names that both groups have some.
    for n in 0..12 {
        let name = format!("tenant-{n}");
        create(&through[n % 3], &name).await;
        let mut clusters = Vec::new();
        for (node, channel) in through.iter().enumerate() {
            let mut kv = KvClient::new(channel.clone());
            let answer = kv.put(named(&name, put(&format!("k{node}"), &name))).await;
            let header = header(answer.unwrap().into_inner().header);
            assert_eq!(header.revision, i64::try_from(node).unwrap() + 2);
            clusters.push(header.cluster_id);
            owners.push(header.member_id);
        }
        clusters.dedup();
        assert_eq!(clusters.len(), 1);
        for channel in &through {
            let mut kv = KvClient::new(channel.clone());
            let answer = kv.range(named(&name, all())).await.unwrap().into_inner();
            assert_eq!(answer.count, 3);
            let mine = answer.kvs.iter().all(|pair| pair.value == name.as_bytes());
            assert!(mine, "{answer:?}");
            let request = pb::RangeRequest {
                serializable: true,
                ..all()
            };
            let answer = kv.range(named(&name, request)).await.unwrap();
            assert_eq!(answer.into_inner().count, 3);
        }
    }
    owners.sort_unstable();
    owners.dedup();
    assert_eq!(owners.len(), 2, "each group answers for its own");
    for channel in &through {
        let mut kv = KvClient::new(channel.clone());
        let nobody = kv.range(named("nobody", all())).await;
        refused(nobody, Code::NotFound, "`nobody`");
    }
}

#[tokio::test]
async fn a_bound_listener_means_its_keyspace_whatever_a_call_says() {
    let mut cluster = Cluster::prepare(Setup::of(1));
    let bound = cluster.front();
    cluster.set("keyspace-listen", &format!("bound={bound}"));
    cluster.set("fallback-keyspace", "none");
    cluster.start_node(0);
    let main = channel(&cluster, 0).await;
    create(&main, "bound").await;
    let mut kv = KvClient::new(main);
    kv.put(named("bound", put("k", "v"))).await.unwrap();
    refused(
        kv.range(all()).await,
        Code::InvalidArgument,
        "names no keyspace",
    );
    let dialled = dial(bound, "other:2379").await;
    for request in [Request::new(all()), named("another", all())] {
        let answer = KvClient::new(dialled.clone()).range(request).await.unwrap();
        assert_eq!(answer.into_inner().count, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_wait_for_the_first_group() {
    let world = World::start(1, 3).await;
    let mut calls = Vec::new();
    for node in 0..3 {
        let mut kv = KvClient::new(channel(world.group(1), node).await);
        let call = async move { kv.range(named("tenant-a", all())).await };
        calls.push(tokio::spawn(call));
    }
    world.join(1, channel(&world.controllers, 0).await).await;
    for call in calls {
        // The group answers, and has no such keyspace.
        let status = call.await.unwrap().unwrap_err();
        assert!(
            status.message().contains("keyspace `tenant-a`"),
            "{status:?}"
        );
    }
}
