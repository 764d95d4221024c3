//! Sets of shards, stored as runs of consecutive shards.

use std::fmt;

use crate::{DecodeError, Reader, ShardId, Writer};

/// A run of consecutive shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardRun {
    /// The first shard.
    pub first: ShardId,
    /// The number of shards; at least one.
    pub count: u32,
}

impl ShardRun {
    /// Returns the shard after the last of the run.
    pub const fn end(self) -> ShardId {
        ShardId(self.first.0.saturating_add(self.count))
    }

    /// Returns the shards, in order.
    pub fn shards(self) -> impl Iterator<Item = ShardId> {
        (self.first.0..self.end().0).map(ShardId)
    }
}

/// A set of shards.
///
/// Invariant: the runs are in order, not empty, don't overlap and don't touch, and end within `u32`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardSet {
    runs: Vec<ShardRun>,
}

impl ShardSet {
    /// Returns the set of shards `0..count`.
    pub fn all(count: u32) -> Self {
        let first = ShardId(0);
        Self::from_runs((count > 0).then_some(ShardRun { first, count })).unwrap_or_default()
    }

    /// Returns the set of these runs, which must be in order and not overlap.
    pub fn from_runs(runs: impl IntoIterator<Item = ShardRun>) -> Result<Self, DecodeError> {
        let mut set = Self::default();
        for run in runs {
            set.push(run)?;
        }
        Ok(set)
    }

    fn push(&mut self, run: ShardRun) -> Result<(), DecodeError> {
        if run.count == 0 || run.first.0.checked_add(run.count).is_none() {
            return Err(DecodeError::OutOfRange("shard run"));
        }
        match self.runs.last_mut() {
            Some(last) if run.first < last.end() => Err(DecodeError::OutOfRange("shard run")),
            Some(last) if run.first == last.end() => {
                last.count += run.count;
                Ok(())
            }
            _ => {
                self.runs.push(run);
                Ok(())
            }
        }
    }

    /// Returns the runs, in order.
    pub fn runs(&self) -> &[ShardRun] {
        &self.runs
    }

    /// Returns the shards, in order.
    pub fn shards(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.runs.iter().flat_map(|run| run.shards())
    }

    /// Returns true if the set holds `shard`.
    pub fn contains(&self, shard: ShardId) -> bool {
        let after = self.runs.partition_point(|run| run.first <= shard);
        after
            .checked_sub(1)
            .and_then(|at| self.runs.get(at))
            .is_some_and(|run| shard < run.end())
    }

    /// Returns the number of shards in the set.
    pub fn len(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count)).sum()
    }

    /// Returns true if the set holds no shard.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Appends the set to a record.
    pub fn encode(&self, out: &mut Writer) {
        out.number(self.runs.len() as u64);
        for run in &self.runs {
            out.number(run.first.0.into()).number(run.count.into());
        }
    }

    /// Decodes the output of [`ShardSet::encode`].
    pub fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let mut set = Self::default();
        for _ in 0..input.count("shard runs")? {
            set.push(ShardRun {
                first: ShardId(input.number_u32("first shard")?),
                count: input.number_u32("shard count")?,
            })?;
        }
        Ok(set)
    }
}

/// Collects shards in any order; a repeated shard counts once. A number beyond the last that a run can hold, which no
/// cluster has, is left out.
impl FromIterator<ShardId> for ShardSet {
    fn from_iter<I: IntoIterator<Item = ShardId>>(shards: I) -> Self {
        let mut shards: Vec<ShardId> = shards.into_iter().collect();
        shards.sort_unstable();
        shards.dedup();
        let mut set = Self::default();
        for first in shards {
            // The shards ascend, so only a number that no run can hold is refused.
            let _ = set.push(ShardRun { first, count: 1 });
        }
        set
    }
}

impl fmt::Display for ShardSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, run) in self.runs.iter().enumerate() {
            let comma = if number > 0 { "," } else { "" };
            let (first, last) = (run.first.0, run.end().0 - 1);
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(shards: &[u32]) -> ShardSet {
        shards.iter().copied().map(ShardId).collect()
    }

    #[test]
    fn neighbours_become_runs() {
        let some = set(&[0, 1, 2, 5, 7, 8]);
        assert_eq!(some.to_string(), "0-2,5,7-8");
        assert_eq!(some.len(), 6);
        for shard in 0..10 {
            let member = [0, 1, 2, 5, 7, 8].contains(&shard);
            assert_eq!(some.contains(ShardId(shard)), member, "{shard}");
        }
        assert_eq!(ShardSet::all(3), set(&[0, 1, 2]));
        assert!(ShardSet::all(0).is_empty());
    }

    #[test]
    fn shards_are_collected_in_any_order() {
        let expected = set(&[0, 1, 2, 5, 7, 8]);
        assert_eq!(set(&[7, 2, 0, 8, 5, 1]), expected);
        assert_eq!(set(&[8, 7, 7, 5, 2, 1, 0, 8]), expected);
        assert_eq!(set(&[u32::MAX - 1]).len(), 1);
        assert!(set(&[]).is_empty());
    }

    #[test]
    fn records_are_read_back_and_nonsense_is_refused() {
        let some = set(&[1, 2, 9]);
        let mut out = Writer::default();
        some.encode(&mut out);
        let mut input = Reader::new(out.finish());
        assert_eq!(ShardSet::decode(&mut input), Ok(some));
        let run = |first, count| ShardRun {
            first: ShardId(first),
            count,
        };
        for bad in [
            vec![run(0, 0)],
            vec![run(5, 2), run(6, 1)],
            vec![run(5, 1), run(1, 1)],
            vec![run(u32::MAX, 1)],
        ] {
            assert!(ShardSet::from_runs(bad.clone()).is_err(), "{bad:?}");
        }
    }
}
