//! Errors of the storage, and the translation of `RocksDB`'s errors.

use std::path::PathBuf;
use std::sync::OnceLock;

use raft::StoreError;
use types::{ClusterId, Gid};

/// A reason that a data directory can't be used. The node must not start with it, and above all must not vote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Another process uses the directory.
    #[error("{} is used by another process: stop it, or give this node a directory of its own", .dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory holds something, and no `IDENTITY`.
    #[error(
        "{} holds {found} but no IDENTITY: it is no data directory of this program, or a damaged one; \
         give this node an empty directory", .dir.display()
    )]
    NoIdentity {
        /// The directory.
        dir: PathBuf,
        /// The unexpected content.
        found: String,
    },
    /// `IDENTITY` can't be read.
    #[error(
        "{}/IDENTITY is damaged ({what}): keep the disk for inspection and give this node an empty \
         directory; it then rejoins as a new member", .dir.display()
    )]
    IdentityDamaged {
        /// The directory.
        dir: PathBuf,
        /// The fault.
        what: String,
    },
    /// The directory was written by another version of this program.
    #[error(
        "{} has on-disk format {found}, this program knows {known}: use the version of the program that \
         wrote it", .dir.display()
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
        "the log in {}/log is damaged: {what}. This node may have forgotten votes or entries that it \
         acknowledged, so it must not go on under its old identity. Keep the disk for inspection, and \
         start the node with an empty directory: it then rejoins as a new member", .dir.display()
    )]
    LogDamaged {
        /// The data directory.
        dir: PathBuf,
        /// The fault.
        what: String,
    },
    /// The state can't be opened.
    #[error(
        "the state in {}/state is damaged: {what}. Keep the disk for inspection, and start the node with \
         an empty directory: it then rejoins as a new member and receives the state", .dir.display()
    )]
    StateDamaged {
        /// The data directory.
        dir: PathBuf,
        /// The fault.
        what: String,
    },
    /// The disk is full.
    #[error("the disk under {} is full ({what}): make space and start again", .dir.display())]
    Full {
        /// The directory.
        dir: PathBuf,
        /// The data that was being written.
        what: String,
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

/// A reason that a directory can't be bound to a cluster and a group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// It belongs to another one.
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
        /// The most bytes.
        limit: usize,
    },
    /// It could not be written down.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Keeps the first final error and returns it to every later call: after a failed sync, the disk's contents are unknown.
#[derive(Debug, Default)]
pub(crate) struct Latch(OnceLock<StoreError>);

impl Latch {
    /// The latched error, if there is one.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        self.0.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Latches `error` unless it is `Full`, and gives it back.
    pub(crate) fn keep(&self, error: StoreError) -> StoreError {
        if !matches!(error, StoreError::Full(_)) {
            // The first one wins: what follows is its consequence.
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

/// Returns true if an error says that space or quota is exhausted. A failed *sync* never counts as that: the pages that it
/// was to write are in an unknown state, whatever the reason.
fn is_full(message: &str) -> bool {
    let full = ["No space left", "Disk quota exceeded", "NoSpace"];
    full.iter().any(|text| message.contains(text)) && !message.contains("sync")
}

/// Translates an error of the operating system.
pub(crate) fn translate_io(context: &str, error: &std::io::Error) -> StoreError {
    let message = format!("{context}: {error}");
    if matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
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
