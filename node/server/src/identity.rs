//! The identity of this node, the group that it belongs to, and the one lock under which that changes.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use replica::{FirstMembership, FirstStart, Introduction, NodeRecord};
use storage::BindError;
use types::{ClusterId, Gid, NodeId};

use crate::bootstrap::genesis;

/// A node's identity.
///
/// Invariant: the node tells a peer "I am empty" only before it takes the lock under which it becomes a member. So it can't
/// tell a peer that it is empty and adopt a first membership at the same time.
pub(crate) struct Identity {
    node: NodeId,
    gid: Gid,
    name: String,
    directory: PathBuf,
    /// A copy of the cluster's id that needs no lock; zero while the id isn't known.
    cluster: AtomicU64,
    /// A copy that needs no lock: true if the node has a log.
    initialised: AtomicBool,
    record: Mutex<Record>,
}

struct Record {
    stored: storage::Identity,
    genesis: Option<FirstMembership>,
}

/// The reason why the node can't become a member. The process ends with it; the next start tries again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdoptError {
    /// The data directory belongs to another cluster or group.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A file could not be written.
    #[error("can't write GENESIS in the data directory: {0}")]
    File(#[from] std::io::Error),
    /// The stores could not be initialised.
    #[error("can't initialise the stores: {0}")]
    Store(#[from] raft::StoreError),
}

impl Identity {
    /// Creates the identity of an opened data directory. `initialised` is true if the log holds anything.
    pub(crate) fn new(
        stored: storage::Identity,
        genesis: Option<FirstMembership>,
        initialised: bool,
        (gid, name): (Gid, &str),
        directory: PathBuf,
    ) -> Self {
        let cluster = stored.binding().map_or(0, |binding| binding.cluster.0);
        Self {
            node: stored.node(),
            gid,
            name: name.to_owned(),
            directory,
            cluster: AtomicU64::new(cluster),
            initialised: AtomicBool::new(initialised),
            record: Mutex::new(Record { stored, genesis }),
        }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    pub(crate) fn gid(&self) -> Gid {
        self.gid
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the cluster, once it is known.
    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        match self.cluster.load(Ordering::Acquire) {
            0 => None,
            cluster => Some(ClusterId(cluster)),
        }
    }

    /// Returns true if the node has a log of its own.
    pub(crate) fn initialised(&self) -> bool {
        self.initialised.load(Ordering::Acquire)
    }

    /// Decides how this node starts, if it has no log.
    pub(crate) fn first_start(&self) -> FirstStart {
        let record = self.lock();
        self.record(&record).first_start()
    }

    /// Returns the answer to a peer that asks for this node's identity.
    pub(crate) fn introduce(&self) -> Introduction {
        let record = self.lock();
        self.record(&record).introduce()
    }

    fn record(&self, record: &Record) -> NodeRecord {
        NodeRecord {
            node: self.node,
            first: record.genesis.clone(),
            cluster: record.stored.binding().map(|binding| binding.cluster),
            has_log: self.initialised(),
        }
    }

    /// Makes this node one of a group's first members: writes the first membership, binds the directory, then runs
    /// `initialise`. All steps are idempotent, so a start that was interrupted continues with the same first membership.
    pub(crate) fn adopt(
        &self,
        first: &FirstMembership,
        initialise: impl FnOnce() -> Result<(), raft::StoreError>,
    ) -> Result<(), AdoptError> {
        let mut record = self.lock();
        genesis::write(&self.directory, first)?;
        record.genesis = Some(first.clone());
        self.bind_locked(&mut record, first.cluster)?;
        initialise()?;
        self.initialised.store(true, Ordering::Release);
        Ok(())
    }

    /// Binds the directory to the cluster that adds this node.
    pub(crate) fn bind(&self, cluster: ClusterId) -> Result<(), BindError> {
        let mut record = self.lock();
        self.bind_locked(&mut record, cluster)
    }

    fn bind_locked(&self, record: &mut Record, cluster: ClusterId) -> Result<(), BindError> {
        record.stored.bind(cluster, self.gid, &self.name)?;
        self.cluster.store(cluster.0, Ordering::Release);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
