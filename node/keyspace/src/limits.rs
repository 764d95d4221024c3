//! Limits of an operation, which the leader stamps into the log entry, and the budget that counts against them.

use types::{DecodeError, Reader, Writer};

use crate::Refusal;

/// The number of visited rows that a lookup counts as. A seek in an LSM tree reads a block of each level, a step of a cursor the next row.
const LOOKUP_VISITS: u64 = 16;

/// The limits of one operation. Replicas with other options decide alike, because the limits are part of the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of an encoded operation.
    pub max_request_bytes: u32,
    /// The most operations of a transaction, counted as etcd does.
    pub max_ops: u32,
    /// The most keys that one write changes.
    pub max_changes: u32,
    /// The most bytes of keys and values that one write writes, and that it reads for its compares and answers.
    pub max_write_bytes: u32,
    /// The most operations, and rows of keys and events that compares, ranges and deletions visit, of one write together. A
    /// lookup of a key, a value or a lease counts as 16 rows, and so does the start of a range.
    pub max_visited: u32,
    /// The most keys of a lease. Their bytes are bounded by `max_write_bytes`, so that a revoke is one write.
    pub max_lease_keys: u32,
    /// The most leases of a keyspace: the leader holds a timer for each in memory.
    pub max_leases: u32,
    /// The most rows that one step of clearing visits.
    pub max_clear_rows: u32,
    /// The most keyspaces of a shard.
    pub max_keyspaces: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_request_bytes: 3 << 19,
            max_ops: 128,
            max_changes: 10_000,
            max_write_bytes: 16 << 20,
            max_visited: 100_000,
            max_lease_keys: 10_000,
            max_leases: 100_000,
            max_clear_rows: 500,
            max_keyspaces: 10_000,
        }
    }
}

impl Limits {
    pub(crate) fn encode(&self, out: &mut Writer) {
        let Self {
            max_request_bytes,
            max_ops,
            max_changes,
            max_write_bytes,
            max_visited,
            max_lease_keys,
            max_leases,
            max_clear_rows,
            max_keyspaces,
        } = *self;
        for limit in [
            max_request_bytes,
            max_ops,
            max_changes,
            max_write_bytes,
            max_visited,
            max_lease_keys,
            max_leases,
            max_clear_rows,
            max_keyspaces,
        ] {
            out.number(limit.into());
        }
    }

    pub(crate) fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            max_request_bytes: input.number_u32("request limit")?,
            max_ops: input.number_u32("operation limit")?,
            max_changes: input.number_u32("change limit")?,
            max_write_bytes: input.number_u32("write limit")?,
            max_visited: input.number_u32("visit limit")?,
            max_lease_keys: input.number_u32("lease key limit")?,
            max_leases: input.number_u32("lease limit")?,
            max_clear_rows: input.number_u32("clear limit")?,
            max_keyspaces: input.number_u32("keyspace limit")?,
        })
    }
}

/// The rest of what an operation may read and write.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    changes: u64,
    written: u64,
    visited: u64,
    read: u64,
    refusal: Refusal,
}

impl Budget {
    /// The budget of a write.
    pub(crate) fn of_write(limits: &Limits) -> Self {
        Self {
            changes: limits.max_changes.into(),
            written: limits.max_write_bytes.into(),
            visited: limits.max_visited.into(),
            read: limits.max_write_bytes.into(),
            refusal: Refusal::RequestTooLarge,
        }
    }

    /// The budget of a revoke, which is bounded by what the lease may hold and must never be refused.
    pub(crate) fn of_revoke() -> Self {
        Self {
            changes: u64::MAX,
            written: u64::MAX,
            visited: u64::MAX,
            read: 0,
            refusal: Refusal::RequestTooLarge,
        }
    }

    /// The budget of a read outside of the log, which visits what it must.
    pub(crate) fn of_read(max_bytes: u64) -> Self {
        Self {
            changes: 0,
            written: 0,
            visited: u64::MAX,
            read: max_bytes,
            refusal: Refusal::TooManyRequests,
        }
    }

    /// Counts a changed key and the bytes that are written for it.
    pub(crate) fn change(&mut self, bytes: u64) -> Result<(), Refusal> {
        take(&mut self.changes, 1, self.refusal)?;
        take(&mut self.written, bytes, self.refusal)
    }

    /// Counts a visited row.
    pub(crate) fn visit(&mut self) -> Result<(), Refusal> {
        take(&mut self.visited, 1, self.refusal)
    }

    /// Counts a lookup, or the start of a walk.
    pub(crate) fn lookup(&mut self) -> Result<(), Refusal> {
        take(&mut self.visited, LOOKUP_VISITS, self.refusal)
    }

    /// Counts the lookup of a value of a version with this size.
    pub(crate) fn value(&mut self, size: u64) -> Result<(), Refusal> {
        self.lookup()?;
        self.read(size)
    }

    /// Counts bytes that are read into memory.
    pub(crate) fn read(&mut self, bytes: u64) -> Result<(), Refusal> {
        take(&mut self.read, bytes, self.refusal)
    }
}

fn take(left: &mut u64, amount: u64, refusal: Refusal) -> Result<(), Refusal> {
    *left = left.checked_sub(amount).ok_or(refusal)?;
    Ok(())
}
