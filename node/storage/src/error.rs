//! Errors of the storage, and the translation of `RocksDB`'s errors.

use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;

use raft::{EntryId, Index, StoreError};
use types::{ClusterId, Gid};

/// A reason that a data directory can't be used. The node must not start with it, and must not vote.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses the directory.
    #[error("{} is used by another process: stop it, or give this node a directory of its own", .dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory holds files, but no `IDENTITY`.
    #[error(
        "{} holds {found} but no IDENTITY: it is not a data directory of this program, or it is \
         damaged. Give this node an empty directory", .dir.display()
    )]
    NoIdentity {
        /// The directory.
        dir: PathBuf,
        /// The name of an unexpected file.
        found: String,
    },
    /// `IDENTITY` can't be read.
    #[error(
        "{}/IDENTITY is damaged: {damage}. Keep the disk for inspection, and start the node with an empty \
         directory: it then rejoins as a new member", .dir.display()
    )]
    IdentityDamaged {
        /// The directory.
        dir: PathBuf,
        /// The contradiction found.
        damage: IdentityDamage,
    },
    /// The directory was written by another version of this program.
    #[error(
        "{} has on-disk format {found}, but this program knows {known}: use the version of the program \
         that wrote it", .dir.display()
    )]
    Version {
        /// The directory.
        dir: PathBuf,
        /// The version found.
        found: String,
        /// The version known.
        known: u32,
    },
    /// The log lacks something that was acknowledged.
    #[error(
        "the log in {}/log is damaged: {damage}. This node may have forgotten votes or entries that it \
         acknowledged, so it must not continue under its old identity. Keep the disk for inspection, and \
         start the node with an empty directory: it then rejoins as a new member", .dir.display()
    )]
    LogDamaged {
        /// The data directory.
        dir: PathBuf,
        /// The contradiction found.
        damage: LogDamage,
    },
    /// The state can't be opened.
    #[error(
        "the state in {}/state is damaged: {damage}. Keep the disk for inspection, and start the node with \
         an empty directory: it then rejoins as a new member and receives the state", .dir.display()
    )]
    StateDamaged {
        /// The data directory.
        dir: PathBuf,
        /// The contradiction found.
        damage: StateDamage,
    },
    /// The disk is full.
    #[error("the disk under {} is full ({message}): make space and start again", .dir.display())]
    Full {
        /// The directory.
        dir: PathBuf,
        /// The text of the error, from the operating system or from the check of the reserve.
        message: String,
    },
    /// The operating system refused an operation.
    #[error("{context}: {message}")]
    Io {
        /// The operation.
        context: String,
        /// The system's error text.
        message: String,
    },
}

/// The part of `IDENTITY` that can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityDamage {
    /// The content is not UTF-8.
    #[error("it is not text")]
    NotText,
    /// The first line has no end.
    #[error("it is cut in its first line")]
    Cut,
    /// The first line is not the header of this program.
    #[error("its first line is not the header of this program")]
    Header,
    /// The last line is no checksum.
    #[error("it ends without a checksum")]
    NoChecksum,
    /// The content does not match the checksum.
    #[error("its checksum does not match its content")]
    Checksum,
    /// The id of the node is missing or no number.
    #[error("it has no node id")]
    NoNode,
    /// The line `initialised` is missing or neither yes nor no.
    #[error("it does not say if the node is initialised")]
    NoInitialised,
    /// Some but not all of cluster, gid and name are there.
    #[error("its binding to a cluster is incomplete")]
    Binding,
}

/// A proof that the log lacks something that this node acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum LogDamage {
    /// `FLOOR`, which exists before the node acknowledges anything, can't be opened.
    #[error("its file FLOOR can't be opened: {0}")]
    FloorUnreadable(io::Error),
    /// `FLOOR` has no slot with a matching checksum.
    #[error("the checksums in its file FLOOR don't match")]
    FloorDamaged,
    /// The log ends before the last acknowledged write.
    #[error("{acknowledged} writes were acknowledged, but the log ends after write {last}")]
    AcknowledgedWritesLost {
        /// The number of acknowledged writes.
        acknowledged: u64,
        /// The number of the last write found.
        last: u64,
    },
    /// The log ends before an entry that the state has applied.
    #[error("it ends at entry {last}, but the state holds the effect of entry {applied}")]
    EndsBeforeState {
        /// The last entry of the log.
        last: Index,
        /// The last entry applied to the state.
        applied: EntryId,
    },
    /// The files or their content can't be read. The text says which, and where.
    #[error("{0}")]
    Content(String),
}

