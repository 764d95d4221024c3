//! The progress of moving shards, which `config --wait`, `playground scale` and `bench` show and wait for.
//!
//! A change of the configuration completes in two steps. First the shards that change their owner *arrive*: the new owner
//! serves them. Then the groups *settle*: the old owners have deleted the shards that they gave away, and the controllers
//! know it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use crate::cluster_view::{GroupView, is_settled};
use crate::output::grouped;
use crate::output::size;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use shardkv_client::{ConfigView, Gid, GroupProgress, ShardConfig, ShardId};

/// The progress of the shards that change their owner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MoveProgress {
    /// Number of shards that change their owner.
    pub(crate) to_move: u32,
    /// Number of those shards that the new owner serves.
    pub(crate) moved: u32,
    /// Bytes that have arrived of the shards that are being pulled.
    pub(crate) pulled_bytes: u64,
    /// The groups that still have work to do, as text; empty when there are none.
    pub(crate) waits_for: String,
}

/// Follows shards from just before a change of the configuration.
#[derive(Clone, Debug)]
pub(crate) struct MoveTracker {
    config: ShardConfig,
    /// All shards that changed their owner since the start.
    seen: BTreeSet<ShardId>,
}

impl MoveTracker {
    /// Starts to follow the changes after configuration `before`.
    pub(crate) fn new(before: ShardConfig) -> Self {
        Self {
            config: before,
            seen: BTreeSet::new(),
        }
    }

    /// Adds the shards whose owner differs from the previous configuration, or is to change.
    fn follow(&mut self, now: &ShardConfig) {
        if now.num() == self.config.num() {
            return;
        }
        let rows = self.config.rows().zip(now.rows());
        let moved = (0..)
            .map(ShardId)
            .zip(rows)
            .filter(|(_, (before, now))| before.owner != now.owner || now.is_moving())
            .map(|(shard, _)| shard);
        self.seen.extend(moved);
        self.config = now.clone();
    }

    /// Returns the progress, from the reports of the controllers and the groups, and true if every group has settled.
    /// Shards of a group that did not answer count as not arrived.
    pub(crate) fn look(
        &mut self,
        view: &ConfigView,
        groups: &BTreeMap<Gid, GroupView>,
    ) -> (MoveProgress, bool) {
        let config = &view.config;
        self.follow(config);
        for view in groups.values() {
            self.seen.extend(view.pulling.keys());
        }
        let arrived = |shard: &&ShardId| {
            let view = groups.get(&config.owner(**shard));
            !config.row(**shard).is_moving()
                && view.is_some_and(|view| {
                    view.config_num >= config.num() && !view.pulling.contains_key(shard)
                })
        };
        // When all groups have settled, all shards have arrived, even if a group did not answer.
        let done = is_settled(view);
        let moved = if done {
            self.seen.len()
        } else {
            self.seen.iter().filter(arrived).count()
        };
        let pulled = groups.values().flat_map(|view| view.pulling.values());
        let moving = MoveProgress {
            to_move: count(self.seen.len()),
            moved: count(moved),
            pulled_bytes: pulled.sum(),
            waits_for: behind(config, &view.progress).join(", "),
        };
        (moving, done)
    }
}

