//! Several groups: calls find their shard's owner wherever it goes, and a group or shard that stalls stalls no other.

use std::time::Duration;

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use shardkv_client::{
    Client, ClientOptions, ConfigNum, Error, Gid, Mode, ShardId, ShardSet, ShardState,
};
use tokio::task::JoinHandle;

use crate::double::{Cluster, Faults, SHARDS, shard_of, until};
use crate::once::{assert_once, write_marks};
use crate::plain::in_mode;

const MODES: [Mode; 2] = [Mode::Batch, Mode::Unary];

/// The `n`-th key of a shard.
fn key_in(shard: u32, n: usize) -> Bytes {
    let keys = (0..).map(|n| Bytes::from(format!("key-{n}")));
    let mut own = keys.filter(|key| shard_of(key) == ShardId(shard));
    own.nth(n).unwrap()
}

fn put_all(
    client: &Client,
    keys: impl Iterator<Item = Bytes>,
) -> Vec<JoinHandle<Result<(), Error>>> {
    let put = |key: Bytes| {
        let client = client.clone();
        tokio::spawn(async move { client.put(key, "v").await })
    };
    keys.map(put).collect()
}

#[tokio::test]
async fn calls_go_straight_to_the_owner() {
    for mode in MODES {
        let cluster = Cluster::groups(&[1, 2, 1]);
        // One address of one group is enough.
        let client = Client::connect(ClientOptions {
            mode,
            ..ClientOptions::new([&cluster.addresses[3]])
        });
        let client = client.await.unwrap();
        let key = |n: usize| format!("key-{n}");
        let pairs = (0..200).map(|n| (key(n), n.to_string()));
        for result in client.put_many(pairs).await {
            result.unwrap();
        }
        let values = client.get_many((0..201).map(key)).await.unwrap();
        for (n, value) in values.iter().enumerate() {
            let expected = (n < 200).then(|| Bytes::from(n.to_string()));
            assert_eq!(*value, expected, "in the order of the keys");
        }
        let world = cluster.world();
        assert_eq!(world.turned_away, 0);
        assert_eq!(world.sessions_opened(), 3, "one for each group");
        drop(world);
        cluster.check();
    }
}

#[tokio::test]
async fn an_address_that_is_another_clusters_now_is_left() {
    for mode in MODES {
        let cluster = Cluster::start(3);
        // This node leads group 1 of another cluster.
        cluster.world().strangers.insert(0);
        let client = Client::connect(in_mode(&cluster, mode)).await.unwrap();
        let writer = client.clone();
        let put = tokio::spawn(async move { writer.put("a", "1").await });
        until("it is left and found again", || {
            cluster.world().estranged >= 2
        })
        .await;
        assert_eq!(cluster.world().applied, 0);
        cluster.elect(1);
        put.await.unwrap().unwrap();
        assert_eq!(cluster.value("a"), "1");
        cluster.check();
    }
}

