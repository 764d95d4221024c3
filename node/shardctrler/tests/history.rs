//! Tests of the history: its limits, and the answers to callers that lack configurations.

// Helpers of tests may panic as tests do.
#![allow(clippy::indexing_slicing, clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;

use common::{GENESIS, Replica, join, leave, move_shard, moves, report, session};
use raft::StoreError;
use replica::memory::MemoryState;
use replica::{Applied, StateMachine, StateStore, WriteBatch};
use shardctrler::{CtrlError, Genesis, HistoryLimits, MAX_DELTAS, Query, Response, Shardctrler};
use types::{ConfigNum, Gid, ShardConfig, ShardId};

/// Groups 1, 2 and 3 have joined, as configuration 1.
fn three() -> Replica {
    let mut replica = Replica::new(GENESIS);
    assert_eq!(replica.done(&join(&[1, 2, 3])), (1, 10));
    replica
}

/// The same, and they have taken all shards up.
fn three_settled() -> Replica {
    let mut replica = three();
    replica.settle();
    replica
}

/// Bounds that a test reaches.
const TINY: HistoryLimits = HistoryLimits {
    keep: 2,
    keep_cuts: 2,
    step: 2,
    max_bytes: 1 << 20,
};

#[test]
fn questions_about_the_future_and_the_forgotten_are_refused() {
    let mut replica = Replica::with_limits(GENESIS, TINY);
    for gid in 1..=9 {
        replica.done(&join(&[gid]));
    }
    let (latest, oldest) = (ConfigNum(9), replica.machine.oldest());
    assert_eq!(replica.machine.latest().num(), latest);
    assert!(oldest > ConfigNum(1) && oldest <= ConfigNum(7), "{oldest}");
    for num in [ConfigNum(10), ConfigNum(u64::MAX)] {
        let error = Response::Refused(CtrlError::Future { num, latest });
        assert_eq!(replica.query(&Query::Config { num: Some(num) }), error);
        let (limit, gid) = (1, None);
        assert_eq!(replica.query(&Query::After { num, limit, gid }), error);
    }
    let num = ConfigNum(oldest.0 - 1);
    let error = Response::Refused(CtrlError::Compacted { num, oldest });
    assert_eq!(replica.query(&Query::Config { num: Some(num) }), error);
    let answer = replica.config(Some(oldest.0));
    assert_eq!((answer.latest, answer.oldest), (latest, oldest));
    assert_eq!(answer.config.groups().len() as u64, oldest.0);
    let news = report(1, 10);
    let error = CtrlError::Future {
        num: ConfigNum(10),
        latest,
    };
    assert_eq!(replica.refused(&news), error);
}

#[test]
fn no_group_holds_history_back() {
    let mut replica = Replica::with_limits(GENESIS, TINY);
    replica.done(&join(&[1, 2]));
    for turn in 0..40 {
        replica.done(&move_shard(9, 1 + turn % 2));
    }
    assert_eq!(replica.machine.latest().num(), ConfigNum(41));
    assert!(replica.machine.oldest() >= ConfigNum(38));
    let settled = replica.machine.progress()[&Gid(2)].settled;
    assert_eq!(settled, ConfigNum(0), "it was never heard of");
    replica.restart();
    replica.done(&move_shard(0, 2));
    // It takes the latest, and has missed nothing.
    let configs = replica.after(0, 9, Some(2));
    assert_eq!(configs.full, Some(replica.latest()));
    assert_eq!(configs.settled, ConfigNum(0));
    replica.arrive();
    assert_eq!(replica.latest().moving(), 0);
}

#[test]
fn history_is_bounded_in_bytes_too() {
    let first = 100;
    let limits = HistoryLimits {
        keep: 1_000,
        step: 1_000,
        max_bytes: first + 40,
        ..TINY
    };
    let mut replica = Replica::with_limits(GENESIS, limits);
    replica.done(&join(&[1, 2]));
    let size = |replica: &Replica, num| {
        let deltas = replica.after(num, 1, None).deltas;
        deltas[0].encode().len()
    };
    assert!(size(&replica, 0) <= first);
    for turn in 0..30 {
        replica.done(&move_shard(9, 1 + turn % 2));
        let (oldest, latest) = (replica.machine.oldest().0, turn + 2);
        let kept: usize = (oldest..latest).map(|num| size(&replica, num)).sum();
        assert!(kept <= limits.max_bytes);
        assert!(latest - oldest >= 2, "not more than it must");
    }
    assert!(replica.machine.oldest() > ConfigNum(10));
    // One that is too large by itself leaves the latest alone.
    replica.done(&join(&[3, 4, 5, 6, 7, 8]));
    assert_eq!(replica.machine.oldest(), replica.machine.latest().num());
    assert!(replica.after(31, 9, None).full.is_some());
    replica.restart();
    replica.done(&move_shard(0, 3));
    assert_eq!(replica.after(32, 9, None).deltas.len(), 1);
}

