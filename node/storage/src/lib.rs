//! The durable stores of a node: the store traits of `raft` and `replica`, implemented on `RocksDB`.
//!
//! # A data directory
//!
//! ```text
//! IDENTITY      the node's identity: format version, node id, and the cluster it is bound to; text, checksummed
//! LOCK          held by the one process that uses the directory
//! FLOOR         the number of acknowledged log writes: two slots, overwritten in turn
//! DIVERGED      the difference of the state from the group's, if one was found
//! log/          a RocksDB: entries, hard state, base; every write is synced
//! state/CURRENT the number of the state directory in use
//! state/<n>/    a RocksDB: the state machine's tables and the applied position, in one atomic batch each
//! ```
//!
//! [`open`] initialises an empty directory, with a random node id, and opens any other. It refuses a directory that it
//! can't fully trust, and says why and what to do. A refused node must not vote.
//!
//! # How data flows
//!
//! [`RocksLog`] turns a [`raft::LogBatch`] into one `RocksDB` write with one sync. [`RocksState`] writes
//! without a write-ahead log, because the Raft log *is* one: after a crash the replica applies again what
//! the state had not flushed. A background thread flushes; `durable` is the position that it reached. For each snapshot
//! a thread reads a `RocksDB` snapshot chunk by chunk, while commits go on. A restore builds a second state directory;
//! replacing `CURRENT` by a rename switches to it.
//!
//! A cleared range keeps its bytes until a compaction meets it. So another thread collects cleared ranges for a
//! moment ([`StorageOptions::reclaim_after`]) and compacts them, at low priority and without delaying commits.
//!
//! # Damage is not a torn tail
//!
//! A power cut may tear the last write of the log, which was not acknowledged. Anything else that is missing was
//! acknowledged, and a node that forgets what it acknowledged breaks the group. Three facts tell the difference:
//!
//! - Each write is synced before the next one begins. So a write that begins after a broken one proves that the broken
//!   one was durable.
//! - Each entry carries a checksum, and opening reads all entries.
//! - Each write carries its number, and the log must reach the number in `FLOOR`. `FLOOR` is written after the sync and not
//!   synced itself, so it costs no second sync. After a killed process it is exact; after a power cut it may be too low; it
//!   is never too high.
//!
//! The state's position is a lower bound too: the log may not end before it.
//!
//! An error of the operating system proves nothing: too many open files, a missing right or a broken device is never
//! called damage ([`Cause`]). A file that is *missing* is damage, because `IDENTITY` says that all were made.
//!
//! # A full disk
//!
//! There are two reserves. Below the first ([`Space::low`]) the server refuses writes of clients. Below the second this crate
//! refuses its own writes, before the disk is really full, with [`raft::StoreError::Full`] and nothing written. Both
//! accept writes again when space returns. Every other error is final and latched.
//!
//! # What it does not do
//!
//! It knows nothing about elections, sessions or shards. Its callers decide which entries and ranges are dropped.

mod cause;
mod crc32c;
mod current;
mod cursor;
mod directory;
mod engine;
mod error;
mod floor;
mod flusher;
mod identity;
mod log;
mod log_codec;
mod options;
mod reader;
mod reclaim;
mod remover;
mod restore;
mod snapshot;
mod space;
mod state;
mod state_db;
mod tables;
mod unflushed;
mod view;
mod wal;

use std::path::Path;
use std::sync::Arc;

pub use cause::Cause;
pub use error::{
    BindError, DAMAGE_ADVICE, DIVERGED_ADVICE, IdentityDamage, LogDamage, OpenError, StateDamage,
};
pub use identity::{Binding, Identity};
pub use log::RocksLog;
pub use options::{StorageOptions, SyncObserver};
pub use reader::StateReads;
pub use space::{Disk, Sizes, Space};
pub use state::RocksState;

use directory::Directory;
use raft::{LogStore, StoreError};
use replica::StateStore;

/// The stores and the identity in one data directory.
pub struct Opened {
    /// The Raft log.
    pub log: RocksLog,
    /// The state machine's data.
    pub state: RocksState,
    /// The identity of this node.
    pub identity: Identity,
    /// A cloneable handle that measures the disk.
    pub disk: Disk,
}

/// Opens the data directory `dir`, or initialises it if it does not exist or is empty.
///
/// Refuses a directory that another process uses, that has an unknown format version, that holds data
/// but no `IDENTITY`, that holds another node's state or one that differs from the group's, or whose content is damaged. An operation that the operating system refuses is not damage.
/// [`OpenError`] says which it is and what to do.
pub fn open(dir: &Path, options: &StorageOptions) -> Result<Opened, OpenError> {
    let directory = Directory::lock(dir)?;
    directory.check_diverged()?;
    let disk = Disk::new(Arc::clone(&directory), options)?;
    let options = disk.fit_buffers(options);
    let mut identity = Identity::open(Arc::clone(&directory))?;
    if !identity.initialised() {
        // The node has acknowledged nothing yet: the directory is new, or its first start was interrupted.
        directory.clear_stores()?;
        floor::create(&directory)?;
        log::create(&directory, &options)?;
        state::create(&directory, identity.node(), &options)?;
        identity.set_initialised()?;
    }
    let state = RocksState::open(
        Arc::clone(&directory),
        identity.node(),
        disk.clone(),
        &options,
    )?;
    let mut log = RocksLog::open(Arc::clone(&directory), disk.clone(), &options)?;
    check_position(&directory, &mut log, &state)?;
    Ok(Opened {
        log,
        state,
        identity,
        disk,
    })
}

/// Records, durably, that the state in `dir` differs from the group's, and how. [`open`] refuses the directory from now on.
pub fn set_diverged(dir: &Path, found: &str) -> Result<(), StoreError> {
    directory::replace_file(dir, directory::DIVERGED, found.as_bytes())
}

/// Checks that the log reaches the state, which was made from it. The exception is an unfinished installation of a
/// snapshot, or of a group's first state, which counts as one.
fn check_position(
    directory: &Directory,
    log: &mut RocksLog,
    state: &RocksState,
) -> Result<(), OpenError> {
    let applied = state.applied().last;
    let content = log.load().map_err(|error| directory.log_failed(error))?;
    if content.installing.is_some() || content.last_index >= applied.index {
        return Ok(());
    }
    Err(directory.log_damaged(LogDamage::EndsBeforeState {
        last: content.last_index,
        applied,
    }))
}
