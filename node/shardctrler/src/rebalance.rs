//! The targets of shards after groups joined or left: even, with the fewest changes.
//!
//! # Requirements
//!
//! Given the target and the owner of each of `S` shards and the `G` groups that take shards now, find new targets such that
//!
//! 1. all are of these groups, and their counts differ by at most one;
//! 2. no other such assignment changes the target of fewer shards (those of nobody, or of a group that left, must change);
//! 3. every replica finds the same, from these arguments alone;
//! 4. a shard that was moved by hand stays, unless its group left or has more of them than it is allowed;
//! 5. a shard whose target changes goes to its owner if the owner has room, so that nothing is copied: a group that joins
//!    and leaves again, before anything was copied, leaves all targets as they were.
//!
//! # How
//!
//! A group *has* the shards whose target it is. Let `q = S / G` and `r = S % G`. By (1) exactly `r` groups end with `q + 1`
//! shards and the others with `q`. So the only choices are *which* groups are allowed the one more (their `allowed` is
//! `q + 1`), *which* shards a group with too many gives, and *who* gets them.
//!
//! - Allowed one more are first groups that have more than `q`; if these are fewer than `r`, others too.
//! - A group that has more than it is allowed gives the difference, one that has less gets it, and nobody does both.
//!
//! # Why no assignment changes fewer
//!
//! A group that has `h` shards and ends with `a` keeps at most `min(h, a)` of them, so at least
//! `S - sum(min(h, a))` shards change. The algorithm reaches this bound for the `a` that it chose, because a group
//! gives only what exceeds `a`. Remains that no choice of `a` has a smaller bound. `min(h, q + 1)` is `min(h, q)` plus one if
//! `h > q`, so the sum is `sum(min(h, q))`, which doesn't depend on the choice, plus the number of groups that are allowed
//! one more and have more than `q`. That number can't exceed `r` nor the number of groups that have more than `q`, and the algorithm
//! makes it the smaller of the two. ∎
//!
//! For (4): of the groups with more than `q` those with more than `q` *moved* shards come first, because for them, and only
//! for them, the one more saves a moved shard; and a group gives moved shards last.
//!
//! For (5): of the groups with at most `q`, those that would have more if all that they own came back are allowed the one more
//! first. Then shards without a group return to their owners, in order, while these have room; then groups with too many give
//! shards of owners that have room. So when the remaining shards are handed out, a group that gets a shard of another owner
//! has no shard of its own left among those that change.
//!
//! # Small deltas
//!
//! The remaining freedom is used to keep shards together, because neighbours that go from one group to another are one run
//! in the delta, and configurations are stored as runs:
//!
//! - Among groups that have more than `q`, those with the fewest get the one more: they then need not give at all.
//! - Among the others, those with the fewest get it: they are given shards anyhow.
//! - A group gives its longest runs first, hence the fewest pieces.
//! - What is given is handed out in the order of the shards, one group after the other.
//!
//! # Cost
//!
//! Shards are looked at as runs, each with one search among the groups, then as pieces: `O(S + G log G + R log R)`, where `R`
//! are the runs of equal targets, at most `S`; and one search for each shard whose target isn't its owner.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use types::{Gid, ShardId, ShardRun};

/// The shards that a group has and the number that it may keep.
#[derive(Clone, Debug, Default)]
struct Share {
    gid: Gid,
    have: usize,
    /// Of these, how many were moved by hand.
    moved: usize,
    /// The shards that the group owns and doesn't have.
    away: usize,
    allowed: usize,
    /// Its shards that no `Move` placed; only for groups that give shards.
    free: Vec<ShardRun>,
    /// Its shards that a `Move` placed; only for groups that give shards.
    held: Vec<ShardRun>,
}

impl Share {
    fn surplus(&self) -> usize {
        self.have.saturating_sub(self.allowed)
    }

    fn deficit(&self) -> usize {
        self.allowed.saturating_sub(self.have)
    }
}

/// The shares of all groups, in the order of gids.
#[derive(Debug)]
struct Shares(Vec<Share>);

/// Returns the target of each shard after a rebalance over `gids`. `targets` are those before, `owners` the groups that have
/// the data; `moved` are the shards that were moved by hand. See the module's documentation. Without groups, no shard has a
/// target.
pub fn rebalance(
    targets: &[Gid],
    owners: &[Gid],
    gids: impl IntoIterator<Item = Gid>,
    moved: &BTreeSet<ShardId>,
) -> Vec<Gid> {
    let gids: BTreeSet<Gid> = gids.into_iter().collect();
    if gids.is_empty() {
        return vec![Gid::NONE; targets.len()];
    }
    let share = |gid| Share {
        gid,
        ..Share::default()
    };
    let mut shares = Shares(gids.into_iter().map(share).collect());
    shares.count(targets, owners, moved);
    shares.allow(targets.len());
    let mut after = targets.to_vec();
    shares.bring_home(&mut after, owners, moved);
    let mut given = shares.homeless(&after);
    shares.collect_free(&after, moved);
    for share in &mut shares.0 {
        share.give(&mut given);
    }
    given.sort_unstable();
    shares.hand_out(&mut after, owners, &given);
    after
}

/// The runs of equal groups, in order.
fn runs(column: &[Gid]) -> impl Iterator<Item = (Gid, ShardRun)> + '_ {
    let mut next = 0u32;
    column.chunk_by(|a, b| a == b).filter_map(move |run| {
        let first = ShardId(next);
        let count = u32::try_from(run.len()).ok()?;
        next = next.checked_add(count)?;
        Some((*run.first()?, ShardRun { first, count }))
    })
}

