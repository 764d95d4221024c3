//! Errors of the storage, and the translation of `RocksDB`'s errors.

use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;

use raft::{EntryId, Index, StoreError};
use types::{ClusterId, Gid, NodeId};

use crate::cause::Cause;

/// The advice for a damaged disk. It comes after the text of an error that proves damage.
pub const DAMAGE_ADVICE: &str = "This node must not continue under its old identity, so it refuses to vote. Keep the disk: move the directory aside, or retain the volume. Then check that the group has a leader without this node (`shardkv \
    status`). Only if it has one, start the node with an empty directory: it rejoins as a new member";

/// The advice for a node whose state differs from that of a quorum.
pub const DIVERGED_ADVICE: &str = "A quorum of the voters applied the same entries with another result, so this node's state is wrong, and it stays \
    stopped, so that nobody reads it. Report this, and keep a copy of the data directory: it shows the cause. Then check that the group \
    has a leader without this node (`shardkv status`), and start the node with an empty directory: it rejoins as a new member";

/// A reason that a data directory can't be used. The node must not start with it, and must not vote.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses the directory.
    #[error("{} is used by another process: stop it, or give this node a directory of its own", .dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory holds files of another program.
    #[error(
        "{} holds {found} but no IDENTITY: it is not a data directory of this program. Correct --data-dir, or the \
         volume that is mounted there", .dir.display()
    )]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// The name of an unexpected file.
        found: String,
    },
    /// The directory holds the stores of a node, but its `IDENTITY` is lost.
    #[error("{} holds {found} of a node, but its IDENTITY is lost. {DAMAGE_ADVICE}", .dir.display())]
    NoIdentity {
        /// The directory.
        dir: PathBuf,
        /// The name of a file that proves it.
        found: String,
    },
    /// `IDENTITY` can't be read.
    #[error("{}/IDENTITY is damaged: {damage}. {DAMAGE_ADVICE}", .dir.display())]
    IdentityDamaged {
        /// The directory.
        dir: PathBuf,
        /// The contradiction found.
        damage: IdentityDamage,
    },
    /// The directory holds the state of another node.
    #[error(
        "the state in {}/state was made by node {maker}, and this directory belongs to node {node}: nothing is damaged. \
         Put each node's own files back, all of them together", .dir.display()
    )]
    ForeignState {
        /// The directory.
        dir: PathBuf,
        /// The node that made the state.
        maker: NodeId,
        /// The node that the directory belongs to.
        node: NodeId,
    },
    /// The state differs from that of a quorum of the group.
    #[error("the state in {}/state differs from the group's: {found}. {DIVERGED_ADVICE}", .dir.display())]
    Diverged {
        /// The directory.
        dir: PathBuf,
        /// The difference, as the replica found it.
        found: String,
    },
    /// The directory was written by another version of this program.
    #[error(
        "{} has on-disk format {found}, but this program knows {known}: nothing is damaged. Use the version of the \
         program that wrote it", .dir.display()
    )]
    Version {
        /// The directory.
        dir: PathBuf,
        /// The version found.
        found: String,
        /// The version known.
        known: u32,
    },
    /// Another version of this program wrote a part of the log or the state.
    #[error(
        "the data in {} were written by another version of this program: {what}. Nothing is damaged. Start this \
         node with that version; keep its data directory", .dir.display()
    )]
    OtherVersion {
        /// The directory of the log or the state.
        dir: PathBuf,
        /// The part that this version doesn't know.
        what: String,
    },
    /// The log lacks something that was acknowledged.
    #[error(
        "the log in {}/log is damaged: {damage}. This node may have forgotten votes or entries that it acknowledged. \
         {DAMAGE_ADVICE}", .dir.display()
    )]
    LogDamaged {
        /// The data directory.
        dir: PathBuf,
        /// The contradiction found.
        damage: LogDamage,
    },
    /// The state contradicts its checksums, or a part of it is lost.
    #[error("the state in {}/state is damaged: {damage}. {DAMAGE_ADVICE}", .dir.display())]
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
    /// The operating system refused an operation, which proves nothing about the data.
    #[error("{context}: {message}. {}", Cause::of(.message).cure())]
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
    /// `FLOOR`, which exists before the node acknowledges anything, is lost.
    #[error("its file FLOOR is lost")]
    FloorLost,
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
    /// A file is lost, or its content contradicts its checksums. The text says which, and where.
    #[error("{0}")]
    Content(String),
}