#[test]
fn people_find_the_recent_past() {
    let mut replica = Replica::new(GENESIS);
    let keep = HistoryLimits::default().keep;
    replica.done(&join(&[1, 2]));
    replica.settle();
    for turn in 0..3 * keep {
        let to = u64::from(replica.latest().target(ShardId(0)) == Gid(1)) + 1;
        replica.done(&move_shard(0, to));
        replica.settle();
        let (latest, oldest) = (turn + 2, replica.machine.oldest().0);
        assert!(oldest <= latest.saturating_sub(keep));
        assert!(latest - oldest < keep + HistoryLimits::default().step);
        assert_eq!(replica.config(Some(oldest)).config.num().0, oldest);
    }
    assert!(replica.machine.oldest().0 > keep);
}

#[test]
fn deltas_lead_from_what_one_has_to_the_latest() {
    let mut replica = three();
    replica.done(&join(&[4]));
    replica.done(&leave(&[1]));
    for limit in [1, 2, 3, u32::MAX] {
        let configs = replica.after(0, limit, None);
        assert_eq!(configs.full, None);
        assert_eq!(configs.latest, ConfigNum(3));
        assert_eq!(configs.deltas.len() as u64, u64::from(limit).min(3));
        let mut mine = ShardConfig::empty(10);
        for delta in &configs.deltas {
            mine.apply(delta).unwrap();
            assert_eq!(mine, *replica.config(Some(mine.num().0)).config);
        }
    }
    assert!(replica.after(3, 9, None).deltas.is_empty());
    assert!(replica.after(1, 0, None).deltas.is_empty());
}

#[test]
fn one_who_is_too_far_behind_gets_the_oldest_whole() {
    let mut replica = Replica::with_limits(GENESIS, TINY);
    for gid in 1..=8 {
        replica.done(&join(&[gid]));
        replica.settle();
    }
    assert_eq!(replica.machine.latest().num(), ConfigNum(8));
    let oldest = replica.machine.oldest().0;
    for num in 0..oldest {
        let configs = replica.after(num, MAX_DELTAS, None);
        let mut mine = (*configs.full.unwrap()).clone();
        assert_eq!(mine.num().0, oldest);
        for delta in &configs.deltas {
            mine.apply(delta).unwrap();
        }
        assert_eq!(mine, *replica.latest());
    }
    assert_eq!(replica.after(oldest, MAX_DELTAS, None).full, None);
}

/// Disks are new, the gid isn't: what its predecessor did must not be done again.
#[test]
fn a_group_that_has_nothing_begins_at_the_latest() {
    let mut replica = three_settled();
    replica.done(&leave(&[2]));
    replica.arrive();
    let latest = replica.machine.latest().num();
    assert_eq!(latest, ConfigNum(4), "targets, owners, and one without it");
    // It isn't part of the cluster, and owes nothing.
    let configs = replica.after(0, 9, Some(2));
    assert_eq!(configs.full, Some(replica.latest()));
    assert!(configs.deltas.is_empty());
    assert_eq!((configs.latest, configs.settled), (latest, latest));
    replica.done(&join(&[4]));
    replica.done(&join(&[2]));
    replica.done(&leave(&[4]));
    let configs = replica.after(0, 9, Some(2));
    let full = configs.full.unwrap();
    assert_eq!(full, replica.latest());
    assert!(configs.deltas.is_empty());
    assert_eq!(
        configs.settled,
        ConfigNum(5),
        "before it joined, there was nothing for it to do"
    );
    assert!(full.owned_by(Gid(2)).is_empty());
    // A group that has something goes on with the deltas, as other callers do from the oldest.
    let configs = replica.after(1, 9, Some(2));
    assert_eq!((configs.full, configs.deltas.len()), (None, 6));
    assert_eq!(configs.settled, ConfigNum(5));
    let configs = replica.after(0, 9, None);
    assert_eq!((configs.full, configs.deltas.len()), (None, 7));
    assert_eq!(configs.settled, configs.latest, "no group");
}

