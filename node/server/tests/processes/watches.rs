//! Watches and leases of a keyspace, by etcd's own messages, while leaders die and shards move.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use api::etcd::etcdserverpb as pb;
use api::v1::CreateKeyspaceRequest;
use api::v1::keyspace_options::AutoCompaction;
use api::v1::keyspaces_client::KeyspacesClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use crate::cluster::{Cluster, Setup};
use crate::wait::{PATIENCE, holds, until};
use crate::world::{SHARDS, World, channel};

const NAME: &str = "tenant";

/// Makes a request for the keyspace.
pub(crate) fn to<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("shardkv-keyspace", NAME.parse().unwrap());
    request
}

pub(crate) async fn create_keyspace(through: Channel) -> api::v1::Keyspace {
    create_with(through, api::v1::KeyspaceOptions::default()).await
}

async fn create_with(through: Channel, options: api::v1::KeyspaceOptions) -> api::v1::Keyspace {
    let client = KeyspacesClient::new(through);
    let request = CreateKeyspaceRequest {
        name: NAME.to_owned(),
        cluster_id: 77,
        options: Some(options),
    };
    until("the keyspace is created", async || {
        let created = client.clone().create(request.clone()).await;
        created.map(tonic::Response::into_inner)
    })
    .await
}

pub(crate) fn put(key: &str, value: &str, lease: i64) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        lease,
        ..pb::PutRequest::default()
    }
}

pub(crate) fn watch(key: &str, range_end: &str, start_revision: i64) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
        start_revision,
        ..pb::WatchCreateRequest::default()
    }
}

/// A watch stream of a client.
pub(crate) struct Stream {
    requests: mpsc::Sender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
}

impl Stream {
    pub(crate) async fn open(through: Channel) -> Result<Self, tonic::Status> {
        let (requests, receiver) = mpsc::channel(8);
        let mut client = WatchClient::new(through);
        let opened = client.watch(to(ReceiverStream::new(receiver))).await?;
        Ok(Self {
            requests,
            answers: opened.into_inner(),
        })
    }

    /// Makes a stream of its halves.
    pub(crate) fn of(
        requests: mpsc::Sender<pb::WatchRequest>,
        answers: Streaming<pb::WatchResponse>,
    ) -> Self {
        Self { requests, answers }
    }

    /// Returns the half that sends requests.
    pub(crate) fn asker(&self) -> mpsc::Sender<pb::WatchRequest> {
        self.requests.clone()
    }

    pub(crate) async fn ask(&self, union: RequestUnion) {
        let request_union = Some(union);
        let request = pb::WatchRequest { request_union };
        // A stream that has ended says so in its answers.
        let _ = self.requests.send(request).await;
    }

    pub(crate) async fn create(&self, request: pb::WatchCreateRequest) {
        self.ask(RequestUnion::CreateRequest(request)).await;
    }

    pub(crate) async fn next(&mut self) -> Result<pb::WatchResponse, tonic::Status> {
        let answer = timeout(PATIENCE, self.answers.message()).await;
        let ended = || tonic::Status::unavailable("the stream has ended");
        answer.expect("no answer came")?.ok_or_else(ended)
    }
}

