//! Watches that a follower serves: it goes on by what it applies, whoever leads and however it has caught up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use api::etcd::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::cluster::{Cluster, Setup};
use crate::wait::{PATIENCE, holds, until};
use crate::watches::{Stream, create_keyspace, put, revision, to, watch};
use crate::world::{SHARDS, channel};

/// Makes a request whose stream ends without a leader.
fn with_leader<T>(message: T) -> Request<T> {
    let mut request = to(message);
    let metadata = request.metadata_mut();
    metadata.insert("hasleader", "true".parse().unwrap());
    request
}

/// Puts until it is answered, and returns the revision.
async fn put_through(channel: &Channel, key: &str, value: &str) -> i64 {
    let client = KvClient::new(channel.clone());
    let answer = until("a put is answered", async || {
        client.clone().put(to(put(key, value, 0))).await
    })
    .await;
    answer.into_inner().header.unwrap().revision
}

/// Creates the keyspace, and returns once this node has it. A node that hasn't passes a stream to the leader.
async fn create_here(through: &Channel) {
    create_keyspace(through.clone()).await;
    // A follower answers when it has applied what the leader had committed.
    let range = pb::RangeRequest {
        key: b"w".as_slice().into(),
        ..pb::RangeRequest::default()
    };
    let client = KvClient::new(through.clone());
    until("a range is answered", async || {
        client.clone().range(to(range.clone())).await
    })
    .await;
}

/// Events and notices of progress that a stream has told.
struct Told {
    stream: Stream,
    /// The revision of the last event. Each revision after the start has one.
    last: i64,
}

impl Told {
    /// Takes events until the value `last` comes.
    async fn until_last(&mut self) {
        loop {
            let answer = self.stream.next().await.unwrap();
            assert!(!answer.canceled, "{answer:?}");
            if self.take(answer) {
                return;
            }
        }
    }

    /// Takes events until the watch is canceled.
    async fn until_canceled(&mut self) -> pb::WatchResponse {
        loop {
            let answer = self.stream.next().await.unwrap();
            if answer.canceled {
                return answer;
            }
            assert!(!self.take(answer));
        }
    }

    /// Checks that events come without a gap, and that no notice of progress is ahead of them. Returns true if the value `last` has
    /// come.
    fn take(&mut self, answer: pb::WatchResponse) -> bool {
        if answer.events.is_empty() {
            assert!(revision(&answer) <= self.last, "progress ahead of events");
        }
        let mut ended = false;
        for event in answer.events {
            let kv = event.kv.unwrap();
            assert_eq!(kv.mod_revision, self.last + 1, "each once, in order");
            self.last = kv.mod_revision;
            ended |= kv.value == "last";
        }
        ended
    }

