//! Tests of connections that are too many: clients are refused with a status, and peers and operators are served.

use std::net::SocketAddr;

use api::v1::error_detail::Kind;
use api::v1::kv_client::KvClient;
use api::v1::{GetRequest, PutRequest};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::Endpoint;

use crate::cluster::{Cluster, Setup};
use crate::wait::{holds, until};
use crate::world::channel;

/// The most connections of clients to each node.
const MOST: usize = 64;
/// The number of idle connections to each node.
const IDLE: usize = 1_100;

/// Raises this process' limit of open files.
fn raise_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Opens connections that never carry a call.
async fn idle(address: SocketAddr) -> Vec<TcpStream> {
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        let mut connection = TcpStream::connect(address).await.unwrap();
        // The node may have closed it already.
        let _ = connection
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .await;
        idle.push(connection);
    }
    idle
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_clients_keep_no_peer_and_no_operator_out() {
    raise_files();
    let setup = Setup::of(3)
        .with("max-connections", &MOST.to_string())
        // The idle connections don't answer pings.
        .with("keepalive-interval-ms", "3600000");
    let mut cluster = Cluster::start(setup).await;
    let client = cluster.client().await;
    client.put("before", "value").await.unwrap();
    drop(client);
    let mut open = Vec::new();
    for node in 0..3 {
        open.push(idle(cluster.listen(node)).await);
    }

    // A peer comes in, though it has no connection yet.
    let returning = cluster.follower().await;
    cluster.kill(returning);
    cluster.start_node(returning);
    cluster.status(returning).await;
    open[usize::from(returning)] = idle(cluster.listen(returning)).await;
    cluster.all_caught_up().await;
    for node in 0..3 {
        let ready = cluster.readyz(node).await;
        assert!(ready.contains("ready"), "{ready}");
    }

    // A client is told. The connections of the node that was killed may have left slots.
    let leader = cluster.leader().await;
    let get = || GetRequest {
        key: "before".into(),
    };
    let (kv, status) = until("a client is refused", async || {
        open.push(idle(cluster.listen(leader)).await);
        let mut kv = KvClient::new(channel(&cluster, leader).await);
        match kv.get(get()).await {
            Err(status) => Ok((kv, status)),
            Ok(answer) => Err(answer),
        }
    })
    .await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    match api::error_detail(&status).and_then(|detail| detail.kind) {
        Some(Kind::Overloaded(detail)) => {
            assert_eq!((detail.what.as_str(), detail.limit), ("connections", 64));
        }
        other => panic!("{other:?}"),
    }
    cluster.status(leader).await;

    // A connection that a node uses to forward calls is no client's.
    let forwarding = Endpoint::from_shared(format!("http://{}", cluster.listen(leader)))
        .unwrap()
        .user_agent("shardkv-node")
        .unwrap();
    let forwarding = forwarding.connect().await.unwrap();
    let answer = KvClient::new(forwarding).get(get()).await.unwrap();
    assert_eq!(answer.into_inner().value, "value");

    // The same connection serves the client once there is room.
    drop(open);
    let put = || PutRequest {
        key: "after".into(),
        value: "value".into(),
        session: None,
    };
    until("there is room for a client", async || {
        let answer = kv.clone().put(put()).await;
        let full = |status: &tonic::Status| status.code() == Code::ResourceExhausted;
        holds(!answer.as_ref().is_err_and(full), format!("{answer:?}"))?;
        Ok::<_, String>(answer.unwrap())
    })
    .await;
}
