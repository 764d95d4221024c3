//! One keyspace floods a node, with ranges that nobody fetches and with puts. Its neighbour notices nothing.

use api::etcd::etcdserverpb as pb;
use api::etcd::etcdserverpb::kv_client::KvClient;
use tokio::task::JoinSet;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::cluster::{Cluster, Setup};
use crate::keyspaces::{all, create, named, put};
use crate::wait::{holds, until};
use crate::world::channel;

const TOO_MANY: &str = "etcdserver: too many requests";

/// Connects as a client with small windows, so that little is on its way which it doesn't fetch.
async fn narrow(cluster: &Cluster) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", cluster.listen(0))).unwrap();
    let endpoint = endpoint.initial_stream_window_size(64 << 10);
    until("a node takes a connection", async || {
        endpoint.connect().await
    })
    .await
}

/// Sends a range, and leaves its answer where it is.
async fn unfetched(channel: Channel) -> Result<Streaming<pb::RangeResponse>, Status> {
    let mut client = Grpc::new(channel).max_decoding_message_size(usize::MAX);
    client.ready().await.unwrap();
    let codec: ProstCodec<pb::RangeRequest, pb::RangeResponse> = ProstCodec::default();
    let path = PathAndQuery::from_static("/etcdserverpb.KV/Range");
    let answer = client
        .server_streaming(named("noisy", all()), path, codec)
        .await;
    answer.map(tonic::Response::into_inner)
}

async fn put_in(channel: &Channel, keyspace: &str, key: &str, bytes: usize) -> Result<(), Status> {
    let mut kv = KvClient::new(channel.clone());
    let request = named(keyspace, put(key, &"x".repeat(bytes)));
    kv.put(request).await.map(drop)
}

/// The neighbour's calls: a put, and ranges that find more than the smallest share.
async fn neighbours_calls(channel: &Channel) {
    put_in(channel, "quiet", "k", 100).await.unwrap();
    let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let answer = kv.range(named("quiet", all())).await.unwrap();
    assert_eq!(answer.into_inner().count, 4);
    let one = pb::RangeRequest {
        key: "k".into(),
        ..pb::RangeRequest::default()
    };
    let answer = kv.range(named("quiet", one)).await.unwrap();
    assert_eq!(answer.into_inner().count, 1);
}

fn assert_too_many(status: &Status) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_eq!(status.message(), TOO_MANY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyspace_that_floods_a_node_leaves_room_for_its_neighbour() {
    let setup = Setup::of(1)
        .with("max-keyspace-read-bytes", "67108864")
        .with("max-keyspace-requests", "64")
        .with("request-timeout-ms", "3000");
    let cluster = Cluster::start(setup).await;
    let through = channel(&cluster, 0).await;
    for name in ["noisy", "quiet"] {
        create(&through, name).await;
        for n in 0..3 {
            let key = format!("large-{n}");
            put_in(&through, name, &key, 1 << 20).await.unwrap();
        }
    }
    for n in 3..12 {
        let key = format!("large-{n}");
        put_in(&through, "noisy", &key, 1 << 20).await.unwrap();
    }

    // Ranges of 12 MiB that nobody fetches. What they hold is all that the keyspace may hold.
    let mut ranges = JoinSet::new();
    for _ in 0..16 {
        ranges.spawn(unfetched(narrow(&cluster).await));
    }
    let first = ranges.join_next().await.unwrap().unwrap();
    let mut held = vec![first.expect("one range has room")];
    // The others wait meanwhile.
    for _ in 0..10 {
        neighbours_calls(&through).await;
    }
    let mut refused = 0;
    while let Some(range) = ranges.join_next().await {
        match range.unwrap() {
            Ok(answer) => held.push(answer),
            Err(status) => {
                assert_too_many(&status);
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "{} answers are held", held.len());
    neighbours_calls(&through).await;

    // Puts without waiting for answers.
    let mut puts = JoinSet::new();
    for n in 0..400 {
        let through = through.clone();
        puts.spawn(async move { put_in(&through, "noisy", &format!("p{n}"), 64 << 10).await });
    }
    for _ in 0..10 {
        neighbours_calls(&through).await;
    }
    let mut too_many = 0;
    while let Some(put) = puts.join_next().await {
        if let Err(status) = put.unwrap() {
            assert_too_many(&status);
            too_many += 1;
        }
    }
    assert!(too_many > 0, "400 puts fit into 64");

    // What was held is given back with the answers.
    drop(held);
    until("the noisy keyspace is read again", async || {
        let mut kv = KvClient::new(through.clone()).max_decoding_message_size(usize::MAX);
        let few = pb::RangeRequest { limit: 10, ..all() };
        let answer = kv.range(named("noisy", few)).await;
        let answer = answer.map_err(|status| status.to_string())?.into_inner();
        holds(answer.kvs.len() == 10, format!("{}", answer.kvs.len()))
    })
    .await;
}
