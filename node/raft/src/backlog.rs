//! The bytes of the entries that the driver has not taken for applying.

use std::collections::VecDeque;

use crate::{Entry, Index};

/// The marks within the limit: the count is exact to one part in so many.
const MARKS: u64 = 64;

/// Counts the entries after the one that was taken last.
#[derive(Debug)]
pub(crate) struct Backlog {
    limit: u64,
    /// For some indexes, the bytes of all entries up to each. Ascends in both.
    marks: VecDeque<(Index, u64)>,
    /// The bytes of all entries so far.
    bytes: u64,
    /// The bytes of those that were taken.
    taken: u64,
}

impl Backlog {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            marks: VecDeque::new(),
            bytes: 0,
            taken: 0,
        }
    }

    /// Counts an entry that was appended.
    pub(crate) fn push(&mut self, entry: &Entry) {
        self.bytes += entry.size() as u64;
        let marked = self.marks.back().map_or(self.taken, |(_, bytes)| *bytes);
        if self.bytes - marked >= self.limit.div_ceil(MARKS) {
            self.marks.push_back((entry.id.index, self.bytes));
        }
    }

    /// Forgets the entries at and after `from`.
    pub(crate) fn truncate(&mut self, from: Index) {
        while self
            .marks
            .pop_back_if(|(index, _)| *index >= from)
            .is_some()
        {}
        self.bytes = self.marks.back().map_or(self.taken, |(_, bytes)| *bytes);
    }

    /// Takes in that the entries up to `index` were taken.
    pub(crate) fn take(&mut self, index: Index) {
        while let Some((_, bytes)) = self.marks.pop_front_if(|(at, _)| *at <= index) {
            self.taken = bytes;
        }
    }

    /// Returns true if the entries up to `index` that were not taken reach the limit.
    pub(crate) fn is_full(&self, index: Index) -> bool {
        let after = self.marks.partition_point(|(at, _)| *at <= index);
        let mark = after.checked_sub(1).and_then(|at| self.marks.get(at));
        mark.is_some_and(|(_, bytes)| bytes - self.taken >= self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Payload, Term};

    fn entry(index: u64) -> Entry {
        let payload = Payload::Command(vec![0; 1_000].into());
        Entry::new(Term(1), Index(index), payload)
    }

    #[test]
    fn entries_count_from_push_to_take() {
        let mut backlog = Backlog::new(10_000);
        let size = entry(1).size() as u64;
        let enough = 10_000_u64.div_ceil(size);
        for index in 1..=2 * enough {
            backlog.push(&entry(index));
        }
        for index in 0..=2 * enough {
            assert_eq!(backlog.is_full(Index(index)), index >= enough, "{index}");
        }
        backlog.take(Index(1));
        assert!(!backlog.is_full(Index(enough)));
        assert!(backlog.is_full(Index(enough + 1)));
        backlog.truncate(Index(enough + 1));
        assert!(!backlog.is_full(Index(2 * enough)), "they are gone");
        backlog.push(&entry(enough + 1));
        assert!(backlog.is_full(Index(enough + 1)));
        backlog.take(Index(enough + 1));
        assert!(!backlog.is_full(Index(enough + 1)));
    }

    #[test]
    fn marks_are_bounded() {
        let mut backlog = Backlog::new(1 << 20);
        for index in 1..10_000 {
            backlog.push(&entry(index));
        }
        let most = 10_000 * entry(1).size() as u64 * MARKS / (1 << 20);
        assert!(
            backlog.marks.len() as u64 <= most,
            "{}",
            backlog.marks.len()
        );
    }
}
