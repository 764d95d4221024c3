//! Who this node is, to which group it belongs, and the one lock under which that changes.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use storage::BindError;
use types::{ClusterId, Gid, NodeId};

use crate::bootstrap::genesis::{self, FirstMembership};

/// A node's identity.
///
/// Invariant: "I am empty" is only ever said before the lock is taken that makes this node a member; so a peer
/// that hears it and a beginning that is adopted here can't cross.
pub(crate) struct Identity {
    node: NodeId,
    gid: Gid,
    name: String,
    directory: PathBuf,
    /// The cluster's id, zero when it isn't known: a copy that needs no lock.
    cluster: AtomicU64,
    /// Whether the node has a log: a copy that needs no lock.
    initialised: AtomicBool,
    record: Mutex<Record>,
}

struct Record {
    stored: storage::Identity,
    genesis: Option<FirstMembership>,
}

/// What a node tells of itself to a peer that asks.
#[derive(Clone, Debug)]
pub(crate) struct Introduction {
    pub(crate) genesis: Option<FirstMembership>,
    pub(crate) initialised: bool,
}

/// Why the node can't become a member.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdoptError {
    /// The data directory belongs elsewhere.
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
    /// The identity of an opened data directory. `initialised`: whether the log holds anything.
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

    /// The cluster, once it is known.
    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        match self.cluster.load(Ordering::Acquire) {
            0 => None,
            cluster => Some(ClusterId(cluster)),
        }
    }

    /// Whether the node has a log of its own.
    pub(crate) fn initialised(&self) -> bool {
        self.initialised.load(Ordering::Acquire)
    }

    /// The beginning that this node was part of.
    pub(crate) fn genesis(&self) -> Option<FirstMembership> {
        self.lock().genesis.clone()
    }

    /// What to tell a peer. A node that is bound counts as initialised, even while its first snapshot is still on
    /// the way: no other group may begin with it.
    pub(crate) fn introduce(&self) -> Introduction {
        let record = self.lock();
        Introduction {
            genesis: record.genesis.clone(),
            initialised: self.initialised()
                || record.genesis.is_some()
                || record.stored.binding().is_some(),
        }
    }

    /// Makes this node one of a group's first members: keeps the beginning, binds the directory, then runs
    /// `initialise`. All of it is repeatable, so an interrupted start goes on with the same beginning.
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

    /// Binds the directory to the cluster that lets this node in.
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
