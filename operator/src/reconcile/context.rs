//! Dependencies and settings of all rounds.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::runtime::events::Reporter;

use super::memory::Memory;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::validate::Invalid;

/// Dependencies that all rounds share.
pub struct Context<S> {
    /// The API server.
    pub client: Client,
    /// The clusters' stores.
    pub store: S,
    /// Metrics of the operator.
    pub metrics: Arc<Metrics>,
    /// Reporter named in events.
    pub reporter: Reporter,
    /// Pauses between rounds.
    pub pace: Pace,
    /// Memory between rounds.
    pub memory: Memory,
    /// Domain of the Kubernetes cluster.
    pub domain: String,
}

/// Domain that most Kubernetes clusters have.
pub const DEFAULT_DOMAIN: &str = "cluster.local";

impl<S> Context<S> {
    /// Returns a context with an empty memory.
    pub fn new(
        client: Client,
        store: S,
        metrics: Arc<Metrics>,
        reporter: Reporter,
        pace: Pace,
    ) -> Self {
        Self {
            client,
            store,
            metrics,
            reporter,
            pace,
            memory: Memory::default(),
            domain: DEFAULT_DOMAIN.to_owned(),
        }
    }

    /// Drops the memory, the metrics and the connections of a cluster that is deleted, or that the operator has released.
    pub(crate) fn forget(&self, namespace: &str, name: &str)
    where
        S: Store,
    {
        self.store.forget(namespace, name);
        self.memory.forget(namespace, name);
        self.metrics.cluster_gone(namespace, name);
    }
}

/// Pauses between a cluster's rounds when no object changes.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Pause while something is going on.
    pub busy: Duration,
    /// Pause otherwise.
    pub idle: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            busy: Duration::from_secs(1),
            idle: Duration::from_secs(15),
        }
    }
}

/// Failure that cut a round short. The next round follows after a pause that grows.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server refused or didn't answer.
    #[error("the API server: {0}")]
    Kube(#[from] kube::Error),
    /// The API server refuses the status: its definition may be of another version.
    #[error("the API server refuses: {0}")]
    Refused(String),
    /// The resource has no name, namespace or uid.
    #[error("the API server sent an incomplete resource: {0}")]
    Incomplete(#[from] Invalid),
}

impl From<serde_json::Error> for ReconcileError {
    fn from(error: serde_json::Error) -> Self {
        Self::Kube(kube::Error::SerdeError(error))
    }
}