#[tokio::test]
async fn nodes_that_know_no_configurations_are_one_group() {
    for mode in MODES {
        let cluster = Cluster::start(3);
        cluster.world().older = true;
        let client = Client::connect(in_mode(&cluster, mode)).await.unwrap();
        client.put("a", "1").await.unwrap();
        assert_eq!(client.get("a").await, Ok(Some(Bytes::from("1"))));
        assert_eq!(client.leader().await.unwrap(), cluster.addresses[0]);
        cluster.elect(1);
        assert_eq!(client.append("a", "2").await, Ok(2));
        cluster.check();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn moving_shards_fail_no_call_and_double_none() {
    for mode in MODES {
        let cluster = Cluster::groups(&[1, 1, 1]);
        let client = Client::connect(in_mode(&cluster, mode)).await.unwrap();
        cluster.world().faults = Faults {
            lose_answer: 13,
            lose_request: 17,
            outcome_unknown: 19,
            ..Faults::default()
        };
        let writing = write_marks(&client, 60);
        for round in 1..=9_u64 {
            let goal = round * 150;
            until("progress", || cluster.world().applied >= goal).await;
            let owner = |shard: u64| (shard + round) % 3 + 1;
            // For a while the controllers are ahead of the groups, and shards are moving.
            cluster.world().deaf.extend([Gid(1), Gid(2)]);
            cluster.assign([0, 1, 2, 3, 4, 5, 6, 7].map(owner));
            let waited = cluster.world().turned_away + 3;
            until("a call waits for its shard", || {
                cluster.world().turned_away >= waited
            })
            .await;
            cluster.world().pulling.extend((0..SHARDS).map(ShardId));
            cluster.world().accept();
            for shard in 0..SHARDS {
                cluster.world().pulling.remove(&ShardId(shard));
                tokio::task::yield_now().await;
            }
        }
        for result in writing.await.unwrap() {
            result.expect("a moving shard is not the caller's trouble");
        }
        assert_once(&cluster, 60);
    }
}

#[tokio::test]
async fn a_write_in_doubt_is_settled_at_the_new_owner_under_its_name() {
    for mode in MODES {
        let cluster = Cluster::groups(&[1, 1]);
        let client = Client::connect(in_mode(&cluster, mode)).await.unwrap();
        let key = key_in(0, 0);
        client.append(key.clone(), "x").await.unwrap();
        cluster.world().faults.lose_answer = 1;
        let doubtful = client.append(key.clone(), "y");
        let meddle = async {
            until("the write is applied", || cluster.world().applied == 2).await;
            cluster.assign([2; 8]);
            cluster.world().repeated_at.clear();
            cluster.world().faults = Faults::default();
        };
        let (length, ()) = tokio::join!(doubtful, meddle);
        assert_eq!(length, Ok(2), "once, not twice");
        let at: Vec<Gid> = cluster.world().repeated_at.iter().copied().collect();
        assert_eq!(at, [Gid(2)]);
        assert_eq!(client.append(key, "z").await, Ok(3));
        cluster.check();
    }
}

#[tokio::test]
async fn a_group_that_knows_better_is_asked_for_its_configuration() {
    for mode in MODES {
        let cluster = Cluster::groups(&[1, 1]);
        // From now on the node at the only address of the options gets no new configuration.
        cluster.world().stuck.insert(1, ConfigNum(1));
        let client = Client::connect(ClientOptions {
            mode,
            ..ClientOptions::new([&cluster.addresses[1]])
        });
        let client = client.await.unwrap();
        client.put(key_in(0, 0), "1").await.unwrap();
        cluster.assign([2; 8]);
        let value = client.get(key_in(0, 0)).await;
        assert_eq!(value, Ok(Some(Bytes::from("1"))));
        assert_eq!(client.config().unwrap().num(), ConfigNum(2));
        cluster.check();
    }
}

#[tokio::test]
async fn an_owner_that_has_not_heard_of_it_is_asked_again() {
    for mode in MODES {
        let cluster = Cluster::groups(&[1, 1]);
        let client = Client::connect(in_mode(&cluster, mode)).await.unwrap();
        client.put("warm", "up").await.unwrap();
        cluster.world().deaf.insert(Gid(2));
        cluster.assign([2; 8]);
        let waiting = client.put(key_in(0, 0), "1");
        let meddle = async {
            until("it is asked again", || cluster.world().turned_away >= 5).await;
            cluster.world().accept();
        };
        assert_eq!(tokio::join!(waiting, meddle).0, Ok(()));
        cluster.check();
    }
}

#[tokio::test]
async fn old_configurations_are_not_needed() {
    let cluster = Cluster::groups(&[1, 1]);
    cluster.assign([2; 8]);
    cluster.world().compact();
    cluster.assign([1; 8]);
    let client = Client::connect(cluster.options()).await.unwrap();
    client.put("a", "1").await.unwrap();
    assert_eq!(client.config().unwrap().num(), ConfigNum(3));
    assert_eq!(cluster.world().turned_away, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_stalls_stalls_no_other() {
    for mode in MODES {
        let cluster = Cluster::groups(&[1, 1]);
        let options = ClientOptions {
            max_in_flight: 64,
            max_in_flight_bytes: 64 << 10,
            max_unacknowledged: 32,
            ..in_mode(&cluster, mode)
        };
        let client = Client::connect(options).await.unwrap();
        client.put(key_in(0, 0), "warm").await.unwrap();
        client.put(key_in(1, 0), "up").await.unwrap();
        cluster.freeze(0);
        let stalled = put_all(&client, (0..400).map(|_| key_in(0, 0)));
        until("its window is full", || cluster.world().outstanding >= 32).await;
        let fine = put_all(&client, (0..400).map(|_| key_in(1, 0)));
        for put in try_join_all(fine).await.unwrap() {
            put.expect("the other group is well");
        }
        assert!(cluster.world().outstanding >= 32, "still stalled");
        cluster.thaw(0);
        for put in try_join_all(stalled).await.unwrap() {
            put.expect("waiting is not failing");
        }
        cluster.check();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_on_its_way_stalls_no_other_of_its_group() {
    for mode in MODES {
        let cluster = Cluster::groups(&[1, 1]);
        let options = ClientOptions {
            max_in_flight: 64,
            max_in_flight_bytes: 64 << 10,
            max_unacknowledged: 32,
            ..in_mode(&cluster, mode)
        };
        let client = Client::connect(options).await.unwrap();
        client.put(key_in(0, 0), "warm up").await.unwrap();
        cluster.world().pulling.insert(ShardId(0));
        let stalled = put_all(&client, (0..200).map(|_| key_in(0, 0)));
        let applied = cluster.world().applied;
        // The same group owns shard 2.
        let fine = put_all(&client, (0..400).map(|_| key_in(2, 0)));
        for put in try_join_all(fine).await.unwrap() {
            put.expect("the other shard is well");
        }
        assert_eq!(cluster.world().applied, applied + 400, "still on its way");
        cluster.world().pulling.clear();
        for put in try_join_all(stalled).await.unwrap() {
            put.expect("waiting is not failing");
        }
        cluster.check();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_call_asks_for_a_shard_on_its_way() {
    let cluster = Cluster::groups(&[1, 1]);
    let client = Client::connect(cluster.options()).await.unwrap();
    client.put(key_in(0, 0), "warm up").await.unwrap();
    cluster.world().pulling.insert(ShardId(0));
    let stalled = put_all(&client, (0..300).map(|n| key_in(0, n)));
    until("it is asked for a while", || {
        cluster.world().not_ready.len() >= 12
    })
    .await;
    let messages = cluster.world().not_ready.clone();
    let refusals: u64 = messages.iter().sum();
    let most = 300 + messages.len() as u64;
    assert!(refusals <= most, "one call a message: {messages:?}");
    cluster.world().pulling.clear();
    for put in try_join_all(stalled).await.unwrap() {
        put.expect("waiting is not failing");
    }
    cluster.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_calls_that_wait_for_their_shard_are_bounded() {
    let cluster = Cluster::groups(&[1, 1]);
    let options = ClientOptions {
        max_in_flight_bytes: 64 << 10,
        connections: 3,
        request_timeout: Duration::from_mins(1),
        ..cluster.options()
    };
    let client = Client::connect(options).await.unwrap();
    client.put(key_in(2, 0), "warm up").await.unwrap();
    cluster.world().pulling.insert(ShardId(0));
    let hasty = client.with_timeout(Duration::from_millis(500));
    let value = || vec![0; 4 << 10];
    // Calls get their share of the bytes in their order, and there is room for 15 in flight and as many that wait.
    let first = join_all((0..40).map(|n| client.put(key_in(0, n), value())));
    let later = join_all((40..80).map(|n| hasty.put(key_in(0, n), value())));
    let later = tokio::select! {
        biased;
        _ = first => panic!("the shard isn't served"),
        later = later => later,
    };
    for result in later {
        let Err(Error::Timeout { last, .. }) = result else {
            panic!("{result:?}");
        };
        assert!(last.contains("max_in_flight_bytes"), "{last}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_to_a_silent_group_that_left_go_where_its_shards_are() {
    for mode in MODES {
        let cluster = Cluster::groups(&[1, 1]);
        let options = ClientOptions {
            silence_timeout: Duration::from_millis(20),
            max_in_flight: 64,
            ..in_mode(&cluster, mode)
        };
        let client = Client::connect(options).await.unwrap();
        client.put(key_in(0, 0), "warm up").await.unwrap();
        cluster.freeze(0);
        // Some calls are on the wire, some in the stream, some wait before it.
        let stalled = put_all(&client, (0..300).map(|n| key_in(0, n)));
        until("some are sent", || cluster.world().outstanding > 0).await;
        cluster.leave(Gid(1), Gid(2));
        for put in join_all(stalled).await {
            put.unwrap().expect("the shards are elsewhere");
        }
        assert_eq!(client.get(key_in(0, 299)).await, Ok(Some(Bytes::from("v"))));
        cluster.check();
    }
}

#[tokio::test]
async fn a_call_without_an_owner_says_so() {
    let cluster = Cluster::groups(&[1]);
    cluster.world().disown();
    for mode in MODES {
        let options = ClientOptions {
            request_timeout: Duration::from_millis(300),
            ..in_mode(&cluster, mode)
        };
        let client = Client::connect(options).await.unwrap();
        let error = client.put("a", "1").await.unwrap_err();
        let Error::Timeout {
            maybe_applied: false,
            last,
            ..
        } = &error
        else {
            panic!("{error:?}");
        };
        assert!(last.contains("let a group join"), "{last}");
    }
}

#[tokio::test]
async fn groups_tell_of_their_shards_and_nodes() {
    let mut cluster = Cluster::groups(&[1, 2]);
    let client = Client::connect(ClientOptions::new([&cluster.addresses[0]]));
    let client = client.await.unwrap();
    client.put(key_in(0, 0), "1").await.unwrap();
    cluster.world().pulling.insert(ShardId(3));
    assert_eq!(
        client.leader_of(Gid(2)).await.unwrap(),
        cluster.addresses[1]
    );
    cluster.elect(2);
    let groups = client.shards(&ShardSet::default(), true).await;
    assert_eq!(groups.keys().copied().collect::<Vec<_>>(), [Gid(1), Gid(2)]);
    let first = groups[&Gid(1)].as_ref().unwrap();
    let keys: Vec<(u32, u64)> = first
        .shards
        .iter()
        .map(|it| (it.shard.0, it.keys))
        .collect();
    assert_eq!(keys, [(0, 1), (2, 0), (4, 0), (6, 0)]);
    let second = groups[&Gid(2)].as_ref().unwrap();
    let third = second
        .shards
        .iter()
        .find(|it| it.shard == ShardId(3))
        .unwrap();
    assert_eq!(third.state, ShardState::Pulling);
    assert_eq!(third.handoff_age, Some(Duration::from_millis(1_500)));

    let all = client.status_all().await;
    let gids: Vec<u64> = all
        .iter()
        .map(|(_, status)| status.as_ref().unwrap().gid.0)
        .collect();
    assert_eq!(gids.iter().filter(|gid| **gid == 2).count(), 2);
    assert_eq!(gids.len(), 3);
    cluster.kill(0);
    let error = client
        .with_timeout(Duration::from_millis(200))
        .leader_of(Gid(1))
        .await;
    assert!(matches!(error, Err(Error::Timeout { .. })), "{error:?}");
}
