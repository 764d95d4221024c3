//! The scenarios of MIT 6.5840's `shardctrler` tests (Basic, Multi), by name, on the machine: three replicas apply one
//! log, in which concurrent clerks' operations lie in a random order with retries in between. The simulator runs clerks
//! against a whole controller group.
//!
//! These look at targets where the originals look at owners: owners follow when groups report copies, and there are none here.
//! One scenario differs on purpose: there the last group may leave, here it is refused.

// The numbers here are small, and helpers of tests may panic as tests do.
#![allow(clippy::cast_possible_truncation, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use common::{GENESIS, Random, Replica, assert_balanced, leave, move_shard};
use shardctrler::{Change, Command, CtrlError, GroupProgress, Response, SessionRef};
use types::{ClientId, ConfigNum, Gid, LogTime, Sequence, ShardConfig, ShardId};

const SHARDS: u32 = 10;

/// Three replicas of one log, each of which takes it in batches of its own.
struct Controllers {
    replicas: Vec<Replica>,
    log: Vec<Bytes>,
}

impl Controllers {
    fn new() -> Self {
        let genesis = shardctrler::Genesis {
            max_sessions_per_shard: 100,
            ..GENESIS
        };
        Self {
            replicas: (0..3).map(|_| Replica::new(genesis)).collect(),
            log: Vec::new(),
        }
    }

    /// Puts a change into the log: what the leader answered.
    fn submit(&mut self, session: Option<SessionRef>, change: Change) -> Response {
        let operation = Command { session, change }.encode();
        self.log.push(operation.clone());
        self.replicas[0].apply_bytes(operation)
    }

    #[track_caller]
    fn changed(&mut self, change: Change) -> Arc<ShardConfig> {
        let response = self.submit(None, change);
        assert!(
            matches!(response, Response::Changed { changed: true, .. }),
            "{response:?}"
        );
        self.query()
    }

    fn query(&self) -> Arc<ShardConfig> {
        self.replicas[0].latest()
    }

    /// Clerks that each do their changes in order, and all at the same time; each is sent up to three times.
    fn concurrently(&mut self, seed: u64, clerks: Vec<Vec<Change>>) {
        let mut random = Random(seed);
        let mut waiting: Vec<(u64, Vec<Change>)> = (1..).zip(clerks).collect();
        for (_, changes) in &mut waiting {
            changes.reverse();
        }
        let mut sequences: BTreeMap<u64, u64> = BTreeMap::new();
        while !waiting.is_empty() {
            let at = random.below(waiting.len() as u64) as usize;
            let (clerk, changes) = &mut waiting[at];
            let Some(change) = changes.pop() else {
                waiting.remove(at);
                continue;
            };
            let sequence = sequences.entry(*clerk).or_default();
            *sequence += 1;
            let session = Some(SessionRef {
                client: ClientId {
                    birth: LogTime(1_000_000),
                    nonce: *clerk,
                },
                sequence: Sequence(*sequence),
                acked_below: Sequence(*sequence),
            });
            let first = self.submit(session, change.clone());
            assert!(matches!(first, Response::Changed { .. }), "{first:?}");
            for _ in 0..random.below(3) {
                assert_eq!(self.submit(session, change.clone()), first);
            }
        }
    }

    /// The configuration is of these groups, even, and the same as what a query for its number tells.
    #[track_caller]
    fn check(&self, gids: &[u64]) {
        let config = self.query();
        let expected: Vec<Gid> = gids.iter().copied().map(Gid).collect();
        let found: Vec<Gid> = config.members().collect();
        assert_eq!(found, expected);
        assert_balanced(&config);
        let num = config.num().0;
        assert_eq!(self.replicas[0].config(Some(num)).config, config);
    }

    /// "Check Same config on servers": the others apply the log, in one batch and in pieces with restarts.
    #[track_caller]
    fn check_same_on_all(&mut self, seed: u64) {
        let mut random = Random(seed);
        self.replicas[1].batch(&self.log);
        let mut rest = self.log.as_slice();
        while !rest.is_empty() {
            let (batch, later) = rest.split_at(random.below(rest.len() as u64 + 1) as usize);
            self.replicas[2].batch(batch);
            rest = later;
            if random.one_in(3) {
                self.replicas[2].restart();
            }
        }
        let configs: Vec<_> = self.replicas.iter().map(Replica::latest).collect();
        assert_eq!(configs[0], configs[1]);
        assert_eq!(configs[0], configs[2]);
        let stored = self.replicas[0].stored();
        assert_eq!(self.replicas[1].stored(), stored);
        assert_eq!(self.replicas[2].stored(), stored);
    }
}

