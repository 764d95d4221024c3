//! Outages in numbers: nodes that are killed, or whose power is cut, under recorded loads. `make test-power` runs these tests.
//!
//! [`Outages`] strikes one node of a group, two, or all at once: of the controllers and of the groups, also while they start after
//! the outage before, and while shards move. Each load's history is checked, and everything that was acknowledged is read again.

use std::time::Instant;

use crate::cluster::{Cluster, Setup};
use crate::keeper::{Keeper, Kept};
use crate::load::Load;
use crate::outages::{Outages, mount_disks, often, strike};

/// The number of outages between two checks of a history. Shards move in every round.
const ROUND: u64 = 20;
const CLIENTS: u32 = 4;
/// The calls of the load that are answered between two outages.
const BETWEEN: usize = 100;

/// Returns the number of a variable of `make test-power`.
fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make test-power runs it"]
async fn power_cuts_lose_nothing_that_was_acknowledged() {
    if let Some(outages) = Outages::power_cuts(variable("SHARDKV_SEED", 1)).await {
        survive(outages).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make test-power runs it"]
async fn kills_lose_nothing_that_was_acknowledged() {
    survive(Outages::kills(variable("SHARDKV_SEED", 1)).await).await;
}

async fn survive(mut outages: Outages) {
    let began = Instant::now();
    let writer = outages.client().await;
    let mut kept = Kept::default();
    let mut left = variable("SHARDKV_OUTAGES", 100);
    let mut round = 0;
    while left > 0 {
        let name = format!("round-{round}");
        outages.start_move().await;
        let connect = async || outages.client().await;
        let load = Load::start_under(&name, connect, CLIENTS).await;
        let keeper = Keeper::start(&writer, &name);
        for _ in 0..left.min(ROUND) {
            let what = outages.strike();
            println!("{:5.1} s, {name}: {what}", began.elapsed().as_secs_f32());
            load.answered(BETWEEN).await;
        }
        left -= left.min(ROUND);
        round += 1;
        outages.revive_all();
        kept.extend(keeper.finish().await);
        let tally = load.finish().await;
        assert_eq!((tally.failed, tally.unknown), (0, 0), "{tally:?}");
        outages.settled().await;
    }
    assert!(kept.len() > 100, "only {} keys were written", kept.len());
    assert_eq!(kept.lost(&writer).await, [""; 0]);
    outages.account(&writer).await;
    let seconds = began.elapsed().as_secs_f32();
    println!("{seconds:.1} s, {} keys: {}", kept.len(), outages.summary());
}

/// Shows that these tests find a loss: the disks claim to sync, and don't.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make test-power runs it"]
async fn on_disks_that_only_claim_to_sync_a_power_cut_is_seen_to_lose_acknowledged_writes() {
    let data = tempfile::tempdir().unwrap();
    let Some(mut disks) = mount_disks(data.path(), 3) else {
        return;
    };
    let setup = Setup {
        data: Some(data.path().to_owned()),
        ..Setup::of(3)
    };
    let mut cluster = Cluster::start(often(setup)).await;
    let client = cluster.client().await;
    client.put("kept/before", "x").await.unwrap();
    for disk in &disks {
        disk.set_honest(false);
    }
    let mut load = Load::start(&cluster, CLIENTS).await;
    let keeper = Keeper::start(&client, "after");
    load.answered(100).await;
    let kept = keeper.finish().await;
    load.stop().await;

    strike(&mut cluster, &[0, 1, 2], &mut disks, |_| 0);
    for node in 0..3 {
        cluster.start_node(node);
    }
    // What was synced while the disks were honest is there.
    let before = client.get("kept/before").await.unwrap();
    assert_eq!(before.as_deref(), Some(&b"x"[..]));
    assert!(!kept.lost(&client).await.is_empty(), "{} keys", kept.len());
    let verdict = load.read_and_judge().await.unwrap_err();
    assert!(verdict.contains("NOT LINEARIZABLE"), "{verdict}");
}
