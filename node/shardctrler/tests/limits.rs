//! Limits of the controllers at, below and above their values.

// Helpers of tests may panic as tests do.
#![allow(clippy::indexing_slicing, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::{GENESIS, Replica, join, leave, move_shard};
use shardctrler::{
    Change, CtrlError, Genesis, HistoryLimits, MAX_ALL_ADDRESS_BYTES, MAX_ANSWER_BYTES, MAX_CUTS,
    MAX_DELTAS, MAX_DRAINED,
};
use types::{ConfigNum, Gid, MAX_GROUP_ADDRESSES, ShardId};

/// All configurations are kept.
const ROOMY: HistoryLimits = HistoryLimits {
    keep: 10_000,
    keep_cuts: 10_000,
    step: 10_000,
    max_bytes: 1 << 30,
};

/// An address of this length, with this number in it.
fn address(number: usize, length: usize) -> String {
    let digits = length - ":1".len();
    format!("{number:0>digits$}:1")
}

/// Groups of this many from `first` on, with as many addresses as they may have, each of `length` bytes. Those of the last group have
/// `grow` more bytes together.
fn join_long(first: u64, count: u64, length: usize, grow: usize) -> Change {
    let addresses = |gid: u64, grow: usize| -> Vec<String> {
        let all = 0..MAX_GROUP_ADDRESSES;
        let number = |at| usize::try_from(gid).unwrap() * MAX_GROUP_ADDRESSES + at;
        let more = |at| grow / MAX_GROUP_ADDRESSES + usize::from(at < grow % MAX_GROUP_ADDRESSES);
        all.map(|at| address(number(at), length + more(at)))
            .collect()
    };
    let last = first + count - 1;
    let groups = (first..=last).map(|gid| {
        let grow = if gid == last { grow } else { 0 };
        (Gid(gid), addresses(gid, grow))
    });
    Change::Join {
        groups: groups.collect(),
    }
}

#[test]
fn addresses_of_all_groups_have_a_bound() {
    let length = 512;
    let group = MAX_GROUP_ADDRESSES * length;
    let groups = (MAX_ALL_ADDRESS_BYTES / group) as u64;
    assert_eq!(MAX_ALL_ADDRESS_BYTES % group, 0);
    let mut replica = Replica::new(GENESIS);
    replica.done(&join_long(1, groups - 1, length, 0));
    // One byte less than all, all, and then one more group.
    replica.done(&join_long(groups, 1, length - 1, MAX_GROUP_ADDRESSES - 1));
    replica.done(&join_long(groups, 1, length, 0));
    let limit = MAX_ALL_ADDRESS_BYTES as u64;
    let error = CtrlError::TooManyAddressBytes { limit };
    let small = BTreeMap::from([(Gid(groups + 1), vec!["a:1".to_owned()])]);
    assert_eq!(replica.refused(&Change::Join { groups: small }), error);
    replica.done(&leave(&[groups]));
    assert!(!replica.latest().groups().contains_key(&Gid(groups)));
    let two = BTreeMap::from([
        (Gid(groups), vec!["a:1".to_owned()]),
        (Gid(groups + 1), vec!["b:1".to_owned()]),
    ]);
    replica.done(&Change::Join { groups: two });
}

#[test]
fn a_change_has_a_most_number_of_cuts() {
    let shards = u32::try_from(MAX_CUTS).unwrap() + 1;
    let mut replica = Replica::new(Genesis { shards, ..GENESIS });
    replica.done(&join(&[1]));
    replica.settle();
    replica.done(&join(&[2]));
    let rows = replica.latest();
    let moving = rows.rows().position(|row| row.is_moving()).unwrap();
    let moving = u32::try_from(moving).unwrap();
    let (shard, cut) = replica.cut_now(moving);
    let others = (0..shards).map(ShardId).filter(|other| *other != shard);
    let mut cuts: BTreeMap<_, _> = others.map(|other| (other, cut)).collect();
    cuts.insert(shard, cut);
    assert_eq!(cuts.len(), MAX_CUTS + 1);
    let limit = MAX_CUTS as u64;
    let error = CtrlError::TooManyCuts { limit };
    assert_eq!(replica.refused(&Change::Cut { cuts: cuts.clone() }), error);
    let other = u32::from(shard == ShardId(0));
    cuts.remove(&ShardId(other));
    assert!(replica.cut(cuts).0 > 0, "those that are exact are cut");
}

#[test]
fn an_answer_has_a_most_number_of_deltas() {
    let mut replica = Replica::with_limits(GENESIS, ROOMY);
    replica.done(&join(&[1, 2]));
    let most = u64::from(MAX_DELTAS);
    while replica.latest().num().0 < most + 1 {
        let to = 3 - replica.latest().target(ShardId(9)).0;
        replica.done(&move_shard(9, to));
    }
    for limit in [MAX_DELTAS, MAX_DELTAS + 1, u32::MAX] {
        for (num, expected) in [(2, most - 1), (1, most), (0, most)] {
            let deltas = replica.after(num, limit, None).deltas;
            assert_eq!(deltas.len() as u64, expected);
        }
    }
    let deltas = replica.after(0, MAX_DELTAS - 1, None).deltas;
    assert_eq!(deltas.len() as u64, most - 1);
}

