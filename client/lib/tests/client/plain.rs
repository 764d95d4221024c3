//! The calls themselves, in both modes.

use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use shardkv_client::{
    Client, ClientOptions, ClusterId, ConnectError, Error, MembershipChange, Mode, NodeId, Pair,
    Role, ScanOptions,
};

use crate::double::{Cluster, Faults};

pub(crate) fn in_mode(cluster: &Cluster, mode: Mode) -> ClientOptions {
    ClientOptions {
        mode,
        ..cluster.options()
    }
}

async fn each_call_answers_its_question(mode: Mode) {
    let cluster = Cluster::start(3);
    let client = Client::connect(in_mode(&cluster, mode)).await.unwrap();
    assert_eq!(client.get("a").await, Ok(None));
    assert_eq!(client.put("a", "1").await, Ok(()));
    assert_eq!(client.get("a").await, Ok(Some(Bytes::from("1"))));
    assert_eq!(client.append("a", "23").await, Ok(3));
    assert_eq!(client.append("new", "x").await, Ok(1));
    let swap = |expected: Option<&'static str>, new: Option<&'static str>| {
        client.compare_and_swap("a", expected.map(Bytes::from), new.map(Bytes::from))
    };
    assert_eq!(swap(Some("1"), Some("2")).await, Ok(false));
    assert_eq!(swap(Some("123"), Some("2")).await, Ok(true));
    assert_eq!(swap(None, Some("3")).await, Ok(false));
    assert_eq!(swap(Some("2"), None).await, Ok(true));
    assert_eq!(client.get("a").await, Ok(None));
    assert_eq!(client.delete("new").await, Ok(true));
    assert_eq!(client.delete("new").await, Ok(false));
    assert_eq!(client.put("empty", "").await, Ok(()));
    assert_eq!(
        client.get("empty").await,
        Ok(Some(Bytes::new())),
        "empty is not missing"
    );
    cluster.check();
}

#[tokio::test]
async fn each_call_answers_its_question_by_batch() {
    each_call_answers_its_question(Mode::Batch).await;
}

