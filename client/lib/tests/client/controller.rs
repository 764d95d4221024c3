//! Calls of the controllers.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::TryStreamExt as _;
use shardkv_client::{
    Client, ConfigChange, ConfigEvent, ConfigNum, Error, Gid, ShardConfig, ShardId,
};

use crate::double::{Cluster, Faults};

fn group(gid: u64) -> BTreeMap<Gid, Vec<String>> {
    [(Gid(gid), vec![format!("nowhere-{gid}:1")])].into()
}

#[tokio::test]
async fn configurations_are_changed_and_asked_for() {
    let cluster = Cluster::groups(&[1, 1]);
    let client = Client::connect(cluster.options()).await.unwrap();
    let controller = client.controller();
    let view = controller.query(None).await.unwrap();
    assert_eq!(
        (view.latest, view.config.num()),
        (ConfigNum(1), ConfigNum(1))
    );
    assert_eq!(view.config, cluster.world().config);
    assert_eq!(view.progress.len(), 2);
    assert!(view.is_settled(ConfigNum(1)));

    let change = controller.move_shard(ShardId(0), Gid(2)).await;
    let expected = ConfigChange {
        num: ConfigNum(2),
        changed: true,
        moved_shards: 1,
    };
    assert_eq!(change, Ok(expected));
    // Handles and their futures can be sent to other tasks.
    let elsewhere = controller.clone();
    let joining = tokio::spawn(async move { elsewhere.join(group(3)).await });
    assert_eq!(joining.await.unwrap().unwrap().num, ConfigNum(3));
    assert_eq!(controller.leave(&[Gid(3)]).await.unwrap().num, ConfigNum(4));

    let missing = controller.query(Some(ConfigNum(99))).await.unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing:?}");
    let missing = controller
        .move_shard(ShardId(0), Gid(99))
        .await
        .unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing:?}");
    let last = controller.leave(&[Gid(1), Gid(2)]).await.unwrap_err();
    assert!(matches!(last, Error::Conflict { .. }), "{last:?}");
    cluster.check();
}

#[tokio::test]
async fn a_change_is_made_once_however_often_it_is_sent() {
    let cluster = Cluster::groups(&[1, 1]);
    let client = Client::connect(cluster.options()).await.unwrap();
    cluster.world().faults = Faults {
        lose_change: 2,
        ..Faults::default()
    };
    for gid in 3..9 {
        let change = client.controller().join(group(gid)).await.unwrap();
        assert_eq!(change.num, ConfigNum(gid - 1));
    }
    let world = cluster.world();
    assert!(world.repeated > 0, "answers were lost");
    assert_eq!(world.applied, 6);
    drop(world);
    cluster.check();
}

#[tokio::test]
async fn nodes_that_are_dead_or_hang_are_passed_over() {
    let mut cluster = Cluster::groups(&[3]);
    cluster.kill(0);
    cluster.freeze(1);
    let client = Client::connect(cluster.options()).await.unwrap();
    let controller = client.controller();
    assert!(controller.query(None).await.is_ok());
    assert!(controller.join(group(2)).await.is_ok());
    cluster.kill(2);
    let hasty = client.with_timeout(Duration::from_millis(300)).controller();
    let error = hasty.join(group(3)).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    cluster.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_has_no_gap_whatever_becomes_of_its_node() {
    let mut cluster = Cluster::groups(&[1, 1, 1]);
    cluster.assign([1; 8]);
    cluster.world().compact();
    let client = Client::connect(cluster.options()).await.unwrap();
    let mut watch = client.controller().watch(ConfigNum(0));
    let mut config: Option<ShardConfig> = None;
    for round in 0..12_u64 {
        cluster.assign([(round + 1) % 3 + 1; 8]);
        if round == 4 {
            cluster.kill(0);
        }
        if round == 8 {
            cluster.restart(0);
            cluster.kill(1);
        }
        let latest = cluster.world().config.clone();
        while config.as_ref().is_none_or(|it| it.num() < latest.num()) {
            match watch.try_next().await.unwrap().expect("it never ends") {
                ConfigEvent::Full(full) => {
                    assert!(config.is_none(), "only at the beginning");
                    config = Some(full);
                }
                ConfigEvent::Delta(delta) => {
                    config.as_mut().unwrap().apply(&delta).unwrap();
                }
            }
        }
        assert_eq!(config, Some(latest));
    }
}

#[tokio::test]
async fn waiting_for_shards_to_settle_tells_how_far_they_are() {
    let cluster = Cluster::groups(&[1, 1]);
    let client = Client::connect(cluster.options()).await.unwrap();
    cluster.world().settled.insert(Gid(2), ConfigNum(0));
    let (told, mut seen) = tokio::sync::watch::channel(0);
    let controller = client.controller();
    let waiting = controller.wait_settled(ConfigNum(1), |view| {
        let slowest = view.progress.iter().map(|it| it.settled.0).min();
        told.send_replace(1 + slowest.unwrap());
    });
    let settle = async {
        seen.wait_for(|it| *it == 1).await.unwrap();
        cluster.world().settled.clear();
    };
    let (view, ()) = tokio::join!(waiting, settle);
    assert!(view.unwrap().is_settled(ConfigNum(1)));
    assert_eq!(*told.borrow(), 2);
}
