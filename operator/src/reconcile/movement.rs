//! Detects that shards have stopped moving, from the times of observed movements. Pure: the caller passes the time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::store::View;

/// Minimum time without any movement that counts as a stall.
const SHORTEST_STALL: Duration = Duration::from_mins(1);
/// A stall is this many times the usual time that a shard takes.
const TIMES_USUAL: u32 = 3;

/// Tracks the last movement and the usual time between arrivals.
#[derive(Debug, Default)]
pub(super) struct Movement {
    last: Option<Mark>,
    /// Usual time from one arrival to the next.
    usual: Option<Duration>,
}

#[derive(Debug)]
struct Mark {
    num: u64,
    moving: u32,
    settled: BTreeMap<u64, u64>,
    at: Instant,
}

impl Movement {
    /// Records an observation. Returns the groups that aren't done if shards are to move and nothing has moved for too
    /// long.
    pub(super) fn observe(&mut self, view: &View, now: Instant) -> Option<BTreeSet<u64>> {
        let behind = behind(view);
        if behind.is_empty() && view.moving == 0 {
            self.last = None;
            return None;
        }
        let plan = &view.plan;
        let still = self.last.as_ref().filter(|last| {
            (last.num, last.moving) == (plan.num, view.moving) && last.settled == plan.settled
        });
        if let Some(still) = still {
            let usual = self.usual.unwrap_or_default();
            let patience = usual.saturating_mul(TIMES_USUAL).max(SHORTEST_STALL);
            return (now.saturating_duration_since(still.at) > patience).then_some(behind);
        }
        if let Some(last) = self.last.as_ref().filter(|last| last.num == plan.num) {
            self.learn(last.moving.saturating_sub(view.moving), now, last.at);
        }
        self.last = Some(Mark {
            num: plan.num,
            moving: view.moving,
            settled: plan.settled.clone(),
            at: now,
        });
        None
    }

    /// Updates the moving average of the time that a shard takes; each observation counts a quarter.
    fn learn(&mut self, arrived: u32, now: Instant, since: Instant) {
        let Some(each) = now.saturating_duration_since(since).checked_div(arrived) else {
            return;
        };
        self.usual = Some(match self.usual {
            Some(usual) => (usual * 3 + each) / 4,
            None => each,
        });
    }
}

/// Returns the groups that haven't carried out all that the latest configuration asks of them.
pub(super) fn behind(view: &View) -> BTreeSet<u64> {
    let settled = view.plan.settled.iter();
    let behind = settled.filter(|(_, num)| **num < view.plan.num);
    behind.map(|(gid, _)| *gid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Progress;

    fn view(num: u64, moving: u32, settled: &[(u64, u64)]) -> View {
        View {
            plan: Progress {
                num,
                members: [1, 2].into(),
                settled: settled.iter().copied().collect(),
                drained: BTreeSet::new(),
            },
            shards: BTreeMap::new(),
            moving,
        }
    }

    /// Feeds observations (seconds after the start, view) and compares each result with the expected one: a stall or
    /// none.
    fn looks(looks: &[(u64, View, bool)]) {
        let start = Instant::now();
        let mut movement = Movement::default();
        for (second, view, stalled) in looks {
            let found = movement.observe(view, start + Duration::from_secs(*second));
            assert_eq!(found.is_some(), *stalled, "at {second}");
        }
    }

    #[test]
    fn a_minute_without_movement_is_a_stall() {
        let still = view(5, 3, &[(1, 5), (2, 4)]);
        looks(&[
            (0, still.clone(), false),
            (60, still.clone(), false),
            (61, still.clone(), true),
            (90, still.clone(), true),
            (91, view(5, 2, &[(1, 5), (2, 4)]), false),
            (92, view(5, 2, &[(1, 5), (2, 4)]), false),
        ]);
        let mut movement = Movement::default();
        let start = Instant::now();
        movement.observe(&still, start);
        let stalled = movement.observe(&still, start + Duration::from_mins(2));
        assert_eq!(stalled, Some([2].into()));
    }

    #[test]
    fn any_progress_counts() {
        looks(&[
            (0, view(5, 0, &[(1, 5), (2, 4)]), false),
            (50, view(6, 0, &[(1, 5), (2, 4)]), false),
            (100, view(6, 0, &[(1, 6), (2, 4)]), false),
            (150, view(6, 0, &[(1, 6), (2, 5)]), false),
            (200, view(6, 0, &[(1, 6), (2, 6)]), false),
            (10_000, view(6, 0, &[(1, 6), (2, 6)]), false),
        ]);
    }

    #[test]
    fn slow_shards_get_three_times_their_usual_time() {
        let at = |moving| view(5, moving, &[(1, 5), (2, 4)]);
        looks(&[
            (0, at(9), false),
            (200, at(7), false),
            (300, at(6), false),
            (599, at(6), false),
            (601, at(6), true),
        ]);
    }

    #[test]
    fn where_nothing_is_to_move_nothing_stalls() {
        let done = view(5, 0, &[(1, 5), (2, 5)]);
        looks(&[(0, done.clone(), false), (10_000, done, false)]);
    }
}
