//! Tests of scans over large values: they cost the leader nothing that it needs for other requests.

use std::time::Duration;

use api::v1::error_detail::Kind;
use api::v1::kv_client::KvClient;
use api::v1::{ScanRequest, ScanResponse};
use bytes::Bytes;
use futures::TryStreamExt as _;
use shardkv_client::{Pair, ScanOptions};
use tonic::transport::{Channel, Endpoint};

use crate::bad_input::http_get;
use crate::cluster::{Cluster, Setup};
use crate::wait::{holds, until};
use crate::world::{Plain, SHARDS, World, channel};

/// Returns a figure of a node's metrics.
async fn figure(cluster: &Cluster, node: u16, name: &str) -> u64 {
    let text = http_get(cluster.metrics(node), "/metrics").await;
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.unwrap_or_else(|| panic!("no {name} in:\n{text}"));
    value.trim().parse().unwrap()
}

/// Returns a stub of node 0 with small windows of streams, so that pages stay at the node.
async fn narrow(cluster: &Cluster) -> KvClient<Channel> {
    narrow_at(cluster, 0).await
}

async fn narrow_at(cluster: &Cluster, node: u16) -> KvClient<Channel> {
    let channel = Endpoint::from_shared(format!("http://{}", cluster.listen(node)))
        .unwrap()
        .initial_stream_window_size(65_535)
        // Streams must not wait for each other.
        .initial_connection_window_size(64 << 20)
        .connect()
        .await
        .unwrap();
    KvClient::new(channel)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scans_of_keys_read_no_large_values_and_stop_no_puts() {
    const KEYS: usize = 400;
    const SCANS: usize = 16;
    const VALUE_BYTES: usize = 128 << 10;
    let mut cluster = Cluster::start(Setup::of(3)).await;
    let client = cluster.client().await;
    for n in 0..KEYS {
        let value = Bytes::from(vec![7; VALUE_BYTES]);
        client.put(format!("large{n:03}"), value).await.unwrap();
    }
    let leader = cluster.leader().await;
    let before = cluster.status(leader).await;
    let read_before = cluster.node(leader).read_bytes();

    let mut scans = tokio::task::JoinSet::new();
    for _ in 0..SCANS {
        let client = cluster.client().await;
        scans.spawn(async move {
            let options = ScanOptions::prefix("large").keys_only();
            client.scan(options).try_collect::<Vec<Pair>>().await
        });
    }
    let mut puts: u32 = 0;
    while !scans.is_empty() {
        client.put("small", "value").await.unwrap();
        puts += 1;
        while let Some(pairs) = scans.try_join_next() {
            let pairs = pairs.unwrap().unwrap();
            assert_eq!(pairs.len(), KEYS);
            assert!(pairs.iter().all(|pair| pair.value.is_empty()));
        }
    }
    let after = cluster.status(leader).await;
    assert_eq!(
        (after.term, after.leader_id),
        (before.term, before.leader_id),
        "the leader stays, after {puts} puts"
    );
    // Reading the values once for each scan would be 800 MB. Compactions read some.
    let read = cluster.node(leader).read_bytes() - read_before;
    assert!(read < 400 << 20, "{} MB were read", read >> 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scans_that_nobody_fetches_hold_little_and_leave_nothing() {
    const SCANS: usize = 500;
    const BUDGET: u64 = 16 << 20;
    const VALUES: usize = 8;
    let setup = Setup::of(1)
        .with("scan-page-bytes", "524288")
        .with("max-scans", &SCANS.to_string())
        .with("max-scan-bytes", &BUDGET.to_string());
    let mut cluster = Cluster::start(setup).await;
    let client = cluster.client().await;
    for n in 0..VALUES {
        let value = Bytes::from(vec![7; 512 << 10]);
        client.put(format!("large{n}"), value).await.unwrap();
    }
    let before = cluster.node(0).resident_bytes();

    // Small windows, so that the pages stay at the node.
    let kv = narrow(&cluster).await;
    let request = || ScanRequest {
        start: "large".into(),
        end: "largf".into(),
        ..ScanRequest::default()
    };
    let mut open = Vec::new();
    for _ in 0..SCANS {
        open.push(kv.clone().scan(request()).await.unwrap());
    }
    let refused = kv.clone().scan(request()).await.unwrap_err();
    match api::error_detail(&refused).and_then(|detail| detail.kind) {
        Some(Kind::Overloaded(detail)) => assert_eq!(detail.limit, SCANS as u64),
        other => panic!("{other:?}"),
    }
    until("pages wait to be fetched", async || {
        let bytes = figure(&cluster, 0, "shardkv_scan_pages_bytes").await;
        holds(bytes > BUDGET / 2, format!("{bytes} bytes"))
    })
    .await;
    // Without the budget, each stream would hold a page of half a megabyte.
    let held = cluster.node(0).resident_bytes().saturating_sub(before);
    assert!(held < 200 << 20, "{} MB", held >> 20);
    client.put("small", "value").await.unwrap();

    // Pages that aren't fetched are dropped in the end, so that others have room, and their callers are told.
    until("pages are dropped", async || {
        let bytes = figure(&cluster, 0, "shardkv_scan_pages_bytes").await;
        holds(bytes == 0, format!("{bytes} bytes"))
    })
    .await;
    let pairs: Vec<Pair> = client
        .scan(ScanOptions::prefix("large"))
        .try_collect()
        .await
        .unwrap();
    assert_eq!(pairs.len(), VALUES);
    let mut stream = open.swap_remove(0).into_inner();
    let ended = loop {
        match stream.message().await {
            Ok(page) => assert!(page.is_some(), "the end must not look complete"),
            Err(status) => break status,
        }
    };
    let detail = api::error_detail(&ended).unwrap();
    assert!(
        matches!(detail.kind, Some(Kind::Unavailable(_))),
        "{ended:?}"
    );
    assert!(detail.message.contains("begin again"), "{ended:?}");

    drop(open);
    until("nothing is held for callers that are gone", async || {
        let scans = figure(&cluster, 0, "shardkv_open_scans").await;
        let bytes = figure(&cluster, 0, "shardkv_scan_pages_bytes").await;
        holds(scans + bytes == 0, format!("{scans} scans, {bytes} bytes"))
    })
    .await;
    let pairs: Vec<Pair> = client
        .scan(ScanOptions::prefix("large"))
        .try_collect()
        .await
        .unwrap();
    assert_eq!(pairs.len(), VALUES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_serves_a_scan() {
    let cluster = Cluster::start(Setup::of(3)).await;
    let client = cluster.client().await;
    for n in 0..10 {
        client.put(format!("k{n}"), "value").await.unwrap();
    }
    let follower = cluster.follower().await;
    let mut kv = KvClient::new(channel(&cluster, follower).await);
    let pages = kv.scan(ScanRequest::default()).await.unwrap().into_inner();
    // A page that is lost between the node and the leader would be waited for as long as pages are kept.
    let pages: Vec<ScanResponse> =
        tokio::time::timeout(Duration::from_secs(20), pages.try_collect())
            .await
            .expect("the follower passes the leader's pages on")
            .unwrap();
    let pairs: usize = pages.iter().map(|page| page.pairs.len()).sum();
    assert_eq!(pairs, 10);
}

/// A scan over all groups holds a page of each group until they are merged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_are_merged_are_in_the_budget() {
    const VALUE_BYTES: usize = 256 << 10;
    let world = World::start(2, 1).await;
    let through = channel(&world.controllers, 0).await;
    for gid in [1, 2] {
        world.join(gid, through.clone()).await;
    }
    world.settled().await;
    let mut plain = Plain::new(through).await;
    let value = "v".repeat(VALUE_BYTES);
    for n in 0..48 {
        plain.put(&format!("large{n}"), &value).await;
    }
    let mut kv = narrow(world.group(1)).await;
    // The first pages stay at the node, because no window has room for one.
    let open = kv.scan(ScanRequest::default()).await.unwrap();
    // A page has one value. One page waits for the caller, the scan holds one of each group and the windows of two streams, and the
    // next page of this node's group waits for the scan.
    let values = |count| u64::try_from(count * VALUE_BYTES).unwrap();
    until("the pages of both groups are counted", async || {
        let bytes = figure(world.group(1), 0, "shardkv_scan_pages_bytes").await;
        let bounds = values(4)..values(5);
        holds(bounds.contains(&bytes), format!("{bytes} bytes"))
    })
    .await;
    drop(open);
    until("nothing is held", async || {
        let bytes = figure(world.group(1), 0, "shardkv_scan_pages_bytes").await;
        holds(bytes == 0, format!("{bytes} bytes"))
    })
    .await;
}

/// Pages that nobody fetches fill the windows of HTTP/2 between a follower and its leader. Other requests that the follower
/// forwards have connections of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relayed_scans_that_nobody_fetches_hold_up_no_forwarded_calls() {
    const SCANS: u64 = 64;
    const VALUES: usize = 12;
    const BOUND: Duration = Duration::from_secs(10);
    let cluster = Cluster::start(Setup::of(3)).await;
    let client = cluster.client().await;
    for n in 0..VALUES {
        let value = Bytes::from(vec![7; 512 << 10]);
        client.put(format!("large{n}"), value).await.unwrap();
    }
    let follower = cluster.follower().await;
    let kv = narrow_at(&cluster, follower).await;
    let mut open = Vec::new();
    for _ in 0..SCANS {
        let request = ScanRequest::default();
        open.push(kv.clone().scan(request).await.unwrap());
    }
    until("each scan holds a page", async || {
        let bytes = figure(&cluster, follower, "shardkv_scan_pages_bytes").await;
        holds(bytes >= SCANS * (512 << 10), format!("{bytes} bytes"))
    })
    .await;
    let mut plain = Plain::new(channel(&cluster, follower).await).await;
    for n in 0..50 {
        let key = format!("small{n}");
        let put = tokio::time::timeout(BOUND, plain.put(&key, "value"));
        put.await
            .expect("no put waits for pages that nobody fetches");
    }
    let scans = figure(&cluster, follower, "shardkv_open_scans").await;
    assert_eq!(scans, SCANS, "they were open all the time");
    drop(open);
}

/// Scans over all groups take what they need at once. If each held a part and waited for the rest, these would all wait for the
/// others until they were refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scans_over_all_groups_do_not_wait_for_each_other() {
    const SCANS: usize = 30;
    const KEYS: usize = 120;
    let setup = Setup::of(1)
        .with("role", "controller")
        .with("shards", SHARDS)
        .with("max-scans", "32")
        .with("max-scan-bytes", "1048576")
        .with("request-timeout-ms", "30000");
    let mut world = World {
        controllers: Cluster::start(setup).await,
        groups: Vec::new(),
    };
    let through = channel(&world.controllers, 0).await;
    for gid in 1..=3 {
        let setup = world.group_setup(gid, 1);
        world.groups.push(Cluster::start(setup).await);
        world.join(gid, through.clone()).await;
    }
    world.settled().await;
    let mut plain = Plain::new(through.clone()).await;
    let value = "v".repeat(16 << 10);
    for n in 0..KEYS {
        plain.put(&format!("k{n}"), &value).await;
    }
    let kv = KvClient::new(through).max_decoding_message_size(usize::MAX);
    let scan = async |mut kv: KvClient<Channel>| {
        let pages = kv.scan(ScanRequest::default()).await?.into_inner();
        let count = async |n, page: ScanResponse| Ok(n + page.pairs.len());
        pages.try_fold(0, count).await
    };
    let scans = (0..SCANS).map(|_| scan(kv.clone()));
    let counts: Result<Vec<usize>, tonic::Status> = futures::future::try_join_all(scans).await;
    assert_eq!(counts.unwrap(), [KEYS; SCANS]);
}
