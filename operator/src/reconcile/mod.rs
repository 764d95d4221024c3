//! Reconciles a resource with its running cluster, in rounds of five steps, one file each.
//!
//! 1. `dereference`: reads the observed state live from the API server and the store. Caches only trigger rounds.
//! 2. [`crate::validate`]: checks the resource; a condition reports what is invalid.
//! 3. [`crate::build`]: builds the objects that the resource asks for.
//! 4. `apply`: writes the objects that differ, and performs the actions that [`crate::plan`] allows now, in its order.
//! 5. `status`: computes the status, which is written only when it changed.
//!
//! The next round completes a round that was cut short anywhere. Only times, failure counts and fruitless writes are
//! kept between rounds; see `memory`.

mod actions;
mod apply;
mod conditions;
mod dereference;
mod differ;
mod events;
mod memory;
mod movement;
mod objects;
mod pods;
mod resource;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::controller::Action;
use kube::runtime::events::Reporter;
use kube::{Client, ResourceExt};

use crate::crd::condition::{AVAILABLE, DEGRADED, PROGRESSING};
use crate::crd::{ShardKvCluster, ShardKvClusterStatus};
use crate::metrics::{Metrics, Outcome};
use crate::plan::{self, Intent};
use crate::store::Store;
use crate::validate::{self, Cluster, Invalid};
use apply::{Applied, Apply};
use dereference::{observe, observed};
use events::Events;
pub use memory::Memory;
use objects::{Failure, Objects};
use resource::Handle;
use status::Facts;

/// Field manager of all fields that the operator applies.
pub const FIELD_MANAGER: &str = "shardkv-operator";
/// Finalizer that keeps the resource until its groups are deleted in order.
pub const FINALIZER: &str = "shardkv.io/drain";

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
}

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
        }
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
    /// The API server refuses a write to the resource itself: its definition may be of another version.
    #[error("the API server refuses: {0}")]
    Refused(String),
}

/// Runs one round for one cluster. Uses only the name from `resource`; re-reads the spec from the API server.
pub async fn reconcile<S: Store>(
    resource: Arc<ShardKvCluster>,
    context: Arc<Context<S>>,
) -> Result<Action, ReconcileError> {
    let start = Instant::now();
    let namespace = resource.namespace().unwrap_or_default();
    let name = resource.name_any();
    let result = reconcile_resource(&resource, &context, &namespace, &name).await;
    let outcome = match &result {
        Ok((outcome, _)) => *outcome,
        Err(_) => Outcome::Failed,
    };
    context.metrics.round_ended(outcome, start.elapsed());
    let (_, action) = result?;
    Ok(action)
}

async fn reconcile_resource<S: Store>(
    cached: &ShardKvCluster,
    context: &Context<S>,
    namespace: &str,
    name: &str,
) -> Result<(Outcome, Action), ReconcileError> {
    let metrics = &context.metrics;
    let Some(mut handle) = Handle::read(&context.client, metrics, namespace, name).await? else {
        return Ok(forget(cached, context));
    };
    if handle.is_deleted() && !handle.has_finalizer() {
        // Other finalizers keep the resource; the operator has nothing left to do.
        return Ok((Outcome::Idle, Action::await_change()));
    }
    let next = match validate_intent(&handle) {
        Ok((cluster, intent)) => reconcile_cluster(&mut handle, context, &cluster, intent).await,
        Err(why) => report_invalid(&mut handle, context, &why).await,
    }?;
    context.memory.succeeded(namespace, name);
    Ok(next)
}

/// Returns the cluster to build and the goal for it.
fn validate_intent(handle: &Handle<'_>) -> Result<(Cluster, Intent), Invalid> {
    let resource = &handle.live;
    if handle.is_deleted() {
        return Ok((validate::identify(resource)?, Intent::Delete));
    }
    let cluster = validate::validate(resource)?;
    let intent = if resource.spec.paused {
        Intent::Pause
    } else {
        Intent::Run(cluster.groups)
    };
    Ok((cluster, intent))
}

/// Runs a round for a resource that is valid, or is being deleted.
async fn reconcile_cluster<S: Store>(
    handle: &mut Handle<'_>,
    context: &Context<S>,
    cluster: &Cluster,
    intent: Intent,
) -> Result<(Outcome, Action), ReconcileError> {
    let (namespace, name) = (cluster.namespace.as_str(), cluster.name.as_str());
    let events = Events::new(
        context.client.clone(),
        context.reporter.clone(),
        &handle.live,
    );
    if handle.is_orphaning() {
        return match handle.remove_finalizer().await {
            Ok(()) => Ok(forget(&handle.live, context)),
            Err(failure) => retry_after(failure, context),
        };
    }
    if matches!(intent, Intent::Run(_))
        && !handle.has_finalizer()
        && let Err(failure) = handle.add_finalizer().await
    {
        return retry_after(failure, context);
    }
    let now = Time(Timestamp::now());
    let objects = Objects {
        client: &context.client,
        namespace,
        metrics: &context.metrics,
    };
    let deleting = intent == Intent::Delete;
    let mut snapshot = observe(&objects, &context.store, cluster, deleting, &now).await?;
    if let Some(Err(_)) = &snapshot.view {
        context.metrics.store_failed();
    }
    let plan = plan::decide(&observed(cluster, intent, &snapshot, &handle.status()));
    let stalled = match &snapshot.view {
        Some(Ok(view)) => context.memory.of(namespace, name, |it| {
            it.movement.observe(view, Instant::now())
        }),
        _ => None,
    };
    let generation = handle.live.metadata.generation;
    let apply = Apply {
        objects: &objects,
        store: &context.store,
        cluster,
        events: &events,
        memory: &context.memory,
        intent,
        resource: &mut *handle,
        snapshot: &mut snapshot,
        done: Applied::default(),
    };
    let applied = apply.run(&plan).await?;
    if deleting && !handle.has_finalizer() {
        return Ok(forget(&handle.live, context));
    }
    let before = handle.status();
    let facts = Facts {
        cluster,
        intent,
        generation,
        before: &before,
        snapshot: &snapshot,
        plan: &plan,
        applied: &applied,
        stalled,
    };
    let told = status::status(&facts, &now);
    write_status(handle, context, &events, &told, &applied).await
}

