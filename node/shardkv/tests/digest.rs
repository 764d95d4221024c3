//! The digest of a state after a fixed log.

mod common;

use common::replicas::{CONTROLLER, SHARD, configuration};
use common::{GENESIS, Replica, append, cas, delete, put, session};
use replica::StateStore;
use shardkv::{Configure, Step};
use types::{Gid, ShardConfig};

fn digest(replica: &Replica) -> String {
    let digest = replica.state.applied().digest;
    digest.map_or(String::new(), |digest| format!("{:016x}", digest.value))
}

// Members of a group compare digests, also while one of them has another version. If a value here changes, the machine writes other
// changes for the same entries, or in another order: that needs a new feature level (`replica::FEATURE_LEVEL`), as a change of a
// record's format does.

#[test]
fn writes_are_part_of_the_format() {
    let mut replica = Replica::new(GENESIS);
    let mut time = 100_000;
    for (session, write) in [
        (None, put("a", "1")),
        (session(90_000, 1, 1), append("a", "2")),
        // A copy.
        (session(90_000, 1, 1), append("a", "2")),
        (session(90_000, 2, 2), cas("a", Some("12"), Some("3"))),
        (session(95_000, 1, 1), cas("a", Some("12"), None)),
        (None, delete("absent")),
        (None, delete("a")),
        (None, put("{b}1", "x")),
    ] {
        replica.apply(time, session, write);
        time += 7_000;
    }
    assert_eq!(digest(&replica), "e2e03e9d77a419f3");
}

#[test]
fn moves_are_part_of_the_format() {
    let mut replica = Replica::new(common::replicas::GENESIS);
    let (own, other) = (Gid(1), Gid(2));
    let mut config = ShardConfig::empty(2);
    for (target, owner) in [(own, own), (other, own), (other, other)] {
        config = configuration(&config, own, target, owner);
        let step = Configure::to(&config, own, CONTROLLER, &replica.machine.ownership());
        replica.step(200, &Step::Configure(step));
        replica.apply(200, session(100, config.num().0, 1), put("a", "1"));
    }
    let delete = Step::Delete {
        shard: SHARD,
        config: config.num(),
    };
    replica.step(200, &delete);
    assert_eq!(digest(&replica), "a7fcea1ca5831f01");
}
