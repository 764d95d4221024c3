//! Reports of cuts on the wire.

use types::{ConfigNum, Cut, Gid, Incarnation, JournalId, ShardId};

use crate::v1;

/// Converts a shard's cut to a message.
pub fn cut_to_wire(shard: ShardId, cut: &Cut) -> v1::ShardCut {
    v1::ShardCut {
        shard: shard.0,
        owner: cut.owner.0,
        owner_incarnation: cut.owner_incarnation.0,
        owner_since: cut.owner_since.0,
        target: cut.target.0,
        target_incarnation: cut.target_incarnation.0,
        target_since: cut.target_since.0,
        journal: cut.journal.0,
    }
}

/// Converts a message to a shard and its cut. Every message is one.
pub fn cut_from_wire(wire: &v1::ShardCut) -> (ShardId, Cut) {
    let cut = Cut {
        owner: Gid(wire.owner),
        owner_incarnation: Incarnation(wire.owner_incarnation),
        owner_since: ConfigNum(wire.owner_since),
        target: Gid(wire.target),
        target_incarnation: Incarnation(wire.target_incarnation),
        target_since: ConfigNum(wire.target_since),
        journal: JournalId(wire.journal),
    };
    (ShardId(wire.shard), cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_survives_the_journey() {
        let cut = Cut {
            owner: Gid(1),
            owner_incarnation: Incarnation(2),
            owner_since: ConfigNum(3),
            target: Gid(4),
            target_incarnation: Incarnation(5),
            target_since: ConfigNum(6),
            journal: JournalId(7),
        };
        let wire = cut_to_wire(ShardId(8), &cut);
        assert_eq!(cut_from_wire(&wire), (ShardId(8), cut));
    }
}