    /// Asks for progress until it reaches the last event.
    async fn progresses(&mut self) {
        let progress = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
        self.stream.ask(progress).await;
        let answer = self.stream.next().await.unwrap();
        assert_eq!((answer.watch_id, revision(&answer)), (-1, self.last));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_at_a_follower_outlives_the_leader() {
    let mut cluster = Cluster::start(Setup::of(3).with("shards", SHARDS)).await;
    let leader = cluster.leader().await;
    let (near, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let through = channel(&cluster, near).await;
    create_here(&through).await;
    // The put is answered by the leader. The follower may not have it yet, and the watch begins after it all the same.
    let at_leader = channel(&cluster, leader).await;
    let first = put_through(&at_leader, "w", "first").await;
    let mut stream = Stream::open(through.clone()).await.unwrap();
    stream.create(watch("w", "", first + 1)).await;
    assert!(stream.next().await.unwrap().created);
    // A watch from now on may deliver the put, too, if this follower hasn't it: exactly what comes after its header.
    stream.create(watch("now", "", 0)).await;
    let created = stream.next().await.unwrap();
    assert!(created.created);
    let mut told = Told {
        stream,
        last: first,
    };

    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (stop, through) = (Arc::clone(&stop), through.clone());
        async move {
            let mut kv = KvClient::new(through);
            while !stop.load(Ordering::Relaxed) {
                // One whose outcome is unknown may add a revision. The watch sees it.
                let _ = timeout(PATIENCE, kv.put(to(put("w", "x", 0)))).await;
            }
        }
    });
    // Notices are asked for while events come.
    let asker = told.stream.asker();
    let asking = tokio::spawn(async move {
        let union = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
        let request = pb::WatchRequest {
            request_union: Some(union),
        };
        for _ in 0..100 {
            if asker.send(request.clone()).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    });
    cluster.kill(leader);
    cluster.leader_among(&[near, other]).await;
    put_through(&through, "w", "middle").await;
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    let newest = put_through(&through, "w", "last").await;
    told.until_last().await;
    asking.await.unwrap();
    assert!(told.last <= newest && told.last > first + 1);
    cluster.start_node(leader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_gets_a_snapshot_goes_on_with_its_watches() {
    const PUTS: usize = 300;
    let setup = Setup::of(3)
        .with("shards", SHARDS)
        .with("compact-after-bytes", "1048576")
        .with("state-write-buffer-bytes", "1048576")
        .with("log-write-buffer-bytes", "1048576");
    let mut cluster = Cluster::start(setup).await;
    let leader = cluster.leader().await;
    let away = (leader + 1) % 3;
    let (near, far) = (
        channel(&cluster, away).await,
        channel(&cluster, leader).await,
    );
    create_keyspace(far.clone()).await;
    let first = put_through(&far, "w", "first").await;
    let mut stream = Stream::open(near.clone()).await.unwrap();
    stream.create(watch("w", "", first + 1)).await;
    assert!(stream.next().await.unwrap().created);
    let mut told = Told {
        stream,
        last: first,
    };

    let value = "x".repeat(64 << 10);
    cluster.node(away).freeze();
    for _ in 0..PUTS {
        put_through(&far, "w", &value).await;
    }
    cluster
        .status_when(leader, "the log is compacted", |s| s.first_index > 100)
        .await;
    cluster.node(away).thaw();
    put_through(&far, "w", "last").await;
    told.until_last().await;
    told.progresses().await;
    let status = cluster.status(away).await;
    assert!(status.first_index > 100, "a snapshot came: {status:?}");

    // What is compacted meanwhile can't be told.
    cluster.node(away).freeze();
    for _ in 0..PUTS {
        put_through(&far, "w", &value).await;
    }
    let newest = put_through(&far, "w", "last").await;
    let compact = pb::CompactionRequest {
        revision: newest,
        physical: false,
    };
    let mut kv = KvClient::new(far.clone());
    kv.compact(to(compact)).await.unwrap();
    let gone = status.first_index + 100;
    cluster
        .status_when(leader, "the log is compacted", |s| s.first_index > gone)
        .await;
    cluster.node(away).thaw();
    // The follower may have got some entries before it was stopped.
    let canceled = told.until_canceled().await;
    assert_eq!(canceled.compact_revision, newest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_needs_a_leader_ends_at_a_follower_that_has_none() {
    let mut cluster = Cluster::start(Setup::of(3).with("shards", SHARDS)).await;
    let leader = cluster.leader().await;
    let near = (leader + 1) % 3;
    let through = channel(&cluster, near).await;
    create_here(&through).await;
    let open = async || {
        let (requests, receiver) = mpsc::channel(8);
        let mut client = WatchClient::new(through.clone());
        let opened = client
            .watch(with_leader(ReceiverStream::new(receiver)))
            .await?;
        Ok::<_, tonic::Status>(Stream::of(requests, opened.into_inner()))
    };
    let mut needs = open().await.unwrap();
    needs.create(watch("w", "", 0)).await;
    assert!(needs.next().await.unwrap().created);
    let mut lives = Stream::open(through.clone()).await.unwrap();
    lives.create(watch("w", "", 0)).await;
    assert!(lives.next().await.unwrap().created);
    put_through(&through, "w", "1").await;
    assert_eq!(needs.next().await.unwrap().events.len(), 1);
    assert_eq!(lives.next().await.unwrap().events.len(), 1);

    for node in [leader, (leader + 2) % 3] {
        cluster.kill(node);
    }
    let ended = needs.next().await.unwrap_err();
    assert_eq!(
        (ended.code(), ended.message()),
        (Code::Unavailable, "etcdserver: no leader")
    );
    let refused = open().await.map(|_| ()).unwrap_err();
    assert_eq!(refused.message(), "etcdserver: no leader");
    for node in [leader, (leader + 2) % 3] {
        cluster.start_node(node);
    }
    put_through(&through, "w", "2").await;
    assert_eq!(lives.next().await.unwrap().events.len(), 1);
    let mut again = until("a stream that needs a leader is opened", &open).await;
    again.create(watch("w", "", 2)).await;
    assert!(again.next().await.unwrap().created);
    until("both puts are told", async || {
        let answer = again.next().await.map_err(|status| status.to_string())?;
        let last = answer.events.last().map(|it| it.kv.clone().unwrap().value);
        holds(last.as_deref() == Some(b"2"), format!("{answer:?}"))
    })
    .await;
}
