//! Counted work: an estimate of the time that operations take, which is equal on every machine.
//!
//! A unit is the time in which a cursor passes a row of the state, a quarter of a microsecond on the machine of the benchmarks.
//! Everything that an operation reads and writes passes through its [`Transaction`](crate::Transaction), which counts. The replica
//! ends a poll when its work is done ([`Options::max_apply_work`](crate::Options::max_apply_work)), so that messages and ticks are
//! handled in between.

use std::cell::Cell;

/// The work of a lookup, and of the start of a cursor: a seek in an LSM tree reads a block of each level.
pub const LOOKUP_WORK: u64 = 16;

/// The work of a write, without its bytes.
pub const WRITE_WORK: u64 = 4;

/// The work of an operation, without its bytes and what it reads and writes.
pub(crate) const OPERATION_WORK: u64 = 4;

/// The number of bytes that are read or written in one unit.
const BYTES_PER_UNIT: u64 = 512;

/// Returns the work of reading or writing this number of bytes.
pub const fn work_of_bytes(bytes: u64) -> u64 {
    bytes / BYTES_PER_UNIT
}

/// Counts work. Cursors count, too, while the transaction is borrowed.
#[derive(Debug, Default)]
pub(crate) struct Work(Cell<u64>);

impl Work {
    pub(crate) fn add(&self, work: u64) {
        self.0.set(self.0.get().saturating_add(work));
    }

    /// Counts a lookup that read this number of bytes.
    pub(crate) fn lookup(&self, bytes: usize) {
        self.add(LOOKUP_WORK + work_of_bytes(bytes as u64));
    }

    /// Counts a step of a cursor that read this number of bytes.
    pub(crate) fn step(&self, bytes: usize) {
        self.add(1 + work_of_bytes(bytes as u64));
    }

    /// Counts the write of this number of bytes.
    pub(crate) fn write(&self, bytes: usize) {
        self.add(WRITE_WORK + work_of_bytes(bytes as u64));
    }

    pub(crate) fn done(&self) -> u64 {
        self.0.get()
    }
}
