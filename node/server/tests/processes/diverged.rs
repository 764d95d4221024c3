//! A node whose state differs from its group's stops, says so, and doesn't start again.

use std::fs;

use crate::bad_input::http_get;
use crate::cluster::{Cluster, Setup};
use crate::wait::{holds, until};

/// The exit code of a node whose state differs.
const DIVERGED: i32 = 13;

/// Changes the only value in a node's state, as a broken disk or memory could, while the node is down. The store's own interface
/// makes nothing durable that has no new position in the log.
fn change_value(cluster: &Cluster, node: u16, from: &str, to: &str) {
    let states = fs::read_dir(cluster.data(node).join("state")).unwrap();
    let mut states = states.map(|entry| entry.unwrap().path());
    let state = states.find(|path| path.is_dir()).unwrap();
    let options = rocksdb::Options::default();
    let names = rocksdb::DB::list_cf(&options, &state).unwrap();
    let db = rocksdb::DB::open_cf(&options, &state, &names).unwrap();
    let mut changed = 0;
    for name in &names {
        let family = db.cf_handle(name).unwrap();
        for pair in db.iterator_cf(family, rocksdb::IteratorMode::Start) {
            let (key, value) = pair.unwrap();
            if *value == *from.as_bytes() {
                db.put_cf(family, key, to).unwrap();
                db.flush_cf(family).unwrap();
                changed += 1;
            }
        }
    }
    assert_eq!(changed, 1, "the state was flushed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_state_differs_stops_and_stays_stopped() {
    let mut cluster = Cluster::start(Setup::of(3)).await;
    let client = cluster.client().await;
    client.put("k", "good").await.unwrap();
    let leader = cluster.leader().await;
    until("states have digests", async || {
        let metrics = http_get(cluster.metrics(leader), "/metrics").await;
        let levels = metrics.lines();
        let mut levels = levels.filter_map(|line| line.strip_prefix("shardkv_feature_level "));
        let level = levels.next().map(str::to_owned);
        holds(
            level.as_ref().is_some_and(|level| level != "0"),
            format!("{level:?}"),
        )
    })
    .await;
    cluster.all_caught_up().await;
    let wrong = cluster.follower().await;
    let mut stopping = cluster.take(wrong);
    stopping.terminate();
    let status = stopping.exited().await;
    assert_eq!(status.code(), Some(0), "{}", stopping.printed());
    change_value(&cluster, wrong, "good", "bad!");

    // What it appends to the changed value differs from what the others append. Digests are compared when a term begins.
    cluster.start_node(wrong);
    client.append("k", "+").await.unwrap();
    let right = 3 - leader - wrong;
    let next = cluster.status(right).await.node_id;
    let admin = cluster.admin(leader);
    admin.transfer_leadership(Some(next)).await.unwrap();
    let status = cluster.node(wrong).exited().await;
    let printed = cluster.node(wrong).printed();
    assert_eq!(status.code(), Some(DIVERGED), "{printed}");
    assert!(printed.contains("keep a copy"), "{printed}");
    assert!(cluster.data(wrong).join("DIVERGED").exists());
    drop(cluster.take(wrong));
    cluster.start_node(wrong);
    let status = cluster.node(wrong).exited().await;
    let printed = cluster.node(wrong).printed();
    assert_eq!(status.code(), Some(DIVERGED), "{printed}");

    // The others are right and go on. The error message names this remedy: a new disk is a new member.
    let value = client.get("k").await.unwrap();
    assert_eq!(value.as_deref(), Some(&b"good+"[..]));
    drop(cluster.take(wrong));
    fs::remove_dir_all(cluster.data(wrong)).unwrap();
    cluster.start_node(wrong);
    let commit = cluster.status(right).await.commit_index;
    cluster
        .status_when(wrong, "the replaced node has everything", |status| {
            status.trouble.is_none() && status.last_applied >= commit
        })
        .await;
    client.append("k", "+").await.unwrap();
    cluster.all_caught_up().await;
    assert!(cluster.runs(wrong));
}
