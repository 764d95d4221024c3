//! Groups that skip configurations end as those that take each.

use super::*;
use crate::{Chunk, CopyCursor, CopyId, CopyStep, Next, Part, PartNext, Position, SessionClock};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn gid(&mut self) -> Gid {
        Gid(1 + self.below(GIDS.len() as u64))
    }
}

struct World {
    random: Random,
    config: ShardConfig,
    /// All that led there.
    news: News,
    /// Takes each configuration.
    walks: Ownership,
    /// Takes some.
    skips: Ownership,
    time: u64,
    skipped: u64,
    restarted: u64,
    returned: u64,
    emptied: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            config: ShardConfig::empty(SHARDS),
            news: News::default(),
            walks: Ownership::default(),
            skips: Ownership::default(),
            time: 1,
            skipped: 0,
            restarted: 0,
            returned: 0,
            emptied: 0,
        }
    }

    /// Returns true if the shard's owner may change to `to`: the owner serves it, as far as the group has a part in it, and a group
    /// that gets a shard back has deleted it.
    fn may_change(&self, shard: ShardId, to: Gid) -> bool {
        let row = self.config.row(shard);
        let concerns = row.owner == OWN || row.previous == OWN;
        // Also one that nobody had before isn't given on before its owner has taken it up.
        if concerns && row.owner_since > self.walks.config {
            return false;
        }
        match self.walks.state(shard) {
            Some(ShardState::Pulling { .. } | ShardState::Completing { .. }) => false,
            Some(ShardState::Fenced { .. }) => to != OWN,
            Some(ShardState::Serving { .. } | ShardState::Copying { .. }) | None => true,
        }
    }

    /// Returns true if a group may go: it has nothing, is to get nothing, and nothing comes from it.
    fn may_go(&self, gid: Gid, targets: &[Gid], owners: &[Gid]) -> bool {
        let coming = |shard| match self.walks.state(shard) {
            Some(ShardState::Pulling { source, .. } | ShardState::Completing { source, .. }) => {
                *source == gid
            }
            _ => false,
        };
        let gives = |shard| {
            let row = self.config.row(shard);
            row.previous == gid && row.owner == OWN && row.owner_since > self.walks.config
        };
        let holds = owners.contains(&gid) || self.config.owners().contains(&gid);
        gid != OWN
            && !holds
            && !targets.contains(&gid)
            && !shards().any(|shard| coming(shard) || gives(shard))
    }

    /// Makes the next configuration without a group that is gone for good, as the controllers do.
    fn forget(&mut self, gone: Gid) {
        let mut targets = self.config.targets().to_vec();
        let mut owners = self.config.owners().to_vec();
        let mut groups = self.config.groups().clone();
        groups.remove(&gone);
        let members: Vec<Gid> = groups
            .iter()
            .filter(|(_, group)| !group.leaving)
            .map(|(gid, _)| *gid)
            .collect();
        if members.is_empty() {
            return;
        }
        let mut resets = Vec::new();
        for ((shard, target), owner) in shards().zip(&mut targets).zip(&mut owners) {
            let row = self.config.row(shard);
            if *target == gone {
                let at = self.random.below(members.len() as u64);
                *target = members[usize::try_from(at).unwrap()];
            }
            let ahead = row.owner_since > self.walks.config;
            if row.owner == gone {
                let fenced = matches!(
                    self.walks.state(shard),
                    Some(ShardState::Fenced { config, .. }) if *config == row.owner_since
                );
                let returns = row.previous == OWN && (ahead || fenced);
                *owner = if returns { OWN } else { *target };
                self.returned += u64::from(returns);
                resets.push(shard);
            } else if row.previous == gone && row.owner == OWN {
                let pending = (shard, row.owner_since);
                let state = self.walks.state(shard);
                let arrives = matches!(
                    state,
                    Some(ShardState::Pulling { .. } | ShardState::Completing { .. })
                );
                if ahead || arrives || self.walks.pending_deletes.contains_key(&pending) {
                    resets.push(shard);
                    self.emptied += u64::from(arrives);
                }
            }
        }
        let delta = ConfigDelta::new(&self.config, &groups, &targets, &owners);
        let resets = resets.into_iter().collect();
        let delta = delta.with_resets(&self.config, &owners, &resets);
        self.config.apply(&delta).unwrap();
        self.news.add(&delta);
    }

    /// Makes the next configuration.
    fn reconfigure(&mut self) {
        let gone = self.random.gid();
        if gone != OWN && self.config.groups().contains_key(&gone) && self.random.one_in(16) {
            return self.forget(gone);
        }
        let mut targets = self.config.targets().to_vec();
        let mut owners = self.config.owners().to_vec();
        let favourite = self.random.one_in(4).then(|| self.random.gid());
        for ((shard, target), owner) in shards().zip(&mut targets).zip(&mut owners) {
            if *target == Gid::NONE || self.random.one_in(3) {
                *target = favourite.unwrap_or_else(|| self.random.gid());
            }
            let first = *owner == Gid::NONE;
            if first || (self.may_change(shard, *target) && self.random.one_in(6)) {
                *owner = *target;
            }
        }
        let mut groups = self.config.groups().clone();
        for gid in GIDS {
            if self.may_go(gid, &targets, &owners) && self.random.one_in(2) {
                groups.remove(&gid);
                continue;
            }
            let next = self.config.num().next();
            let address = format!("{gid}:{}", 1 + self.random.below(2));
            let group = groups.entry(gid).or_insert_with(|| Group {
                incarnation: Incarnation(next.0),
                ..vec![address.clone()].into()
            });
            group.addresses = vec![address];
            group.leaving = !targets.contains(&gid) && self.random.one_in(2);
        }
        let delta = ConfigDelta::new(&self.config, &groups, &targets, &owners);
        self.config.apply(&delta).unwrap();
        self.news.add(&delta);
    }

    /// Checks that a step is the same, whether all shards are looked at or only those that changed.
    fn check_news(&self, ownership: &Ownership) {
        let step = Configure::to(&self.config, OWN, CONTROLLER, ownership);
        for forgotten in [0, ownership.config.0, self.config.num().0] {
            let mut news = self.news.clone();
            news.forget(ConfigNum(forgotten));
            let by_news = Configure::by_news(&news, &self.config, OWN, CONTROLLER, ownership);
            assert_eq!(by_news, step, "{forgotten}");
        }
    }

    /// Some configurations pass, of which one group takes each, and the other one the last and a few before.
    fn pass(&mut self) {
        self.time += 10;
        let mut walked = self.walks.clone();
        let count = 1 + self.random.below(6);
        for left in (0..count).rev() {
            // What may change depends on the group that lags.
            self.reconfigure();
            self.check_news(&walked);
            self.check_news(&self.skips);
            follow(&mut walked, &self.config, self.time);
            if left == 0 || self.random.one_in(4) {
                follow(&mut self.skips, &self.config, self.time);
            } else {
                self.skipped += 1;
            }
        }
        self.walks = walked;
        // A copy whose target changed away and back is gone at one group, and useless at the other.
        for shard in shards() {
            if let Some(ShardState::Completing { config, copy, .. }) = self.skips.state(shard)
                && let Some(ShardState::Pulling { .. }) = self.walks.state(shard)
            {
                let row = self.config.row(shard);
                assert!(row.target != OWN || row.target_since != copy.since);
                let (config, copy) = (*config, *copy);
                let step = CopyStep::Restart {
                    shard,
                    config,
                    copy,
                };
                take(&mut self.skips, &Step::Copy(step), self.time);
                self.restarted += 1;
            }
        }
        assert_eq!(self.walks, self.skips);
    }

    /// Some of what is under way is done, in both groups.
    fn progress(&mut self) {
        self.time += 10;
        let mut steps = Vec::new();
        for shard in shards() {
            if self.random.one_in(2)
                && let Some(step) = self.next_step(shard)
            {
                steps.push(step);
            }
        }
        for (shard, config) in self.walks.pending_deletes.keys() {
            if self.random.one_in(2) {
                let (shard, config) = (*shard, *config);
                steps.push(Step::Deleted { shard, config });
            }
        }
        for step in steps {
            take(&mut self.walks, &step, self.time);
            take(&mut self.skips, &step, self.time);
        }
    }

    fn next_step(&mut self, shard: ShardId) -> Option<Step> {
        let (ttl_ms, time) = (10_000, LogTime(5));
        let clock = SessionClock {
            horizon: time,
            time,
        };
        Some(match self.walks.state(shard)? {
            ShardState::Pulling { config, after, .. } => Step::Install(Chunk {
                shard,
                config: *config,
                after: after.clone(),
                pairs: Vec::new(),
                sessions: Vec::new(),
                rows: Vec::new(),
                next: Next::Done { clock, ttl_ms },
            }),
            ShardState::Fenced { config, .. } => {
                let config = *config;
                Step::Delete { shard, config }
            }
            ShardState::Completing { copy, cursor, .. } => {
                let next = match cursor {
                    // The base goes first.
                    CopyCursor::Base(_) => PartNext::At(CopyCursor::Page {
                        generation: 1,
                        after: Position::default(),
                    }),
                    CopyCursor::Page { .. } => PartNext::Done { clock, ttl_ms },
                };
                Step::Copy(CopyStep::Take(Part {
                    shard,
                    copy: *copy,
                    after: cursor.clone(),
                    changes: Vec::new(),
                    next,
                }))
            }
            ShardState::Copying { copy, .. } if self.random.one_in(8) => {
                let copy = *copy;
                Step::Copy(CopyStep::Drop { shard, copy })
            }
            ShardState::Copying { .. } | ShardState::Serving { .. } => return None,
        })
    }

    /// Copies of what is planned begin, in both groups.
    fn copy(&mut self) {
        for shard in shards() {
            let planned = self.walks.planned.get(&shard).copied();
            if let Some(planned) = planned.filter(|it| it.target.to == OWN)
                && self.walks.state(shard).is_none()
                && !self.random.one_in(3)
            {
                let step = Step::Copy(CopyStep::Start {
                    shard,
                    source: planned.owner,
                    copy: CopyId {
                        since: planned.target.since,
                        journal: raft::Index(self.time),
                    },
                });
                take(&mut self.walks, &step, self.time);
                take(&mut self.skips, &step, self.time);
            }
        }
    }
}

#[test]
fn a_group_that_skips_configurations_ends_as_one_that_takes_each() {
    let (mut skipped, mut restarted, mut states) = (0, 0, BTreeMap::new());
    let (mut returned, mut emptied) = (0, 0);
    for seed in 0..60 {
        let mut world = World::new(seed);
        for _ in 0..60 {
            world.pass();
            for shard in world.walks.shards.values() {
                let kind = match shard.state {
                    ShardState::Serving { .. } => "serving",
                    ShardState::Pulling { .. } => "pulling",
                    ShardState::Copying { .. } => "copying",
                    ShardState::Completing { .. } => "completing",
                    ShardState::Fenced { .. } => "fenced",
                };
                *states.entry(kind).or_insert(0) += 1;
            }
            world.progress();
            world.copy();
            world.progress();
            assert_eq!(world.walks, world.skips);
        }
        skipped += world.skipped;
        restarted += world.restarted;
        returned += world.returned;
        emptied += world.emptied;
    }
    assert!(returned > 20 && emptied > 20, "{returned} {emptied}");
    assert!(skipped > 1_000 && restarted > 3, "{skipped} {restarted}");
    assert!(
        states.len() == 5 && states.values().all(|it| *it > 100),
        "{states:?}"
    );
}
