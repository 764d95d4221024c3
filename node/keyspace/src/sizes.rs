//! The bytes that rows count against the quota: the bytes of the user's keys and values as they are stored, and a fixed amount for
//! the rest of each row.
//!
//! A put of a new key writes a version, an event and a row of `Current`; a deletion writes an event and two marks, and removes the row
//! of `Current`. `Versions` and `Deletions` have escaped keys. Each row is counted when it is written and when it is removed, so the sum
//! is that of the rows that exist. It is part of the record, which moves with the shard.

/// The bytes of a row beside keys and values: shard, table, keyspace, revisions, numbers.
const ROW: u64 = 32;
/// The bytes that a lease counts.
pub(crate) const LEASE: u64 = 64;

fn plain(key: &[u8]) -> u64 {
    ROW + key.len() as u64
}

fn escaped(key: &[u8]) -> u64 {
    let zeros = key.iter().map(|byte| u64::from(*byte == 0));
    plain(key) + zeros.sum::<u64>()
}

/// Returns the recorded size of a version.
pub(crate) fn version(key: &[u8], value: &[u8]) -> u64 {
    ROW + escaped(key) + value.len() as u64
}

/// Returns the size of a row of `Current`.
pub(crate) fn current(key: &[u8]) -> u64 {
    plain(key)
}

/// Returns the size of an event.
pub(crate) fn event(key: &[u8]) -> u64 {
    plain(key)
}

/// Returns the size of the two marks of a deletion.
pub(crate) fn marks(key: &[u8]) -> u64 {
    2 * escaped(key)
}

/// Returns the size of a user or a role.
pub(crate) fn auth(name: &str, row: &[u8]) -> u64 {
    ROW + (name.len() + row.len()) as u64
}

/// Returns the size of a row of `LeaseKeys`.
pub(crate) fn lease_key(key: &[u8]) -> u64 {
    plain(key)
}