/// The group can tell: it has settled the configuration that gave it the shards that it owns.
#[test]
fn a_group_that_lost_its_disks_learns_what_it_has_settled() {
    let replica = three_settled();
    let configs = replica.after(0, 9, Some(2));
    let full = configs.full.unwrap();
    let rows = full.rows().filter(|row| row.owner == Gid(2));
    let since: Vec<ConfigNum> = rows.map(|row| row.owner_since).collect();
    assert!(!since.is_empty());
    assert!(since.into_iter().all(|since| since <= configs.settled));
}

#[test]
fn a_group_of_the_first_configuration_has_settled_nothing() {
    let replica = three();
    let configs = replica.after(0, 9, Some(1));
    assert_eq!(configs.full, Some(replica.latest()));
    assert!(configs.deltas.is_empty());
    assert_eq!(configs.settled, ConfigNum(0));
    let replica = Replica::new(GENESIS);
    let configs = replica.after(0, 9, Some(1));
    assert_eq!((configs.full, configs.settled), (None, ConfigNum(0)));
}

#[test]
fn a_group_that_is_too_far_behind_gets_the_latest_whole() {
    let mut replica = Replica::with_limits(GENESIS, TINY);
    for gid in 1..=8 {
        replica.done(&join(&[gid]));
    }
    let oldest = replica.machine.oldest().0;
    assert!(oldest > 2);
    for num in 0..oldest {
        let configs = replica.after(num, MAX_DELTAS, Some(1));
        assert_eq!(configs.full, Some(replica.latest()));
        assert!(configs.deltas.is_empty());
    }
    let configs = replica.after(oldest, MAX_DELTAS, Some(1));
    assert_eq!(
        (configs.full, configs.deltas.len() as u64),
        (None, 8 - oldest)
    );
}

#[test]
fn answers_end_before_they_are_too_large() {
    let genesis = Genesis {
        shards: 100_000,
        ..GENESIS
    };
    let mut replica = Replica::new(genesis);
    // Neighbours have different owners, so that each shard is a run of its own.
    replica.done(&join(&[1, 2]));
    let mut total = 0;
    for turn in 0..6 {
        let gids: Vec<u64> = (10..310).map(|gid| gid + 300 * turn).collect();
        let before = replica.machine.latest();
        replica.done(&join(&gids));
        if turn > 0 {
            let gone: Vec<u64> = gids.iter().map(|gid| gid - 300).collect();
            replica.done(&leave(&gone));
        }
        total += moves(before.targets(), replica.machine.latest().targets());
    }
    assert!(total > 100_000);
    let (mut num, mut asked) = (0, 0);
    let latest = replica.machine.latest().num().0;
    while num < latest {
        let deltas = replica.after(num, MAX_DELTAS, None).deltas;
        assert!(!deltas.is_empty());
        let bytes: usize = deltas.iter().map(|delta| delta.encode().len()).sum();
        assert!(deltas.len() == 1 || bytes <= shardctrler::MAX_ANSWER_BYTES);
        num += deltas.len() as u64;
        asked += 1;
    }
    assert!(
        asked < latest,
        "{asked} answers for {latest} configurations"
    );
}

#[test]
fn records_of_another_version_are_not_damaged() {
    let mut replica = Replica::with_limits(GENESIS, TINY);
    replica.done(&join(&[1, 2]));
    replica.settle();
    replica.done(&move_shard(0, 2));
    replica.arrive();
    replica.done(&leave(&[2]));
    replica.arrive();
    replica.apply(session(replica.time, 1, 1), join(&[3]));
    let mut seen = BTreeSet::new();
    for ((table, key), record) in replica.state.pairs() {
        let Some((version, rest)) = record.split_first() else {
            continue;
        };
        let kind = String::from_utf8_lossy(key);
        let kind = kind.split('/').nth(1).unwrap_or("session").to_owned();
        for (other, is_damaged) in [(0, true), (version + 1, false), (u8::MAX, false)] {
            let mut batch = WriteBatch::default();
            for ((table, key), record) in replica.state.pairs() {
                batch.put(*table, key.clone(), record.clone());
            }
            batch.put(*table, key.clone(), [&[other], rest].concat().into());
            let mut state = MemoryState::new();
            state.commit(batch, Applied::default()).unwrap();
            let found = match Shardctrler::with_limits(TINY).reload(&state) {
                Err(StoreError::Damaged(_)) => Some(true),
                Err(StoreError::OtherVersion(_)) => Some(false),
                _ => None,
            };
            assert_eq!(found, Some(is_damaged), "{kind} of version {other}");
        }
        seen.insert(kind);
    }
    let kinds = ["delta", "drained", "genesis", "group", "oldest", "session"];
    assert_eq!(seen, kinds.map(str::to_owned).into());
}
