//! `RocksDB` behind the store traits of `raft` and `replica`: what makes a node's promises durable.
//!
//! # A data directory
//!
//! ```text
//! IDENTITY      who this node is: format version, node id, and the cluster it was bound to; text, checksummed
//! LOCK          held by the one process that uses the directory
//! FLOOR         how many log writes were acknowledged: two slots, overwritten in turn
//! log/          a RocksDB: entries, hard state, base; every write is synced
//! state/CURRENT which of the state directories is in force
//! state/<n>/    a RocksDB: the state machine's tables and the applied position, in one atomic batch each
//! ```
//!
//! [`open`] makes one when the directory is empty, with a random node id, and otherwise opens it; it
//! refuses what it can't fully trust, saying why and what to do. A refused node must not vote.
//!
//! # How data flows
//!
//! [`RocksLog`] turns a [`raft::LogBatch`] into one `RocksDB` write with one sync. [`RocksState`] writes
//! without a write-ahead log, because the Raft log *is* one: after a crash the replica applies again what
//! the state had not flushed. A background thread flushes; `durable` is what it finished. Snapshots are
//! read through a `RocksDB` snapshot by a thread of their own, chunk by chunk, while commits go on. A
//! restore builds a second state directory, and a rename of `CURRENT` puts it in force.
//!
//! A cleared range keeps its bytes until a compaction meets it. So a third thread collects what was cleared for a
//! moment ([`StorageOptions::reclaim_after`]) and compacts it, at low priority and never in the way of a commit.
//!
//! # Damage is not a torn tail
//!
//! A power cut may tear the last write of the log, which nobody was promised. Anything else that is
//! missing was promised, and a node that forgets its promises breaks the group. Three things tell the
//! difference: a write that begins after a broken one proves that one durable, for each was synced before the
//! next; every entry carries a checksum and all are read when opening; and each write carries its number, which must reach
//! what `FLOOR` says was acknowledged. `FLOOR` is written after the sync and not synced itself, so it costs
//! no second sync: after a killed process it is exact, after a power cut it may lag, and it is never ahead.
//! The state's position is a floor too: the log may not end before it.
//!
//! # A full disk
//!
//! Two reserves are kept: below the first ([`Space::low`]) the server refuses writes of clients, below the
//! second this crate refuses its own, before the disk is really full, with [`raft::StoreError::Full`] and
//! nothing written. Both work again when space returns. Every other error is final and latched.
//!
//! # What it does not do
//!
//! It knows nothing of elections, sessions or shards, and never decides what may be dropped.

mod directory;
mod engine;
mod error;
mod floor;
mod flusher;
mod identity;
mod log;
mod options;
mod reclaim;
mod restore;
mod snapshot;
mod space;
mod state;
mod tally;
mod view;
mod wal;

use std::path::Path;
use std::sync::Arc;

pub use error::{BindError, OpenError};
pub use identity::{Binding, Identity};
pub use log::RocksLog;
pub use options::{StorageOptions, SyncObserver};
pub use space::{Disk, Sizes, Space};
pub use state::RocksState;

use directory::Directory;
use raft::{Index, LogStore};
use replica::StateStore;

/// Everything of one data directory.
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

/// Opens the data directory `dir`, or makes it if it does not exist or is empty.
///
/// Refuses a directory that another process uses, one of an unknown format version, one with data
/// and no `IDENTITY`, and one whose content is damaged. [`OpenError`] says which it is and what to do.
pub fn open(dir: &Path, options: &StorageOptions) -> Result<Opened, OpenError> {
    let directory = Directory::lock(dir)?;
    let disk = Disk::new(Arc::clone(&directory), options)?;
    let options = disk.fitting(options);
    let mut identity = Identity::open(Arc::clone(&directory))?;
    if !identity.initialised() {
        // Nothing was ever promised from here: a first start was interrupted, if anything.
        directory.clear_stores()?;
        floor::create(&directory)?;
        log::create(&directory, &options)?;
        state::create(&directory, &options)?;
        identity.set_initialised()?;
    }
    let state = RocksState::open(Arc::clone(&directory), disk.clone(), &options)?;
    let mut log = RocksLog::open(Arc::clone(&directory), disk.clone(), &options)?;
    check_position(&directory, &mut log, &state)?;
    Ok(Opened {
        log,
        state,
        identity,
        disk,
    })
}

/// The state was made from the log, so the log reaches it, unless a snapshot (or a group's beginning, which
/// counts as one) was being installed.
fn check_position(
    directory: &Directory,
    log: &mut RocksLog,
    state: &RocksState,
) -> Result<(), OpenError> {
    let applied = state.applied().last;
    let held = log
        .load()
        .map_err(|error| directory.log_damaged(error.to_string()))?;
    if held.installing.is_some() || held.last_index >= applied.index {
        return Ok(());
    }
    let Index(last) = held.last_index;
    Err(directory.log_damaged(format!(
        "it ends at {last}, but the state holds the effect of entry {applied}"
    )))
}
