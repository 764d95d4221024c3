//! The assignment of shards after groups joined or left: even, with the fewest moves.
//!
//! # Requirements
//!
//! Given the owner of each of `S` shards and the `G` groups there are now, find new owners such that
//!
//! 1. all are of these groups, and their counts differ by at most one;
//! 2. no other such assignment moves fewer shards (a shard moves if its owner changes; those of nobody, or of a group
//!    that left, must);
//! 3. every replica finds the same, from these arguments alone;
//! 4. a shard that was moved by hand stays, unless its group left or has more of them than it is allowed.
//!
//! # How
//!
//! Let `q = S / G` and `r = S % G`. By (1) exactly `r` groups end with `q + 1` shards and the others with `q`. So the only
//! choices are *which* groups are allowed the one more (their `allowed` is `q + 1`), *which* shards a group with too many
//! gives, and *who* gets them.
//!
//! - Allowed one more are first groups that have more than `q`; if these are fewer than `r`, others too.
//! - A group that has more than it is allowed gives the difference, one that has less gets it, and nobody does both.
//!
//! # Why no assignment moves fewer
//!
//! A group that has `h` shards and ends with `a` keeps at most `min(h, a)` of them, so at least
//! `S - sum(min(h, a))` shards move. The algorithm reaches this bound for the `a` that it chose, because a group
//! gives only what exceeds `a`. Remains that no choice of `a` has a smaller bound. `min(h, q + 1)` is `min(h, q)` plus one if
//! `h > q`, so the sum is `sum(min(h, q))`, which doesn't depend on the choice, plus the number of groups that are allowed
//! one more and have more than `q`. That number can't exceed `r` nor the number of groups that have more than `q`, and the algorithm
//! makes it the smaller of the two. ∎
//!
//! For (4): of the groups with more than `q` those with more than `q` *moved* shards come first, because for them, and only
//! for them, the one more saves a moved shard; and a group gives moved shards last.
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
//! are the runs of equal owners, at most `S`.

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

/// Returns the owner of each shard after a rebalance over `gids`. `owners` are the owners before; `moved` are the shards that
/// were moved by hand. See the module's documentation. Without groups, no shard has an owner.
pub fn rebalance(
    owners: &[Gid],
    gids: impl IntoIterator<Item = Gid>,
    moved: &BTreeSet<ShardId>,
) -> Vec<Gid> {
    let gids: BTreeSet<Gid> = gids.into_iter().collect();
    if gids.is_empty() {
        return vec![Gid::NONE; owners.len()];
    }
    let mut shares: Vec<Share> = gids
        .into_iter()
        .map(|gid| Share {
            gid,
            ..Share::default()
        })
        .collect();
    let mut given = count(owners, &mut shares, moved);
    allow(owners.len(), &mut shares);
    collect_free(owners, &mut shares, moved);
    for share in &mut shares {
        share.give(&mut given);
    }
    given.sort_unstable();
    hand_out(owners, &given, &shares)
}

/// The runs of equal owners, in order.
fn runs(owners: &[Gid]) -> impl Iterator<Item = (Gid, ShardRun)> + '_ {
    let mut next = 0u32;
    owners.chunk_by(|a, b| a == b).filter_map(move |run| {
        let first = ShardId(next);
        let count = u32::try_from(run.len()).ok()?;
        next = next.checked_add(count)?;
        Some((*run.first()?, ShardRun { first, count }))
    })
}

/// The share of a group; they are in the order of gids.
fn share_of(shares: &mut [Share], gid: Gid) -> Option<&mut Share> {
    let at = shares.binary_search_by_key(&gid, |share| share.gid).ok()?;
    shares.get_mut(at)
}

fn owner(owners: &[Gid], shard: ShardId) -> Gid {
    owners.get(shard.0 as usize).copied().unwrap_or_default()
}

/// Counts what each group has, and returns the runs that no group has.
fn count(owners: &[Gid], shares: &mut [Share], moved: &BTreeSet<ShardId>) -> Vec<ShardRun> {
    let mut homeless = Vec::new();
    for (gid, run) in runs(owners) {
        match share_of(shares, gid) {
            Some(share) => share.have += run.count as usize,
            None => homeless.push(run),
        }
    }
    for shard in moved {
        if let Some(share) = share_of(shares, owner(owners, *shard)) {
            share.moved += 1;
        }
    }
    homeless
}

/// Decides how many shards each group ends with.
fn allow(total: usize, shares: &mut [Share]) {
    let (quotient, mut more) = (total / shares.len(), total % shares.len());
    let mut order: Vec<&mut Share> = shares.iter_mut().collect();
    // False comes before true.
    order.sort_by_key(|share| {
        let keeps_one_more = share.have > quotient;
        let keeps_moved = share.moved > quotient;
        (!keeps_one_more, !keeps_moved, share.have, share.gid)
    });
    for share in order {
        share.allowed = quotient + usize::from(more > 0);
        more = more.saturating_sub(1);
    }
}

/// Collects, for each group with a surplus, its shards that were moved by hand (`held`) and its runs of the others (`free`).
fn collect_free(owners: &[Gid], shares: &mut [Share], moved: &BTreeSet<ShardId>) {
    for (gid, run) in runs(owners) {
        let Some(share) = share_of(shares, gid).filter(|share| share.surplus() > 0) else {
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

/// Gives the runs, in their order, to the groups that lack shards.
fn hand_out(owners: &[Gid], given: &[ShardRun], shares: &[Share]) -> Vec<Gid> {
    let mut after = owners.to_vec();
    let mut takers = shares
        .iter()
        .flat_map(|share| std::iter::repeat_n(share.gid, share.deficit()));
    for shard in given.iter().flat_map(|run| run.shards()) {
        let (Some(slot), Some(gid)) = (after.get_mut(shard.0 as usize), takers.next()) else {
            continue;
        };
        *slot = gid;
    }
    debug_assert!(takers.next().is_none(), "what is lacking was given");
    after
}