/// A reason that the state can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum StateDamage {
    /// No directory in use can be told.
    #[error(transparent)]
    Current(CurrentError),
    /// The database can't be read. The text says which part.
    #[error("{0}")]
    Database(String),
}

/// A reason that `CURRENT` does not tell which state directory is in use.
#[derive(Debug, thiserror::Error)]
pub enum CurrentError {
    /// The operating system refused to read the file. It may be missing.
    #[error("its file CURRENT can't be read: {0}")]
    Unreadable(io::Error),
    /// The content is not a number with its checksum.
    #[error("its file CURRENT is damaged: it must hold a number and the number's checksum")]
    Damaged,
}

/// A reason that a directory can't be bound to a cluster and a group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// It belongs to another cluster or group.
    #[error(
        "this data directory belongs to cluster {bound_cluster} ({bound_name:?}), group {bound_gid}, and \
         not to cluster {cluster} ({name:?}), group {gid}: check the addresses of the peers, or give this \
         node an empty directory"
    )]
    Mismatch {
        /// The cluster it belongs to.
        bound_cluster: ClusterId,
        /// The name of that cluster.
        bound_name: String,
        /// The group it belongs to.
        bound_gid: Gid,
        /// The cluster asked for.
        cluster: ClusterId,
        /// The name of that cluster.
        name: String,
        /// The group asked for.
        gid: Gid,
    },
    /// The name can't be stored.
    #[error("a cluster's name has 1 to {limit} bytes and no control characters")]
    BadName {
        /// The maximum length in bytes.
        limit: usize,
    },
    /// The binding could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Keeps the first final error and returns it to every later call, because after a failed sync the content of the disk is
/// unknown.
#[derive(Debug, Default)]
pub(crate) struct Latch(OnceLock<StoreError>);

impl Latch {
    /// Fails with the latched error, if there is one.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        self.0.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Latches `error` unless it is `Full`, and returns it.
    pub(crate) fn keep(&self, error: StoreError) -> StoreError {
        if !matches!(error, StoreError::Full(_)) {
            // The first error stays: later ones are its consequences.
            let _ = self.0.set(error.clone());
        }
        error
    }
}

/// Translates an error of `RocksDB`.
pub(crate) fn translate(error: &rocksdb::Error) -> StoreError {
    let message = error.as_ref();
    if is_full(message) {
        return StoreError::Full(message.to_owned());
    }
    match error.kind() {
        rocksdb::ErrorKind::Corruption => StoreError::Damaged(message.to_owned()),
        _ => StoreError::Io(message.to_owned()),
    }
}

/// Returns true if an error says that space or quota is exhausted. A failed *sync* never counts: whatever the reason, the
/// pages that it had to write are in an unknown state.
fn is_full(message: &str) -> bool {
    let full = ["No space left", "Disk quota exceeded", "NoSpace"];
    full.iter().any(|text| message.contains(text)) && !message.contains("sync")
}

/// Translates an error of the operating system.
pub(crate) fn translate_io(context: &str, error: &io::Error) -> StoreError {
    let message = format!("{context}: {error}");
    if matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    ) {
        StoreError::Full(message)
    } else {
        StoreError::Io(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_full_disk_is_not_latched() {
        let latch = Latch::default();
        latch.keep(StoreError::Full("x".into()));
        assert_eq!(latch.check(), Ok(()));
        let first = latch.keep(StoreError::Io("first".into()));
        latch.keep(StoreError::Damaged("second".into()));
        assert_eq!(latch.check(), Err(first));
    }

    #[test]
    fn a_failed_sync_is_never_a_full_disk() {
        assert!(is_full(
            "IO error: No space left on device: While appending to file: 000012.log"
        ));
        assert!(!is_full(
            "IO error: No space left on device: While fdatasync: 000012.log"
        ));
        assert!(!is_full("IO error: Input/output error: While appending"));
    }
}
