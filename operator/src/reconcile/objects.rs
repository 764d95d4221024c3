//! Access to a cluster's objects in the API server: reads, writes, and the meaning of refusals.
//!
//! Every write names the object that was read, and the resource's version, so that it never touches a replacement: if
//! somebody else has written since, the write fails and the next round reads again.

use futures::future::try_join_all;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, Namespace, PersistentVolumeClaim, Pod, Service, ServiceAccount,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions,
    PropagationPolicy,
};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::wanted::Wanted;
use crate::metrics::Metrics;
use crate::parts::Kind;
use crate::store::StoreError;

/// Field manager of all fields that the operator applies.
pub const FIELD_MANAGER: &str = "shardkv-operator";

/// Limit of events read in a round.
const MAX_EVENTS: u32 = 500;

/// Failure of a single write or request.
#[derive(Debug)]
pub(super) enum Failure {
    /// The object or the store has changed since it was read. The next round reads again.
    Race,
    /// The API server refuses, and will refuse again until a person changes something.
    Refused(String),
    /// The store's controllers refuse or don't answer.
    Store(StoreError),
    /// The API server doesn't answer, or sends an unusable answer.
    Kube(kube::Error),
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                404 | 409 | 410 => Self::Race,
                // The API server returns 500 for input that it can't process, and for webhooks that don't answer: a
                // person must fix this object, and the rest of the round can go on.
                400 | 403 | 405 | 413 | 415 | 422 | 500 => Self::Refused(status.message.clone()),
                _ => Self::Kube(kube::Error::Api(status)),
            },
            error => Self::Kube(error),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Kube(kube::Error::SerdeError(error))
    }
}

/// A resource that users write, and whose status the operator writes.
pub(super) trait Custom:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()>
    + Clone
    + DeserializeOwned
    + std::fmt::Debug
{
}

impl<K> Custom for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
{
}

/// Access to the objects of one namespace.
pub(super) struct Objects<'a> {
    client: &'a Client,
    metrics: &'a Metrics,
    namespace: &'a str,
}

impl<'a> Objects<'a> {
    pub(super) fn new(client: &'a Client, metrics: &'a Metrics, namespace: &'a str) -> Self {
        Self {
            client,
            metrics,
            namespace,
        }
    }

