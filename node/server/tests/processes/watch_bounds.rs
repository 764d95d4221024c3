//! Watch clients that don't fetch: what they cost is bounded, and others get their events.

use std::time::Instant;

use api::etcd::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::watch_client::WatchClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::bad_input::http_get;
use crate::cluster::{Cluster, Setup};
use crate::keyspaces::{create, named};
use crate::wait::{PATIENCE, until};
use crate::watches::{Stream, create_keyspace, put, revision, to, watch};
use crate::world::{SHARDS, channel};

/// The keyspace whose clients fetch.
const NEIGHBOUR: &str = "neighbour";
/// The watch clients that stop to fetch.
const SLOW: usize = 100;
/// The bytes of the value that they don't fetch. Each of them also asks for the value before.
const BIG: usize = 1 << 20;
/// The budget of pages, and that of large answers.
const BUDGET: u64 = 8 << 20;
/// The most that one keyspace may hold of large answers. Nobody here needs pages.
const PART: u64 = BUDGET / 100 * 66;
/// The bytes that a slow client doesn't fetch: the value, and the one before.
const ANSWER: u64 = 2 << 20;
/// The growth of the node's memory that is fine: twice the budget, buffers of connections, and the state's own caches. The answers
/// that the slow clients don't fetch have 200 MiB.
const GROWTH: u64 = 100 << 20;

/// Opens a connection with small windows, so that the network takes little that isn't fetched.
async fn narrow(cluster: &Cluster) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", cluster.listen(0))).unwrap();
    let endpoint = endpoint.initial_stream_window_size(65_535);
    let endpoint = endpoint.initial_connection_window_size(65_535);
    until("a node takes a connection", async || {
        endpoint.connect().await
    })
    .await
}

fn with_previous(key: &str, start: i64) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        prev_kv: true,
        ..watch(key, "", start)
    }
}

/// Returns the bytes that the node holds for watch clients.
async fn unfetched(cluster: &Cluster) -> u64 {
    let text = http_get(cluster.metrics(0), "/metrics").await;
    let mut lines = text.lines();
    let figure =
        lines.find_map(|line| line.strip_prefix("shardkv_keyspace_watch_unfetched_bytes "));
    figure.unwrap().parse().unwrap()
}

/// Puts in the other keyspace.
async fn put_in(kv: &mut KvClient<Channel>, value: &str) {
    let put = named(NEIGHBOUR, put("big", value, 0));
    kv.put(put).await.unwrap();
}

/// Opens a stream with a watch of the other keyspace.
async fn neighbours_stream(node: Channel) -> Stream {
    let (requests, receiver) = mpsc::channel(8);
    let mut client = WatchClient::new(node).max_decoding_message_size(usize::MAX);
    let opened = client.watch(named(NEIGHBOUR, ReceiverStream::new(receiver)));
    let mut stream = Stream::of(requests, opened.await.unwrap().into_inner());
    stream.create(with_previous("big", 0)).await;
    assert!(stream.next().await.unwrap().created);
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_fetch_hold_little_memory_and_nobody_else_up() {
    let setup = Setup::of(1)
        .with("shards", SHARDS)
        .with("max-keyspace-read-bytes", &BUDGET.to_string());
    let mut cluster = Cluster::start(setup).await;
    let node = channel(&cluster, 0).await;
    create_keyspace(node.clone()).await;
    let mut kv = KvClient::new(node.clone());
    let big = "x".repeat(BIG);
    kv.put(to(put("big", &big, 0))).await.unwrap();

    let mut slow = Vec::new();
    for _ in 0..SLOW {
        let mut stream = Stream::open(narrow(&cluster).await).await.unwrap();
        stream.create(with_previous("big", 0)).await;
        assert!(stream.next().await.unwrap().created);
        slow.push(stream);
    }
    let mut healthy = Stream::open(node.clone()).await.unwrap();
    healthy.create(with_previous("small", 0)).await;
    assert!(healthy.next().await.unwrap().created);
    create(&node, NEIGHBOUR).await;
    put_in(&mut kv, &big[..BIG / 2]).await;
    let mut neighbour = neighbours_stream(node.clone()).await;
    let before = cluster.node(0).resident_bytes();

    let answer = kv.put(to(put("big", &big, 0))).await.unwrap();
    let changed = answer.into_inner().header.unwrap().revision;
    let (mut turn, mut most) = (0, 0);
    let started = Instant::now();
    // By then, the slow clients have used the budget up, and each has asked for its share of it.
    while turn < 300 || most < ANSWER {
        assert!(started.elapsed() < PATIENCE, "{turn} puts, {most} bytes");
        turn += 1;
        kv.put(to(put("small", &turn.to_string(), 0)))
            .await
            .unwrap();
        let answer = healthy.next().await.unwrap();
        let event = &answer.events[0];
        assert_eq!(event.kv.as_ref().unwrap().value, turn.to_string());
        assert_eq!(event.prev_kv.is_some(), turn > 1);
        let held = unfetched(&cluster).await;
        assert!(held <= PART, "{held} bytes are held for one keyspace");
        most = most.max(held);
        let grown = cluster.node(0).resident_bytes().saturating_sub(before);
        assert!(grown < GROWTH, "memory has grown by {} MiB", grown >> 20);
    }

    // The other keyspace has its share, too.
    put_in(&mut kv, &big[..BIG / 2]).await;
    let answer = neighbour.next().await.unwrap();
    let previous = answer.events[0].prev_kv.as_ref();
    assert_eq!(previous.unwrap().value.len(), BIG / 2);

    // A client that fetches again gets the event, or begins anew and gets it then.
    let mut late = slow.remove(0);
    let mut answer = late.next().await;
    while answer.is_err() {
        late = Stream::open(node.clone()).await.unwrap();
        late.create(with_previous("big", changed)).await;
        assert!(late.next().await.unwrap().created);
        answer = late.next().await;
    }
    let answer = answer.unwrap();
    let event = &answer.events[0];
    assert!(revision(&answer) >= changed);
    assert_eq!(event.kv.as_ref().unwrap().mod_revision, changed);
    assert_eq!(event.prev_kv.as_ref().unwrap().value.len(), BIG);
    drop(slow);
    until("nothing is held once the clients are gone", async || {
        let held = unfetched(&cluster).await;
        crate::wait::holds(held == 0, format!("{held} bytes"))
    })
    .await;
}
