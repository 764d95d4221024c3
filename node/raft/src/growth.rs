//! The growth of a log that was opened: for some indexes, the bytes of all entries up to each. By it the replica decides
//! where to cut the log.

use std::collections::VecDeque;

use crate::{Entry, Index};

/// The most indexes. When there are more, those that are closest together are dropped.
const MOST_MARKS: usize = 1_024;

#[derive(Debug, Default)]
pub(crate) struct Growth {
    /// Ascends in both; begins with the log's base and zero bytes, and ends with the last entry.
    marks: VecDeque<(Index, u64)>,
    bytes: u64,
    /// The least bytes between two marks, but for the last.
    apart: u64,
}

impl Growth {
    pub(crate) fn new(base: Index) -> Self {
        Self {
            marks: VecDeque::from([(base, 0)]),
            bytes: 0,
            apart: 0,
        }
    }

    /// Counts the next entry.
    pub(crate) fn count(&mut self, entry: &Entry) {
        self.bytes += entry.size() as u64;
        let last = self.marks.pop_back();
        let before = self.marks.back();
        // The last mark moves along until it is far enough from the one before it.
        let stays = |last: &(Index, u64)| before.is_none_or(|at| last.1 - at.1 >= self.apart);
        if let Some(last) = last.filter(stays) {
            self.marks.push_back(last);
        }
        self.marks.push_back((entry.id.index, self.bytes));
        if self.marks.len() > MOST_MARKS {
            self.thin();
        }
    }

    /// Drops about half of the marks, but neither the first nor the last.
    fn thin(&mut self) {
        self.apart = (self.bytes / (MOST_MARKS as u64 / 2)).max(1);
        let (apart, end) = (self.apart, self.bytes);
        let mut before = None;
        self.marks.retain(|(_, bytes)| {
            let keep = *bytes == end || before.is_none_or(|at| bytes - at >= apart);
            if keep {
                before = Some(*bytes);
            }
            keep
        });
    }

    pub(crate) fn into_marks(self) -> VecDeque<(Index, u64)> {
        self.marks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Payload, Term};

    #[test]
    fn marks_are_bounded_and_keep_both_ends() {
        let mut growth = Growth::new(Index(7));
        let mut bytes = 0;
        for index in 8..10_000 {
            let entry = Entry::new(Term(1), Index(index), Payload::Noop);
            bytes += entry.size() as u64;
            growth.count(&entry);
            assert_eq!(growth.marks.front(), Some(&(Index(7), 0)));
            assert_eq!(growth.marks.back(), Some(&(Index(index), bytes)));
            assert!(growth.marks.len() <= MOST_MARKS);
        }
        let widest = growth
            .marks
            .iter()
            .zip(growth.marks.iter().skip(1))
            .map(|(before, after)| after.0.since(before.0))
            .max();
        assert!(widest <= Some(64), "{widest:?}");
    }
}