/// Runs a round for an invalid resource.
async fn report_invalid<S: Store>(
    handle: &mut Handle<'_>,
    context: &Context<S>,
    why: &Invalid,
) -> Result<(Outcome, Action), ReconcileError> {
    let events = Events::new(
        context.client.clone(),
        context.reporter.clone(),
        &handle.live,
    );
    let now = Time(Timestamp::now());
    let generation = handle.live.metadata.generation;
    let told = status::invalid(&handle.status(), generation, why, &now);
    let applied = Applied::default();
    write_status(handle, context, &events, &told, &applied).await
}

/// Writes the status if it differs, and returns the pause before the next round.
async fn write_status<S>(
    handle: &mut Handle<'_>,
    context: &Context<S>,
    events: &Events,
    told: &ShardKvClusterStatus,
    applied: &Applied,
) -> Result<(Outcome, Action), ReconcileError> {
    let before = handle.status();
    match handle.write_status(told).await {
        Ok(true) => report_change(events, &before, told).await,
        Ok(false) => {}
        Err(failure) => return retry_after(failure, context),
    }
    let namespace = handle.live.namespace().unwrap_or_default();
    context
        .metrics
        .cluster_seen(&namespace, &handle.live.name_any(), told);
    let (outcome, pause) = next(told, applied, context.pace);
    Ok((outcome, Action::requeue(pause)))
}

/// Publishes an event when the cluster becomes degraded, when the reason changes, and when the cluster recovers.
async fn report_change(events: &Events, before: &ShardKvClusterStatus, now: &ShardKvClusterStatus) {
    let degraded = |status: &ShardKvClusterStatus| {
        let mut conditions = status.conditions.iter();
        conditions
            .find(|it| it.type_ == DEGRADED && it.status == "True")
            .cloned()
    };
    match (degraded(before), degraded(now)) {
        (was, Some(is)) if was.as_ref().map(|was| &was.reason) != Some(&is.reason) => {
            events.warn("Look", &is.reason, is.message).await;
        }
        (Some(was), None) => {
            let note = format!("{} is over.", was.reason);
            events.step("Look", "Recovered", note).await;
        }
        _ => {}
    }
}

/// Returns the outcome of the round and the pause before the next. Refused changes are retried at the idle pace: only a
/// person can resolve them.
fn next(told: &ShardKvClusterStatus, applied: &Applied, pace: Pace) -> (Outcome, Duration) {
    let is = |type_: &str, status: &str| {
        let mut conditions = told.conditions.iter();
        conditions.any(|it| it.type_ == type_ && it.status == status)
    };
    let soon = pace.idle.min(pace.busy * 5);
    let changing = applied.acted || applied.unsettled;
    let progressing = is(PROGRESSING, "True");
    let mut problems = applied.problems.iter();
    if problems.any(|problem| problem.reason != "StoreUnreachable") {
        let pause = match (changing, progressing) {
            (true, _) => pace.busy,
            (false, true) => soon,
            (false, false) => pace.idle,
        };
        return (Outcome::Refused, pause);
    }
    if changing || progressing {
        return (Outcome::Busy, pace.busy);
    }
    if is(AVAILABLE, "True") && is(DEGRADED, "False") {
        return (Outcome::Idle, pace.idle);
    }
    // The store may recover without a change of any object.
    (Outcome::Idle, soon)
}

/// Converts a failed write to the resource itself into the end of the round.
fn retry_after<S>(
    failure: Failure,
    context: &Context<S>,
) -> Result<(Outcome, Action), ReconcileError> {
    match failure {
        Failure::Race | Failure::Wait(_) => Ok((Outcome::Busy, Action::requeue(context.pace.busy))),
        Failure::Kube(error) => Err(error.into()),
        Failure::Refused(why) | Failure::Taken(why) => Err(ReconcileError::Refused(why)),
        Failure::Store(error) => Err(ReconcileError::Refused(error.to_string())),
    }
}

/// Drops all memory of a resource that is deleted or that the operator has released.
fn forget<S: Store>(resource: &ShardKvCluster, context: &Context<S>) -> (Outcome, Action) {
    let namespace = resource.namespace().unwrap_or_default();
    let name = resource.name_any();
    if let Ok(cluster) = validate::identify(resource) {
        context.store.forget(&cluster);
    }
    context.memory.forget(&namespace, &name);
    context.metrics.cluster_gone(&namespace, &name);
    (Outcome::Idle, Action::await_change())
}

/// Returns the pause after a round that was cut short: longer each time, so that no failure becomes a hot loop.
#[expect(
    clippy::needless_pass_by_value,
    reason = "kube's controller wants it like this"
)]
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
