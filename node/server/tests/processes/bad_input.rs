//! Invalid bytes on every port. The node answers what it can, and keeps running.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use api::v1::{GetResponse, PutResponse, TransferLeadershipRequest};
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use crate::cluster::{Cluster, Setup};
use crate::wait::{holds, until};

/// Returns greetings of other protocols, and broken frames.
fn garbage() -> Vec<Vec<u8>> {
    let mut noise = vec![0u8; 100_000];
    let mut dice = 88_172_645_463_325_252_u64;
    for byte in &mut noise {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        *byte = dice.to_le_bytes()[0];
    }
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut frames = preface.to_vec();
    frames.extend_from_slice(&noise);
    // A SETTINGS frame that claims 16 MB.
    let mut long_frame = preface.to_vec();
    long_frame.extend_from_slice(&[0xff, 0xff, 0xff, 4, 0, 0, 0, 0, 0]);
    // HEADERS on stream 1 whose header block is noise.
    let mut headers = preface.to_vec();
    headers.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    headers.extend_from_slice(&[0, 0, 64, 1, 5, 0, 0, 0, 1]);
    headers.extend_from_slice(&noise[..64]);
    let mut endless_line = b"GET /".to_vec();
    endless_line.resize(1 << 20, b'a');
    vec![
        Vec::new(),
        vec![0],
        b"\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        noise,
        frames,
        long_frame,
        headers,
        endless_line,
    ]
}

/// Sends `bytes` and nothing more, and reads until the node closes the connection or a second has passed.
async fn say(to: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    // The node may close the connection meanwhile.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(1), stream.read_to_end(&mut answer)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_every_port_harms_nobody() {
    let mut cluster = Cluster::start(Setup::of(3)).await;
    let client = cluster.client().await;
    let leader = cluster.leader().await;
    let term = cluster.status(leader).await.term;
    for to in [cluster.listen(leader), cluster.metrics(leader)] {
        for bytes in garbage() {
            say(to, &bytes).await;
        }
    }
    client.put("k", "v").await.unwrap();
    assert_eq!(client.get("k").await.unwrap().as_deref(), Some(&b"v"[..]));
    assert!(cluster.node(leader).is_running());
    let printed = cluster.node(leader).printed();
    assert!(!printed.contains("panicked"), "{printed}");
    assert_eq!(cluster.status(leader).await.term, term, "the leader stays");
    let metrics = http_get(cluster.metrics(leader), "/metrics").await;
    assert!(metrics.contains("shardkv_"), "{metrics}");
}

pub(crate) async fn http_get(from: SocketAddr, path: &str) -> String {
    try_http_get(from, path).await.unwrap()
}

/// [`http_get`] of a server that may end meanwhile.
pub(crate) async fn try_http_get(from: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(from).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {from}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(30), stream.read_to_string(&mut answer))
        .await
        .expect("an answer ends")?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_port_serves_its_pages_and_nothing_else() {
    let cluster = Cluster::start(Setup::of(1)).await;
    let at = cluster.metrics(0);
    let client = cluster.client().await;
    client.put("a-secret-key", "a-secret-value").await.unwrap();
    client.get("a-secret-key").await.unwrap();
    // A node publishes its progress at each tick, not with each entry.
    until("it says that it is ready", async || {
        let said = cluster.readyz(0).await;
        holds(said.contains("200 OK"), said)
    })
    .await;
    for (path, line) in [
        ("/livez", "200"),
        ("/readyz", "200"),
        ("/metrics", "200"),
        ("/", "404"),
        ("/../etc/passwd", "404"),
    ] {
        let answer = http_get(at, path).await;
        let first = answer.lines().next().unwrap_or_default();
        assert!(first.contains(line), "{path}: {first}");
        assert!(!answer.contains("secret"), "{path} tells a key or a value");
    }
}

/// Calls a method with a message of another type.
async fn call_with<M: prost::Message + Default + 'static, R: prost::Message + Default + 'static>(
    to: SocketAddr,
    path: &'static str,
    message: M,
) -> Result<R, tonic::Status> {
    let channel = Endpoint::from_shared(format!("http://{to}"))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
    let codec: ProstCodec<M, R> = ProstCodec::default();
    grpc.unary(Request::new(message), path, codec)
        .await
        .map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_another_type_are_refused() {
    let mut cluster = Cluster::start(Setup::of(1)).await;
    let leader = cluster.leader().await;
    let to = cluster.listen(leader);
    // Its first field is a number, where a key should be.
    let foreign = TransferLeadershipRequest { node_id: 7 };
    let put: Result<PutResponse, _> = call_with(to, "/shardkv.v1.Kv/Put", foreign).await;
    let status = put.unwrap_err();
    assert!(
        matches!(status.code(), Code::Internal | Code::InvalidArgument),
        "{status:?}"
    );
    let get: Result<GetResponse, _> = call_with(to, "/shardkv.v1.Kv/Get", foreign).await;
    let status = get.unwrap_err();
    assert!(
        matches!(status.code(), Code::Internal | Code::InvalidArgument),
        "{status:?}"
    );
    let none: Result<GetResponse, _> = call_with(to, "/shardkv.v1.Kv/Destroy", foreign).await;
    assert_eq!(none.unwrap_err().code(), Code::Unimplemented);
    let client = cluster.client().await;
    client.put("k", Bytes::from_static(b"v")).await.unwrap();
    assert!(cluster.node(leader).is_running());
}
