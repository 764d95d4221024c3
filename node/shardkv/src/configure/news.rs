//! The changes that led to a configuration, so that a step there looks at these alone.
//!
//! A group that has accepted a configuration is in line with each of its rows: none would change anything here. That stays so whatever
//! else happens to the shards. So a later configuration brings news only for shards whose rows changed since, and the work of a step is
//! that of the changes, however many shards there are.

use std::collections::{BTreeSet, VecDeque};

use types::{ConfigDelta, ConfigNum, Gid, ShardId, ShardRun};

/// The most runs that are kept. With more, a look at all shards costs no more.
const MAX_RUNS: usize = 65_536;

/// The groups and shards that configurations changed, from some configuration on.
#[derive(Clone, Debug, Default)]
pub struct News {
    /// The changes after this configuration are known.
    since: ConfigNum,
    changes: VecDeque<Change>,
    runs: usize,
}

#[derive(Clone, Debug)]
struct Change {
    num: ConfigNum,
    groups: Vec<Gid>,
    runs: Vec<ShardRun>,
}

impl News {
    /// Begins at a whole configuration.
    pub fn since(num: ConfigNum) -> Self {
        Self {
            since: num,
            ..Self::default()
        }
    }

    /// Adds the changes of the next configuration.
    pub fn add(&mut self, delta: &ConfigDelta) {
        let steps = delta.targets.iter().chain(&delta.moves);
        let runs: Vec<ShardRun> = steps.chain(&delta.resets).map(|step| step.run).collect();
        self.runs += runs.len();
        self.changes.push_back(Change {
            num: delta.num,
            groups: delta.groups.keys().copied().collect(),
            runs,
        });
        if self.runs > MAX_RUNS {
            *self = Self::since(delta.num);
        }
    }

    /// Forgets the changes up to a configuration that the group has accepted.
    pub fn forget(&mut self, accepted: ConfigNum) {
        while let Some(first) = self.changes.front().filter(|it| it.num <= accepted) {
            self.runs -= first.runs.len();
            self.since = first.num;
            self.changes.pop_front();
        }
    }

    /// Returns the groups and shards that changed after a configuration; `None` if that isn't known.
    pub(super) fn after(&self, num: ConfigNum) -> Option<(BTreeSet<Gid>, Vec<ShardId>)> {
        if num < self.since {
            return None;
        }
        let changes = || self.changes.iter().filter(|change| change.num > num);
        let groups = changes().flat_map(|change| &change.groups).copied();
        let runs = changes().flat_map(|change| &change.runs);
        let mut shards: Vec<ShardId> = runs.flat_map(|run| run.shards()).collect();
        shards.sort_unstable();
        shards.dedup();
        Some((groups.collect(), shards))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::ShardMove;

    /// The delta to a configuration, with so many runs of targets.
    fn delta(num: u64, runs: usize) -> ConfigDelta {
        let step = |first| ShardMove {
            run: ShardRun {
                first: ShardId(first),
                count: 1,
            },
            from: Gid(1),
            to: Gid(2),
        };
        ConfigDelta {
            num: ConfigNum(num),
            targets: (0..).map(step).take(runs).collect(),
            ..ConfigDelta::default()
        }
    }

    fn known(news: &News, num: u64) -> Option<usize> {
        let after = news.after(ConfigNum(num))?;
        Some(after.1.len())
    }

    #[test]
    fn news_are_kept_up_to_their_limit() {
        let mut news = News::since(ConfigNum(1));
        news.add(&delta(2, 3));
        news.add(&delta(3, MAX_RUNS - 3));
        assert_eq!(
            (known(&news, 0), known(&news, 1)),
            (None, Some(MAX_RUNS - 3))
        );
        assert_eq!(known(&news, 3), Some(0));
        news.add(&delta(4, 1));
        assert_eq!(
            (known(&news, 3), known(&news, 4)),
            (None, Some(0)),
            "one too many"
        );
        // What the group has accepted doesn't count any more.
        news.add(&delta(5, MAX_RUNS));
        news.forget(ConfigNum(4));
        assert_eq!(known(&news, 4), Some(MAX_RUNS));
        news.forget(ConfigNum(5));
        assert_eq!((known(&news, 4), known(&news, 5)), (None, Some(0)));
        news.add(&delta(6, MAX_RUNS));
        assert_eq!(known(&news, 5), Some(MAX_RUNS));
    }
}
