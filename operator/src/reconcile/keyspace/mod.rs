//! Rounds of keyspaces: observe, plan, apply, status, like those of clusters.
//!
//! A keyspace's resource owns one object in Kubernetes, its service, and one keyspace in the store of its cluster. Kubernetes deletes the
//! service with the resource. The resource has a finalizer only if the keyspace is to be deleted with it.
//!
//! The name of the keyspace is the resource's name and namespace with a dot between, so a resource that is created again finds the keyspace
//! that it left. A keyspace that has existed and is gone isn't created again: the operator doesn't give an empty store the name of a full one.

mod apply;
mod conditions;
mod notes;
mod observe;
mod plan;
mod service;
mod status;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use kube::runtime::controller::Action;

use super::context::{Context, ReconcileError};
use crate::crd::ShardKvKeyspace;
use crate::metrics::Outcome;
use crate::store::KeyspaceStore;

/// Finalizer of a resource whose keyspace is to be deleted with it.
pub const KEYSPACE_FINALIZER: &str = "shardkv.io/keyspace";

/// Pause before the next round of a keyspace that is ready.
const IDLE: Duration = Duration::from_mins(1);
/// Pause before the next round of a keyspace that isn't ready.
const SOON: Duration = Duration::from_secs(5);
/// Pause after a round whose observations were out of date.
const AGAIN: Duration = Duration::from_secs(1);
/// The most rounds in a second of keyspaces that are ready, and of those that aren't.
const ROUNDS_PER_SECOND: (u32, u32) = (5, 50);

/// Runs one round for one keyspace. Uses only the name of the resource, and reads the rest from the API server. `known` is the number of
/// keyspaces: the more there are, the longer are the pauses between their rounds.
pub async fn reconcile_keyspace<S: KeyspaceStore>(
    resource: &ShardKvKeyspace,
    context: &Context<S>,
    known: usize,
) -> Action {
    let start = Instant::now();
    let (namespace, name) = (resource.namespace().unwrap_or_default(), key(resource));
    let result = round(resource, context).await;
    let outcome = match &result {
        Ok((outcome, _)) => *outcome,
        Err(_) => Outcome::Failed,
    };
    context.metrics.round_ended(outcome, start.elapsed());
    match result {
        Ok((_, pause)) => {
            context.memory.succeeded(&namespace, &name);
            pause.map_or_else(Action::await_change, |pause| {
                Action::requeue(spread(pause, known))
            })
        }
        Err(error) => {
            let pause = context.memory.failed(&namespace, &name);
            tracing::warn!(%error, pause_seconds = pause.as_secs(), "a round was cut short");
            Action::requeue(pause)
        }
    }
}

/// Drops the memory of a keyspace's resource that is deleted.
pub(crate) fn forget_keyspace<S>(resource: &ShardKvKeyspace, context: &Context<S>) {
    let namespace = resource.namespace().unwrap_or_default();
    context.memory.forget(&namespace, &key(resource));
}

async fn round<S: KeyspaceStore>(
    cached: &ShardKvKeyspace,
    context: &Context<S>,
) -> Result<(Outcome, Option<Duration>), ReconcileError> {
    let now = Time(Timestamp::now());
    let Some(seen) = observe::observe(context, cached, &now).await? else {
        forget_keyspace(cached, context);
        return Ok((Outcome::Idle, None));
    };
    let plan = plan::decide(&seen.state);
    let mut writer = apply::Writer::new(context, &seen);
    let applied = writer.apply(plan).await?;
    if applied.released {
        return Ok((Outcome::Busy, None));
    }
    let status = status::status(&seen, &applied, &now);
    let raced = writer.report(&status).await? || applied.raced;
    Ok(status::next(&applied, raced))
}

/// Returns the key of a keyspace's resource in the memory, which clusters share.
fn key(resource: &ShardKvKeyspace) -> String {
    format!("keyspace/{}", resource.name_any())
}

/// Returns the pause between two rounds: longer if there are many keyspaces.
fn spread(pause: Duration, known: usize) -> Duration {
    let (ready, others) = ROUNDS_PER_SECOND;
    let rate = if pause >= IDLE { ready } else { others };
    let known = u32::try_from(known).unwrap_or(u32::MAX);
    pause.max(Duration::from_secs(u64::from(known / rate)))
}
