//! The contents of a disk, and the power cuts at its operations.

use std::collections::BTreeMap;

use bytes::Bytes;
use raft::{LogBatch, LogStore, StoreError};
use replica::memory::MemoryState;
use replica::{Applied, StateStore, Table, WriteBatch};
use types::Writer;

use super::{DiskEvent, Inner};
use crate::queue::Micros;
use crate::rng::{digest, mix};

impl Inner {
    /// Counts one operation towards an armed crash. Returns false if the power is cut before it.
    pub(super) fn step(&mut self) -> bool {
        if self.dead {
            return false;
        }
        match &mut self.crash_after {
            None => true,
            Some((0, last_happens)) => {
                self.dead = true;
                *last_happens
            }
            Some((left, _)) => {
                *left -= 1;
                true
            }
        }
    }

    /// Arms a power cut at one of the next writes, in a part of the installs.
    pub(super) fn cut_in_install(&mut self) {
        if self.begun
            && self.crash_after.is_none()
            && self.rng.chance(self.options.cuts_in_installs)
        {
            let operations = u32::try_from(self.rng.below(5)).unwrap_or(0);
            self.crash_after = Some((operations, self.rng.coin()));
        }
    }

    pub(super) fn end_flush(&mut self) {
        if self.flush_done.is_some_and(|done| done <= self.now) {
            self.flush_done = None;
            self.state.complete_flush();
        }
    }

    /// Runs one durable operation, unless the power is cut or the disk is full. Fails also if the power is cut right
    /// after it.
    pub(super) fn durably<R>(
        &mut self,
        cost: (Micros, Micros),
        act: impl FnOnce(&mut Self) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        if self.dead {
            return Err(power());
        }
        if self.full {
            return Err(StoreError::Full("simulated".to_owned()));
        }
        self.elapsed += self.rng.between(cost.0, cost.1) + self.slow_by;
        self.writes += 1;
        if !self.step() {
            return Err(power());
        }
        let done = act(self)?;
        // After a power cut right after the write the bytes are on the disk, but the process never learns it.
        if self.dead { Err(power()) } else { Ok(done) }
    }

    pub(super) fn write(&mut self, batch: &LogBatch) -> Result<(), StoreError> {
        let before = self.log.hard_state();
        let last = self.log.last_index();
        self.log.write(batch)?;
        if let Some(after) = batch.hard_state {
            self.journal.push(DiskEvent::HardState { before, after });
        }
        if let Some(meta) = &batch.reset {
            self.journal.push(DiskEvent::Reset(meta.clone()));
        }
        if let Some(first) = batch.entries.first() {
            let prev = first.id.index.prev();
            let base = self.log.base().last;
            let prev = if prev == base.index {
                Some(base)
            } else {
                self.log.stored().get(&prev).map(|entry| entry.id)
            };
            self.journal.push(DiskEvent::Appended {
                prev,
                entries: batch.entries.clone(),
                truncated: first.id.index <= last,
            });
        }
        Ok(())
    }

    pub(super) fn commit(&mut self, batch: WriteBatch, applied: Applied) -> Result<(), StoreError> {
        let mut digest = self.pairs_digest;
        let pairs = self.state.pairs();
        // Ranges may overlap. A pair that is both cleared and changed is subtracted below.
        let mut cleared = BTreeMap::new();
        for (table, start, end) in batch.cleared.iter().filter(|(_, a, b)| a < b) {
            let range = (*table, start.clone())..(*table, end.clone());
            cleared.extend(pairs.range(range));
        }
        for (place, value) in cleared {
            if !batch.changes.contains_key(place) {
                digest = digest.wrapping_sub(pair_digest(place, value));
            }
        }
        for (place, change) in &batch.changes {
            if let Some(old) = pairs.get(place) {
                digest = digest.wrapping_sub(pair_digest(place, old));
            }
            if let Some(new) = change {
                digest = digest.wrapping_add(pair_digest(place, new));
            }
        }
        let last = applied.last;
        let position = applied.clone();
        self.state.commit(batch, applied)?;
        self.pairs_digest = digest;
        let digest = self.state_digest(&position);
        self.journal.push(DiskEvent::Committed { last, digest });
        Ok(())
    }

    /// Removes the names of journals from the state.
    pub(super) fn forget_journals(&mut self) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        let (start, end) = (Bytes::new(), Bytes::from_static(&[0xff; 8]));
        batch.clear(Table::Journal, start, end);
        self.state.commit(batch, self.state.applied())?;
        self.state.flush()
    }

    pub(super) fn state_digest(&self, applied: &Applied) -> u64 {
        let mut out = Writer::with_capacity(128);
        out.number(applied.last.term.0)
            .number(applied.last.index.0)
            .number(applied.time.0);
        applied.membership.encode(&mut out);
        if let Some(digest) = applied.digest {
            out.number(digest.since.0).number(digest.value);
        }
        mix(self.pairs_digest ^ digest(&out.finish()))
    }
}

pub(super) fn power() -> StoreError {
    StoreError::Io("simulated power cut".to_owned())
}

fn pair_digest(place: &(Table, Bytes), value: &[u8]) -> u64 {
    let table = place.0 as u64;
    mix(digest(&place.1).rotate_left(17) ^ digest(value).wrapping_add(table))
}

pub(super) fn sum(state: &MemoryState) -> u64 {
    let pairs = state.pairs().iter();
    pairs.fold(0, |sum: u64, (place, value)| {
        sum.wrapping_add(pair_digest(place, value))
    })
}
