//! Sources that are slow, and sources that don't answer: none delays the shards of another.

use std::collections::BTreeMap;

use shardkv::mover::{Action, ActionId, Mover, Outcome as ActionOutcome};
use shardkv::{
    Chunk, Configure, Cursor, Genesis, MoverOptions, Next, Response, SessionClock, ShardState, Step,
};
use types::{ClusterId, ConfigDelta, ConfigNum, Gid, LogTime, ShardConfig, ShardId};

use crate::common::{Replica, SHARDS_GENESIS};
use crate::stage::failed;

const CONTROLLER: ClusterId = ClusterId(0xc0);
const SELF: Gid = Gid(1);
const HEALTHY: Gid = Gid(1_000);
/// The times until a step is applied, and until a source has deleted a shard or the controllers took a report.
const LOG_MS: u64 = 1;
const CALL_MS: u64 = 2;

/// A group that gets all shards. Each is one empty chunk.
struct World {
    replica: Replica,
    mover: Mover,
    /// The source of each shard.
    sources: Vec<Gid>,
    outcomes: BTreeMap<(u64, ActionId), ActionOutcome>,
    pulls: u32,
}

impl World {
    fn new(sources: Vec<Gid>) -> Self {
        let shards = u32::try_from(sources.len()).unwrap();
        let genesis = Genesis {
            shards,
            ..SHARDS_GENESIS
        };
        let mut replica = Replica::new(genesis);
        let gids = sources.iter().copied().chain([SELF]);
        let groups: BTreeMap<Gid, Vec<String>> =
            gids.map(|gid| (gid, vec![format!("{gid}:1")])).collect();
        let mut config = ShardConfig::empty(shards);
        for owners in [&sources, &vec![SELF; sources.len()]] {
            let delta = ConfigDelta::between(&config, &groups, owners);
            config.apply(&delta).unwrap();
            let ownership = replica.machine.ownership();
            let step = Configure::to(&config, SELF, CONTROLLER, &ownership);
            let accepted = replica.step(2, &Step::Configure(step));
            assert_eq!(accepted, Response::Stepped);
        }
        Self {
            replica,
            mover: Mover::new(SELF, shards, MoverOptions::default()),
            sources,
            outcomes: BTreeMap::new(),
            pulls: 0,
        }
    }

    /// Runs until all shards of `wanted` are served, and returns the time that it took, or fails after `limit`
    /// milliseconds. `answer` gives the time until a source answers a pull, and true if it sends the chunk.
    fn run(&mut self, wanted: Gid, limit: u64, answer: impl Fn(Gid) -> (u64, bool)) -> u64 {
        for now in 0..limit {
            while let Some(first) = self.outcomes.first_entry() {
                let (at, id) = *first.key();
                if at > now {
                    break;
                }
                self.mover.ended(id, first.remove());
            }
            loop {
                let ownership = self.replica.machine.ownership();
                let actions = self.mover.poll(now, Some(&ownership));
                if actions.is_empty() {
                    break;
                }
                for (id, action) in actions {
                    if let Some((delay, outcome)) = self.carry_out(now, action, &answer) {
                        self.outcomes.insert((now + delay, id), outcome);
                    }
                }
            }
            if self.serves_all_of(wanted) {
                return now;
            }
        }
        panic!("not all shards of {wanted} are served after {limit} ms");
    }

    fn carry_out(
        &mut self,
        now: u64,
        action: Action,
        answer: impl Fn(Gid) -> (u64, bool),
    ) -> Option<(u64, ActionOutcome)> {
        Some(match action {
            Action::FetchConfigs { .. } => return None,
            Action::Pull {
                shard,
                config,
                source,
                after,
                ..
            } => {
                assert_eq!(after, Cursor::default());
                self.pulls += 1;
                let (delay, is_healthy) = answer(source);
                if is_healthy {
                    (delay, ActionOutcome::Pulled(empty(shard, config)))
                } else {
                    (delay, failed("connecting took too long"))
                }
            }
            Action::Propose(step) => match self.replica.step(now + 10, &step) {
                Response::Stepped => (LOG_MS, ActionOutcome::Done),
                other => (LOG_MS, failed(&format!("{other:?}"))),
            },
            Action::Delete { .. } | Action::Report { .. } => (CALL_MS, ActionOutcome::Done),
            Action::Copy { .. } | Action::Journal { .. } | Action::ReportCut { .. } => {
                panic!("no move is planned")
            }
        })
    }

    fn serves_all_of(&self, wanted: Gid) -> bool {
        let ownership = self.replica.machine.ownership();
        let serves = |shard| {
            let state = ownership.state(ShardId(shard));
            matches!(state, Some(ShardState::Serving { .. }))
        };
        let mut shards = (0..).zip(&self.sources);
        shards.all(|(shard, source)| *source != wanted || serves(shard))
    }
}

fn empty(shard: ShardId, config: ConfigNum) -> Chunk {
    let clock = SessionClock {
        horizon: LogTime(1),
        time: LogTime(1),
    };
    Chunk {
        shard,
        config,
        after: Cursor::default(),
        pairs: Vec::new(),
        sessions: Vec::new(),
        rows: Vec::new(),
        next: Next::Done {
            clock,
            ttl_ms: 10_000,
        },
    }
}

#[test]
fn slow_sources_are_all_drained_at_their_pace_without_a_wasted_request() {
    let per_source = 8;
    for latency in [300, 600, 900, 2_000] {
        for count in [1_u64, 2, 3, 5, 8] {
            let gids = (2..2 + count).map(Gid);
            let sources = gids.clone().flat_map(|gid| vec![gid; per_source]);
            let mut world = World::new(sources.collect());
            // The first alone, then two at a time.
            let turns = 1 + (per_source as u64 - 1).div_ceil(2);
            let ideal = turns * latency;
            for gid in gids {
                let took = world.run(gid, 2 * ideal, |_| (latency, true));
                assert!(took <= ideal + 100, "{took} ms, ideal {ideal} ms");
            }
            assert_eq!(world.pulls, u32::try_from(world.sources.len()).unwrap());
        }
    }
}

#[test]
fn one_healthy_group_is_as_fast_next_to_a_hundred_dead_ones_as_alone() {
    let time = |dead: u64, silence: u64| {
        let mut sources: Vec<Gid> = (2..2 + dead).map(Gid).collect();
        sources.extend(vec![HEALTHY; 50]);
        World::new(sources).run(HEALTHY, 5_000, |source| match source {
            HEALTHY => (CALL_MS, true),
            _ => (silence, false),
        })
    };
    for silence in [1, 1_000, 5_000] {
        let alone = time(0, silence);
        for dead in [1, 12, 24, 128] {
            assert_eq!(time(dead, silence), alone, "{dead} dead, {silence} ms");
        }
    }
}

#[test]
fn a_slow_group_delays_no_other() {
    let slow = Gid(2);
    let mut sources = vec![slow; 50];
    sources.extend(vec![HEALTHY; 50]);
    let answer = |source| match source {
        HEALTHY => (CALL_MS, true),
        _ => (600, true),
    };
    let mut world = World::new(sources);
    let healthy = world.run(HEALTHY, 1_000, answer);
    assert!(healthy < 500, "{healthy} ms");
    let mut alone = World::new(vec![HEALTHY; 50]);
    assert_eq!(alone.run(HEALTHY, 1_000, answer), healthy);
}
