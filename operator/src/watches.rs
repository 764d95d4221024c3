//! Watches of the Kubernetes API, which start rounds of reconciliation; see [`crate::run`].

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _, future};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::api::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::controller::{Config, Controller};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{PredicateConfig, WatchStreamExt as _};
use kube::{Client, Resource, ResourceExt};

use crate::crd::{ShardKvCluster, ShardKvKeyspace};
use crate::metrics::Metrics;

/// Events of a cluster within this time start one round.
const DEBOUNCE: Duration = Duration::from_millis(150);
/// Number of objects per page of a list.
const PAGE: u32 = 100;
/// Selects objects that the operator created.
const OURS: &str = "app.kubernetes.io/managed-by=shardkv-operator";
/// Annotation in which `kubectl apply` stores the whole resource.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The part of a resource that the watches keep in memory: its metadata.
pub(crate) type Seen = PartialObjectMeta<ShardKvCluster>;

/// The same of a keyspace's resource.
pub(crate) type SeenKeyspace = PartialObjectMeta<ShardKvKeyspace>;

/// Returns the API for objects of a kind in a namespace, or in all namespaces.
pub(crate) fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Returns a controller that starts rounds for the clusters of a namespace, or of all namespaces. Calls `gone` with each deleted
/// cluster, because no round starts for it any more.
pub(crate) fn controller(
    client: &Client,
    namespace: Option<&str>,
    metrics: &Arc<Metrics>,
    gone: impl Fn(&Seen) + Send + 'static,
) -> Controller<Seen> {
    let config = watcher::Config::default().page_size(PAGE);
    let (reader, writer) = reflector::store();
    let resources = watcher(api::<Seen>(client, namespace), config.clone()).modify(trim);
    let resources = reflector::reflector(writer, resources);
    let resources = resources.inspect(forget_deleted(reader.clone(), namespace, metrics, gone));
    let resources = with_backoff(resources.applied_objects(), metrics);
    let resources = resources.predicate_filter(
        |seen: &Seen| Some(trigger_hash(seen)),
        PredicateConfig::default(),
    );
    let sets = api::<PartialObjectMeta<StatefulSet>>(client, namespace);
    let sets = watcher(sets, config.labels(OURS)).touched_objects();
    Controller::for_stream(resources, reader)
        .owns_stream(with_backoff(sets, metrics))
        .with_config(Config::default().debounce(DEBOUNCE))
}

/// Returns a controller that starts rounds for the keyspaces of a namespace, or of all namespaces, and the keyspaces that it knows. Calls
/// `gone` with each deleted one. Services aren't watched: the next round finds and repairs a changed one.
pub(crate) fn keyspaces(
    client: &Client,
    namespace: Option<&str>,
    metrics: &Arc<Metrics>,
    gone: impl Fn(&SeenKeyspace) + Send + 'static,
) -> (Controller<SeenKeyspace>, Store<SeenKeyspace>) {
    let config = watcher::Config::default().page_size(PAGE);
    let (reader, writer) = reflector::store();
    let resources = watcher(api::<SeenKeyspace>(client, namespace), config).modify(trim);
    let resources = reflector::reflector(writer, resources);
    let resources = resources.inspect(move |event| {
        if let Ok(Event::Delete(deleted)) = event {
            gone(deleted);
        }
    });
    let resources = with_backoff(resources.applied_objects(), metrics);
    let resources = resources.predicate_filter(
        |seen: &SeenKeyspace| Some(trigger_hash(seen)),
        PredicateConfig::default(),
    );
    let controller = Controller::for_stream(resources, reader.clone())
        .with_config(Config::default().debounce(DEBOUNCE));
    (controller, reader)
}

/// Drops metadata that no code reads, to save memory.
fn trim(seen: &mut impl ResourceExt) {
    seen.meta_mut().managed_fields = None;
    seen.annotations_mut().remove(LAST_APPLIED);
}

/// Hashes everything whose change starts a round. The status is left out.
fn trigger_hash(seen: &impl ResourceExt) -> u64 {
    let mut hasher = DefaultHasher::new();
    seen.meta().generation.hash(&mut hasher);
    seen.meta().deletion_timestamp.is_some().hash(&mut hasher);
    seen.finalizers().hash(&mut hasher);
    seen.labels().hash(&mut hasher);
    seen.annotations().hash(&mut hasher);
    hasher.finish()
}

/// Restarts a failed watch with exponential backoff. Other watches go on meanwhile.
fn with_backoff<K>(
    watch: impl Stream<Item = watcher::Result<K>> + Send + 'static,
    metrics: &Arc<Metrics>,
) -> impl Stream<Item = watcher::Result<K>> + Send + 'static
where
    K: Send + 'static,
{
    let metrics = Arc::clone(metrics);
    watch.default_backoff().filter(move |seen| {
        if let Err(error) = seen {
            metrics.watch_failed();
            tracing::warn!("a watch of the Kubernetes API failed and is restarted: {error}");
        }
        future::ready(seen.is_ok())
    })
}

/// Calls `gone` for deleted clusters, and removes the metrics of those whose deletion was missed.
fn forget_deleted(
    existing: Store<Seen>,
    namespace: Option<&str>,
    metrics: &Arc<Metrics>,
    gone: impl Fn(&Seen) + Send + 'static,
) -> impl FnMut(&watcher::Result<Event<Seen>>) + Send + 'static {
    let (namespace, metrics) = (namespace.map(str::to_owned), Arc::clone(metrics));
    move |event| match event {
        Ok(Event::Delete(deleted)) => gone(deleted),
        Ok(Event::InitDone) => metrics.retain(|(of, name)| {
            let elsewhere = namespace
                .as_deref()
                .is_some_and(|namespace| namespace != of);
            elsewhere || existing.get(&ObjectRef::new(name).within(of)).is_some()
        }),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn seen(metadata: &Value) -> Seen {
        let mut seen: Seen = serde_json::from_value(json!({"metadata": metadata})).unwrap();
        trim(&mut seen);
        seen
    }

    #[test]
    fn every_change_but_one_of_the_status_starts_a_round() {
        let before = json!({
            "name": "a", "generation": 1, "resourceVersion": "5", "finalizers": ["f"],
            "labels": {"l": "1"}, "annotations": {"a": "1"},
        });
        let ask = |change: Value| {
            let mut metadata = before.clone();
            let fields = change.as_object().unwrap().clone();
            metadata.as_object_mut().unwrap().extend(fields);
            trigger_hash(&seen(&metadata))
        };
        let unchanged = ask(json!({}));
        for quiet in [
            json!({"resourceVersion": "6"}),
            json!({"managedFields": [{"manager": "m", "time": "2024-01-01T00:00:00Z"}]}),
            json!({"annotations": {"a": "1", LAST_APPLIED: "{}"}}),
        ] {
            assert_eq!(ask(quiet.clone()), unchanged, "{quiet}");
        }
        for asks in [
            json!({"generation": 2}),
            json!({"deletionTimestamp": "2024-01-01T00:00:00Z"}),
            json!({"finalizers": []}),
            json!({"labels": {"l": "2"}}),
            json!({"annotations": {}}),
        ] {
            assert_ne!(ask(asks.clone()), unchanged, "{asks}");
        }
    }
}