/// Lists the groups that have work left, and the work.
fn behind(config: &ShardConfig, progress: &[GroupProgress]) -> Vec<String> {
    let line = |group: &GroupProgress| {
        let known = config.groups().get(&group.gid);
        match known.is_some_and(|known| known.leaving) {
            true => Some(format!("{} to be drained", group.gid)),
            false if group.settled < config.num() => Some(format!("{} to settle", group.gid)),
            false => None,
        }
    };
    progress.iter().filter_map(line).collect()
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl MoveProgress {
    /// Describes the progress in one line.
    pub(crate) fn line(&self) -> String {
        let mut parts = Vec::new();
        if self.to_move > 0 {
            let (moved, to_move) = (self.moved.into(), self.to_move.into());
            parts.push(format!(
                "{} of {} shards moved",
                grouped(moved),
                grouped(to_move)
            ));
        }
        if self.pulled_bytes > 0 {
            parts.push(format!(
                "{} arrived of those under way",
                size(self.pulled_bytes)
            ));
        }
        if !self.waits_for.is_empty() {
            parts.push(format!("waiting for {}", self.waits_for));
        }
        parts.join("; ")
    }
}

/// Interval between lines where there is no terminal to show a bar.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Shows the progress on standard error: as a bar on a terminal, elsewhere as a line from time to time.
pub(crate) struct MoveProgressBar {
    bar: Option<ProgressBar>,
    last: Option<(Instant, MoveProgress)>,
}

impl MoveProgressBar {
    /// Makes a bar that shows nothing before the first call of [`Self::show`].
    pub(crate) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) = ProgressStyle::with_template("{bar:30}  {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, last: None }
    }

    /// Shows the progress.
    pub(crate) fn show(&mut self, moving: &MoveProgress) {
        if let Some(bar) = &self.bar {
            // A bar of length 0 would look complete.
            bar.set_length(moving.to_move.max(1).into());
            bar.set_position(moving.moved.into());
            bar.set_message(moving.line());
            bar.tick();
            return;
        }
        let news = match &self.last {
            None => true,
            Some((at, before)) => before != moving && at.elapsed() >= LINE_EVERY,
        };
        if news {
            eprintln!("{}", moving.line());
            self.last = Some((Instant::now(), moving.clone()));
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use shardkv_client::{ConfigDelta, ConfigNum};

    use super::*;

    fn config(num: u64, owners: &[(u32, u64)]) -> ShardConfig {
        let groups = owners
            .iter()
            .map(|(_, gid)| (Gid(*gid), vec![format!("127.0.0.1:{gid}")]));
        let runs = owners.iter().map(|(count, gid)| (*count, Gid(*gid)));
        ShardConfig::new(ConfigNum(num), groups.collect(), runs).unwrap()
    }

    fn view(config: &ShardConfig, progress: &[GroupProgress]) -> ConfigView {
        ConfigView {
            cluster_id: shardkv_client::ClusterId(1),
            config: config.clone(),
            latest: config.num(),
            oldest: ConfigNum(0),
            progress: progress.to_vec(),
            drained: BTreeMap::new(),
        }
    }

    fn says(num: u64, pulling: &[(u32, u64)]) -> GroupView {
        GroupView {
            config_num: ConfigNum(num),
            pulling: pulling.iter().map(|(s, b)| (ShardId(*s), *b)).collect(),
        }
    }

    fn progress(gid: u64, settled: u64) -> GroupProgress {
        GroupProgress {
            gid: Gid(gid),
            settled: ConfigNum(settled),
            due: ConfigNum(0),
        }
    }

    #[test]
    fn shards_arrive_and_groups_settle() {
        let mut tracker = MoveTracker::new(config(1, &[(8, 1)]));
        let after = config(2, &[(4, 1), (4, 2)]);
        let slow = [progress(1, 1), progress(2, 1)];
        let mut look = |groups: &[(u64, GroupView)], progress: &[GroupProgress]| {
            let groups = groups.iter().map(|(gid, view)| (Gid(*gid), view.clone()));
            let (moving, done) = tracker.look(&view(&after, progress), &groups.collect());
            (moving.line(), done)
        };
        assert_eq!(
            look(&[(1, says(2, &[]))], &slow),
            (
                "0 of 4 shards moved; waiting for g1 to settle, g2 to settle".into(),
                false
            ),
            "g2 says nothing"
        );
        assert_eq!(
            look(&[(2, says(1, &[]))], &slow).0,
            "0 of 4 shards moved; waiting for g1 to settle, g2 to settle",
            "g2 has not heard of it"
        );
        assert_eq!(
            look(&[(2, says(2, &[(5, 2_048), (7, 0)]))], &slow).0,
            "2 of 4 shards moved; 2.0 KiB arrived of those under way; waiting for g1 to settle, g2 to settle"
        );
        let (line, done) = look(&[(2, says(2, &[]))], &[progress(1, 1)]);
        assert_eq!(
            (line.as_str(), done),
            ("4 of 4 shards moved; waiting for g1 to settle", false)
        );
        let settled = [progress(1, 2), progress(2, 2)];
        assert_eq!(
            look(&[(2, says(2, &[]))], &settled),
            ("4 of 4 shards moved".into(), true)
        );
    }

    #[test]
    fn a_leaving_group_is_waited_for_until_it_is_drained() {
        let mut tracker = MoveTracker::new(config(4, &[(1, 1), (1, 2)]));
        let mut after = tracker.config.clone();
        let mut groups = after.groups().clone();
        groups.get_mut(&Gid(2)).unwrap().leaving = true;
        let leave = ConfigDelta::new(&after, &groups, &[Gid(1); 2], after.owners());
        after.apply(&leave).unwrap();
        let groups = BTreeMap::from([(Gid(1), says(5, &[]))]);
        let progress = [progress(1, 5), progress(2, 5)];
        let (moving, done) = tracker.look(&view(&after, &progress), &groups);
        assert_eq!(
            (moving.waits_for.as_str(), moving.moved, done),
            ("g2 to be drained", 0, false)
        );
        assert!(tracker.look(&view(&config(6, &[(2, 1)]), &[]), &groups).1);
    }
}