    fn api(&self, kind: Kind) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), self.namespace, &resource(kind))
    }

    fn resources<K: Custom>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    /// Reads a resource; `None` if it doesn't exist.
    pub(super) async fn resource<K: Custom>(&self, name: &str) -> Result<Option<K>, kube::Error> {
        self.resources().get_opt(name).await
    }

    /// Returns true if the namespace is known to be deleted. An operator without the right to read it doesn't know.
    pub(super) async fn namespace_ends(&self) -> bool {
        let api = Api::<Namespace>::all(self.client.clone());
        let namespace = api.get(self.namespace).await;
        namespace.is_ok_and(|it| it.metadata.deletion_timestamp.is_some())
    }

    /// Lists all objects of all kinds with these labels.
    pub(super) async fn list(
        &self,
        labels: &str,
    ) -> Result<Vec<(Kind, DynamicObject)>, kube::Error> {
        let parameters = ListParams::default().labels(labels);
        let lists = Kind::ALL.map(|kind| {
            let (api, parameters) = (self.api(kind), &parameters);
            async move {
                let list = api.list(parameters).await?;
                let items = list.items.into_iter().map(move |object| (kind, object));
                Ok::<_, kube::Error>(items.collect::<Vec<_>>())
            }
        });
        Ok(try_join_all(lists).await?.into_iter().flatten().collect())
    }

    /// Lists all volumes with these labels.
    pub(super) async fn volumes(
        &self,
        labels: &str,
    ) -> Result<Vec<PersistentVolumeClaim>, kube::Error> {
        let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), self.namespace);
        let parameters = ListParams::default().labels(labels);
        Ok(api.list(&parameters).await?.items)
    }

    /// Lists all pods with these labels.
    pub(super) async fn pods(&self, labels: &str) -> Result<Vec<Pod>, kube::Error> {
        let api = Api::<Pod>::namespaced(self.client.clone(), self.namespace);
        let parameters = ListParams::default().labels(labels);
        Ok(api.list(&parameters).await?.items)
    }

    /// Lists what kept Kubernetes from creating pods and volumes of `StatefulSet`s. Empty if the operator may not read events:
    /// they only explain.
    pub(super) async fn failed_creations(&self) -> Result<Vec<Event>, kube::Error> {
        let api = Api::<Event>::namespaced(self.client.clone(), self.namespace);
        let parameters = ListParams::default()
            .fields("involvedObject.kind=StatefulSet,reason=FailedCreate")
            .limit(MAX_EVENTS);
        match api.list(&parameters).await {
            Ok(list) => Ok(list.items),
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Reads an object; `None` if it doesn't exist.
    pub(super) async fn get(
        &self,
        kind: Kind,
        name: &str,
    ) -> Result<Option<DynamicObject>, kube::Error> {
        self.api(kind).get_opt(name).await
    }

    /// Applies an object; `live` is its last read state.
    pub(super) async fn apply(
        &self,
        wanted: Wanted,
        live: Option<&DynamicObject>,
    ) -> Result<DynamicObject, Failure> {
        let (kind, name) = wanted.key();
        let mut parameters = PatchParams::apply(FIELD_MANAGER);
        // A creation must not override the fields of an object that somebody else creates at the same moment.
        parameters.force = live.is_some();
        let patch = Patch::Apply(wanted.body(live));
        let object = self.api(kind).patch(&name, &parameters, &patch).await?;
        self.metrics.object_written("apply", kind.name());
        Ok(object)
    }

    /// Changes an annotation of an object, if the object hasn't changed since it was read.
    pub(super) async fn annotate(
        &self,
        kind: Kind,
        live: &DynamicObject,
        key: &str,
        text: &str,
    ) -> Result<(), Failure> {
        let patch = json!({"metadata": {
            "uid": live.uid(),
            "resourceVersion": live.resource_version(),
            "annotations": {key: text},
        }});
        let patch = Patch::Merge(patch);
        let name = live.name_any();
        self.api(kind).patch(&name, &merging(), &patch).await?;
        self.metrics.object_written("patch", kind.name());
        Ok(())
    }

    /// Deletes an object, if it is still this one; with `version`, only if it is unchanged. Its dependents are deleted
    /// in the background, so the deletion doesn't wait for pods on lost machines.
    pub(super) async fn delete(
        &self,
        kind: Kind,
        live: &DynamicObject,
        version: bool,
    ) -> Result<(), Failure> {
        let version = live.resource_version().filter(|_| version);
        let parameters = precisely(live.uid(), version);
        self.api(kind).delete(&live.name_any(), &parameters).await?;
        self.metrics.object_written("delete", kind.name());
        Ok(())
    }

    /// Deletes a volume, if it is still this one.
    pub(super) async fn delete_volume(&self, name: &str, uid: &str) -> Result<(), Failure> {
        let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), self.namespace);
        let parameters = precisely(Some(uid.to_owned()), None);
        api.delete(name, &parameters).await?;
        self.metrics
            .object_written("delete", "PersistentVolumeClaim");
        Ok(())
    }

    /// Replaces the finalizers of this version of a resource, and returns the changed one.
    pub(super) async fn set_finalizers<K: Custom>(
        &self,
        live: &K,
        finalizers: &[String],
    ) -> Result<K, Failure> {
        let patch = Patch::Merge(json!({"metadata": {
            "uid": live.uid(),
            "resourceVersion": live.resource_version(),
            "finalizers": finalizers,
        }}));
        let name = live.name_any();
        let changed = self.resources().patch(&name, &merging(), &patch).await?;
        self.metrics.object_written("patch", &K::kind(&()));
        Ok(changed)
    }

    /// Writes the status of this version of a resource, and returns the changed one.
    pub(super) async fn set_status<K: Custom>(
        &self,
        live: &K,
        status: &impl Serialize,
    ) -> Result<K, Failure> {
        let name = live.name_any();
        let patch = Patch::Apply(json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": {
                "name": name,
                "uid": live.uid(),
                "resourceVersion": live.resource_version(),
            },
            "status": status,
        }));
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let api: Api<K> = self.resources();
        let changed = api.patch_status(&name, &parameters, &patch).await?;
        self.metrics.object_written("status", &K::kind(&()));
        Ok(changed)
    }
}

fn resource(kind: Kind) -> ApiResource {
    match kind {
        Kind::Config => ApiResource::erase::<ConfigMap>(&()),
        Kind::Account => ApiResource::erase::<ServiceAccount>(&()),
        Kind::Network => ApiResource::erase::<NetworkPolicy>(&()),
        Kind::Service => ApiResource::erase::<Service>(&()),
        Kind::Budget => ApiResource::erase::<PodDisruptionBudget>(&()),
        Kind::Set => ApiResource::erase::<StatefulSet>(&()),
    }
}

fn merging() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

fn precisely(uid: Option<String>, resource_version: Option<String>) -> DeleteParams {
    DeleteParams {
        propagation_policy: Some(PropagationPolicy::Background),
        preconditions: Some(Preconditions {
            resource_version,
            uid,
        }),
        ..DeleteParams::default()
    }
}