#[tokio::test]
async fn each_call_answers_its_question_by_unary() {
    each_call_answers_its_question(Mode::Unary).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_share_messages_and_each_gets_its_own_answer() {
    let cluster = Cluster::start(1);
    let client = Client::connect(cluster.options()).await.unwrap();
    let calls = (0..2_000).map(|n| {
        let client = client.clone();
        tokio::spawn(async move {
            let key = format!("key-{n}");
            client.put(key.clone(), format!("value-{n}")).await.unwrap();
            assert_eq!(
                client.get(key.clone()).await.unwrap().unwrap(),
                format!("value-{n}")
            );
            let length = client.append(key, vec![b'x'; n]).await.unwrap();
            assert_eq!(length, format!("value-{n}").len() as u64 + n as u64);
        })
    });
    futures::future::try_join_all(calls).await.unwrap();
    let world = cluster.world();
    assert_eq!(world.applied, 4_000);
    assert_eq!(world.streams, 1);
    assert!(world.largest_batch > 1, "calls travel together");
    assert!(world.largest_batch <= 256);
}

#[tokio::test]
async fn refusals_reach_the_caller_as_they_are() {
    let cluster = Cluster::start(1);
    for mode in [Mode::Batch, Mode::Unary] {
        let client = Client::connect(in_mode(&cluster, mode)).await.unwrap();
        let refused = client.put("big", vec![0; 1_000_001]).await.unwrap_err();
        let Error::TooLarge {
            what,
            size: 1_000_001,
            limit: 1_000_000,
            ..
        } = &refused
        else {
            panic!("{refused:?}");
        };
        assert_eq!(what, "value");
        assert!(!refused.is_retryable() && !refused.maybe_applied());
        let refused = client.put("big", vec![0; 9 << 20]).await.unwrap_err();
        assert!(matches!(refused, Error::TooLarge { what, .. } if what == "request"));
    }
}

#[tokio::test]
async fn scans_return_their_range_and_go_on_after_each_break() {
    let mut cluster = Cluster::start(3);
    let client = Client::connect(cluster.options()).await.unwrap();
    let key = |n: u32| Bytes::from(format!("k{n:04}"));
    for n in 0..300 {
        cluster
            .world()
            .data
            .insert(key(n), Bytes::from(n.to_string()));
    }
    cluster.world().faults = Faults {
        break_scan: 5,
        ..Faults::default()
    };
    let pairs: Vec<Pair> = client.scan(ScanOptions::all()).try_collect().await.unwrap();
    let expected = |n: u32| Pair {
        key: key(n),
        value: Bytes::from(n.to_string()),
    };
    assert_eq!(pairs, (0..300).map(expected).collect::<Vec<_>>());

    let range = ScanOptions::range(key(10), key(200)).limit(100).keys_only();
    let mut scan = client.scan(range);
    for n in 10..110 {
        if n == 40 {
            cluster.elect(1);
        }
        if n == 70 {
            cluster.kill(1);
            cluster.elect(2);
        }
        let pair = scan.try_next().await.unwrap().expect("more pairs");
        assert_eq!((pair.key, pair.value), (key(n), Bytes::new()));
    }
    assert_eq!(
        scan.try_next().await,
        Ok(None),
        "the limit holds over all parts"
    );

    let none: Vec<Pair> = client
        .scan(ScanOptions::all().limit(0))
        .try_collect()
        .await
        .unwrap();
    assert_eq!(none, []);
    let tail: Vec<Pair> = client
        .scan(ScanOptions::prefix("k029"))
        .try_collect()
        .await
        .unwrap();
    assert_eq!(tail.len(), 10);
}

#[tokio::test]
async fn nodes_are_asked_directly() {
    let mut cluster = Cluster::start(3);
    // One address is enough: the client learns the others.
    let client = Client::connect(ClientOptions::new([&cluster.addresses[1]]))
        .await
        .unwrap();
    assert_eq!(client.leader().await.unwrap(), cluster.addresses[0]);

    let follower = client.admin(&cluster.addresses[1]).unwrap();
    let status = follower.status().await.unwrap();
    assert_eq!((status.node_id, status.role), (NodeId(2), Role::Follower));
    assert_eq!(
        (status.leader_id, status.members.len()),
        (Some(NodeId(1)), 3)
    );
    assert_eq!(
        follower.transfer_leadership(None).await,
        Err(Error::NotLeader {
            leader: Some(cluster.addresses[0].clone())
        })
    );
    let leader = client.admin(&cluster.addresses[0]).unwrap();
    assert_eq!(
        leader.transfer_leadership(Some(NodeId(3))).await,
        Ok(NodeId(3))
    );
    assert_eq!(cluster.world().transfers, [3]);
    let change = MembershipChange::Promote(NodeId(9));
    let refused = leader.change_membership(change).await.unwrap_err();
    assert!(matches!(refused, Error::BadRequest { field, .. } if field == "promote"));

    // A node with two names is listed once.
    let alias = cluster.addresses[1].replace("127.0.0.1", "localhost");
    let by_alias = Client::connect(ClientOptions::new([alias])).await.unwrap();
    by_alias.leader().await.unwrap();
    assert_eq!(by_alias.status_all().await.len(), 3);

    cluster.kill(2);
    let all = client.status_all().await;
    assert_eq!(all.len(), 3, "learnt members are asked as well");
    for (address, status) in all {
        if address == cluster.addresses[2] {
            assert!(
                matches!(status, Err(Error::Unavailable { .. })),
                "{status:?}"
            );
        } else {
            assert!(status.is_ok(), "{address}: {status:?}");
        }
    }
}

#[tokio::test]
async fn unreachable_nodes_are_told_at_once() {
    let mut cluster = Cluster::start(1);
    cluster.kill(0);
    let error = Client::connect(cluster.options()).await.unwrap_err();
    let ConnectError::Unreachable(said) = error else {
        panic!("{error:?}");
    };
    assert!(said.contains(&cluster.addresses[0]), "{said}");
    assert!(Client::lazy(cluster.options()).is_ok());
}

#[test]
fn a_client_outside_of_a_runtime_is_refused() {
    let error = Client::lazy(ClientOptions::new(["127.0.0.1:1"])).unwrap_err();
    assert_eq!(error, ConnectError::NoRuntime);
}

/// Callers spawn them.
#[allow(dead_code)]
fn futures_go_to_other_tasks(client: &Client, shards: &shardkv_client::ShardSet) {
    fn check(_: impl Send) {}
    check(client.get("a"));
    check(client.put("a", "b"));
    check(client.get_many(["a"]));
    check(client.put_many([("a", "b")]));
    check(client.scan(ScanOptions::all()));
    check(client.export(shardkv_client::ExportOptions::default()));
    check(client.leader());
    check(client.shards(shards, true));
    check(client.status_all());
    let controller = client.controller();
    check(controller.query(None));
    check(controller.wait_settled(shardkv_client::ConfigNum(1), |_| ()));
    check(controller.watch(shardkv_client::ConfigNum(1)));
}

#[tokio::test]
async fn a_client_that_names_a_cluster_takes_no_other() {
    let cluster = Cluster::groups(&[1]);
    let with = async |id| {
        let options = ClientOptions {
            cluster: Some(ClusterId(id)),
            request_timeout: Duration::from_millis(500),
            ..cluster.options()
        };
        let client = Client::connect(options).await.unwrap();
        client.put("k", "v").await
    };
    let refused = with(78).await.unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains("belongs to cluster c000000000000004d, not c000000000000004e"),
        "{text}"
    );
    assert!(!refused.maybe_applied());
    with(77).await.unwrap();
    cluster.check();
}