/// A proof that the state is damaged.
#[derive(Debug, thiserror::Error)]
pub enum StateDamage {
    /// `CURRENT`, which names the state directory in use, is lost.
    #[error("its file CURRENT is lost")]
    CurrentLost,
    /// The content of `CURRENT` is not a number with its checksum.
    #[error("its file CURRENT is damaged: it must hold a number and the number's checksum")]
    Current,
    /// A part of the database is lost, or contradicts its checksums. The text says which part.
    #[error("{0}")]
    Database(String),
}

/// A reason that a database can't be used.
#[derive(Debug)]
pub(crate) enum VerifyError {
    /// Another version of this program wrote it.
    Version(u8),
    /// Anything else.
    Store(StoreError),
}

impl From<StoreError> for VerifyError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// A reason that a directory can't be bound to a cluster and a group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// It belongs to another cluster or group.
    #[error(
        "this data directory belongs to cluster {bound_cluster} ({bound_name:?}), group {bound_gid}, and \
         not to cluster {cluster} ({name:?}), group {gid}: check the addresses of the peers, or give this \
         node another directory"
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
    classify(
        error.kind() == rocksdb::ErrorKind::Corruption,
        error.as_ref(),
    )
}

/// Translates an error of opening a database that was complete once, so that a missing file is damage.
pub(crate) fn translate_opening(error: &rocksdb::Error) -> StoreError {
    classify_opening(
        error.kind() == rocksdb::ErrorKind::Corruption,
        error.as_ref(),
    )
}

fn classify(corrupt: bool, message: &str) -> StoreError {
    let text = message.to_owned();
    if is_full(message) {
        StoreError::Full(text)
    } else if corrupt && Cause::of(message) == Cause::Other {
        StoreError::Damaged(text)
    } else {
        // RocksDB calls a file corrupt, too, if it was refused the access to it.
        StoreError::Io(text)
    }
}

fn classify_opening(corrupt: bool, message: &str) -> StoreError {
    let missing = [
        "No such file or directory",
        "does not exist (create_if_missing is false)",
    ];
    let missing = missing.iter().any(|text| message.contains(text));
    match classify(corrupt, message) {
        StoreError::Io(text) if missing => StoreError::Damaged(text),
        error => error,
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

    type Translated = fn(&str) -> StoreError;

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

    /// The texts are those that `RocksDB` gives for files that it can't use.
    #[test]
    fn only_contradictions_are_damage() {
        let io = |text: &str| StoreError::Io(text.to_owned());
        let damaged = |text: &str| StoreError::Damaged(text.to_owned());
        let table: [(bool, &str, Translated, Translated); 9] = [
            (
                false,
                "IO error: While open a file for random read: /d/log/000012.sst: Too many open files",
                io,
                io,
            ),
            (
                true,
                "Corruption: Can't access /000012.sst: IO error: While stat a file for size: /d/log/000012.sst: \
                 Permission denied",
                io,
                io,
            ),
            (
                true,
                "Corruption: IO error: While pread offset 0 len 53: /d/log/000012.sst: Input/output error",
                io,
                io,
            ),
            (
                false,
                "IO error: While mmap: /d/log/000012.log: Cannot allocate memory",
                io,
                io,
            ),
            (
                false,
                "IO error: No such file or directory: While opening a file for sequentially reading: \
                 /d/log/MANIFEST-000005: No such file or directory",
                io,
                damaged,
            ),
            (
                false,
                "Invalid argument: /d/log/CURRENT: does not exist (create_if_missing is false)",
                io,
                damaged,
            ),
            (
                true,
                "Corruption: Can't access /000012.sst: IO error: No such file or directory: While stat a file for \
                 size: /d/log/000012.sst: No such file or directory",
                damaged,
                damaged,
            ),
            (
                true,
                "Corruption: block checksum mismatch: stored = 1, computed = 2 in /d/log/000012.sst",
                damaged,
                damaged,
            ),
            (false, "Resource busy: a lock", io, io),
        ];
        for (corrupt, text, running, opening) in table {
            assert_eq!(classify(corrupt, text), running(text), "{text}");
            assert_eq!(classify_opening(corrupt, text), opening(text), "{text}");
        }
    }

    #[test]
    fn advice_keeps_the_disk_and_asks_for_a_leader_first() {
        let at = |text: &str| DAMAGE_ADVICE.find(text).unwrap();
        assert!(at("Keep the disk") < at("has a leader") && at("has a leader") < at("empty"));
    }
}