fn join(groups: &[(u64, &[&str])]) -> Change {
    let group = |(gid, names): &(u64, &[&str])| {
        let addresses = names.iter().map(|name| format!("{name}:7000")).collect();
        (Gid(*gid), addresses)
    };
    let groups = groups.iter().map(group).collect();
    Change::Join { groups }
}

fn join_one(gid: u64) -> Change {
    join(&[(gid, &[&format!("{gid}a")])])
}

/// Every shard whose target was one of these groups in the one configuration has it in the other.
#[track_caller]
fn assert_kept(gids: &[u64], before: &ShardConfig, after: &ShardConfig) {
    for (shard, target) in (0..).map(ShardId).zip(before.targets()) {
        if gids.contains(&target.0) {
            assert_eq!(after.target(shard), *target, "{shard} moved without need");
        }
    }
}

/// Basic.
mod basic {
    use super::*;

    #[test]
    fn basic_leave_join_and_historical_queries() {
        let mut ctl = Controllers::new();
        let mut history = vec![ctl.query()];
        assert!(history[0].groups().is_empty());
        let mut step = |ctl: &mut Controllers, change, gids: &[u64]| {
            history.push(ctl.changed(change));
            ctl.check(gids);
        };
        step(&mut ctl, join(&[(1, &["x", "y", "z"])]), &[1]);
        step(&mut ctl, join(&[(2, &["a", "b", "c"])]), &[1, 2]);
        let config = ctl.query();
        assert_eq!(config.addresses(Gid(1)), ["x:7000", "y:7000", "z:7000"]);
        assert_eq!(config.addresses(Gid(2)), ["a:7000", "b:7000", "c:7000"]);
        step(&mut ctl, leave(&[1]), &[2]);
        let last = ctl.submit(None, leave(&[2]));
        assert_eq!(last, Response::Refused(CtrlError::LastGroup));
        ctl.check(&[2]);
        // Historical queries, before and after each server restarts.
        ctl.check_same_on_all(1);
        for replica in &mut ctl.replicas {
            for _ in 0..2 {
                for (num, config) in (0..).zip(&history) {
                    assert_eq!(replica.config(Some(num)).config, *config);
                }
                replica.restart();
            }
        }
    }

    #[test]
    fn basic_move() {
        let mut ctl = Controllers::new();
        ctl.changed(join(&[(503, &["3a", "3b", "3c"])]));
        ctl.changed(join(&[(504, &["4a", "4b", "4c"])]));
        let target = |shard| if shard < SHARDS / 2 { 503 } else { 504 };
        for shard in 0..SHARDS {
            let before = ctl.query();
            ctl.submit(None, move_shard(shard, target(shard)));
            let grew = ctl.query().num() > before.num();
            assert_eq!(grew, before.target(ShardId(shard)).0 != target(shard));
        }
        let after = ctl.query();
        for shard in 0..SHARDS {
            assert_eq!(after.target(ShardId(shard)).0, target(shard));
        }
        ctl.changed(leave(&[503]));
        ctl.check(&[504]);
    }

    #[test]
    fn basic_concurrent_leave_join() {
        for seed in 0..50 {
            let mut ctl = Controllers::new();
            let gids: Vec<u64> = (0..10).map(|i| i * 10 + 100).collect();
            let clerk = |gid: &u64| {
                let (a, b) = (format!("s{gid}a"), format!("s{gid}b"));
                vec![
                    join(&[(gid + 1000, &[&a])]),
                    join(&[(*gid, &[&b])]),
                    leave(&[gid + 1000]),
                ]
            };
            ctl.concurrently(seed, gids.iter().map(clerk).collect());
            // In whatever order they came: the same groups, and even.
            ctl.check(&gids);
            ctl.check_same_on_all(seed);
        }
    }

    #[test]
    fn basic_minimal_transfers_after_joins_and_leaves() {
        let mut ctl = Controllers::new();
        let gids: Vec<u64> = (0..10).map(|i| i * 10 + 100).collect();
        for gid in &gids {
            ctl.changed(join_one(*gid));
        }
        let before = ctl.query();
        let more: Vec<u64> = (0..5).map(|i| gids[9] + 1 + i).collect();
        for gid in &more {
            ctl.changed(join_one(*gid));
        }
        let joined = ctl.query();
        assert_kept(&gids, &before, &joined);
        for gid in &more {
            ctl.changed(leave(&[*gid]));
        }
        assert_kept(&gids, &joined, &ctl.query());
        ctl.check(&gids);
    }
}

