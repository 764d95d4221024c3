//! Ranges of keys, which find those that include a key.
//!
//! The ranges stand in the order of their starts, in blocks that know their furthest end. A block that reaches beyond the key, and all
//! of whose ranges begin at or before it, has a range that includes the key. So at most one block is searched for each range that is
//! found, and one more.

use bytes::Bytes;

/// The most ranges of a block.
const BLOCK: usize = 64;

/// The end of a range.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// The first key after it.
    Before(Bytes),
    /// None.
    Never,
}

impl End {
    fn is_after(&self, key: &[u8]) -> bool {
        match self {
            Self::Before(end) => key < end.as_ref(),
            Self::Never => true,
        }
    }
}

/// A range with its id. Ordered by start and id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Interval {
    start: Bytes,
    id: i64,
    end: End,
}

/// Consecutive ranges; never empty.
#[derive(Clone, Debug)]
struct Block {
    /// In their order.
    intervals: Vec<Interval>,
    /// The furthest end.
    furthest: End,
}

impl Block {
    fn new(intervals: Vec<Interval>) -> Self {
        let ends = intervals.iter().map(|interval| &interval.end);
        let furthest = ends.max().cloned();
        Self {
            furthest: furthest.unwrap_or(End::Before(Bytes::new())),
            intervals,
        }
    }

    fn begins_by(&self, key: &[u8]) -> bool {
        let first = self.intervals.first();
        first.is_some_and(|first| first.start.as_ref() <= key)
    }
}

/// Ranges by their ids.
#[derive(Clone, Debug, Default)]
pub(crate) struct Intervals {
    blocks: Vec<Block>,
}

impl Intervals {
    /// Adds a range under an id that has none.
    pub(crate) fn add(&mut self, id: i64, start: Bytes, end: End) {
        let interval = Interval { start, id, end };
        let at = self.block_of(&interval);
        let Some(block) = self.blocks.get_mut(at) else {
            self.blocks.push(Block::new(vec![interval]));
            return;
        };
        let place = block.intervals.partition_point(|other| *other < interval);
        block.furthest = block.furthest.clone().max(interval.end.clone());
        block.intervals.insert(place, interval);
        if block.intervals.len() > BLOCK {
            let after = block.intervals.split_off(BLOCK / 2);
            *block = Block::new(std::mem::take(&mut block.intervals));
            self.blocks.insert(at + 1, Block::new(after));
        }
    }

    /// Removes the range of an id.
    pub(crate) fn remove(&mut self, id: i64, start: Bytes, end: End) {
        let interval = Interval { start, id, end };
        let at = self.block_of(&interval);
        let Some(block) = self.blocks.get_mut(at) else {
            return;
        };
        block.intervals.retain(|other| *other != interval);
        if block.intervals.is_empty() {
            self.blocks.remove(at);
        } else {
            *block = Block::new(std::mem::take(&mut block.intervals));
        }
    }

    /// Returns the ids of the ranges that include the key.
    pub(crate) fn of<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = i64> + 'a {
        let including = self.candidates(key);
        let including = including.filter(move |interval| interval.end.is_after(key));
        including.map(|interval| interval.id)
    }

    /// Returns the ranges that begin at or before the key, of blocks that reach beyond it.
    fn candidates<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = &'a Interval> + 'a {
        let blocks = self
            .blocks
            .iter()
            .take_while(move |block| block.begins_by(key));
        blocks
            .filter(move |block| block.furthest.is_after(key))
            .flat_map(|block| &block.intervals)
            .take_while(move |interval| interval.start.as_ref() <= key)
    }

    /// Returns the position of the block to which a range belongs.
    fn block_of(&self, interval: &Interval) -> usize {
        let begun = |block: &Block| block.intervals.first() <= Some(interval);
        self.blocks.partition_point(begun).saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn key(number: u64) -> Bytes {
        number.to_be_bytes().to_vec().into()
    }

    /// Pseudo-random numbers.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (self.0 >> 33) % bound
        }
    }

    #[test]
    fn exactly_the_ranges_that_include_a_key_are_found() {
        let mut numbers = Numbers(7);
        let mut all: BTreeMap<i64, (u64, Option<u64>)> = BTreeMap::new();
        let mut intervals = Intervals::default();
        let end = |end: Option<u64>| end.map_or(End::Never, |end| End::Before(key(end)));
        for round in 0..6_000 {
            let id = i64::try_from(numbers.below(500)).unwrap();
            if let Some((from, to)) = all.remove(&id) {
                intervals.remove(id, key(from), end(to));
            } else if round < 4_000 {
                let from = numbers.below(300);
                let length = numbers.below(if round % 3 == 0 { 200 } else { 5 });
                let to = (length != 4).then_some(from + length + 1);
                all.insert(id, (from, to));
                intervals.add(id, key(from), end(to));
            }
            let wanted = numbers.below(310);
            let includes = |(from, to): &(u64, Option<u64>)| {
                *from <= wanted && to.is_none_or(|to| wanted < to)
            };
            let expected = all.iter().filter(|(_, range)| includes(range));
            let expected: Vec<_> = expected.map(|(id, _)| *id).collect();
            let mut found: Vec<_> = intervals.of(&key(wanted)).collect();
            found.sort_unstable();
            assert_eq!(found, expected, "round {round}");
        }
        assert!(!all.is_empty());
        for (id, (from, to)) in all {
            intervals.remove(id, key(from), end(to));
        }
        assert!(intervals.blocks.is_empty());
    }

    #[test]
    fn few_ranges_are_tried_however_many_there_are() {
        let mut intervals = Intervals::default();
        for id in 0..10_000_u64 {
            // In an order that isn't that of the starts.
            let start = id * 7_919 % 10_000;
            let end = End::Before(key(start + 1));
            intervals.add(i64::try_from(id).unwrap(), key(start), end);
        }
        for wanted in 0..10_000 {
            let wanted = key(wanted);
            assert_eq!(intervals.of(&wanted).count(), 1);
            assert!(intervals.candidates(&wanted).count() <= 2 * BLOCK);
        }
        assert!(intervals.blocks.len() <= 10_000 / (BLOCK / 2));
    }
}
