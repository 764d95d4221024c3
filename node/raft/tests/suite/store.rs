//! A log in memory with exact durability: after a crash it holds the batches of `write` and nothing else.

use std::ops::RangeInclusive;

use raft::{
    Entry, EntryId, HardState, Index, LogBatch, LogReader, LogState, LogStore, Membership,
    SnapshotMeta, StoreError, Term,
};

/// The disk of one node.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryStore {
    pub(crate) hard_state: HardState,
    pub(crate) base: SnapshotMeta,
    pub(crate) entries: Vec<Entry>,
    pub(crate) installing: Option<EntryId>,
}

impl MemoryStore {
    pub(crate) fn of_members(membership: &Membership) -> Self {
        let base = SnapshotMeta {
            last: EntryId::default(),
            membership: membership.clone(),
        };
        Self {
            base,
            ..Self::default()
        }
    }

    pub(crate) fn last_index(&self) -> Index {
        Index(self.base.last.index.0 + self.entries.len() as u64)
    }

    /// Returns the stored entry at `index`, if it is not compacted.
    pub(crate) fn get(&self, index: Index) -> Option<&Entry> {
        let position = index.0.checked_sub(self.base.last.index.0 + 1)?;
        self.entries.get(usize::try_from(position).unwrap())
    }

    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.base.last.index {
            return Some(self.base.last.term);
        }
        self.get(index).map(|entry| entry.id.term)
    }

    /// Returns true if `id` would survive a crash, as an entry or within the compacted prefix.
    pub(crate) fn holds(&self, id: EntryId) -> bool {
        id.index < self.base.last.index || self.term_at(id.index) == Some(id.term)
    }
}

impl LogReader for MemoryStore {
    fn entries(
        &self,
        range: RangeInclusive<Index>,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let (start, end) = range.into_inner();
        let mut page: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        for index in start.0..=end.0 {
            let Some(entry) = self.get(Index(index)) else {
                return Err(StoreError::Damaged(format!("entry {index} is missing")));
            };
            bytes += entry.size();
            if !page.is_empty() && bytes > max_bytes {
                break;
            }
            page.push(entry.clone());
        }
        Ok(page)
    }
}

impl LogStore for MemoryStore {
    fn load(&mut self) -> Result<LogState, StoreError> {
        Ok(LogState {
            hard_state: self.hard_state,
            base: self.base.clone(),
            last_index: self.last_index(),
            installing: self.installing,
        })
    }

    fn write(&mut self, batch: &LogBatch) -> Result<(), StoreError> {
        if let Some(hard_state) = batch.hard_state {
            self.hard_state = hard_state;
        }
        if let Some(meta) = &batch.reset {
            self.base = meta.clone();
            self.entries.clear();
            self.installing = None;
        }
        let Some(first) = batch.entries.first() else {
            return Ok(());
        };
        let keep = i128::from(first.id.index.0) - 1 - i128::from(self.base.last.index.0);
        if keep < 0 || keep > self.entries.len() as i128 {
            return Err(StoreError::Damaged(format!(
                "a batch that starts at {} does not fit a log of ({}, {}]",
                first.id,
                self.base.last.index,
                self.last_index()
            )));
        }
        self.entries.truncate(usize::try_from(keep).unwrap());
        self.entries.extend(batch.entries.iter().cloned());
        Ok(())
    }

    fn compact(&mut self, base: &SnapshotMeta) -> Result<(), StoreError> {
        let count = base.last.index.0.saturating_sub(self.base.last.index.0);
        let count = usize::try_from(count).unwrap();
        if count > self.entries.len() {
            return Err(StoreError::Damaged(format!(
                "compaction up to {} cuts what was never written",
                base.last
            )));
        }
        self.entries.drain(..count);
        self.base = base.clone();
        Ok(())
    }

    fn begin_install(&mut self, last: EntryId) -> Result<(), StoreError> {
        self.installing = Some(last);
        Ok(())
    }
}
