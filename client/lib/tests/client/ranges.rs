//! Scans and exports over several groups.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use shardkv_client::{
    Client, Error, ExportEvent, ExportOptions, Gid, Pair, ScanOptions, ShardId, ShardSet,
};
use tokio::time::timeout;

use crate::double::{Cluster, Faults, SHARDS, shard_of};

const KEYS: u32 = 400;

fn key(n: u32) -> Bytes {
    Bytes::from(format!("k{n:04}"))
}

fn pair(n: u32) -> Pair {
    Pair {
        key: key(n),
        value: Bytes::from(n.to_string()),
    }
}

async fn filled(sizes: &[usize]) -> (Cluster, Client) {
    let cluster = Cluster::groups(sizes);
    for n in 0..KEYS {
        cluster.world().data.insert(pair(n).key, pair(n).value);
    }
    let client = Client::connect(cluster.options()).await.unwrap();
    (cluster, client)
}

#[tokio::test]
async fn a_scan_merges_all_groups_in_key_order() {
    let (cluster, client) = filled(&[1, 1, 1]).await;
    let scan = async |options| {
        client
            .scan(options)
            .try_collect::<Vec<Pair>>()
            .await
            .unwrap()
    };
    assert_eq!(
        scan(ScanOptions::all()).await,
        (0..KEYS).map(pair).collect::<Vec<_>>()
    );
    let limited = scan(ScanOptions::range(key(7), key(300)).limit(50)).await;
    assert_eq!(limited, (7..57).map(pair).collect::<Vec<_>>());
    let prefix = scan(ScanOptions::prefix("k039").keys_only()).await;
    let keys: Vec<Bytes> = prefix.into_iter().map(|it| it.key).collect();
    assert_eq!(keys, (390..400).map(key).collect::<Vec<_>>());
    assert_eq!(scan(ScanOptions::all().limit(0)).await, []);
    assert_eq!(scan(ScanOptions::prefix("nothing")).await, []);
    cluster.check();
}

#[tokio::test]
async fn who_asks_on_after_the_end_is_told_the_end_again() {
    let (_cluster, client) = filled(&[1, 1]).await;
    let mut scan = client.scan(ScanOptions::prefix("k0399"));
    assert!(scan.next().await.unwrap().is_ok());
    let mut export = client.export(ExportOptions::default());
    while export.next().await.is_some() {}
    for _ in 0..2 {
        assert!(scan.next().await.is_none());
        assert!(export.next().await.is_none());
    }
}

#[tokio::test]
async fn a_scan_goes_on_where_its_shards_went() {
    let (mut cluster, client) = filled(&[1, 2, 1]).await;
    cluster.world().faults.break_scan = 9;
    let mut scan = client.scan(ScanOptions::all());
    let mut waited = false;
    for n in 0..KEYS {
        match n {
            50 => cluster.assign([1, 1, 1, 1, 1, 1, 1, 1]),
            150 => cluster.assign([3, 2, 1, 3, 2, 1, 3, 2]),
            200 => {
                cluster.kill(1);
                cluster.elect(2);
            }
            250 => {
                cluster.world().deaf.insert(Gid(2));
                cluster.assign([2, 2, 2, 2, 3, 3, 3, 3]);
            }
            _ => {}
        }
        // Pairs that were read before may still arrive from a group that hears of no configuration; then the scan must wait.
        let patience = if n < 250 || waited { 60_000 } else { 200 };
        let next = timeout(Duration::from_millis(patience), scan.try_next()).await;
        let next = if let Ok(next) = next {
            next
        } else {
            waited = true;
            cluster.world().accept();
            scan.try_next().await
        };
        assert_eq!(next.unwrap(), Some(pair(n)));
    }
    assert!(waited);
    assert_eq!(scan.try_next().await, Ok(None));
    cluster.check();
}