pub(crate) fn revision(answer: &pb::WatchResponse) -> i64 {
    answer.header.as_ref().unwrap().revision
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_stream_answers_as_etcds_does() {
    let cluster = Cluster::start(Setup::of(1).with("shards", SHARDS)).await;
    let node = channel(&cluster, 0).await;
    create_keyspace(node.clone()).await;
    let mut kv = KvClient::new(node.clone());
    for n in 0..3 {
        kv.put(to(put("a", &n.to_string(), 0))).await.unwrap();
    }
    let mut stream = Stream::open(node.clone()).await.unwrap();

    // From now on: nothing of the past.
    stream.create(watch("a", "c", 0)).await;
    let created = stream.next().await.unwrap();
    assert!(created.created && !created.canceled);
    assert_eq!((created.watch_id, revision(&created)), (0, 4));
    assert_eq!(created.header.unwrap().cluster_id, 77);
    kv.put(to(put("b", "x", 0))).await.unwrap();
    let event = stream.next().await.unwrap();
    assert_eq!((event.events.len(), revision(&event)), (1, 5));

    // From the past, with the pairs before, under an id of the client's.
    let past = pb::WatchCreateRequest {
        prev_kv: true,
        watch_id: 9,
        ..watch("a", "", 2)
    };
    stream.create(past.clone()).await;
    assert_eq!(stream.next().await.unwrap().watch_id, 9);
    let events = stream.next().await.unwrap();
    let told: Vec<_> = events
        .events
        .iter()
        .map(|event| {
            let value = event.kv.as_ref().unwrap().value.clone();
            let before = event.prev_kv.as_ref().map(|kv| kv.value.clone());
            (value, before)
        })
        .collect();
    let expected = [("0", None), ("1", Some("0")), ("2", Some("1"))];
    let expected = expected.map(|(value, before)| (value.into(), before.map(Into::into)));
    assert_eq!(told, expected);
    stream.create(past).await;
    let refused = stream.next().await.unwrap();
    assert!(refused.created && refused.canceled);
    assert_eq!(refused.watch_id, -1);
    assert_eq!(
        refused.cancel_reason,
        "mvcc: duplicate watch ID provided on the WatchStream"
    );

    // A transaction's events come together; a progress notice comes after them.
    let delete = pb::DeleteRangeRequest {
        key: "a".into(),
        range_end: "z".into(),
        ..pb::DeleteRangeRequest::default()
    };
    kv.delete_range(to(delete)).await.unwrap();
    let mut counts = BTreeMap::new();
    for _ in 0..2 {
        let deleted = stream.next().await.unwrap();
        assert!(deleted.events.iter().all(|event| event.r#type == 1));
        counts.insert(deleted.watch_id, deleted.events.len());
    }
    assert_eq!(counts, BTreeMap::from([(0, 2), (9, 1)]));
    let progress = pb::WatchProgressRequest {};
    stream.ask(RequestUnion::ProgressRequest(progress)).await;
    let progress = stream.next().await.unwrap();
    assert_eq!((progress.watch_id, revision(&progress)), (-1, 6));
    assert_eq!(progress.events, []);

    let cancel = pb::WatchCancelRequest { watch_id: 9 };
    stream.ask(RequestUnion::CancelRequest(cancel)).await;
    let canceled = stream.next().await.unwrap();
    assert!(canceled.canceled && canceled.compact_revision == 0);

    // What is compacted can't be watched.
    let compact = pb::CompactionRequest {
        revision: 5,
        physical: false,
    };
    kv.compact(to(compact)).await.unwrap();
    stream.create(watch("a", "", 3)).await;
    let created = stream.next().await.unwrap();
    let canceled = stream.next().await.unwrap();
    assert_eq!(created.watch_id, canceled.watch_id);
    assert_eq!((canceled.canceled, canceled.compact_revision), (true, 5));
    stream.create(watch("b", "", 5)).await;
    assert!(stream.next().await.unwrap().created);
    let events = stream.next().await.unwrap();
    let revisions: Vec<_> = events
        .events
        .iter()
        .map(|event| event.kv.as_ref().unwrap().mod_revision)
        .collect();
    assert_eq!(revisions, [5, 6]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_ends_with_its_keys_unless_it_is_renewed() {
    let cluster = Cluster::start(Setup::of(3).with("shards", SHARDS)).await;
    let leader = cluster.leader().await;
    let follower = channel(&cluster, (leader + 1) % 3).await;
    create_keyspace(follower.clone()).await;
    // Everything goes through a follower, which passes it on.
    let mut kv = KvClient::new(follower.clone());
    let mut lease = LeaseClient::new(follower.clone());
    let mut granted = BTreeMap::new();
    // The longer one leaves room for a machine that stalls for seconds.
    for ttl in [2, 10] {
        let request = pb::LeaseGrantRequest { ttl, id: 0 };
        let answer = lease.lease_grant(to(request)).await.unwrap().into_inner();
        assert_eq!(answer.ttl, ttl);
        assert!(answer.id > 0);
        granted.insert(ttl, answer.id);
    }
    let taken = pb::LeaseGrantRequest {
        ttl: 5,
        id: granted[&2],
    };
    let refused = lease.lease_grant(to(taken)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert_eq!(refused.message(), "etcdserver: lease already exists");
    let mut last = 0;
    for (ttl, id) in &granted {
        let answer = kv.put(to(put(&format!("k{ttl}"), "v", *id))).await.unwrap();
        last = answer.into_inner().header.unwrap().revision;
    }
    let mut stream = Stream::open(follower.clone()).await.unwrap();
    // The follower may not have the last put yet.
    stream.create(watch("k", "l", last + 1)).await;
    assert!(stream.next().await.unwrap().created);

    // One of them is renewed until the other is gone.
    let kept = granted[&10];
    let renewals = KeepAlive::start(vec![follower.clone()], kept);
    let gone = stream.next().await.unwrap();
    assert_eq!(gone.events[0].kv.as_ref().unwrap().key, "k2");
    assert_eq!(gone.events[0].r#type, 1);
    let asked = pb::LeaseTimeToLiveRequest {
        id: kept,
        keys: true,
    };
    let left = lease.lease_time_to_live(to(asked)).await.unwrap();
    let left = left.into_inner();
    assert_eq!((left.granted_ttl, left.keys), (10, vec!["k10".into()]));
    assert!((0..=10).contains(&left.ttl), "{}", left.ttl);
    let listed = lease.lease_leases(to(pb::LeaseLeasesRequest {})).await;
    let listed = listed.unwrap().into_inner().leases;
    assert_eq!(listed.iter().map(|it| it.id).collect::<Vec<_>>(), [kept]);
    renewals.stop().await;
    let gone = stream.next().await.unwrap();
    assert_eq!(gone.events[0].kv.as_ref().unwrap().key, "k10");
    let asked = pb::LeaseTimeToLiveRequest {
        id: kept,
        keys: false,
    };
    let left = lease.lease_time_to_live(to(asked)).await.unwrap();
    assert_eq!(left.into_inner().ttl, -1);
    let revoked = lease.lease_revoke(to(pb::LeaseRevokeRequest { id: kept }));
    let refused = revoked.await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound);
    assert_eq!(refused.message(), "etcdserver: requested lease not found");
}

/// What compaction leaves is cleared, also by the next leader; and a keyspace is compacted by its options.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_compacted_and_cleared() {
    const PUTS: i64 = 1_500;
    let mut cluster = Cluster::start(Setup::of(3).with("shards", SHARDS)).await;
    let leader = cluster.leader().await;
    let follower = channel(&cluster, (leader + 1) % 3).await;
    create_keyspace(follower.clone()).await;
    let mut kv = KvClient::new(follower.clone());
    let value = "x".repeat(100);
    for _ in 0..PUTS {
        kv.put(to(put("k", &value, 0))).await.unwrap();
    }
    // A put is a version and an event, each with the key; the key itself is there once.
    let one = (64 + 1 + 100) + (32 + 1);
    let key = 32 + 1;
    let keyspaces = KeyspacesClient::new(follower.clone());
    let get = async || {
        let request = api::v1::GetKeyspaceRequest {
            name: NAME.to_owned(),
        };
        let got = keyspaces.clone().get(request).await;
        got.map(tonic::Response::into_inner)
    };
    let before = get().await.unwrap();
    assert_eq!(before.bytes, key + one * PUTS.cast_unsigned());
    let compact = pb::CompactionRequest {
        revision: PUTS + 1,
        physical: false,
    };
    kv.compact(to(compact)).await.unwrap();
    // The next leader goes on with what is left.
    cluster.kill(leader);
    cluster.start_node(leader);
    until("the history is cleared", async || {
        let now = get().await.map_err(|status| status.to_string())?;
        holds(now.bytes == key + one, format!("{} bytes", now.bytes))
    })
    .await;

    let request = api::v1::SetKeyspaceOptionsRequest {
        name: NAME.to_owned(),
        options: Some(api::v1::KeyspaceOptions {
            quota_bytes: 0,
            auto_compaction: Some(AutoCompaction::RetainedRevisions(10)),
        }),
        cluster_id: 0,
    };
    let set = keyspaces.clone().set_options(request).await;
    assert!(set.unwrap().into_inner().options.is_some());
    for _ in 0..100 {
        kv.put(to(put("k", &value, 0))).await.unwrap();
    }
    until("the keyspace is compacted by its options", async || {
        let now = get().await.map_err(|status| status.to_string())?;
        let kept = now.revision - now.compacted_revision;
        let text = format!("{kept} revisions, {} bytes", now.bytes);
        holds(kept == 10 && now.bytes == key + one * 11, text)
    })
    .await;
}

/// Renews a lease through one node after the other, as etcd's client does.
struct KeepAlive {
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl KeepAlive {
    fn start(through: Vec<Channel>, id: i64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            for node in through.iter().cycle() {
                let mut client = LeaseClient::new(node.clone());
                let (requests, receiver) = mpsc::channel(1);
                let Ok(opened) = client
                    .lease_keep_alive(to(ReceiverStream::new(receiver)))
                    .await
                else {
                    continue;
                };
                let mut answers = opened.into_inner();
                while requests
                    .send(pb::LeaseKeepAliveRequest { id })
                    .await
                    .is_ok()
                {
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    let Ok(Some(answer)) = answers.message().await else {
                        break;
                    };
                    assert!(
                        answer.ttl > 0,
                        "the lease has expired although it was renewed"
                    );
                    // The pace of renewals, which nothing depends on.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        });
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

/// Watches from the first put on, and opens the stream again where it ended, through one node after the other. Returns the
/// revisions up to the last put.
async fn follow(through: Vec<Channel>) -> Vec<i64> {
    let mut seen: Vec<i64> = Vec::new();
    for node in through.iter().cycle() {
        let Ok(mut stream) = Stream::open(node.clone()).await else {
            continue;
        };
        let next = seen.last().map_or(2, |last| last + 1);
        stream.create(watch("w", "", next)).await;
        while let Ok(answer) = stream.next().await {
            assert!(!answer.canceled, "{answer:?}");
            for event in answer.events {
                let kv = event.kv.unwrap();
                seen.push(kv.mod_revision);
                if kv.value == "last" {
                    return seen;
                }
            }
        }
    }
    seen
}

/// Whatever dies or moves, each revision is seen once and in order, and a lease that is renewed lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_and_leases_live_through_dead_leaders_and_moves() {
    let mut world = World::start(2, 3).await;
    let at_controller = channel(&world.controllers, 0).await;
    world.join(1, at_controller.clone()).await;
    create_keyspace(at_controller.clone()).await;
    let mut all = vec![at_controller.clone()];
    for gid in [1, 2] {
        for node in 0..3 {
            all.push(channel(world.group(gid), node).await);
        }
    }
    let grant = pb::LeaseGrantRequest { ttl: 4, id: 5 };
    let mut lease = LeaseClient::new(at_controller.clone());
    until("a lease is granted", async || {
        match lease.lease_grant(to(grant)).await {
            Err(error) if error.code() == tonic::Code::FailedPrecondition => Ok(()),
            answer => answer.map(|_| ()),
        }
    })
    .await;
    let watcher = tokio::spawn(follow(all.clone()));
    let renewals = KeepAlive::start(all.clone(), 5);

    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (stop, through) = (Arc::clone(&stop), all.clone());
        async move {
            let mut turn = 0;
            while !stop.load(Ordering::Relaxed) {
                turn += 1;
                let mut kv = KvClient::new(through[turn % through.len()].clone());
                // A put whose outcome is unknown may add a revision, too. The watch sees it.
                let _ = timeout(PATIENCE, kv.put(to(put("w", &turn.to_string(), 5)))).await;
            }
        }
    });
    let started = Instant::now();
    crate::shards::replace_leader(&mut world.groups[0]).await;
    world.join(2, at_controller.clone()).await;
    world.settled().await;
    world.leave(1, at_controller.clone()).await;
    crate::shards::replace_leader(&mut world.groups[1]).await;
    world.settled().await;
    // The lease has outlived its term several times.
    until("the lease outlives its term", async || {
        holds(started.elapsed() > Duration::from_secs(9), "not yet")
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    let kv = KvClient::new(at_controller.clone());
    let ended = until("the last put is answered", async || {
        let mut kv = kv.clone();
        kv.put(to(put("w", "last", 0))).await
    })
    .await;
    let newest = ended.into_inner().header.unwrap().revision;
    let seen = timeout(PATIENCE, watcher).await.unwrap().unwrap();
    let expected: Vec<i64> = (2..=*seen.last().unwrap()).collect();
    assert_eq!(seen, expected, "each revision once, in order");
    assert!(newest >= *seen.last().unwrap() && newest > 100, "{newest}");
    renewals.stop().await;
}
