//! Access to a cluster's objects in the API server: reads, writes, and the meaning of refusals.
//!
//! Every write names the object that was read, so that it never touches a replacement.

use futures::future::try_join_all;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions,
    PropagationPolicy,
};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde_json::{Value, json};

use super::{FIELD_MANAGER, differ};
use crate::build::{STAGE_ANNOTATION, names};
use crate::metrics::Metrics;
use crate::store::StoreError;

/// Annotation with a hash of the content that was applied last.
pub(super) const APPLIED_ANNOTATION: &str = "shardkv.io/applied";

/// A kind of object that clusters consist of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Config,
    Account,
    Network,
    Service,
    Budget,
    Set,
}

impl Kind {
    pub(super) const ALL: [Self; 6] = [
        Self::Config,
        Self::Account,
        Self::Network,
        Self::Service,
        Self::Budget,
        Self::Set,
    ];

    fn resource(self) -> ApiResource {
        match self {
            Self::Config => ApiResource::erase::<ConfigMap>(&()),
            Self::Account => ApiResource::erase::<ServiceAccount>(&()),
            Self::Network => ApiResource::erase::<NetworkPolicy>(&()),
            Self::Service => ApiResource::erase::<Service>(&()),
            Self::Budget => ApiResource::erase::<PodDisruptionBudget>(&()),
            Self::Set => ApiResource::erase::<StatefulSet>(&()),
        }
    }

    /// Returns the name of the kind.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Config => "ConfigMap",
            Self::Account => "ServiceAccount",
            Self::Network => "NetworkPolicy",
            Self::Service => "Service",
            Self::Budget => "PodDisruptionBudget",
            Self::Set => "StatefulSet",
        }
    }
}

/// An object as the operator wants it.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) kind: Kind,
    pub(super) name: String,
    value: Value,
    hash: String,
}

impl Wanted {
    /// Builds it from an object of [`crate::build`].
    pub(super) fn new<K: Resource + Serialize>(
        kind: Kind,
        object: &K,
    ) -> Result<Self, serde_json::Error> {
        let value = serde_json::to_value(object)?;
        let mut hashed = value.clone();
        // The stage changes independently, and a new stage doesn't mean that other content is to be applied.
        let annotations = hashed.pointer_mut("/metadata/annotations");
        if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
            annotations.remove(STAGE_ANNOTATION);
        }
        Ok(Self {
            kind,
            name: object.name_any(),
            hash: format!("{:016x}", names::fnv1a(hashed.to_string().as_bytes())),
            value,
        })
    }

    /// Returns a hash of the wanted content.
    pub(super) fn hash(&self) -> &str {
        &self.hash
    }

    /// Keeps the live object's stage: only the action for the stage changes it.
    pub(super) fn keep_stage(&mut self, live: &DynamicObject) {
        if let Some(stage) = live.annotations().get(STAGE_ANNOTATION) {
            self.annotate(STAGE_ANNOTATION, stage);
        }
    }

    /// Returns true if the live object already matches.
    pub(super) fn is_in(&self, live: &DynamicObject) -> Result<bool, serde_json::Error> {
        if live.annotations().get(APPLIED_ANNOTATION) != Some(&self.hash) {
            return Ok(false);
        }
        let mut wanted = self.value.clone();
        if let Some(wanted) = wanted.as_object_mut() {
            // Objects from a list carry no type.
            wanted.remove("apiVersion");
            wanted.remove("kind");
        }
        Ok(differ::contains(&serde_json::to_value(live)?, &wanted))
    }

    /// Returns the request body. An object that exists must still be the same one; a deleted one isn't created again.
    fn body(mut self, live: Option<&DynamicObject>) -> Value {
        let hash = self.hash.clone();
        self.annotate(APPLIED_ANNOTATION, &hash);
        if let (Some(live), Some(metadata)) = (live, self.metadata()) {
            metadata.insert("uid".to_owned(), json!(live.uid()));
            // Only a `StatefulSet` carries more than the built content: its stage.
            if live.annotations().contains_key(STAGE_ANNOTATION) {
                metadata.insert("resourceVersion".to_owned(), json!(live.resource_version()));
            }
        }
        self.value
    }

    fn annotate(&mut self, key: &str, text: &str) {
        let annotations = self
            .metadata()
            .map(|metadata| metadata.entry("annotations").or_insert_with(|| json!({})));
        if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
            annotations.insert(key.to_owned(), json!(text));
        }
    }

    fn metadata(&mut self) -> Option<&mut serde_json::Map<String, Value>> {
        self.value.get_mut("metadata")?.as_object_mut()
    }
}

/// Failure of a single write or request.
#[derive(Debug)]
pub(super) enum Failure {
    /// The object or the store has changed since it was read. The next round reads again.
    Race,
    /// Another object must disappear first, which happens by itself.
    Wait(String),
    /// The API server refuses, and will refuse again until a person changes something.
    Refused(String),
    /// The name belongs to an object of another owner.
    Taken(String),
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

/// Access to the objects of one namespace.
pub(super) struct Objects<'a> {
    pub(super) client: &'a Client,
    pub(super) namespace: &'a str,
    pub(super) metrics: &'a Metrics,
}

impl Objects<'_> {
    fn api(&self, kind: Kind) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), self.namespace, &kind.resource())
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
        let (kind, name) = (wanted.kind, wanted.name.clone());
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
    ) -> Result<DynamicObject, Failure> {
        let patch = json!({"metadata": {
            "uid": live.uid(),
            "resourceVersion": live.resource_version(),
            "annotations": {key: text},
        }});
        let parameters = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let name = live.name_any();
        let object = self
            .api(kind)
            .patch(&name, &parameters, &Patch::Merge(patch))
            .await?;
        self.metrics.object_written("patch", kind.name());
        Ok(object)
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

/// Returns true if the object's controller is the owner with this uid.
pub(super) fn is_owned_by(object: &DynamicObject, uid: &str) -> bool {
    let mut owners = object.owner_references().iter();
    owners.any(|owner| owner.controller == Some(true) && owner.uid == uid)
}
