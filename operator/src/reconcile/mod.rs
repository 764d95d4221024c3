//! Reconciles a resource with its running cluster, in rounds. A round goes one way, from value to value:
//!
//! ```text
//!   observe ──▶ validate ──▶ plan ──▶ build ──▶ apply ──▶ status
//!   Observed    Desired      Plan     Prepared  Applied   ShardKvClusterStatus, written by apply's writer
//! ```
//!
//! | step | file | gives |
//! |---|---|---|
//! | observe | `observe` | [`Observed`](observed::Observed): the resource, its objects, volumes and pods, and the store's answers, read live. Caches only trigger rounds |
//! | validate | [`crate::validate`] | [`Desired`](crate::validate::Desired): the cluster to run, and the goal; or the reason why the resource is invalid |
//! | plan | [`crate::plan`] | [`Plan`](crate::plan::Plan): all decisions, as actions in order. Finalizers, deletions and sweeps are actions too |
//! | build | `build` | [`Prepared`](build::Prepared): the writes that the actions need. What already matches isn't written |
//! | apply | `apply` | [`Applied`](applied::Applied): the result of each write |
//! | status | `status` | the status, with the conditions of the table in `conditions`, and the pause before the next round |
//!
//! Only observe and apply hold clients of the API server and of the store; the steps between are pure. An invalid
//! resource goes the same way: its plan changes the finalizer at most, and its status says why.
//!
//! The next round completes a round that was cut short anywhere. Only times, failure counts and fruitless writes are
//! kept between rounds; see `memory`.

mod applied;
mod apply;
mod build;
mod conditions;
mod context;
mod differ;
mod ended;
mod events;
mod facts;
mod keyspace;
mod memory;
mod messages;
mod movement;
mod notes;
mod objects;
mod observe;
mod observed;
mod ordinals;
mod pods;
mod status;
#[cfg(test)]
mod tests;
mod wanted;

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::controller::Action;

use crate::crd::ShardKvCluster;
use crate::metrics::Outcome;
use crate::plan;
use crate::store::Store;
use crate::validate::{self, Intent};
use apply::Writer;
pub use context::{Context, DEFAULT_DOMAIN, Pace, ReconcileError};
pub use ended::ended;
use facts::Facts;
pub(crate) use keyspace::forget_keyspace;
pub use keyspace::{KEYSPACE_FINALIZER, reconcile_keyspace};
pub use memory::Memory;
pub use objects::FIELD_MANAGER;
pub use observed::FINALIZER;

/// Runs one round for one cluster. Uses only the name from `resource`; re-reads the spec from the API server.
pub async fn reconcile<S: Store>(
    resource: Arc<ShardKvCluster>,
    context: Arc<Context<S>>,
) -> Result<Action, ReconcileError> {
    let start = Instant::now();
    let result = round(&resource, &context).await;
    let outcome = match &result {
        Ok((outcome, _)) => *outcome,
        Err(_) => Outcome::Failed,
    };
    context.metrics.round_ended(outcome, start.elapsed());
    let (_, action) = result?;
    let namespace = resource.namespace().unwrap_or_default();
    context.memory.succeeded(&namespace, &resource.name_any());
    Ok(action)
}

async fn round<S: Store>(
    cached: &ShardKvCluster,
    context: &Context<S>,
) -> Result<(Outcome, Action), ReconcileError> {
    let (namespace, name) = (cached.namespace().unwrap_or_default(), cached.name_any());
    let now = Time(Timestamp::now());
    let Some(observed) = observe::observe(context, &namespace, &name, &now).await? else {
        return Ok(forget(cached, context));
    };
    let desired = validate::desired(&observed.resource)?;
    let plan = plan::decide(&observed.state(&desired));
    let prepared = build::build(&desired, &observed, &plan)?;
    let mut writer = Writer::new(context, &desired, &observed);
    let applied = writer.apply(prepared).await?;
    let released = applied.released() || !observed.has_finalizer();
    if desired.intent == Intent::Delete && released {
        return Ok(forget(&observed.resource, context));
    }
    let facts = Facts {
        desired: &desired,
        observed: &observed,
        plan: &plan,
        applied: &applied,
    };
    let status = status::status(&facts, &now);
    let written = writer.report(&status).await?;
    let is_held = status::is_held(&status, &applied);
    let held = context.memory.held(&namespace, &name, is_held);
    let (outcome, pause) = status::next(&status, &applied, &written, held, context.pace);
    Ok((outcome, Action::requeue(pause)))
}

/// Drops all memory of a resource that is deleted or that the operator has released.
fn forget<S: Store>(resource: &ShardKvCluster, context: &Context<S>) -> (Outcome, Action) {
    let namespace = resource.namespace().unwrap_or_default();
    let name = resource.name_any();
    context.forget(&namespace, &name);
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
