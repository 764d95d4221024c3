//! Tests of scans over large values: they cost the leader nothing that it needs for other requests.

use api::v1::ScanRequest;
use api::v1::error_detail::Kind;
use api::v1::kv_client::KvClient;
use bytes::Bytes;
use futures::TryStreamExt as _;
use shardkv_client::{Pair, ScanOptions};
use tonic::transport::{Channel, Endpoint};

use crate::bad_input::http_get;
use crate::cluster::{Cluster, Setup};
use crate::wait::{holds, until};

/// Returns a figure of a node's metrics.
async fn figure(cluster: &Cluster, node: u16, name: &str) -> u64 {
    let text = http_get(cluster.metrics(node), "/metrics").await;
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.unwrap_or_else(|| panic!("no {name} in:\n{text}"));
    value.trim().parse().unwrap()
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
    let setup = Setup::of(1)
        .with("max-scans", &SCANS.to_string())
        .with("max-scan-bytes", &BUDGET.to_string());
    let mut cluster = Cluster::start(setup).await;
    let client = cluster.client().await;
    for n in 0..4 {
        let value = Bytes::from(vec![7; 1 << 20]);
        client.put(format!("large{n}"), value).await.unwrap();
    }
    let before = cluster.node(0).resident_bytes();

    // Small windows, so that the pages stay at the node.
    let channel = Endpoint::from_shared(format!("http://{}", cluster.listen(0)))
        .unwrap()
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(65_535)
        .connect()
        .await
        .unwrap();
    let kv = KvClient::<Channel>::new(channel);
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
    // Without the budget, each stream would hold one page of a megabyte, or two.
    let held = cluster.node(0).resident_bytes().saturating_sub(before);
    assert!(held < 200 << 20, "{} MB", held >> 20);
    client.put("small", "value").await.unwrap();

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
    assert_eq!(pairs.len(), 4);
}
