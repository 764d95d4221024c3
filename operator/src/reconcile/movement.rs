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
    copying: u32,
    unserved: u32,
    settled: BTreeMap<u64, u64>,
    /// The most bytes that had arrived at each group of shards on their way to it. A copy that begins anew again and again doesn't exceed
    /// it.
    incoming: BTreeMap<u64, u64>,
    /// Time of the last movement of any kind.
    at: Instant,
    /// Time at which the number of moving shards last changed.
    counted_at: Instant,
}

impl Movement {
    /// Records an observation, with the bytes that have arrived at each group that answered. Returns the groups that are waited for if shards are to move and nothing has moved for too
    /// long: those that haven't settled, and those that shards are to be copied between.
    pub(super) fn observe(
        &mut self,
        view: &View,
        incoming: &BTreeMap<u64, u64>,
        now: Instant,
    ) -> Option<BTreeSet<u64>> {
        let behind = behind(view);
        if behind.is_empty() && view.moving() == 0 {
            self.last = None;
            return None;
        }
        let plan = &view.plan;
        let still = self.last.as_mut().filter(|last| {
            (last.num, last.copying, last.unserved) == (plan.num, view.copying, view.unserved)
                && last.settled == plan.settled
        });
        if let Some(still) = still {
            if still.takes(incoming) {
                still.at = now;
                return None;
            }
            let usual = self.usual.unwrap_or_default();
            let patience = usual.saturating_mul(TIMES_USUAL).max(SHORTEST_STALL);
            let stalls = now.saturating_duration_since(still.at) > patience;
            return stalls.then(|| &behind | &view.copiers);
        }
        let mut counted_at = now;
        if let Some(last) = &self.last {
            let before = last.copying.saturating_add(last.unserved);
            let since = last.counted_at;
            if before == view.moving() {
                counted_at = since;
            }
            // A cut makes a configuration, so shards arrive while the number changes.
            self.learn(before.saturating_sub(view.moving()), now, since);
        }
        self.last = Some(Mark {
            num: plan.num,
            copying: view.copying,
            unserved: view.unserved,
            settled: plan.settled.clone(),
            incoming: incoming.clone(),
            at: now,
            counted_at,
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

impl Mark {
    /// Returns true if more bytes have arrived somewhere than before.
    fn takes(&mut self, incoming: &BTreeMap<u64, u64>) -> bool {
        let mut more = false;
        for (gid, bytes) in incoming {
            let most = self.incoming.entry(*gid).or_insert(*bytes);
            more |= bytes > most;
            *most = (*most).max(*bytes);
        }
        more
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
                ..Progress::default()
            },
            unserved: moving,
            ..View::default()
        }
    }

    /// Returns a view of shards that are copied from group 1 to group 2, and of shards that group 2 has yet to serve.
    fn copies(num: u64, copying: u32, unserved: u32) -> View {
        View {
            copying,
            copiers: [1, 2].into(),
            ..view(num, unserved, &[(1, num), (2, num)])
        }
    }

    /// Feeds observations (seconds after the start, view) and compares each result with the expected one: a stall or
    /// none.
    fn looks(looks: &[(u64, View, bool)]) {
        let start = Instant::now();
        let mut movement = Movement::default();
        for (second, view, stalled) in looks {
            let found =
                movement.observe(view, &BTreeMap::new(), start + Duration::from_secs(*second));
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
        let none = BTreeMap::new();
        movement.observe(&still, &none, start);
        let stalled = movement.observe(&still, &none, start + Duration::from_mins(2));
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
    fn a_stalled_copy_waits_for_owner_and_target() {
        let mut movement = Movement::default();
        let start = Instant::now();
        let none = BTreeMap::new();
        movement.observe(&copies(5, 3, 0), &none, start);
        let later = start + Duration::from_mins(2);
        let stalled = movement.observe(&copies(5, 3, 0), &none, later);
        assert_eq!(stalled, Some([1, 2].into()));
    }

    /// One shard is copied, for as long as it takes.
    #[test]
    fn bytes_that_arrive_are_progress() {
        let mut movement = Movement::default();
        let start = Instant::now();
        let mut stalls = |second, bytes: Option<u64>| {
            let incoming = bytes.map(|bytes| (2, bytes)).into_iter().collect();
            let now = start + Duration::from_secs(second);
            movement.observe(&copies(5, 1, 0), &incoming, now).is_some()
        };
        assert!(!stalls(0, Some(10)));
        assert!(!stalls(50, Some(20)));
        assert!(!stalls(109, None), "the group doesn't answer");
        assert!(stalls(111, None));
        assert!(!stalls(120, Some(21)), "it goes on");
        assert!(!stalls(179, Some(21)));
        assert!(stalls(181, Some(21)));
        // It begins anew, and gets no further than before.
        assert!(stalls(182, Some(0)));
        assert!(stalls(200, Some(20)));
        assert!(!stalls(210, Some(22)));
    }

    #[test]
    fn cuts_are_progress_and_no_arrivals() {
        // A shard takes 200 seconds to be copied, and one to be served after the cut.
        looks(&[
            (0, copies(5, 9, 0), false),
            (200, copies(6, 8, 1), false),
            (201, copies(6, 8, 0), false),
            (400, copies(7, 7, 1), false),
            (401, copies(7, 7, 0), false),
            (1002, copies(7, 7, 0), false),
            (1004, copies(7, 7, 0), true),
        ]);
        // Both between two looks.
        looks(&[
            (0, copies(5, 9, 0), false),
            (200, copies(6, 8, 0), false),
            (799, copies(6, 8, 0), false),
            (801, copies(6, 8, 0), true),
        ]);
    }

    #[test]
    fn where_nothing_is_to_move_nothing_stalls() {
        let done = view(5, 0, &[(1, 5), (2, 5)]);
        looks(&[(0, done.clone(), false), (10_000, done, false)]);
    }
}