impl Shares {
    /// The share of a group.
    fn of(&mut self, gid: Gid) -> Option<&mut Share> {
        let at = self.0.binary_search_by_key(&gid, |share| share.gid).ok()?;
        self.0.get_mut(at)
    }

    /// Counts what each group has, and what it owns and doesn't have.
    fn count(&mut self, targets: &[Gid], owners: &[Gid], moved: &BTreeSet<ShardId>) {
        for (gid, run) in runs(targets) {
            if let Some(share) = self.of(gid) {
                share.have += run.count as usize;
            }
        }
        for shard in moved {
            let target = targets.get(shard.0 as usize);
            if let Some(share) = target.and_then(|gid| self.of(*gid)) {
                share.moved += 1;
            }
        }
        let pairs = targets.iter().zip(owners);
        for (_, owner) in pairs.filter(|(target, owner)| target != owner) {
            if let Some(share) = self.of(*owner) {
                share.away += 1;
            }
        }
    }

    /// Decides how many shards each group ends with.
    fn allow(&mut self, total: usize) {
        let (quotient, mut more) = (total / self.0.len(), total % self.0.len());
        let mut order: Vec<&mut Share> = self.0.iter_mut().collect();
        // False comes before true.
        order.sort_by_key(|share| {
            let keeps_one_more = share.have > quotient;
            let keeps_moved = share.moved > quotient;
            let takes_back = !keeps_one_more && share.have + share.away > quotient;
            (
                !keeps_one_more,
                !keeps_moved,
                !takes_back,
                share.have,
                share.gid,
            )
        });
        for share in order {
            share.allowed = quotient + usize::from(more > 0);
            more = more.saturating_sub(1);
        }
    }

    /// Returns shards to owners that have room: first those without a group, then those that a group with a surplus gives.
    fn bring_home(&mut self, after: &mut [Gid], owners: &[Gid], moved: &BTreeSet<ShardId>) {
        for homeless in [true, false] {
            let shards = (0..).map(ShardId).zip(after.iter_mut().zip(owners));
            for (shard, (target, owner)) in shards.filter(|(_, (target, owner))| *target != *owner)
            {
                let may_go = match self.of(*target) {
                    None => homeless,
                    Some(has) => !homeless && has.surplus() > 0 && !moved.contains(&shard),
                };
                if may_go && self.take_back(*owner) {
                    if let Some(gives) = self.of(*target) {
                        gives.have -= 1;
                    }
                    *target = *owner;
                }
            }
        }
    }

    /// Counts one more shard for a group if it has room.
    fn take_back(&mut self, gid: Gid) -> bool {
        match self.of(gid).filter(|share| share.deficit() > 0) {
            Some(share) => {
                share.have += 1;
                true
            }
            None => false,
        }
    }

    /// The runs of shards that no group has.
    fn homeless(&mut self, after: &[Gid]) -> Vec<ShardRun> {
        runs(after)
            .filter(|(gid, _)| self.of(*gid).is_none())
            .map(|(_, run)| run)
            .collect()
    }

    /// Collects, for each group with a surplus, its shards that were moved by hand (`held`) and its runs of the others
    /// (`free`).
    fn collect_free(&mut self, after: &[Gid], moved: &BTreeSet<ShardId>) {
        for (gid, run) in runs(after) {
            let Some(share) = self.of(gid).filter(|share| share.surplus() > 0) else {
                continue;
            };
            let mut first = run.first;
            for held in moved.range(run.first..run.end()) {
                share.push_free(first, *held);
                share.held.push(ShardRun {
                    first: *held,
                    count: 1,
                });
                first = ShardId(held.0.saturating_add(1));
            }
            share.push_free(first, run.end());
        }
    }

    /// Gives the shards of the runs, in their order, to their owners if these lack shards, and then to the groups that do.
    fn hand_out(&mut self, after: &mut [Gid], owners: &[Gid], given: &[ShardRun]) {
        let mut rest = Vec::new();
        for shard in given.iter().flat_map(|run| run.shards()) {
            let at = shard.0 as usize;
            let (Some(slot), Some(owner)) = (after.get_mut(at), owners.get(at)) else {
                continue;
            };
            // Shards that were moved by hand come here even if their owners have room.
            if slot != owner && self.take_back(*owner) {
                *slot = *owner;
            } else {
                rest.push(at);
            }
        }
        let mut takers = self
            .0
            .iter()
            .flat_map(|share| std::iter::repeat_n(share.gid, share.deficit()));
        for at in rest {
            if let (Some(slot), Some(gid)) = (after.get_mut(at), takers.next()) {
                *slot = gid;
            }
        }
        debug_assert!(takers.next().is_none(), "what is lacking was given");
    }
}

impl Share {
    fn push_free(&mut self, first: ShardId, end: ShardId) {
        let count = end.0.saturating_sub(first.0);
        if count > 0 {
            self.free.push(ShardRun { first, count });
        }
    }

    /// Adds to `given` what the group gives: its longest free runs, the last one in part, and shards that were moved by
    /// hand when nothing else is left.
    fn give(&mut self, given: &mut Vec<ShardRun>) {
        let mut surplus = u32::try_from(self.surplus()).unwrap_or(u32::MAX);
        self.free.sort_by_key(|run| (Reverse(run.count), run.first));
        for run in self.free.iter().chain(&self.held) {
            let count = run.count.min(surplus);
            if count == 0 {
                return;
            }
            // The end of it: what stays keeps its beginning.
            let first = ShardId(run.end().0 - count);
            given.push(ShardRun { first, count });
            surplus -= count;
        }
    }
}
