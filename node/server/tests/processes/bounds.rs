//! Tests of limits: each one has a typed error, and reaching it harms no other client.

use std::time::Duration;

use api::v1::error_detail::Kind;
use api::v1::kv_client::KvClient;
use api::v1::{
    AppendRequest, BatchItem, BatchRequest, BatchResult, GetRequest, OpenSessionRequest,
    PutRequest, Session, batch_item, batch_result,
};
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::bad_input::http_get;
use crate::cluster::{Cluster, Setup};
use crate::wait::{holds, until};

/// Returns a bare gRPC client of the leader, without the library's checks and retries.
async fn bare(cluster: &Cluster) -> KvClient<Channel> {
    let leader = cluster.leader().await;
    let channel = Endpoint::from_shared(format!("http://{}", cluster.listen(leader)))
        .unwrap()
        .connect()
        .await
        .unwrap();
    KvClient::new(channel)
}

fn kind(status: &Status) -> Kind {
    api::error_detail(status)
        .and_then(|detail| detail.kind)
        .unwrap_or_else(|| panic!("no typed detail: {status:?}"))
}

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> PutRequest {
    PutRequest {
        key: key.into(),
        value: value.into(),
        session: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversize_keys_values_and_requests_are_too_large() {
    let setup = Setup::of(1)
        .with("max-value-bytes", "1000")
        .with("max-request-bytes", "100000")
        .with("max-entry-bytes", "50000");
    let cluster = Cluster::start(setup).await;
    let mut kv = bare(&cluster).await;

    kv.put(put("k", vec![1; 1_000])).await.unwrap();
    let status = kv.put(put("k", vec![1; 1_001])).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    match kind(&status) {
        Kind::TooLarge(detail) => assert_eq!((detail.size, detail.limit), (1_001, 1_000)),
        other => panic!("{other:?}"),
    }
    let append = AppendRequest {
        key: "k".into(),
        suffix: "x".into(),
        session: None,
    };
    let status = kv.append(append).await.unwrap_err();
    match kind(&status) {
        Kind::TooLarge(detail) => assert_eq!((detail.size, detail.limit), (1_001, 1_000)),
        other => panic!("an append counts the whole value: {other:?}"),
    }

    kv.put(put(vec![b'k'; 4_096], "v")).await.unwrap();
    let status = kv.put(put(vec![b'k'; 4_097], "v")).await.unwrap_err();
    assert!(matches!(kind(&status), Kind::TooLarge(_)), "{status:?}");
    let key = Bytes::from(vec![b'k'; 4_097]);
    let status = kv.get(GetRequest { key }).await.unwrap_err();
    assert!(matches!(kind(&status), Kind::TooLarge(_)), "{status:?}");
    let status = kv.put(put("", "v")).await.unwrap_err();
    assert!(matches!(kind(&status), Kind::BadRequest(_)), "{status:?}");

    // A message beyond the limit isn't even read.
    let status = kv.put(put("k", vec![1; 200_000])).await.unwrap_err();
    assert!(
        matches!(
            status.code(),
            Code::OutOfRange | Code::ResourceExhausted | Code::InvalidArgument
        ),
        "{status:?}"
    );
    let response = kv.get(GetRequest { key: "k".into() }).await.unwrap();
    assert_eq!(response.into_inner().value, vec![1; 1_000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_is_refused_at_once_and_passes() {
    // The election timeout is long, so that the leader keeps its lead while its followers are frozen.
    let setup = Setup::of(3)
        .with("max-pending-requests", "32")
        .with("election-timeout-ms", "5000")
        .with("heartbeat-interval-ms", "100");
    let mut cluster = Cluster::start(setup).await;
    let kv = bare(&cluster).await;
    let leader = cluster.leader().await;
    let followers: Vec<u16> = (0..3).filter(|&node| node != leader).collect();
    for &node in &followers {
        cluster.node(node).freeze();
    }
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..200 {
        let mut kv = kv.clone();
        calls.spawn(async move { kv.put(put(format!("k{n}"), "v")).await });
    }
    // Nothing can commit, so all calls beyond the 32 that are held are refused at once.
    let mut overloaded = 0;
    while overloaded < 200 - 32 {
        let result = tokio::time::timeout(Duration::from_secs(30), calls.join_next())
            .await
            .expect("a refusal doesn't wait")
            .unwrap()
            .unwrap();
        let status = result.expect_err("nothing can commit");
        match kind(&status) {
            Kind::Overloaded(detail) => {
                assert_eq!(detail.limit, 32);
                assert!(detail.retry_after_ms > 0, "{detail:?}");
            }
            other => panic!("{other:?}"),
        }
        overloaded += 1;
    }
    for &node in &followers {
        cluster.node(node).thaw();
    }
    // The held calls end too, and new calls are served.
    while let Some(result) = calls.join_next().await {
        if let Err(status) = result.unwrap() {
            assert!(!matches!(kind(&status), Kind::BadRequest(_)), "{status:?}");
        }
    }
    let client = cluster.client().await;
    client.put("k", "after").await.unwrap();
    assert_eq!(
        client.get("k").await.unwrap().as_deref(),
        Some(&b"after"[..])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_in_a_hurry_does_not_fill_the_node_s_memory() {
    let setup = Setup::of(1)
        .with("max-request-bytes", "4194304")
        .with("max-entry-bytes", "4194304")
        .with("max-inflight-bytes", "4194304");
    let mut cluster = Cluster::start(setup).await;
    let kv = bare(&cluster).await;
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..600 {
        let mut kv = kv.clone();
        calls.spawn(async move {
            kv.put(put(format!("k{}", n % 20), vec![0; 512 << 10]))
                .await
        });
    }
    let mut served = 0;
    while let Some(result) = calls.join_next().await {
        match result.unwrap() {
            Ok(_) => served += 1,
            Err(status) => {
                assert!(matches!(kind(&status), Kind::Overloaded(_)), "{status:?}");
            }
        }
    }
    assert!(served > 0, "some are served");
    let resident = cluster.node(0).resident_bytes();
    // 300 MB were sent. This limit includes the buffers of the state and of its compaction.
    assert!(resident < 400 << 20, "{} MB", resident >> 20);
}

/// Sends `items` as one message and collects as many results.
async fn batch(kv: &mut KvClient<Channel>, items: Vec<BatchItem>) -> Vec<BatchResult> {
    let count = items.len();
    let (requests, stream) = mpsc::channel(1);
    requests.send(BatchRequest { items }).await.unwrap();
    let mut responses = kv
        .batch(ReceiverStream::new(stream))
        .await
        .unwrap()
        .into_inner();
    let mut results = Vec::new();
    while results.len() < count {
        let next = tokio::time::timeout(Duration::from_secs(30), responses.next()).await;
        results.extend(next.expect("an answer").unwrap().unwrap().results);
    }
    drop(requests);
    results.sort_by_key(|result| result.id);
    results
}

fn append(id: u64, client_id: &Bytes, sequence: u64) -> BatchItem {
    BatchItem {
        id,
        request: Some(batch_item::Request::Append(AppendRequest {
            key: "k".into(),
            suffix: "x".into(),
            session: Some(Session {
                client_id: client_id.clone(),
                sequence,
                acked_below: 1,
            }),
        })),
    }
}

fn length(result: &BatchResult) -> u64 {
    match &result.response {
        Some(batch_result::Response::Append(response)) => response.length,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duplicates_on_a_batch_stream_apply_once() {
    let cluster = Cluster::start(Setup::of(3)).await;
    let mut kv = bare(&cluster).await;
    let session = until("a session opens", async || {
        bare(&cluster)
            .await
            .open_session(OpenSessionRequest::default())
            .await
    })
    .await
    .into_inner();
    let id = &session.client_id;
    // The same write three times in one message, then again on another stream, beside a new one.
    let results = batch(
        &mut kv,
        vec![append(1, id, 1), append(2, id, 1), append(3, id, 1)],
    )
    .await;
    assert_eq!(results.iter().map(length).collect::<Vec<_>>(), [1, 1, 1]);
    let results = batch(&mut kv, vec![append(7, id, 2), append(8, id, 1)]).await;
    assert_eq!(results.iter().map(length).collect::<Vec<_>>(), [2, 1]);
    // The same after a change of the leader.
    let leader = cluster.leader().await;
    cluster
        .admin(leader)
        .transfer_leadership(None)
        .await
        .unwrap();
    // For a moment nodes may still name the old leader.
    let (mut kv, results) = until("the new leader answers", async || {
        let mut kv = bare(&cluster).await;
        let results = batch(&mut kv, vec![append(9, id, 1), append(10, id, 2)]).await;
        let refused = results
            .iter()
            .any(|result| matches!(result.response, Some(batch_result::Response::Error(_))));
        holds(!refused, format!("{results:?}"))?;
        Ok::<_, String>((kv, results))
    })
    .await;
    assert_eq!(results.iter().map(length).collect::<Vec<_>>(), [1, 2]);
    let response = kv.get(GetRequest { key: "k".into() }).await.unwrap();
    assert_eq!(&response.into_inner().value[..], b"xx");
}

async fn open_session(kv: &mut KvClient<Channel>) -> Bytes {
    let session = kv
        .open_session(OpenSessionRequest::default())
        .await
        .unwrap();
    session.into_inner().client_id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_or_forgotten_session_is_refused_and_never_applied() {
    let cluster = Cluster::start(Setup::of(1).with("session-ttl-ms", "1000")).await;
    let mut kv = bare(&cluster).await;
    let with = |client_id: Bytes, sequence, acked_below| PutRequest {
        session: Some(Session {
            client_id,
            sequence,
            acked_below,
        }),
        ..put("k", "v")
    };
    let first = |client_id: &Bytes| PutRequest {
        value: "first".into(),
        ..with(client_id.clone(), 1, 1)
    };
    let silent = open_session(&mut kv).await;
    let present = open_session(&mut kv).await;
    let counts = async |count| {
        let metrics = http_get(cluster.metrics(0), "/metrics").await;
        let sessions = metrics
            .lines()
            .find_map(|line| line.strip_prefix("shardkv_sessions "));
        holds(sessions == Some(count), format!("{sessions:?} sessions"))
    };
    // A node counts its sessions at each tick, so a count may be that of a moment before.
    until("both sessions are counted", async || {
        for session in [&silent, &present] {
            kv.clone().put(first(session)).await.unwrap();
        }
        counts("2").await
    })
    .await;
    until("the silent session is forgotten", async || {
        // A repetition counts as use, and with each write silent sessions are forgotten.
        kv.clone().put(first(&present)).await.unwrap();
        counts("1").await
    })
    .await;
    // A later write of the forgotten session, and one of a session from the beginning of time.
    for (session, sequence) in [(silent, 2), (vec![0; 16].into(), 1)] {
        let old = kv.put(with(session, sequence, 1)).await.unwrap_err();
        let Kind::SessionExpired(expired) = kind(&old) else {
            panic!("{old:?}");
        };
        assert!(expired.min_birth > 0, "the refusal names the least birth");
    }
    // A session is born as late as its client asks.
    let min_birth = u64::MAX / 2;
    let late = OpenSessionRequest { min_birth };
    let late = kv.open_session(late).await.unwrap().into_inner().client_id;
    let birth = u64::from_be_bytes(late[..8].try_into().unwrap());
    assert!(
        birth > 0 && birth < min_birth,
        "within what tables admit: {birth}"
    );
    let later = OpenSessionRequest {
        min_birth: birth - 1,
    };
    let later = kv.open_session(later).await.unwrap().into_inner().client_id;
    assert!(later[..8] >= (birth - 1).to_be_bytes()[..], "{later:?}");
    // A session born in the far future.
    let future = kv.put(with(vec![0x7f; 16].into(), 1, 1)).await.unwrap_err();
    assert!(
        matches!(kind(&future), Kind::SessionFromFuture(_)),
        "{future:?}"
    );
    // A text that is not an id, and invalid sequences.
    let short = kv.put(with(vec![0; 3].into(), 1, 1)).await.unwrap_err();
    assert!(matches!(kind(&short), Kind::BadRequest(_)), "{short:?}");
    let session = open_session(&mut kv).await;
    for (sequence, acked_below) in [(0, 0), (1, 2), (u64::MAX - 1, u64::MAX)] {
        let request = with(session.clone(), sequence, acked_below);
        let status = kv.put(request).await.unwrap_err();
        assert!(matches!(kind(&status), Kind::BadRequest(_)), "{status:?}");
    }
    let response = kv.get(GetRequest { key: "k".into() }).await.unwrap();
    let value = response.into_inner().value;
    assert_eq!(&value[..], b"first", "none of the others was applied");
}

/// Builds an HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Returns the headers of a call, without compression: `:method POST`, `:scheme http`, `:path`, `content-type`, `te`.
fn call_headers(path: &str) -> Vec<u8> {
    let text = |text: &str| {
        let mut bytes = vec![u8::try_from(text.len()).unwrap()];
        bytes.extend(text.as_bytes());
        bytes
    };
    let mut block = vec![0x83, 0x86, 0x04];
    block.extend(text(path));
    block.extend([0x0f, 0x10]);
    block.extend(text("application/grpc"));
    block.push(0x00);
    block.extend(text("te"));
    block.extend(text("trailers"));
    block
}

/// A client cancels hundreds of calls before the node has looked at them. Its connection, and so another call on it, goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_calls_do_not_end_the_connection_of_others() {
    let cluster = Cluster::start(Setup::of(1)).await;
    let leader = cluster.leader().await;
    let mut stream = tokio::net::TcpStream::connect(cluster.listen(leader).to_string())
        .await
        .unwrap();
    let headers = call_headers("/shardkv.v1.Kv/Get");
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    for call in 0..500 {
        let id = 2 * call + 1;
        bytes.extend(frame(1, 4, id, &headers));
        // The reason CANCEL.
        bytes.extend(frame(3, 0, id, &8_u32.to_be_bytes()));
    }
    bytes.extend(frame(6, 0, 0, b"are you?"));
    stream.write_all(&bytes).await.unwrap();
    let answered = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            stream.read_exact(&mut payload).await.unwrap();
            let (kind, flags) = (head[3], head[4]);
            assert_ne!(kind, 7, "GOAWAY: {}", String::from_utf8_lossy(&payload));
            if (kind, flags) == (6, 1) {
                return payload;
            }
        }
    });
    assert_eq!(answered.await.unwrap(), b"are you?");
}
