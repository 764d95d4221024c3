//! From a resource to a running cluster, again and again: five steps, one file each.
//!
//! 1. `dereference`: everything that is looked at, read live from the API server and the store. Caches only say *when* to look.
//! 2. [`crate::validate`]: the resource makes sense, or a condition says what doesn't.
//! 3. [`crate::build`]: the objects that it asks for.
//! 4. `apply`: what differs is written, and what [`crate::plan`] says may be done now is done, in its order.
//! 5. `status`: what people see, written only when it changed.
//!
//! A round that is cut short anywhere is made good by the next one; nothing is remembered between rounds but times, for the
//! condition that says that nothing moves.

mod memory;

use std::sync::Arc;
use std::time::Duration;

use kube::runtime::controller::Action;
use kube::runtime::events::Reporter;
use kube::{Client, ResourceExt};

use crate::crd::ShardKvCluster;
use crate::metrics::Metrics;
use crate::store::Store;
pub use memory::Memory;

/// The owner of all fields that the operator applies.
pub const FIELD_MANAGER: &str = "shardkv-operator";
/// Keeps the resource until its groups are gone in order.
pub const FINALIZER: &str = "shardkv.io/drain";

/// What all rounds share.
pub struct Context<S> {
    /// The API server.
    pub client: Client,
    /// The clusters' stores.
    pub store: S,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// In whose name events are told.
    pub reporter: Reporter,
    /// How often is looked again.
    pub pace: Pace,
    /// Times, between rounds.
    pub memory: Memory,
}

impl<S> Context<S> {
    /// With an empty memory.
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
        }
    }
}

/// How often a cluster is looked at when no object changes.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// While something is going on.
    pub busy: Duration,
    /// Otherwise.
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

/// Why a round was cut short. The next one follows after a pause that grows.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server refused or didn't answer.
    #[error("the API server: {0}")]
    Kube(#[from] kube::Error),
}

/// One round for one cluster.
pub async fn reconcile<S: Store>(
    resource: Arc<ShardKvCluster>,
    context: Arc<Context<S>>,
) -> Result<Action, ReconcileError> {
    let _ = &context.store;
    context.memory.succeeded(
        &resource.namespace().unwrap_or_default(),
        &resource.name_any(),
    );
    Ok(Action::requeue(context.pace.idle))
}

/// How long to wait after a round that was cut short: longer each time, so that no failure is a hot loop.
pub fn error_policy<S: Store>(
    resource: Arc<ShardKvCluster>,
    error: &ReconcileError,
    context: Arc<Context<S>>,
) -> Action {
    let namespace = resource.namespace().unwrap_or_default();
    let name = resource.name_any();
    let pause = context.memory.failed(&namespace, &name);
    tracing::warn!(%namespace, %name, %error, pause_seconds = pause.as_secs(), "a round was cut short");
    Action::requeue(pause)
}