/// Returns the pairs of an export by shard, without void ones, and the number of times that a shard began anew.
async fn exported(client: &Client, options: ExportOptions) -> (BTreeMap<ShardId, Vec<Pair>>, u64) {
    let mut export = client.export(options);
    let (mut complete, mut again) = (BTreeMap::new(), 0);
    let mut current: Option<(ShardId, Vec<Pair>)> = None;
    while let Some(event) = export.try_next().await.unwrap() {
        match event {
            ExportEvent::Begin { shard, restarts } => {
                match &current {
                    Some((before, _)) => assert_eq!(*before, shard, "the same one anew"),
                    None => assert_eq!(restarts, 0),
                }
                again += u64::from(restarts > 0);
                current = Some((shard, Vec::new()));
            }
            ExportEvent::Pairs(pairs) => {
                assert!(!pairs.is_empty());
                current.as_mut().unwrap().1.extend(pairs);
            }
            ExportEvent::End { shard, pairs } => {
                let (begun, all) = current.take().unwrap();
                assert_eq!((begun, all.len() as u64), (shard, pairs));
                assert!(complete.insert(shard, all).is_none(), "{shard} once");
            }
        }
    }
    assert_eq!(current, None);
    (complete, again)
}

fn expected(shards: impl Iterator<Item = u32>) -> BTreeMap<ShardId, Vec<Pair>> {
    let of = |shard: ShardId| {
        let own = (0..KEYS).map(pair).filter(|it| shard_of(&it.key) == shard);
        (shard, own.collect())
    };
    shards.map(ShardId).map(of).collect()
}

#[tokio::test]
async fn an_export_gives_each_shard_once() {
    let (cluster, client) = filled(&[1, 1]).await;
    let (all, again) = exported(&client, ExportOptions::default()).await;
    assert_eq!((all, again), (expected(0..SHARDS), 0));
    let some: ShardSet = [1, 2, 6].map(ShardId).into_iter().collect();
    let options = ExportOptions {
        start: key(100),
        end: key(200),
        shards: Some(some),
    };
    let (some, _) = exported(&client, options).await;
    let mut pairs: Vec<Pair> = some.values().flatten().cloned().collect();
    pairs.sort_by(|a, b| a.key.cmp(&b.key));
    let wanted = |it: &Pair| [1, 2, 6].contains(&shard_of(&it.key).0);
    assert_eq!(
        pairs,
        (100..200).map(pair).filter(wanted).collect::<Vec<_>>()
    );
    assert_eq!(some.len(), 3);
    cluster.check();
}

#[tokio::test]
async fn a_shard_whose_export_breaks_begins_anew() {
    let (cluster, client) = filled(&[1, 1]).await;
    cluster.world().faults = Faults {
        break_scan: 11,
        ..Faults::default()
    };
    let (all, again) = exported(&client, ExportOptions::default()).await;
    assert_eq!(all, expected(0..SHARDS));
    assert!(again > 0, "the test broke some");
}

/// One more key of a shard.
fn write_late(cluster: &Cluster, shard: ShardId) {
    let keys = (0..1_000).map(|n| Bytes::from(format!("k0000-{n}")));
    let late = keys.into_iter().find(|key| shard_of(key) == shard);
    cluster
        .world()
        .data
        .insert(late.unwrap(), Bytes::from("late"));
}

#[tokio::test]
async fn a_shard_that_moves_begins_anew_at_its_new_owner() {
    let (cluster, client) = filled(&[1, 1]).await;
    let shard = ShardId(0);
    let own = |n: &u32| shard_of(&key(*n)) == shard;
    let first = (0..KEYS).find(own).unwrap();
    // The client learns the leader before the node falls silent.
    assert!(client.get(key(first)).await.unwrap().is_some());
    cluster.freeze(0);
    let mut export = client.export(ExportOptions::default());
    let begin = |restarts| ExportEvent::Begin { shard, restarts };
    assert_eq!(export.try_next().await.unwrap(), Some(begin(0)));
    write_late(&cluster, shard);
    cluster.assign([2; 8]);
    cluster.thaw(0);
    assert_eq!(export.try_next().await.unwrap(), Some(begin(1)));
    let mut pairs = Vec::new();
    while let Some(ExportEvent::Pairs(more)) = export.try_next().await.unwrap() {
        pairs.extend(more);
    }
    let count = expected(0..1)[&shard].len() + 1;
    assert_eq!(pairs.len(), count, "the new cut has the late one");
    cluster.check();
}

#[tokio::test]
async fn an_export_that_breaks_each_time_ends() {
    let (cluster, client) = filled(&[1]).await;
    cluster.world().faults.break_scan = 3;
    let export = client.export(ExportOptions::default());
    let error = export.try_collect::<Vec<_>>().await.unwrap_err();
    assert!(
        matches!(&error, Error::Timeout { last, .. } if last.contains("broke")),
        "{error:?}"
    );
}
