//! The first step: reads the observed state of a round, live. Caches only trigger rounds.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::context::Context;
use super::objects::Objects;
use super::observed::Observed;
use super::pods;
use crate::build::names;
use crate::crd::Retention;
use crate::parts::Component;
use crate::store::{Store, StoreError};
use crate::validate::{self, Cluster, Desired, Intent};

/// Time limit for any answer of the store, whatever its client promises.
const LONGEST_CALL: Duration = Duration::from_secs(15);

/// Reads the observed state of a cluster; `None` if the resource doesn't exist.
pub(super) async fn observe<S: Store>(
    context: &Context<S>,
    namespace: &str,
    name: &str,
    now: &Time,
) -> Result<Option<Observed>, kube::Error> {
    let objects = Objects::new(&context.client, &context.metrics, namespace);
    let Some(resource) = objects.resource(name).await? else {
        return Ok(None);
    };
    let mut observed = Observed::new(resource);
    let desired = validate::desired(&observed.resource);
    if let Some(desired) = desired.ok().filter(|it| is_changed(&observed, it)) {
        if let Err(error) = list(&objects, &desired.cluster, &mut observed, now).await {
            // A deleted namespace takes the Role of an operator of single namespaces away before the resource.
            let deleting = desired.intent == Intent::Delete;
            if deleting && is_forbidden(&error) && objects.namespace_ends().await {
                observed.namespace_ends = true;
                return Ok(Some(observed));
            }
            return Err(error);
        }
        // Deletion needs no answer of the store.
        if desired.intent != Intent::Delete {
            query_store(context, &desired.cluster, &mut observed).await;
        }
        observed.fruitless = context.memory.fruitless(namespace, name);
    }
    Ok(Some(observed))
}

pub(super) fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

/// Returns true if the round may change the cluster's objects: the resource is valid, and the operator hasn't released
/// it and isn't about to.
fn is_changed(observed: &Observed, desired: &Desired) -> bool {
    let retains = desired.cluster.spec.storage.on_cluster_deletion == Retention::Retain;
    let released = !observed.has_finalizer() || observed.orphans() || retains;
    desired.invalid.is_none() && !(desired.intent == Intent::Delete && released)
}

async fn list(
    objects: &Objects<'_>,
    cluster: &Cluster,
    observed: &mut Observed,
    now: &Time,
) -> Result<(), kube::Error> {
    let labels = names::formatted(&names::selector(cluster));
    let (found, volumes, pods) = tokio::try_join!(
        objects.list(&labels),
        objects.volumes(&labels),
        objects.pods(&labels)
    )?;
    for (kind, object) in found {
        let added = observed.add_object(cluster, kind, object, now);
        added.map_err(kube::Error::SerdeError)?;
    }
    observed.add_pods(cluster, &volumes, &pods, now);
    let lacking = observed.lacking();
    if !lacking.is_empty() {
        let events = objects.failed_creations().await?;
        observed.add_unmade(pods::unmade(cluster, &lacking, &pods, &events));
    }
    Ok(())
}

/// Asks the store, if its controllers may run, about the parts that may run.
async fn query_store<S: Store>(context: &Context<S>, cluster: &Cluster, observed: &mut Observed) {
    if !observed.sets.contains_key(&Component::Controller) {
        return;
    }
    let parts: BTreeSet<Component> = observed.sets.keys().copied().collect();
    let health = context.store.health(cluster, &parts);
    let health = tokio::time::timeout(LONGEST_CALL, health);
    let (view, health) = tokio::join!(bounded(context.store.view(cluster)), health);
    let health = health.unwrap_or_default();
    match &view {
        Ok(view) => {
            let (namespace, name) = (&cluster.namespace, &cluster.name);
            let memory = &context.memory;
            let incoming = health.iter().filter_map(|(part, health)| match part {
                Component::Group(gid) => Some((*gid, health.incoming_bytes)),
                Component::Controller => None,
            });
            let seen = (view, &incoming.collect());
            observed.stalled = memory.stalled(namespace, name, seen, Instant::now());
        }
        Err(_) => context.metrics.store_failed(),
    }
    observed.view = Some(view);
    observed.health = health;
}

/// Awaits an answer of the store, with a time limit.
pub(super) async fn bounded<T>(
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let late = |_| Err(StoreError::Unreachable("no answer in time".to_owned()));
    tokio::time::timeout(LONGEST_CALL, call)
        .await
        .unwrap_or_else(late)
}
