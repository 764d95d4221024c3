//! The shards of a group, as a map that is cheap to copy.
//!
//! Readers of a group's [`crate::Ownership`] keep it while they use it, so each step changes a copy. A group may have a
//! hundred thousand shards, and a step mostly changes one. So the map is cut into pages that copies share, and a change
//! copies one page and the list of pages. Each page also keeps the oldest configuration that is unfinished in it, because
//! [`crate::Ownership::settled`] is called very often.

use std::collections::{BTreeMap, btree_map};
use std::fmt;
use std::iter::FlatMap;
use std::sync::Arc;

use types::{ConfigNum, ShardId};

use crate::{Shard, ShardState};

/// The number of shard numbers that share a page.
const PAGE: u32 = 256;

/// Shards by their numbers, in order.
///
/// Invariants: each shard is in the page of its number, no page is empty, and `len` counts all.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ShardMap {
    pages: BTreeMap<u32, Arc<Page>>,
    len: usize,
}

/// Invariant: `unfinished` is the least that any of the shards has.
#[derive(Clone, Default, PartialEq, Eq)]
struct Page {
    shards: BTreeMap<ShardId, Arc<Shard>>,
    unfinished: Option<ConfigNum>,
}

/// The pairs of a [`ShardMap`], in order.
pub struct Iter<'a>(Pairs<'a>);

