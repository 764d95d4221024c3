//! Groups that are gone for good. MIT's labs don't have them.

use shardkv_sim::network::LinkOptions;
use shardkv_sim::queue::MILLI;
use types::{ConfigNum, Gid, ShardId, ShardSet, shard_of};

use crate::shards::{SHARDS, Shards, gid, key, setting, unreliable};

/// Keys beyond those that the tests write first.
const LATER: usize = 100;

impl Shards {
    /// Stops a group as soon as the configuration gives shards from one group to another that it has not installed yet. Returns these
    /// shards.
    fn stop_between_cut_and_install(&mut self, from: u64, to: u64, stopped: u64) -> ShardSet {
        let (from, to) = (gid(from), gid(to));
        let mut cut = ShardSet::default();
        self.wait(20_000, "shards are cut and not installed", |script| {
            let config = script.config().unwrap();
            let rows = (0..).map(ShardId).zip(config.rows());
            let rows = rows.filter(|(_, row)| (row.owner, row.previous) == (to, from));
            let waits = rows.filter(|(shard, _)| !script.serves(to, *shard));
            cut = waits.map(|(shard, _)| shard).collect();
            !cut.is_empty()
        });
        self.stop_group(stopped);
        cut
    }

    /// Makes each message take so long that moves can be stopped half-way.
    fn slow_links(&mut self) {
        self.script.set_links(LinkOptions {
            delay: (20 * MILLI, 40 * MILLI),
            ..LinkOptions::default()
        });
    }

    fn fast_links(&mut self) {
        self.script.set_links(LinkOptions::default());
    }

    /// Waits until each shard is served by its owner.
    fn wait_until_served(&mut self) {
        let config = self.config();
        for shard in (0..SHARDS).map(ShardId) {
            let what = format!("{shard} is served");
            self.wait(10_000, &what, |script| {
                script.serves(config.owner(shard), shard)
            });
        }
    }

    /// Checks that keys that were never written before can be written and read in all shards.
    fn write_everywhere(&mut self) {
        let mut rest: ShardSet = ShardSet::all(SHARDS);
        for number in LATER.. {
            let shard = shard_of(&key(number), SHARDS);
            if rest.contains(shard) {
                let left = rest.shards().filter(|it| *it != shard);
                rest = left.collect();
                self.put(number);
            }
            if rest.is_empty() {
                break;
            }
        }
        self.check_all();
    }
}

fn forget_a_dead_group(mut shards: Shards) {
    shards.join(&[0, 1, 2]);
    shards.put_all(40, 100);
    shards.settle();
    let owned = shards.config().owned_by(gid(1));
    let kept = shards.config();
    shards.stop_group(1);
    // A move from it, and a move to it, don't get anywhere.
    let from_it = owned.shards().next().unwrap();
    let to_it = kept.owned_by(gid(0)).shards().next().unwrap();
    shards.move_shard(from_it.0, 2);
    shards.move_shard(to_it.0, 1);
    shards.run_ms(2_000);
    assert_eq!(shards.config().moving(), 2);
    let loss = shards.forget(&[1]);
    assert_eq!(loss.emptied.listed, owned);
    assert_eq!(loss.returned.count, 0);
    shards.check_shares(&[0, 2]);
    let config = shards.config();
    assert_eq!(config.row(from_it).previous, Gid::NONE);
    for shard in (0..SHARDS).map(ShardId).filter(|it| !owned.contains(*it)) {
        assert_eq!(config.owner(shard), kept.owner(shard));
    }
    shards.wait_until_served();
    shards.check_all();
    shards.write_everywhere();
    // The rest settles, and nobody waits for the dead group.
    let latest = shards.config().num();
    let settled = |shards: &mut Shards| {
        let answer = shards.query(None).unwrap();
        answer.progress.values().all(|it| it.settled >= latest)
    };
    shards.run_ms(3_000);
    assert!(settled(&mut shards));
    // Its disks come back after all: it serves nothing.
    shards.start_group(1);
    shards.settle();
    shards.check_all();
    // It may even join again, with nothing.
    shards.join(&[1]);
    shards.settle();
    shards.check_shares(&[0, 1, 2]);
    shards.check_all();
    shards.finish();
}

#[test]
fn a_dead_group_is_forgotten() {
    forget_a_dead_group(Shards::new(setting(61)));
}

#[test]
fn a_dead_group_is_forgotten_unreliable() {
    forget_a_dead_group(Shards::new(unreliable(setting(62))));
}

#[test]
fn shards_return_from_a_group_that_died_before_it_had_them() {
    let mut shards = Shards::new(setting(63));
    shards.join(&[0]);
    shards.put_all(40, 100);
    shards.settle();
    shards.slow_links();
    shards.join(&[1]);
    let cut = shards.stop_between_cut_and_install(0, 1, 1);
    shards.fast_links();
    shards.run_ms(1_000);
    let loss = shards.forget(&[1]);
    let returned = &loss.returned.listed;
    assert!(
        cut.shards().all(|shard| returned.contains(shard)),
        "{loss:?}"
    );
    shards.check_shares(&[0]);
    shards.wait_until_served();
    // Nothing was written there in the meantime, so all of it is as it was.
    shards.check_all();
    shards.write_everywhere();
    shards.start_group(1);
    shards.settle();
    shards.check_all();
    shards.finish();
}

#[test]
fn shards_that_a_dead_group_had_to_hand_over_begin_empty() {
    let mut shards = Shards::new(setting(64));
    shards.join(&[0]);
    shards.put_all(40, 100);
    shards.settle();
    shards.slow_links();
    shards.join(&[1]);
    let cut = shards.stop_between_cut_and_install(0, 1, 0);
    shards.fast_links();
    shards.run_ms(1_000);
    let loss = shards.forget(&[0]);
    assert_eq!(loss.returned.count, 0);
    let emptied = &loss.emptied.listed;
    assert!(
        cut.shards().all(|shard| emptied.contains(shard)),
        "{loss:?}"
    );
    shards.check_shares(&[1]);
    shards.wait_until_served();
    shards.check_all();
    shards.write_everywhere();
    let num = shards.config().num();
    shards.run_ms(1_000);
    let settled = shards.query(None).unwrap().progress[&gid(1)].settled;
    assert!(settled >= num && num > ConfigNum(2));
    shards.finish();
}
