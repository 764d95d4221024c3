//! The move of a shard doesn't delay other shards: compares simulated latencies with and without a move.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests may fail a test"
)]

use std::collections::BTreeMap;

use bytes::Bytes;
use shardctrler::Change;
use shardkv::Write;
use shardkv_sim::client::ScriptedOperation;
use shardkv_sim::queue::{MILLI, Micros};
use shardkv_sim::scenario::Scenario;
use shardkv_sim::script::Script;
use types::{Gid, ShardId, shard_of};

const SHARDS: u32 = 8;
const PUTS: usize = 400;

/// Returns a scenario with two groups of four shards each, constant link and disk latencies, and shards of about 200
/// chunks.
fn scenario() -> Scenario {
    let mut scenario = Scenario::quiet_cluster(7, 2, 3);
    scenario.genesis.shards = SHARDS;
    scenario.clients = 3;
    scenario.links.delay = (500, 500);
    scenario.disks.sync = (300, 300);
    scenario.disks.flush = (MILLI, MILLI);
    scenario.client.patience = 1_000 * MILLI;
    if let Some(cluster) = &mut scenario.cluster {
        cluster.joined = 2;
        cluster.mover.chunk_bytes = 1_000;
    }
    scenario
}

fn key_of(shard: ShardId, number: usize) -> Bytes {
    let keys = (0..).map(|it| Bytes::from(format!("{number}.{it}")));
    let mut keys = keys.filter(|key| shard_of(key, SHARDS) == shard);
    keys.next().unwrap()
}

/// Fills one shard, then writes to a staying shard of each group while the filled shard moves, if `with_move` is true.
/// Returns the slowest write of each staying shard, and of the filled shard.
fn run(with_move: bool) -> (BTreeMap<ShardId, Micros>, Micros) {
    let mut script = Script::new(scenario()).unwrap();
    for client in 0..3 {
        script.tell(client, []);
    }
    let settled = |script: &Script| script.config().is_some() && script.unsettled().is_none();
    assert!(script.run_until(5_000, settled).unwrap());
    let config = script.config().unwrap();
    let of = |gid: Gid| -> Vec<ShardId> { config.owned_by(gid).shards().collect() };
    let (mine, theirs) = (of(Gid(1)), of(Gid(2)));
    let (moving, stays) = (mine[0], [mine[1], theirs[0]]);
    let put = |shard, number, bytes| {
        ScriptedOperation::Write(Write::Put {
            key: key_of(shard, number),
            value: vec![b'.'; bytes].into(),
        })
    };
    script.tell(2, (0..100).map(|number| put(moving, number, 2_000)));
    assert!(
        script
            .run_until(20_000, |script| script.is_idle(2))
            .unwrap()
    );
    let before = script.hand_offs();
    for (client, shard) in stays.iter().enumerate() {
        script.tell(client, (0..PUTS).map(|number| put(*shard, number, 100)));
    }
    script.run_ms(50).unwrap();
    if with_move {
        let (shard, gid) = (moving, Gid(2));
        script.order(0, Change::Move { shard, gid });
    }
    let first = script.timings(2).len();
    // More writes than fit in the time until the movers know the configuration, so that some wait for the move.
    script.tell(2, (0..100).map(|number| put(moving, number, 100)));
    let idle = |script: &Script| (0..3).all(|client| script.is_idle(client));
    assert!(script.run_until(20_000, idle).unwrap());
    assert_eq!(script.hand_offs() > before, with_move, "it moved meanwhile");
    let slowest = |client: usize, from: usize| {
        let timings = &script.timings(client)[from..];
        timings.iter().map(|timing| timing.took).max().unwrap()
    };
    let stayed = stays
        .iter()
        .enumerate()
        .map(|(client, shard)| (*shard, slowest(client, 0)))
        .collect();
    let moved = slowest(2, first);
    script.finish().unwrap();
    (stayed, moved)
}

#[test]
fn the_slowest_write_to_a_shard_that_stays_is_at_most_a_tenth_slower_while_another_moves() {
    let (quiet, still) = run(false);
    let (during, moved) = run(true);
    println!("without {quiet:?}, during {during:?}; the moving one {still} and {moved}");
    for (shard, slowest) in &during {
        let without = quiet[shard];
        assert!(
            *slowest * 10 <= without * 11,
            "{shard}: {slowest} us while another shard moves, {without} us without"
        );
    }
    // Some write to the moving shard did wait, so the move overlapped the measurement. It waited for the rest of a copy alone.
    assert!(moved > still, "{moved} {still}");
}