type Pairs<'a> = FlatMap<
    btree_map::Values<'a, u32, Arc<Page>>,
    btree_map::Iter<'a, ShardId, Arc<Shard>>,
    fn(&'a Arc<Page>) -> btree_map::Iter<'a, ShardId, Arc<Shard>>,
>;

impl ShardMap {
    /// Returns one shard.
    pub fn get(&self, shard: &ShardId) -> Option<&Arc<Shard>> {
        self.pages.get(&(shard.0 / PAGE))?.shards.get(shard)
    }

    /// Returns true if the map contains the shard.
    pub fn contains_key(&self, shard: &ShardId) -> bool {
        self.get(shard).is_some()
    }

    /// Iterates over all shards, in order.
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.pages.values().flat_map(|page| page.shards.iter()))
    }

    /// Iterates over the shards' numbers, in order.
    pub fn keys(&self) -> impl Iterator<Item = &ShardId> {
        self.iter().map(|(shard, _)| shard)
    }

    /// Iterates over the shards without their numbers, in order.
    pub fn values(&self) -> impl Iterator<Item = &Arc<Shard>> {
        self.iter().map(|(_, shard)| shard)
    }

    /// Returns the number of shards.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns true if the map is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the oldest configuration whose step isn't done for some shard. The cost is linear in the number of pages.
    pub fn unfinished(&self) -> Option<ConfigNum> {
        let pages = self.pages.values();
        pages.filter_map(|page| page.unfinished).min()
    }

    /// Iterates, in order, over the shards with a step that isn't done and over the other shards of their pages. The cost is
    /// linear in the number of pages and in the shards of those pages.
    pub fn unfinished_shards(&self) -> impl Iterator<Item = (&ShardId, &Arc<Shard>)> {
        let pages = self.pages.values();
        let busy = pages.filter(|page| page.unfinished.is_some());
        busy.flat_map(|page| page.shards.iter())
    }

    /// Sets a shard and returns its previous value.
    pub fn insert(&mut self, shard: ShardId, to: Arc<Shard>) -> Option<Arc<Shard>> {
        let page = self.pages.entry(shard.0 / PAGE).or_default();
        let before = Arc::make_mut(page).insert(shard, to);
        self.len += usize::from(before.is_none());
        before
    }

    /// Removes a shard and returns it.
    pub fn remove(&mut self, shard: &ShardId) -> Option<Arc<Shard>> {
        let number = shard.0 / PAGE;
        let page = Arc::make_mut(self.pages.get_mut(&number)?);
        let before = page.remove(*shard);
        self.len -= usize::from(before.is_some());
        if page.shards.is_empty() {
            self.pages.remove(&number);
        }
        before
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a ShardId, &'a Arc<Shard>);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

impl Page {
    fn insert(&mut self, shard: ShardId, to: Arc<Shard>) -> Option<Arc<Shard>> {
        let next = unfinished(&to);
        let before = self.shards.insert(shard, to);
        if before.as_ref().is_some_and(|it| self.is_oldest(it)) {
            self.look_again();
        } else if let Some(next) = next {
            self.unfinished = Some(self.unfinished.map_or(next, |oldest| oldest.min(next)));
        }
        before
    }

    fn remove(&mut self, shard: ShardId) -> Option<Arc<Shard>> {
        let before = self.shards.remove(&shard);
        if before.as_ref().is_some_and(|it| self.is_oldest(it)) {
            self.look_again();
        }
        before
    }

    fn is_oldest(&self, shard: &Shard) -> bool {
        let config = unfinished(shard);
        config.is_some() && config == self.unfinished
    }

    fn look_again(&mut self) {
        let shards = self.shards.values();
        self.unfinished = shards.filter_map(|shard| unfinished(shard)).min();
    }
}

/// Returns the configuration of the shard's state if its step isn't done.
fn unfinished(shard: &Shard) -> Option<ConfigNum> {
    match shard.state {
        // A copy isn't a step of a configuration: its owner is settled.
        ShardState::Serving { .. } | ShardState::Copying { .. } => None,
        ShardState::Pulling { config, .. }
        | ShardState::Completing { config, .. }
        | ShardState::Fenced { config, .. } => Some(config),
    }
}

impl FromIterator<(ShardId, Arc<Shard>)> for ShardMap {
    fn from_iter<I: IntoIterator<Item = (ShardId, Arc<Shard>)>>(shards: I) -> Self {
        let mut map = Self::default();
        for (shard, to) in shards {
            map.insert(shard, to);
        }
        map
    }
}

impl<const N: usize> From<[(ShardId, Arc<Shard>); N]> for ShardMap {
    fn from(shards: [(ShardId, Arc<Shard>); N]) -> Self {
        shards.into_iter().collect()
    }
}

impl<'a> IntoIterator for &'a ShardMap {
    type Item = (&'a ShardId, &'a Arc<Shard>);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl fmt::Debug for ShardMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

#[cfg(test)]
mod tests {
    use types::{Gid, LogTime};

    use super::*;

    fn shard(config: u64, kind: u64) -> Arc<Shard> {
        let config = ConfigNum(config);
        let to = Gid(2);
        let state = match kind {
            0 => ShardState::Serving { config },
            _ => ShardState::Fenced { config, to },
        };
        Arc::new(Shard::new(state, LogTime(0)))
    }

    #[test]
    fn it_is_a_map_and_knows_the_oldest_that_is_unfinished() {
        let mut map = ShardMap::default();
        let mut plain: BTreeMap<ShardId, Arc<Shard>> = BTreeMap::new();
        let mut random = 7_u64;
        let mut next = |bound: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 33) % bound
        };
        for _ in 0..20_000 {
            let number = ShardId(u32::try_from(next(4) * 300 + next(6)).unwrap());
            let old = map.clone();
            if next(3) == 0 {
                assert_eq!(map.remove(&number), plain.remove(&number));
            } else {
                let to = shard(1 + next(40), next(3));
                let before = plain.insert(number, Arc::clone(&to));
                assert_eq!(old.get(&number), before.as_ref(), "copies don't change");
                assert_eq!(map.insert(number, to), before);
            }
            assert!(map.iter().eq(plain.iter()));
            assert!(map.keys().eq(plain.keys()) && map.values().eq(plain.values()));
            assert_eq!((map.len(), map.is_empty()), (plain.len(), plain.is_empty()));
            assert_eq!(map.contains_key(&number), plain.contains_key(&number));
            let oldest = plain.values().filter_map(|shard| unfinished(shard)).min();
            assert_eq!(map.unfinished(), oldest);
            let found: BTreeMap<_, _> = map.unfinished_shards().collect();
            assert!(
                found
                    .iter()
                    .all(|(number, it)| plain.get(number) == Some(*it))
            );
            let busy = plain.iter().filter(|(_, it)| unfinished(it).is_some());
            assert!(
                busy.into_iter()
                    .all(|(number, _)| found.contains_key(number))
            );
        }
        let rebuilt: ShardMap = plain.into_iter().collect();
        assert_eq!(rebuilt, map);
        assert!(!map.is_empty() && map != ShardMap::from([(ShardId(1), shard(1, 0))]));
    }

    #[test]
    fn copies_share_what_did_not_change() {
        let all = (0..10 * PAGE).map(|number| (ShardId(number), shard(1, 0)));
        let map: ShardMap = all.collect();
        let mut copy = map.clone();
        copy.insert(ShardId(3), shard(2, 0));
        let shared = map.pages.iter().filter(|(number, page)| {
            let other = copy.pages.get(number);
            other.is_some_and(|other| Arc::ptr_eq(page, other))
        });
        assert_eq!(shared.count(), 9);
    }
}