/// Multi.
mod multi {
    use super::*;

    #[test]
    fn multi_group_join_leave() {
        let mut ctl = Controllers::new();
        ctl.changed(join(&[(1, &["x", "y", "z"]), (2, &["a", "b", "c"])]));
        ctl.check(&[1, 2]);
        ctl.changed(join(&[(3, &["j", "k", "l"])]));
        ctl.check(&[1, 2, 3]);
        let config = ctl.query();
        assert_eq!(config.addresses(Gid(1)), ["x:7000", "y:7000", "z:7000"]);
        assert_eq!(config.addresses(Gid(2)), ["a:7000", "b:7000", "c:7000"]);
        assert_eq!(config.addresses(Gid(3)), ["j:7000", "k:7000", "l:7000"]);
        ctl.changed(leave(&[1, 3]));
        ctl.check(&[2]);
        assert_eq!(
            ctl.query().addresses(Gid(2)),
            ["a:7000", "b:7000", "c:7000"]
        );
        ctl.check_same_on_all(2);
    }

    #[test]
    fn multi_concurrent_leave_join() {
        for seed in 0..50 {
            let mut ctl = Controllers::new();
            let gids: Vec<u64> = (0..10).map(|i| i + 1000).collect();
            let clerk = |gid: &u64| {
                let (a, b, c) = (format!("{gid}a"), format!("{gid}b"), format!("{gid}c"));
                vec![
                    join(&[(*gid, &[&a]), (gid + 1000, &[&b]), (gid + 2000, &[&c])]),
                    leave(&[gid + 1000, gid + 2000]),
                ]
            };
            ctl.concurrently(seed, gids.iter().map(clerk).collect());
            ctl.check(&gids);
            ctl.check_same_on_all(seed);
        }
    }

    #[test]
    fn multi_minimal_transfers_after_joins_and_leaves() {
        let mut ctl = Controllers::new();
        let all = |gids: &[u64]| {
            let names: Vec<String> = gids.iter().map(|gid| format!("{gid}a")).collect();
            let names: Vec<[&str; 1]> = names.iter().map(|name| [name.as_str()]).collect();
            let pairs = gids
                .iter()
                .copied()
                .zip(names.iter().map(<[&str; 1]>::as_slice));
            join(&pairs.collect::<Vec<_>>())
        };
        let gids: Vec<u64> = (0..5).map(|i| i + 1000).collect();
        ctl.changed(all(&gids));
        let before = ctl.query();
        let more: Vec<u64> = (0..5).map(|i| i + 2000).collect();
        let joined = ctl.changed(all(&more));
        // New groups take from the old ones, and nothing goes between the old ones.
        for (shard, target) in (0..).map(ShardId).zip(before.targets()) {
            let now = joined.target(shard);
            assert!(
                now == *target || more.contains(&now.0),
                "{shard} moved without need"
            );
        }
        ctl.check(&[gids.clone(), more.clone()].concat());
        let left = ctl.changed(leave(&more));
        assert_kept(&gids, &joined, &left);
        ctl.check(&gids);
        ctl.check_same_on_all(3);
    }

    #[test]
    fn multi_retries_do_not_repeat_leaves_of_groups_that_came_back() {
        let mut ctl = Controllers::new();
        ctl.changed(join(&[(1, &["a"]), (2, &["b"])]));
        let session = |sequence| {
            Some(SessionRef {
                client: ClientId {
                    birth: LogTime(1_000_000),
                    nonce: 1,
                },
                sequence: Sequence(sequence),
                acked_below: Sequence(1),
            })
        };
        let left = ctl.submit(session(1), leave(&[2]));
        ctl.submit(session(2), join(&[(2, &["b"])]));
        assert_eq!(ctl.submit(session(1), leave(&[2])), left);
        ctl.check(&[1, 2]);
        let progress = ctl.replicas[0].machine.progress();
        let expected = GroupProgress {
            settled: ConfigNum(0),
            held: ConfigNum(0),
            due: ConfigNum(1),
        };
        assert_eq!(progress[&Gid(2)], expected);
    }
}
