//! What is watched, and how that becomes rounds; see [`crate::run`].

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
use kube::{Client, Resource, ResourceExt as _};

use crate::crd::ShardKvCluster;
use crate::metrics::Metrics;

/// What happens within this time makes one round.
const DEBOUNCE: Duration = Duration::from_millis(150);
/// How many objects a list brings at once.
const PAGE: u32 = 100;
/// Selects objects that the operator made.
const OURS: &str = "app.kubernetes.io/managed-by=shardkv-operator";
/// `kubectl apply` keeps the whole resource here.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What is kept of a resource.
pub(crate) type Seen = PartialObjectMeta<ShardKvCluster>;

/// The objects of a kind in a namespace, or in all.
pub(crate) fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Asks for rounds over the clusters of a namespace, or of all.
pub(crate) fn controller(
    client: &Client,
    namespace: Option<&str>,
    metrics: &Arc<Metrics>,
) -> Controller<Seen> {
    let config = watcher::Config::default().page_size(PAGE);
    let (reader, writer) = reflector::store();
    let resources = watcher(api::<Seen>(client, namespace), config.clone()).modify(trim);
    let resources = reflector::reflector(writer, resources);
    let resources = resources.inspect(forget_deleted(reader.clone(), namespace, metrics));
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

/// Drops what nobody looks at.
fn trim(seen: &mut Seen) {
    seen.metadata.managed_fields = None;
    seen.annotations_mut().remove(LAST_APPLIED);
}

/// Changes with all that a round may answer to. Not with the status.
fn trigger_hash(seen: &Seen) -> u64 {
    let mut hasher = DefaultHasher::new();
    seen.metadata.generation.hash(&mut hasher);
    seen.metadata.deletion_timestamp.is_some().hash(&mut hasher);
    seen.finalizers().hash(&mut hasher);
    seen.labels().hash(&mut hasher);
    seen.annotations().hash(&mut hasher);
    hasher.finish()
}

/// A watch that broke off begins anew, after a pause that grows, and holds up no other watch.
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
            tracing::warn!("a watch broke off and begins anew: {error}");
        }
        future::ready(seen.is_ok())
    })
}

/// Forgets the figures of clusters that are gone.
fn forget_deleted(
    there: Store<Seen>,
    namespace: Option<&str>,
    metrics: &Arc<Metrics>,
) -> impl FnMut(&watcher::Result<Event<Seen>>) + Send + 'static {
    let (namespace, metrics) = (namespace.map(str::to_owned), Arc::clone(metrics));
    move |event| match event {
        Ok(Event::Delete(gone)) => {
            metrics.cluster_gone(&gone.namespace().unwrap_or_default(), &gone.name_any());
        }
        Ok(Event::InitDone) => metrics.retain(|(of, name)| {
            let elsewhere = namespace
                .as_deref()
                .is_some_and(|namespace| namespace != of);
            elsewhere || there.get(&ObjectRef::new(name).within(of)).is_some()
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
    fn a_round_is_asked_for_by_everything_but_the_status() {
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
