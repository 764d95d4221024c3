//! Moves that go on while the controllers have no majority.

use raft::Role;
use shardkv_sim::script::Script;
use types::{Gid, ShardId};

use crate::shards::{Shards, gid, setting};

const SHARD: ShardId = ShardId(0);

/// The controllers have cut, and lose their majority before the source has heard of it. The source's next leader knows only what its
/// group has accepted. It learns of the cut from the controller that is left, so that the shard doesn't wait for a majority.
#[test]
fn a_cut_reaches_the_next_leader_of_the_source() {
    let mut shards = Shards::new(setting(51));
    shards.join(&[0]);
    shards.put_all(12, 10);
    shards.join(&[1]);
    shards.settle();
    let from = u64::from(shards.config().owner(SHARD) != gid(0));
    shards.move_shard(SHARD.0, 1 - from);
    let (source, destination) = (gid(from), gid(1 - from));
    let before = shards.config().num();
    let is_cut = |script: &Script| {
        let config = script.config();
        config.is_some_and(|it| it.num() > before && it.owner(SHARD) == destination)
    };
    while !is_cut(&shards.script) {
        shards.run_ms(1);
    }
    assert!(shards.script.serves(source, SHARD), "it hasn't heard of it");
    let controllers = shards.script.hosts_of(Gid::NONE);
    for host in controllers {
        let status = shards.script.status(host);
        if status.is_some_and(|status| status.role != Role::Leader) {
            shards.script.crash(host);
        }
    }
    let leader = shards.leader_of(source).unwrap();
    shards.script.crash(leader);
    shards.wait(5_000, "the destination serves the shard", |script| {
        script.serves(destination, SHARD)
    });
    shards.check_all();
    shards.finish();
}