#[test]
fn an_answer_has_a_most_number_of_bytes() {
    let length = 200;
    let two = |count, grow| {
        let mut replica = Replica::with_limits(GENESIS, ROOMY);
        replica.done(&join_long(1, 200, length, 0));
        replica.done(&join_long(1_000, count, length, grow));
        replica
    };
    let bytes = |replica: &Replica| -> usize {
        let each = [0, 1].map(|num| replica.after(num, 1, None).deltas[0].encode().len());
        each.iter().sum()
    };
    let [one, more] = [1, 2].map(|count| bytes(&two(count, 0)));
    let count = 1 + (MAX_ANSWER_BYTES - one) / (more - one);
    let count = count as u64;
    let rest = MAX_ANSWER_BYTES - bytes(&two(count, 0));
    for (grow, expected) in [(rest - 1, 2), (rest, 2), (rest + 1, 1)] {
        let replica = two(count, grow);
        assert_eq!(bytes(&replica) + rest, MAX_ANSWER_BYTES + grow);
        assert_eq!(replica.after(0, 9, None).deltas.len(), expected);
    }
}

#[test]
fn the_ends_of_groups_are_remembered_up_to_a_bound() {
    let mut replica = Replica::new(GENESIS);
    replica.done(&join(&[1]));
    let come_and_go = |replica: &mut Replica, gids: std::ops::Range<u64>| {
        let gids: Vec<u64> = gids.collect();
        replica.done(&join(&gids));
        replica.done(&leave(&gids));
    };
    let most = MAX_DRAINED as u64;
    let first = 2;
    for batch in 0..10 {
        let from = first + batch * most / 10;
        come_and_go(&mut replica, from..from + most / 10);
    }
    let drained = |replica: &Replica| {
        let drained = replica.machine.drained();
        (drained.len(), drained.keys().next().copied())
    };
    assert_eq!(drained(&replica), (MAX_DRAINED, Some(Gid(first))));
    come_and_go(&mut replica, first + most..first + most + 1);
    assert_eq!(drained(&replica), (MAX_DRAINED, Some(Gid(first + 1))));
    assert!(replica.machine.drained().contains_key(&Gid(first + most)));
    replica.restart();
    assert_eq!(drained(&replica), (MAX_DRAINED, Some(Gid(first + 1))));
}

#[test]
fn history_is_kept_up_to_exactly_its_bounds() {
    // Bytes.
    let filled = |limits: HistoryLimits| {
        let mut replica = Replica::with_limits(GENESIS, limits);
        replica.done(&join(&[1, 2]));
        replica.done(&move_shard(9, 1));
        replica
    };
    let roomy = filled(ROOMY);
    let deltas = roomy.after(0, 9, None).deltas;
    let all: usize = deltas.iter().map(|delta| delta.encode().len()).sum();
    for (max_bytes, oldest) in [(all - 1, 1), (all, 0), (all + 1, 0)] {
        let limits = HistoryLimits { max_bytes, ..ROOMY };
        assert_eq!(filled(limits).machine.oldest(), ConfigNum(oldest));
    }
    // People's changes, dropped in batches.
    for (step, oldest) in [(1, [0, 0, 1, 2, 3]), (3, [0, 0, 0, 0, 3])] {
        let keep = 2;
        let mut replica = Replica::with_limits(
            GENESIS,
            HistoryLimits {
                keep,
                step,
                ..ROOMY
            },
        );
        for (gid, oldest) in (1..).zip(oldest) {
            replica.done(&join(&[gid]));
            assert_eq!(replica.machine.oldest(), ConfigNum(oldest), "{step} {gid}");
        }
    }
    // Cuts.
    let (keep_cuts, step) = (2, 1);
    let limits = HistoryLimits {
        keep_cuts,
        step,
        ..ROOMY
    };
    let mut replica = Replica::with_limits(GENESIS, limits);
    replica.done(&join(&[1]));
    replica.settle();
    replica.done(&join(&[2]));
    let config = replica.latest();
    let moving = (0..).zip(config.rows()).filter(|(_, row)| row.is_moving());
    let moving: Vec<u32> = moving.map(|(shard, _)| shard).collect();
    for (shard, oldest) in moving.into_iter().zip([0, 0, 3, 4]) {
        let cut = replica.cut_now(shard);
        assert_eq!(replica.cut([cut]).0, 1);
        assert_eq!(replica.machine.oldest(), ConfigNum(oldest));
    }
}
